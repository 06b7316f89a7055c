"""Nodes of a Ray cluster on this machine crash or are drained; the others go on from the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.judging import assert_no_checkpoint_read, assert_no_step_lost, assert_same_bits
from tests.integration.harness import KILLS, Place, Progress, alive, signal_all, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Reference

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.full, pytest.mark.timeout(240)]

CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(int(sys.argv[1]))]
print("READY", json.dumps([cluster.address, [node.node_id for node in nodes]]), flush=True)
for line in sys.stdin:
    if line == "another\\n":
        nodes.append(cluster.add_node(num_cpus=1))
    else:
        cluster.remove_node(nodes[int(line)], allow_graceful=False)
    print("DONE", flush=True)
cluster.shutdown()
"""


class RayCluster:
    """A head without CPUs and some nodes with one CPU each, in a process of their own."""

    def __init__(self, place: Place, nodes: int) -> None:
        self.place = place
        with (place.root / "cluster.log").open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", CLUSTER, str(nodes)],
                env=place.env,
                cwd=place.root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address, self.ids = json.loads(self._answer("READY"))

    def _answer(self, word: str) -> str:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        pytest.fail(f"no {word}:\n{(self.place.root / 'cluster.log').read_text()[-5000:]}")

    def crash(self, node: int) -> None:
        """Kill all processes of a node."""
        self._ask(str(node))
        KILLS["killed"] += 1

    def add(self) -> None:
        """Have another node join."""
        self._ask("another")

    def _ask(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()
        self._answer("DONE")

    def drain(self, node: int, seconds: int) -> None:
        """Have Ray announce that a node will be taken away."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.address]
        command += ["--node-id", self.ids[node], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, env=self.place.env, check=True, timeout=60, capture_output=True)

    def close(self) -> None:
        """Stop the cluster, by force after 20 s."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(10)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        left = alive(self.place.strays())
        signal_all(left, 9)


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RayCluster]:
    """A cluster of so many nodes as the test's parameter says."""
    before = KILLS["killed"]
    place = Place(tmp_path, {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"})
    started = RayCluster(place, request.param)
    yield started
    killed = KILLS["killed"]
    started.close()
    place.close()
    KILLS["killed"] = max(before, killed)


def begin(cluster: RayCluster, nodes: int) -> tuple[Any, Progress]:
    """A run over all nodes that has made some steps."""
    place = cluster.place
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.02, "every": 1000, "progress": progress}
    more = ["--nodes", str(nodes), "--address", cluster.address]
    run = place.begin(workers=nodes, runtime="ray", steps=400, settings=settings, more=more)
    run.until(lambda: progress.steps > 30, "30 steps", 120)
    return run, progress


@pytest.mark.row("node")
@pytest.mark.parametrize(("cluster", "lost"), [(2, [0]), (3, [1, 2])], indirect=["cluster"])
def test_nodes_of_a_ray_cluster_that_crash_cost_no_step(
    cluster: RayCluster, reference: Reference, lost: list[int]
) -> None:
    run, _ = begin(cluster, len(cluster.ids))
    for node in lost:
        cluster.crash(node)
    outcome = run.wait(150)
    result = assert_same_bits(outcome, reference(steps=400)["state_digest"])
    assert (result["restarts"], result["attempt"]) == (0, 1), str(outcome)
    assert_no_step_lost(outcome)
    assert_no_checkpoint_read(outcome)


@pytest.mark.row("node")
@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_the_last_node_that_crashes_is_waited_for_until_another_comes(
    cluster: RayCluster, reference: Reference
) -> None:
    """For some seconds Ray takes it to be alive; then the cluster has no CPU at all."""
    run, _ = begin(cluster, 1)
    cluster.crash(0)
    time.sleep(20)
    assert run.running(), str(run.wait())
    cluster.add()
    outcome = run.wait(150)
    result = assert_same_bits(outcome, reference(steps=400)["state_digest"])
    assert result["restarts"] <= 2, str(outcome)


@pytest.mark.row("sigterm")
@pytest.mark.parametrize("cluster", [2], indirect=True)
def test_a_node_that_ray_drains_hands_its_work_to_the_other(
    cluster: RayCluster, reference: Reference
) -> None:
    run, _ = begin(cluster, 2)
    cluster.drain(1, 60)
    wait_for(lambda: "about to be taken away" in run.said() or not run.running(), "the notice", 30)
    outcome = run.wait(150)
    assert_same_bits(outcome, reference(steps=400)["state_digest"])
    assert "Ray drains it" in outcome.stderr, str(outcome)
    assert_no_step_lost(outcome)
    assert os.path.exists(cluster.place.root / "run")
