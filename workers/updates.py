"""What an update is made of: the mean gradient block by block, and the norms by which it may be clipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from workers.schedule import tree_depth, tree_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from workers.engine import Flat, Optimizer

BLOCK = 1 << 16
"""Elements that an update handles at a time: the operands of a block stay in the cache."""


def longest_block(length: int, whole: Sequence[tuple[int, int]]) -> int:
    """Elements of the longest block of an update of `length` elements: `whole` ranges are not cut."""
    return max(1, min(BLOCK, length), *(stop - start for start, stop in whole))


class MeanGradient:
    """The sum of gradients along the tree, divided by `weight`.

    What `mean(low, high)` gives is valid until the next call.
    `leaves` and `levels` are those of `tree_sum`. `work` holds one array more than that needs, all as long as
    the longest block.
    """

    def __init__(
        self, leaves: Sequence[Flat], levels: Sequence[int] | None, weight: np.float32, work: NDArray[Any]
    ) -> None:
        self._leaves = leaves
        self._levels = levels
        self._weight = weight
        self._work = work[:-1]
        self._mean = work[-1]

    def __call__(self, low: int, high: int) -> Flat:
        size = high - low
        parts = [leaf[low:high] for leaf in self._leaves]
        total = tree_sum(parts, [each[:size] for each in self._work], self._levels)
        mean: Flat = np.divide(total, self._weight, out=self._mean[:size])
        return mean


def measured(
    optimizer: Optimizer,
    step: int,
    states: Sequence[Flat],
    mean: Callable[[int, int], Flat],
    length: int,
) -> NDArray[np.float64] | None:
    """The sums that `optimizer.update` clips by, over a gradient of `length` elements; None if it does not.

    They are added up from fixed blocks along the fixed tree. Every worker does so for itself, which costs it
    one more reduction, and saves a phase in which all would wait for all; no bit depends on their number.
    """
    if not optimizer.measures:
        return None
    sums = [
        optimizer.measure(step, low, [state[low:high] for state in states], mean(low, high))
        for low in range(0, length, BLOCK)
        for high in (min(low + BLOCK, length),)
    ]
    return tree_sum(sums, [np.empty_like(sums[0]) for _ in range(tree_depth(len(sums)))])


State: TypeAlias = "tuple[Flat, Sequence[Flat]]"
"""Parameters, and the optimizer's slots."""


def update_block(
    optimizer: Optimizer,
    step: int,
    ends: tuple[int, int],
    old: State,
    new: State,
    gradient: Flat,
    weight: np.float32,
    scratch: Flat,
    sums: NDArray[np.float64] | None,
    knobs: Mapping[str, Any] | None = None,
) -> None:
    """In place. Write one block of the state after a step; one without any weight changes nothing."""
    low, high = ends
    params, slots = old[0][low:high], [slot[low:high] for slot in old[1]]
    new_params, new_slots = new[0][low:high], [slot[low:high] for slot in new[1]]
    if not weight:
        keep((params, *slots), (new_params, *new_slots))
        return
    optimizer.update(
        step, low, params, slots, gradient, new_params, new_slots, scratch[: high - low], sums, knobs
    )


def keep(old: Sequence[Flat], new: Sequence[Flat]) -> None:
    """In place. Let the new arrays hold what the old ones do."""
    for source, target in zip(old, new, strict=True):
        np.copyto(target, source)
