"""The job that is trained in virtual time: cheap, and with sums that depend on their order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.layout import Layout, StateArray
from workers.course import Answer, Question
from workers.reports import mean, results
from workers.schedule import batch_rows, tree_depth, tree_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    State = tuple[NDArray[np.float32], NDArray[np.float32]]

LENGTH = 160
NUM_SAMPLES = 16
BATCH = 6
PER_EPOCH = 3
RATE = 1e-3
ARRAYS = tuple(StateArray(name, Layout.of({"w": (LENGTH,)})) for name in ("params", "slots/m"))
FINGERPRINT = {"numpy": "2"}


@lru_cache(maxsize=1)
def initial() -> State:
    """The state of step 0."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(LENGTH).astype(np.float32), np.zeros(LENGTH, np.float32)


@lru_cache(maxsize=1000)
def _noise(step: int, item: int) -> NDArray[np.float32]:
    rng = np.random.default_rng((step, item))
    return (rng.standard_normal(LENGTH) * 10.0 ** rng.integers(-6, 7, LENGTH)).astype(np.float32)


def gradient(params: NDArray[np.float32], step: int, item: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """The gradient of a microbatch, and its metric sums."""
    return params * np.float32(0.25) + _noise(step, item), np.array([[float(params[0]) + item, 2.0]])


def update(state: State, total: NDArray[np.float32], low: int, high: int, rate: float = RATE) -> State:
    """The new state of a segment."""
    slot = state[1][low:high] * np.float32(0.9) + total[low:high]
    return state[0][low:high] - np.float32(rate) * slot, slot


def evaluated(params: NDArray[np.float32], item: int) -> NDArray[Any]:
    """The metric sums of a validation batch."""
    return np.array([[float(params[item]) * 3, 3.0]])


def num_items(step: int, microbatches: int) -> int:
    """How many microbatches a step has."""
    return min(batch_rows(NUM_SAMPLES, BATCH, step), microbatches)


def total_of(leaves: Sequence[NDArray[Any]], levels: Sequence[int] | None = None) -> NDArray[Any]:
    """The sum along the tree, or of the parts of it that are on these levels."""
    work = np.empty((tree_depth(len(leaves)), *leaves[0].shape), leaves[0].dtype)
    return tree_sum(leaves, list(work), levels)


@dataclass(frozen=True)
class Callbacks:
    """What a job with callbacks does at the end of each epoch; with an evaluation every so often."""

    validation: int = 0
    validate_every: int | None = None
    stop_after: int | None = None
    """Epochs after which a callback ends training."""

    def answer(self, question: Question) -> Answer:
        """What they say: the next epoch's rate depends on the metrics of the last one, and on their state."""
        state = question.state or [0, RATE]
        if question.ended is not None:
            assert question.ended == state[0]
            rate = RATE * (1.5 + math.sin(sum(question.logs.values()))) + state[1] / 7
            state = [state[0] + 1, rate]
        stop = state[0] == self.stop_after
        return Answer(state, {"rate": state[1]}, kept=False, stop=stop, logs=question.logs)

    def of_validation(self, step: int, params: NDArray[np.float32]) -> dict[str, float]:
        """The metrics of an evaluation, where one falls on this step."""
        if not self.validation or self.validate_every is None or step % self.validate_every:
            return {}
        items = [evaluated(params, i) for i in range(-(-self.validation // BATCH))]
        return results([mean("loss")], total_of(items), "val_")


@lru_cache(maxsize=500)
def reference(
    step: int, microbatches: int, callbacks: Callbacks | None = None
) -> tuple[State, dict[str, float]]:
    """State and metrics after `step` undisturbed steps."""
    state, sums, _ = _reference(step, microbatches, callbacks)
    return state, {} if step == 0 else results([mean("loss")], sums[-1])


@lru_cache(maxsize=500)
def _reference(step: int, microbatches: int, callbacks: Callbacks | None) -> tuple[State, list[Any], Any]:
    """State, the metric sums of all steps, and what callbacks remember."""
    if step == 0:
        return initial(), [], [0, RATE]
    state, sums, memory = _reference(step - 1, microbatches, callbacks)
    if callbacks is not None and step > 1 and (step - 1) % PER_EPOCH == 0:
        logs = results([mean("loss")], np.add.accumulate(sums[-PER_EPOCH:])[-1])
        logs |= callbacks.of_validation(step - 1, state[0])
        question = Question(step - 1, memory, {}, None, memory[0], logs, memory[0] + 1)
        memory = callbacks.answer(question).state
    leaves = [gradient(state[0], step - 1, i) for i in range(num_items(step - 1, microbatches))]
    new = update(state, total_of([grad for grad, _ in leaves]), 0, LENGTH, memory[1])
    return new, [*sums, total_of([own for _, own in leaves])], memory


def same(a: State, b: State) -> bool:
    """Whether two states have the same bits."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def description(validation_samples: int, *, callbacks: bool = False) -> dict[str, Any]:
    """What a worker says that the job is."""
    return {
        "arrays": [array.to_json() for array in ARRAYS],
        "whole": [],
        "metrics": [mean("loss")],
        "samples": NUM_SAMPLES,
        "validation_samples": validation_samples,
        "callbacks": ["Rates"] if callbacks else None,
        "fingerprint": FINGERPRINT,
    }
