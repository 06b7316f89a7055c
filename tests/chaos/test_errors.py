"""Exceptions of the job in the model, in the data, once and always; data that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import assert_no_step_lost
from tests.integration.harness import COUNTER

if TYPE_CHECKING:
    from tests.integration.harness import Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("errors")]


def test_an_exception_in_the_gradient_ends_the_run_naming_step_and_microbatch(place: Place) -> None:
    place.file("counter.py", COUNTER)
    outcome = place.run("counter.py", settings={"at": 7}).expect(1)
    assert "step 7, microbatch" in outcome.result["error"], str(outcome)
    assert "the gradient fell over" in outcome.stderr, str(outcome)
    place.assert_no_process()


def test_an_exception_that_does_not_come_again_costs_nothing(place: Place) -> None:
    place.file("counter.py", COUNTER)
    outcome = place.run("counter.py", settings={"at": 7, "once": "yes"})
    assert outcome.done()["step"] == 12, str(outcome)
    assert_no_step_lost(outcome)
    place.assert_nothing_left()


@pytest.mark.full
def test_a_data_file_that_cannot_be_read_is_named_with_the_users_traceback(place: Place) -> None:
    text = place.root.joinpath("tiny.py").read_text()
    line = "        rng = np.random.default_rng(42)\n"
    assert line in text
    place.file("unread.py", text.replace(line, line + "        np.load('missing.npy')\n"))
    outcome = place.run("unread.py").expect(1)
    assert "missing.npy" in outcome.result["error"], str(outcome)
    assert "unread.py" in outcome.stderr, str(outcome)
    place.assert_no_process()
