"""The job that is trained in virtual time: cheap, and with sums that depend on their order."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.layout import Layout, StateArray
from workers.reports import mean, results
from workers.schedule import batch_rows, tree_depth, tree_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    State = tuple[NDArray[np.float32], NDArray[np.float32]]

LENGTH = 160
NUM_SAMPLES = 16
BATCH = 6
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


def update(state: State, total: NDArray[np.float32], low: int, high: int) -> State:
    """The new state of a segment."""
    slot = state[1][low:high] * np.float32(0.9) + total[low:high]
    return state[0][low:high] - np.float32(1e-3) * slot, slot


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


@lru_cache(maxsize=500)
def reference(step: int, microbatches: int) -> tuple[State, dict[str, float]]:
    """State and metrics after `step` undisturbed steps."""
    if step == 0:
        return initial(), {}
    state, _ = reference(step - 1, microbatches)
    leaves = [gradient(state[0], step - 1, i) for i in range(num_items(step - 1, microbatches))]
    metrics = results([mean("loss")], total_of([sums for _, sums in leaves]))
    return update(state, total_of([grad for grad, _ in leaves]), 0, LENGTH), metrics


def same(a: State, b: State) -> bool:
    """Whether two states have the same bits."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def description(validation_samples: int) -> dict[str, Any]:
    """What a worker says that the job is."""
    return {
        "arrays": [array.to_json() for array in ARRAYS],
        "whole": [],
        "metrics": [mean("loss")],
        "samples": NUM_SAMPLES,
        "validation_samples": validation_samples,
        "fingerprint": FINGERPRINT,
    }
