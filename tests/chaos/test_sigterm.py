"""SIGTERM at every point, twice, and to one process of a node: the run stops in time, or goes on."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import assert_latest_verifies, assert_no_step_lost, assert_same_bits
from tests.integration.harness import Progress, latest, saved, signal_all

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Place, Started

pytestmark = [pytest.mark.chaos, pytest.mark.row("sigterm")]

full = pytest.mark.full
GRACE_S = 20.0
STEPS = 150


def assert_stops_in_time_and_goes_on(
    place: Place, run: Started, digest: str, again: dict[str, object]
) -> None:
    """F: within the grace period, with a checkpoint of the last step, and exit code 75."""
    began = time.monotonic()
    outcome = run.wait(2 * GRACE_S).expect(75)
    assert time.monotonic() - began < GRACE_S, str(outcome)
    result = outcome.result
    assert result["status"] == "preempted", str(outcome)
    if result["step"]:
        assert latest(place.root / "run").step == result["step"], str(outcome)
    place.assert_no_process()
    outcome = place.run(steps=STEPS, settings=again)
    assert_same_bits(outcome, digest)
    assert_no_step_lost(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left()


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=full), 2])
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=full)])
def test_sigterm_in_a_step(place: Place, reference: Reference, nodes: int, times: int) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "every": 1000, "progress": progress}
    more = ["--nodes", str(nodes), "--grace-period", str(GRACE_S)]
    run = place.begin(steps=STEPS, settings=settings, more=more)
    run.until(lambda: progress.steps > 20, "20 steps")
    for _ in range(times):
        os.kill(run.popen.pid, signal.SIGTERM)
        time.sleep(0.02)
    assert_stops_in_time_and_goes_on(place, run, reference(steps=STEPS)["state_digest"], settings)


@full
def test_sigterm_in_a_save(place: Place, reference: Reference) -> None:
    progress = Progress(place.root / "progress")
    settings = {"hidden": 65536, "delay_s": 0.01, "every": 20, "progress": progress}
    run = place.begin(steps=STEPS, settings=settings, more=["--grace-period", str(GRACE_S)])
    run.until(lambda: saved(place.root / "run"), "the first checkpoint", poll_s=0.0005)
    os.kill(run.popen.pid, signal.SIGTERM)
    digest = reference(steps=STEPS, hidden=65536)["state_digest"]
    assert_stops_in_time_and_goes_on(place, run, digest, settings)


@full
def test_sigterm_in_a_restore(place: Place, reference: Reference) -> None:
    settings = {"hidden": 65536}
    place.run(steps=40, settings=settings).done()
    run = place.begin(steps=STEPS, settings=settings, more=["--grace-period", str(GRACE_S)])
    run.until(lambda: "going on from the checkpoint" in run.said(), "the restore", poll_s=0.0005)
    os.kill(run.popen.pid, signal.SIGTERM)
    digest = reference(steps=STEPS, hidden=65536)["state_digest"]
    assert_stops_in_time_and_goes_on(place, run, digest, settings)


@pytest.mark.parametrize("role", [pytest.param("worker", marks=full), pytest.param("agent", marks=full)])
def test_sigterm_to_a_process_of_the_only_node_stops_the_run(
    place: Place, reference: Reference, role: str
) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "every": 1000, "progress": progress}
    run = place.begin(steps=STEPS, settings=settings, more=["--grace-period", str(GRACE_S)])
    run.until(lambda: progress.steps > 20, "20 steps")
    signal_all(run.processes(role)[:1], signal.SIGTERM)
    assert_stops_in_time_and_goes_on(place, run, reference(steps=STEPS)["state_digest"], settings)


@pytest.mark.parametrize(
    "role", ["worker", pytest.param("writer", marks=full), pytest.param("agent", marks=full)]
)
def test_sigterm_to_a_process_of_a_node_of_two_hands_its_work_to_the_other(
    place: Place, reference: Reference, role: str
) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.02, "every": 1000, "progress": progress}
    run = place.begin(steps=STEPS, settings=settings, more=["--nodes", "2"])
    run.until(lambda: progress.steps > 20, "20 steps")
    signal_all(run.processes(role)[:1], signal.SIGTERM)
    outcome = run.wait()
    assert_same_bits(outcome, reference(steps=STEPS)["state_digest"])
    assert "about to be taken away" in outcome.stderr, str(outcome)
    assert "trains alone" in outcome.stderr, str(outcome)
    assert_no_step_lost(outcome)
    place.assert_nothing_left()
