"""Optimizers run on flat buffers, whole or in pieces, out of place or in place."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.schedule import tree_depth
from workers.updates import MeanGradient, measured

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def step_once(
    optimizer: Any,
    step: int,
    params: np.ndarray,
    slots: Sequence[np.ndarray],
    grad: np.ndarray,
    *,
    cuts: Iterable[int] = (),
    in_place: bool = False,
    knobs: Any = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The new weights and slots. A cut within a range that must stay whole is left out."""
    length = len(params)
    if in_place:
        params, slots = params.copy(), [slot.copy() for slot in slots]
        new, new_slots = params, list(slots)
    else:
        new, new_slots = np.full_like(params, np.nan), [np.full_like(slot, np.nan) for slot in slots]
    scratch = np.full_like(params, np.nan)
    work = np.empty((tree_depth(1) + 1, max(length, 1)), np.float32)
    mean = MeanGradient([grad], None, np.float32(1), work)
    sums = measured(optimizer, step, slots, mean, length)
    allowed = {c for c in cuts if not any(low < c < high for low, high in optimizer.whole)}
    for low, high in itertools.pairwise(sorted({0, length, *allowed})):
        optimizer.update(
            step,
            low,
            params[low:high],
            [slot[low:high] for slot in slots],
            grad[low:high],
            new[low:high],
            [slot[low:high] for slot in new_slots],
            scratch[: high - low],
            sums,
            knobs,
        )
    return new, new_slots


def trajectory(
    optimizer: Any, params: np.ndarray, grads: Iterable[np.ndarray], **how: Any
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The weights after each step, and the slots at the end by their names."""
    slots = [np.zeros_like(params) for _ in optimizer.slots]
    weights = []
    for step, grad in enumerate(grads):
        params, slots = step_once(optimizer, step, params, slots, grad, **how)
        weights.append(params)
    return weights, dict(zip(optimizer.slots, slots, strict=True))
