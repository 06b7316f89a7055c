"""One coordinator's runtime after another's on Ray: what the first has left is found, or missed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import wait_for

if TYPE_CHECKING:
    from tests.conftest import RayHost
    from tests.integration.harness import Place

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

PLAY = """
import json, sys, time
import ray
from orchestrator.events import Heard, NodeLost
from orchestrator.ray_runtime import RayRuntime
from workers import messages as m

def connected():
    runtime = RayRuntime(b"", None, 1, 0.0, "0123456789abcdef")
    runtime.connect(print)
    return runtime, runtime.places(1)[0].alive

def events(runtime, attempt, commands, kind):
    told = []
    deadline = time.monotonic() + 60
    while not any(isinstance(event, kind) for event in told):
        assert time.monotonic() < deadline, told
        heard, _ = runtime.exchange(attempt, commands, 0.1)
        told += [event.event if isinstance(event, Heard) else event for event in heard]
        commands = []
    return [event for event in told if isinstance(event, kind)]

said = {}
dead, said["before"] = connected()
dead.start(0, "agent", 0, 0)
dead.start(0, "writer", 0, 0)
successor, said["found"] = connected()
successor.start(0, "agent", 0, 0)
successor.start(0, "writer", 0, 0)  # the dead one's is still starting
greet = [(0, m.Greet(2, 0))]
said["ready"] = [[e.role, e.rank, e.generation] for e in events(successor, 2, greet, m.Ready)]
last, said["again"] = connected()
successor.abandon(0)
dead.abandon(0)
deadline = time.monotonic() + 60
while ray.util.list_named_actors():
    assert time.monotonic() < deadline
    time.sleep(0.1)
last.start(0, "agent", 0, 0)
last.start(0, "writer", 0, 0)
said["lost"] = [e.cause for e in events(last, 3, greet, NodeLost)]
print("SAID", json.dumps(said))
"""


def _play(place: Place, program: str) -> str:
    """What a program prints that ends well."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=place.env,
        cwd=place.root,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_successor_on_ray_takes_over_what_is_starting_and_misses_what_has_ended(
    ray_place: Place, ray_host: RayHost
) -> None:
    """Three runtimes of one `holdfast run`, one after another."""
    said = json.loads(_play(ray_place, PLAY).rpartition("SAID ")[2])
    assert (said["before"], said["found"], said["again"]) == (None, 0, 0)
    assert ["writer", 0, 0] in said["ready"]
    assert said["lost"] == ["has ended since it was found"]
    wait_for(lambda: not ray_host.actors(), "the actors to end", 20)


LEAVE = """
import time
import ray
from orchestrator.events import Heard
from orchestrator.ray_runtime import RayRuntime
from workers import messages as m

runtime = RayRuntime(b"", None, 1, 0.0, "fedcba9876543210")
runtime.connect(print)
runtime.places(1)
runtime.start(0, "agent", 0, 0)
heard, commands, deadline = [], [(0, m.Greet(1, 0))], time.monotonic() + 60
while not heard:
    assert time.monotonic() < deadline
    heard, commands = [e for e in runtime.exchange(1, commands, 0.1)[0] if isinstance(e, Heard)], []
commands = [(0, m.Close(remove=True))]
while ray.util.list_named_actors():
    assert time.monotonic() < deadline
    runtime.exchange(1, commands, 0.1)
    commands = []
"""


def test_an_agent_that_is_let_go_leaves_its_node_to_ray(ray_place: Place, ray_host: RayHost) -> None:
    """Else a node that Ray drains would be waited for until the end of its time."""
    _play(ray_place, LEAVE)
    wait_for(lambda: not ray_host.actors(), "the actor to end", 20)
