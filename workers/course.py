"""Where a training with callbacks is: what the epoch has come to, and what the callbacks have decided. Pure.

A course is a part of the state of a step, beside its arrays. Callbacks are user code, which a worker runs;
what they remember is opaque here. As JSON values, in a buffer's aux block and a checkpoint's counters:

    ended      epochs whose end the callbacks have been told
    begun      epochs whose beginning they have been told
    sums       the metrics' rows of the epoch under way: base64 of float64, little-endian
    state      what each callback remembers; null before the first epoch
    knobs      what the optimizer is told, such as {"learning_rate": 0.001}
    kept       the epoch whose weights the array "best" holds from the next step on; null
    stopped    whether a callback has ended training
    logs       the metrics of the epoch that ended last, with what callbacks added
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.strict_json import spelled, unspelled
from workers.reports import num_rows, results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.engine import Sums
    from workers.reports import Report

NBYTES_PER_ROW = 22
"""Of JSON, for a row of two float64."""


@dataclass(frozen=True, slots=True)
class Question:
    """What callbacks are told: that an epoch ended with these metrics, that the next one begins."""

    step: int
    state: Any
    knobs: Mapping[str, float]
    kept: int | None
    ended: int | None
    logs: Mapping[str, float]
    begins: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it."""

    state: Any
    knobs: Mapping[str, float]
    kept: bool
    """Whether the weights of the epoch that has ended are to be kept as the best."""
    stop: bool
    logs: Mapping[str, float]


class Course:
    """The course of one training, from step to step."""

    def __init__(self, reports: Sequence[Report], steps_per_epoch: int) -> None:
        self._reports = reports
        self._steps_per_epoch = steps_per_epoch
        self._sums: Sums = np.zeros((num_rows(reports), 2))
        self.load({}, 0)

    def load(self, doc: Mapping[str, Any], step: int) -> None:
        """In place. Go on from what `to_json` gave at this step; empty is the beginning.

        Raises ValueError, changing nothing, for what it cannot have given: checkpoints may come from anyone.
        """
        doc = doc or (_BEGINNING if step == 0 else {})
        if (missing := _KINDS.keys() - doc.keys()) or any(type(doc[k]) not in _KINDS[k] for k in _KINDS):
            what = f"it lacks {', '.join(sorted(missing))}" if missing else "values of another kind"
            raise ValueError(f"what it says of the callbacks is damaged: {what}")
        ended, begun, kept = doc["ended"], doc["begun"], doc["kept"]
        within = ended * self._steps_per_epoch <= step <= (ended + 1) * self._steps_per_epoch
        if ended < 0 or not within or begun not in (ended, ended + 1):
            raise ValueError(f"step {step} is not in epoch {ended} of {self._steps_per_epoch} steps")
        if kept is not None and not 0 <= kept < ended:
            raise ValueError(f"epoch {kept} cannot be the best of {ended}")
        sums = np.frombuffer(base64.b64decode(doc["sums"], validate=True), "<f8")
        if len(sums) not in (0, self._sums.size):
            raise ValueError(f"its metrics have {len(sums)} sums and not {self._sums.size}")
        logs, knobs = _numbers(doc["logs"]), _numbers(doc["knobs"])
        self.ended: int = ended
        self._begun: int = begun
        self._state = doc["state"]
        self.knobs: dict[str, float] = knobs
        self._kept: int | None = kept
        self.stopped: bool = doc["stopped"]
        self.logs = logs
        self._sums[...] = sums.reshape(self._sums.shape) if len(sums) else 0

    def to_json(self) -> dict[str, Any]:
        """The course as JSON values."""
        return {
            "ended": self.ended,
            "begun": self._begun,
            "sums": base64.b64encode(self._sums.astype("<f8").tobytes()).decode(),
            "state": self._state,
            "knobs": spelled(self.knobs),
            "kept": self._kept,
            "stopped": self.stopped,
            "logs": spelled(self.logs),
        }

    def add(self, totals: Sums) -> None:
        """In place. A step is committed, whose metrics have these sums."""
        self._sums += totals

    def ends(self, step: int) -> bool:
        """Whether an epoch has come to its end, and the callbacks have not been told so."""
        return not self.stopped and step == (self.ended + 1) * self._steps_per_epoch

    def is_due(self, step: int, steps: int) -> bool:
        """Whether callbacks have to be asked before training goes on, or is over, at `step` of `steps`."""
        begins = self._begun == self.ended and step == self.ended * self._steps_per_epoch and step < steps
        return self.ends(step) or (begins and not self.stopped)

    def question(self, step: int, steps: int, validation: Mapping[str, float]) -> Question:
        """What the callbacks are to be asked now, where it is due; `validation` are its metrics."""
        ended = self.ended if self.ends(step) else None
        logs = {} if ended is None else {**results(self._reports, self._sums), **validation}
        following = self.ended if ended is None else ended + 1
        begins = following if step < steps else None
        return Question(step, self._state, self.knobs, self._kept, ended, logs, begins)

    def take(self, question: Question, answer: Answer) -> None:
        """In place. Go on from what the callbacks have said."""
        self._state, self.knobs, self.stopped = answer.state, dict(answer.knobs), answer.stop
        if question.ended is not None:
            self.ended = question.ended + 1
            self.logs = dict(answer.logs)
            self._sums[...] = 0
            if answer.kept:
                self._kept = question.ended
        if question.begins is not None and not answer.stop:
            self._begun = question.begins + 1

    def keeps_best(self, step: int) -> bool:
        """Whether the update of `step` takes the weights that it begins with for the best ones."""
        return self._kept is not None and step == (self._kept + 1) * self._steps_per_epoch


_BEGINNING: dict[str, Any] = {
    "ended": 0,
    "begun": 0,
    "sums": "",
    "state": None,
    "knobs": {},
    "kept": None,
    "stopped": False,
    "logs": {},
}

_KINDS: dict[str, tuple[type, ...]] = {
    "ended": (int,),
    "begun": (int,),
    "sums": (str,),
    "state": (list, type(None)),
    "knobs": (dict,),
    "kept": (int, type(None)),
    "stopped": (bool,),
    "logs": (dict,),
}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = unspelled(values)
    for name, value in found.items():
        if type(value) not in (int, float):
            raise ValueError(f"{name} is {value!r} and no number")
    return found
