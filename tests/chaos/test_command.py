"""`holdfast chaos`: a user's own job under real faults."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import KILLS

if TYPE_CHECKING:
    from tests.integration.harness import Outcome, Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("command")]

full = pytest.mark.full
PACED = ("--set", "delay_s=0.004")


def chaos(place: Place, *words: str, timeout_s: float = 200) -> Outcome:
    """Run it on the tiny job."""
    return place.cli("chaos", "tiny.py", *PACED, *words, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        ("worker,coordinator,all", 4),
        pytest.param("worker,agent,writer,coordinator,node,stop,all", 14, marks=full),
    ],
)
@pytest.mark.timeout(250)
def test_every_fault_is_delivered_and_every_invariant_holds(place: Place, kinds: str, count: int) -> None:
    words = ["--faults", kinds, "--every", "1.5", "--count", str(count), "--seed", "7", "--json"]
    outcome = chaos(place, *words).expect(0)
    report = outcome.json
    KILLS["killed"] += count
    assert report["holds"] is True, str(outcome)
    assert {letter: each["holds"] for letter, each in report["invariants"].items()} == dict.fromkeys(
        "ABCDEF", True
    )
    assert sum(report["delivered"].values()) == count == len(report["faults"])
    assert all(report["delivered"].values()), str(outcome)
    assert report["undelivered"] == []
    assert report["steps_lost"] == 0
    assert report["state_digests"]["undisturbed"] == report["state_digests"]["disturbed"]
    assert 0 <= report["recovery_ms"]["p50"] <= report["recovery_ms"]["p95"] <= report["recovery_ms"]["max"]
    assert report["deaths"]["supervisor"] == report["delivered"]["all"]
    assert "--seed 7" in report["repeat"]
    assert report["run_dir"] is None
    assert not [*place.tmp.glob("holdfast-chaos-*")], "the temporary directory was not removed"
    place.assert_nothing_left(sockets=False)


def test_a_job_too_short_to_be_disturbed_is_told_so(place: Place) -> None:
    outcome = chaos(place, "--faults", "worker", "--every", "5", "--steps", "20").expect(3)
    assert "too short" in outcome.stdout, str(outcome)
    assert "--steps" in outcome.stdout, str(outcome)
    place.assert_nothing_left()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--faults", "nobody", "--every", "1", "--count", "3"], "nobody"),
        (["--faults", "worker", "--every", "1"], "--steps"),
        (["--faults", "worker", "--every", "0", "--count", "3"], "--every"),
        (["--faults", "worker,agent", "--every", "1", "--count", "1"], "too few"),
        (["--faults", "node", "--nodes", "1", "--every", "1", "--count", "1"], "--nodes"),
    ],
)
def test_what_cannot_be_done_is_refused(place: Place, words: list[str], said: str) -> None:
    chaos(place, *words).one_clear_line(2, said)


@full
def test_a_job_that_fails_by_itself_is_no_job_for_it(place: Place) -> None:
    outcome = chaos(place, "--faults", "worker", "--every", "1", "--count", "2", "--workers", "9").expect(2)
    assert "microbatches" in outcome.stderr, str(outcome)
    place.assert_nothing_left()


@full
def test_an_interrupt_ends_what_was_started(place: Place) -> None:
    words = ["chaos", "tiny.py", *PACED, "--faults", "worker,all", "--every", "1", "--count", "9"]
    run = place.start(words)
    run.until(lambda: "killed" in run.said(), "the first fault", 90)
    os.kill(run.popen.pid, signal.SIGINT)
    run.wait(20).expect(130)
    place.assert_nothing_left(sockets=False)
    assert not [*place.tmp.glob("holdfast-chaos-*")], "the temporary directory was not removed"
