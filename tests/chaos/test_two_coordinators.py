"""Two coordinators on one run directory: one trains, the other ends with a clear message."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import assert_latest_verifies, assert_no_step_lost, assert_same_bits
from tests.integration.harness import Progress, signal_all

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("two")]


def test_of_two_started_at_the_same_moment_one_trains(place: Place, reference: Reference) -> None:
    runs = [place.begin(steps=100, settings={"delay_s": 0.005}) for _ in range(2)]
    outcomes = [run.wait() for run in runs]
    done = [outcome for outcome in outcomes if outcome.code == 0]
    assert done, f"nobody trained{outcomes[0]}{outcomes[1]}"
    for outcome in done:
        assert_same_bits(outcome, reference(steps=100)["state_digest"])
    for outcome in outcomes:
        if outcome.code:
            assert outcome.code in (4, 75), str(outcome)
            assert "Traceback" not in outcome.stderr, str(outcome)
            assert outcome.result["error"], str(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)


def test_a_second_one_is_refused_while_the_first_trains(place: Place, reference: Reference) -> None:
    progress = Progress(place.root / "progress")
    first = place.begin(steps=150, settings={"delay_s": 0.01, "progress": progress})
    first.until(lambda: progress.steps > 10, "10 steps")
    second = place.run(steps=150)
    second.one_clear_line(4, "is being trained by process")
    outcome = first.wait()
    assert_same_bits(outcome, reference(steps=150)["state_digest"])
    assert_no_step_lost(outcome)
    place.assert_nothing_left()


@pytest.mark.full
@pytest.mark.parametrize("stopped", [False, True], ids=["at work", "stopped, and continued afterwards"])
def test_one_that_was_taken_over_has_no_effect(place: Place, reference: Reference, stopped: bool) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "progress": progress}
    first = place.begin(steps=200, settings=settings)
    first.until(lambda: progress.steps > 20, "20 steps")
    victims = [first.driver, *first.driver.children()]
    if stopped:
        signal_all(victims, signal.SIGSTOP)
    second = place.begin(steps=200, settings=settings, more=["--take-over"])
    second.until(lambda: "going on from" in second.said(), "the second one to go on")
    if stopped:
        signal_all(victims, signal.SIGCONT)
    outcome = second.wait()
    assert_same_bits(outcome, reference(steps=200)["state_digest"])
    loser = first.wait()
    assert loser.code in (1, 4, 75), str(loser)
    assert "Traceback" not in loser.stderr, str(loser)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)
