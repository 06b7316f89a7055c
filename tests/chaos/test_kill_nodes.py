"""Nodes are lost with their memory, under the process runtime; the others go on from the same step."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.judging import (
    assert_latest_verifies,
    assert_no_checkpoint_read,
    assert_no_step_lost,
    assert_same_bits,
)
from tests.integration.harness import Progress

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Outcome, Place, Started

pytestmark = [pytest.mark.chaos, pytest.mark.row("node")]

full = pytest.mark.full


def begin(place: Place, nodes: int, steps: int, **kwargs: Any) -> tuple[Started, Progress]:
    """A run over some nodes, with a worker on each, that has made some steps."""
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.02, "every": 1000, "progress": progress}
    more = ["--nodes", str(nodes)]
    run = place.begin(workers=nodes, steps=steps, settings=settings, more=more, **kwargs)
    run.until(lambda: progress.steps > 20, "20 steps")
    return run, progress


def assert_good(place: Place, outcome: Outcome, digest: str) -> None:
    """A, B and C, in one attempt: the job was not restarted."""
    result = assert_same_bits(outcome, digest)
    assert (result["restarts"], result["attempt"]) == (0, 1), str(outcome)
    assert_no_step_lost(outcome)
    assert_no_checkpoint_read(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)


@pytest.mark.parametrize(
    ("nodes", "lost"),
    [
        (2, [0]),
        pytest.param(2, [1], marks=full),
        pytest.param(3, [0], marks=full),
        pytest.param(3, [2], marks=full),
        (3, [0, 1]),
        pytest.param(3, [1, 2], marks=full),
        pytest.param(3, [0, 2], marks=full),
    ],
)
def test_nodes_that_are_lost_cost_no_step(
    place: Place, reference: Reference, nodes: int, lost: list[int]
) -> None:
    run, _ = begin(place, nodes, 150)
    run.kill_nodes(*lost)
    assert_good(place, run.wait(), reference(steps=150)["state_digest"])


@pytest.mark.parametrize("again", [pytest.param(1, marks=full), 2])
def test_a_node_that_is_lost_while_it_copies_the_state_costs_no_step(
    place: Place, reference: Reference, again: int
) -> None:
    faults = [{"kill": "agent", "rank": 2, "step": 20, "phase": "gradient"}]
    faults += [{"kill": "agent", "rank": 2, "step": 0, "phase": "copy"}] * again
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.02, "every": 1000, "progress": progress}
    outcome = place.run(workers=3, steps=250, settings=settings, more=["--nodes", "3"], faults=faults)
    assert outcome.stderr.count("node 2 is lost") == 1 + again, f"not lost in mid-copy{outcome}"
    assert_good(place, outcome, reference(steps=250)["state_digest"])


@full
def test_the_node_that_is_copied_from_is_lost_meanwhile(place: Place, reference: Reference) -> None:
    """Another one holds the state, so nothing is lost."""
    faults = [{"kill": "agent", "rank": 2, "step": 20, "phase": "gradient"}]
    faults += [{"hang": "agent", "rank": 2, "step": 0, "phase": "copy"}]
    run, _ = begin(place, 3, 250, faults=faults)
    run.until(lambda: run.stopped("agent"), "node 2 to copy")
    run.kill_nodes(0)
    assert_good(place, run.wait(), reference(steps=250)["state_digest"])


@full
def test_nodes_lost_one_after_another_at_random_moments_cost_no_step(
    place: Place, reference: Reference
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    run, progress = begin(place, 3, 900)
    lost = 0
    while run.running() and lost < 6 and progress.steps < 600:
        there = [node for node in range(3) if run.node(node) and place.node_memory(node)]
        if len(there) == 3:
            run.kill_nodes(rng.choice(there))
            lost += 1
        time.sleep(rng.uniform(1.0, 3.0))
    outcome = run.wait()
    assert lost >= 2, str(outcome)
    result = assert_same_bits(outcome, reference(steps=900)["state_digest"])
    assert result["steps_lost"] == 0, str(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)
