"""The course of a training with callbacks: when they are asked, what is kept, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from workers.course import NBYTES_PER_ROW, Answer, Course
from workers.reports import mean

REPORTS = [mean("loss"), mean("accuracy")]
PER_EPOCH = 3


def answer(question: Any, *, kept: bool = False, stop: bool = False) -> Answer:
    state = [*(question.state or []), question.ended]
    return Answer(state, {"learning_rate": 0.1 + len(state)}, kept, stop, {**question.logs, "more": math.nan})


def train(course: Course, first: int, last: int, steps: int, **said: bool) -> list[Any]:
    """Train from one step to another; the questions."""
    asked = []
    for step in range(first, last + 1):
        if course.is_due(step, steps):
            asked.append(course.question(step, steps, {}))
            course.take(asked[-1], answer(asked[-1], **said))
        assert not course.is_due(step, steps)
        if step < last:
            course.add(np.array([[step + 0.1, 1.0], [2.0, 4.0]]))
    return asked


def test_callbacks_are_asked_where_epochs_begin_and_end() -> None:
    course = Course(REPORTS, PER_EPOCH)
    asked = train(course, 0, 9, steps=9)
    assert [(q.step, q.ended, q.begins) for q in asked] == [(0, None, 0), (3, 0, 1), (6, 1, 2), (9, 2, None)]
    assert asked[1].logs == {"loss": (0.1 + 1.1 + 2.1) / 3, "accuracy": 0.5}
    assert asked[3].state == [None, 0, 1]
    assert asked[3].knobs == {"learning_rate": 3.1}


def test_a_run_that_goes_on_with_more_steps_begins_the_next_epoch_then() -> None:
    course = Course(REPORTS, PER_EPOCH)
    train(course, 0, 3, steps=3)
    asked = train(course, 3, 6, steps=6)
    assert [(q.step, q.ended, q.begins) for q in asked] == [(3, None, 1), (6, 1, None)]


def test_steps_beyond_the_last_whole_epoch_end_none() -> None:
    course = Course(REPORTS, PER_EPOCH)
    assert [(q.ended, q.begins) for q in train(course, 0, 5, steps=5)] == [(None, 0), (0, 1)]


def test_who_has_stopped_is_not_asked_again() -> None:
    course = Course(REPORTS, PER_EPOCH)
    train(course, 0, 2, steps=9)
    course.add(np.ones((2, 2)))
    train(course, 3, 3, steps=9, stop=True)
    assert course.stopped
    assert not any(course.is_due(step, 9) for step in range(10))


def test_the_best_weights_are_those_that_the_next_step_begins_with() -> None:
    course = Course(REPORTS, PER_EPOCH)
    train(course, 0, 3, steps=9, kept=True)
    assert [step for step in range(9) if course.keeps_best(step)] == [3]
    train(course, 3, 6, steps=9)
    assert [step for step in range(9) if course.keeps_best(step)] == [3]


@pytest.mark.parametrize("at", range(8))
def test_it_goes_on_from_its_json_values_as_if_nothing_had_been(at: int) -> None:
    whole, cut = Course(REPORTS, PER_EPOCH), Course(REPORTS, PER_EPOCH)
    expected = train(whole, 0, 8, steps=8)
    asked = train(cut, 0, at, steps=8)
    again = Course(REPORTS, PER_EPOCH)
    again.load(json.loads(json.dumps(cut.to_json(), allow_nan=False)), at)
    assert asked + train(again, at, 8, steps=8) == expected
    assert again.to_json() == whole.to_json()
    assert math.isnan(again.logs["more"])


def test_sums_take_no_more_room_than_is_reserved_for_them() -> None:
    reports = [mean(f"metric {i}") for i in range(1000)]
    course = Course(reports, 2)
    course.add(np.full((1000, 2), math.pi))
    assert len(course.to_json()["sums"]) <= NBYTES_PER_ROW * 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ended": 2}, "step 4 is not in epoch 2"),
        ({"ended": -1}, "step 4 is not in epoch -1"),
        ({"begun": 5}, "step 4 is not in epoch 1"),
        ({"ended": "1"}, "values of another kind"),
        ({"ended": True}, "values of another kind"),
        ({"stopped": 1}, "values of another kind"),
        ({"kept": 1}, "epoch 1 cannot be the best of 1"),
        ({"sums": "AAAA"}, "multiple of|sums and not 4"),
        ({"sums": "AAAAAAAAAAA="}, "1 sums and not 4"),
        ({"sums": "\u00e9"}, "ASCII"),
        ({"knobs": {"learning_rate": []}}, "learning_rate is .* no number"),
        ({"logs": {"loss": "x"}}, "loss is 'x' and no number"),
        ({"logs": {"loss": {"a": 1}}}, "no number"),
    ],
)
def test_what_it_cannot_have_said_is_refused_and_changes_nothing(
    changes: dict[str, Any], message: str
) -> None:
    course = Course(REPORTS, PER_EPOCH)
    train(course, 0, 4, steps=9)
    before = course.to_json()
    with pytest.raises(ValueError, match=message):
        course.load({**before, **changes}, 4)
    assert course.to_json() == before
    for name in before:
        with pytest.raises(ValueError, match=f"it lacks {name}"):
            course.load({key: value for key, value in before.items() if key != name}, 4)


def test_without_a_word_of_it_only_the_beginning_can_be_meant() -> None:
    course = Course(REPORTS, PER_EPOCH)
    course.load({}, 0)
    with pytest.raises(ValueError, match="it lacks"):
        course.load({}, 4)
