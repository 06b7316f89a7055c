"""Operands of cases, and what a case is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.nn.numerics import Array


@dataclass(frozen=True)
class Case:
    """`function(*operands)`; the first axis of each operand in `rows` is the number of samples."""

    function: Callable[..., Any]
    operands: tuple[Array, ...]
    rows: tuple[int, ...] = ()


def numbers(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    """Unlike numbers at least 1e-3 apart, so that finite differences cross no kink between two of them."""
    rng = np.random.default_rng(sum(shape) + len(shape))
    count = int(np.prod(shape))
    values = np.linspace(low, high, count + 1)[:-1] + (high - low) / (3 * count + 1)
    return rng.permutation(values).reshape(shape).astype(np.float32)


def whole(*shape: int, high: int = 4) -> Array:
    return np.random.default_rng(len(shape)).integers(0, high, shape).astype(np.int32)


X = numbers(4, 3)
POSITIVE = numbers(4, 3, low=0.2, high=3.0)
BOX = numbers(4, 3, 5)
FLAGS = np.random.default_rng(0).random((4, 3)) > 0.5


def one(function: Callable[..., Any], x: Array = X) -> Case:
    """A case of one operand with samples in its first axis."""
    return Case(function, (x,), (0,))


def two(function: Callable[..., Any], a: Array = X, b: Array | None = None) -> Case:
    """A case of two operands with samples in the first axis of the first."""
    return Case(function, (a, numbers(3, low=-1.7, high=2.1) if b is None else b), (0,))
