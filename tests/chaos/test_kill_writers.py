"""Writers are killed before, during and after a shard: the checkpoint is given up, training goes on."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import assert_latest_verifies, assert_no_step_lost, assert_same_bits
from tests.integration.harness import Progress, latest, saved, signal_all

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("writer")]

full = pytest.mark.full


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=full)])
@pytest.mark.parametrize(
    ("phase", "step"), [("before", 20), ("after", 20), pytest.param("after", 60, marks=full)]
)
def test_a_writer_killed_before_and_after_a_shard_costs_that_checkpoint_at_most(
    place: Place, reference: Reference, phase: str, step: int, nodes: int
) -> None:
    """The last one is tried again."""
    fault = {"kill": "writer", "rank": nodes - 1, "step": step, "phase": phase}
    outcome = place.run(settings={"delay_s": 0.005}, more=["--nodes", str(nodes)], faults=[fault])
    result = assert_same_bits(outcome, reference()["state_digest"])
    assert "given up" in outcome.stderr, f"the fault did not strike{outcome}"
    assert (result["restarts"], result["attempt"]) == (0, 1), str(outcome)
    assert_no_step_lost(outcome)
    assert latest(place.root / "run").step == 60
    assert_latest_verifies(place)
    place.assert_nothing_left()


def test_a_writer_killed_during_a_shard_publishes_nothing_of_it(place: Place, reference: Reference) -> None:
    progress = Progress(place.root / "progress")
    settings = {"hidden": 65536, "delay_s": 0.01, "every": 10, "progress": progress}
    run = place.begin(steps=60, settings=settings)
    run.until(lambda: progress.steps > 3, "training")
    during = 0
    for step in range(10, 60, 10):
        writers = run.processes("writer")
        known = {each.path for each in saved(place.root / "run")}
        run.until(
            lambda: {each.path for each in saved(place.root / "run")} - known,  # noqa: B023
            f"a checkpoint after step {step}",
            poll_s=0.0005,
        )
        signal_all(writers, signal.SIGKILL)
        during += any(not each.complete for each in saved(place.root / "run") if each.path not in known)
        if during == 2:
            break
    outcome = run.wait()
    assert during, f"never during a shard{outcome}"
    assert_same_bits(outcome, reference(hidden=65536)["state_digest"])
    assert_no_step_lost(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left()


@full
def test_a_writer_killed_while_it_reads_a_checkpoint_is_followed_by_one_that_reads_it(
    place: Place, reference: Reference
) -> None:
    place.run(steps=40).done()
    fault = {"kill": "writer", "step": 0, "phase": "restore"}
    outcome = place.run(steps=60, faults=[fault])
    assert_same_bits(outcome, reference()["state_digest"])
    assert (outcome.json["restarts"], outcome.json["attempt"]) == (0, 2), str(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left()
