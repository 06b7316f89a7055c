"""Several nodes' and their coordinators' state machines, against peers that die whenever they like.

RECOVERY.md names the invariants A to E; `world` checks them after every event. A failure prints its seed and
the last events; `HOLDFAST_SIM_SEED=17 pytest tests/sim/test_training.py` plays that seed alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING

import pytest

from orchestrator.events import Status
from tests.sim.network import PlayedExchange
from tests.sim.world import Odds, World, told

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 20


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    directory = tempfile.mkdtemp(prefix="simulated-", dir=shared)
    monkeypatch.setenv("HOLDFAST_SHM_DIR", directory)
    monkeypatch.setattr("workers.links.Exchange", PlayedExchange)
    yield
    shutil.rmtree(directory)


def seeds(count: int) -> pytest.MarkDecorator:
    """So many seeds in chunks, or the one that the environment names."""
    one = os.environ.get("HOLDFAST_SIM_SEED")
    chunks = [[int(one)]] if one else [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    return pytest.mark.parametrize("chosen", chunks, ids=lambda chunk: f"from {chunk[0]}")


def played(world: World) -> World:
    """Run it, again if it was stopped; what goes wrong is told with its seed and events."""
    try:
        for _ in range(20):
            state = world.run()
            if state.status is Status.DONE:
                world.check_done(state)
                return world
            world.note(f"stopped: {state.status}")
            world.forget()
            world.up = {*world.room}
            world.succeed()
        raise AssertionError("it is stopped for ever")  # noqa: TRY301 - told with its seed as any other
    except BaseException as error:
        told(world, error)
        raise
    finally:
        world.end_attempt(remove=True)


ALL = Odds(
    disturbance=0.015,
    worker=10,
    agent=3,
    crowd=1,
    machine=2,
    coordinator=2,
    zombie=1,
    scale=2,
    drain=1,
    signal=1,
)

KINDS = {
    "workers": Odds(),
    "agents": Odds(worker=2, agent=5, crowd=3, disturbances=6),
    "machines": Odds(worker=2, machine=5, disturbances=6),
    "coordinators": Odds(worker=2, coordinator=4, zombie=4, disturbances=8),
    "scaling": Odds(worker=2, scale=8),
    "draining": Odds(worker=2, drain=4, machine=1, disturbances=6),
    "stopping": Odds(worker=2, signal=3, agent=1, disturbances=6),
    "everything": ALL,
}


@pytest.mark.parametrize("kind", KINDS)
@seeds(60)
def test_every_run_ends_in_the_bits_of_the_undisturbed_one(kind: str, chosen: range) -> None:
    for seed in chosen:
        played(World(seed, f"{kind}-{seed}", KINDS[kind]))
