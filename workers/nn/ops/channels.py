"""Sums over, and vectors along, the last axis of an array.

NumPy's loops run over the last axis, and cost as much as some dozens of elements each: with few channels, a
vector is repeated over the neighbouring axes, and sums are products with ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workers.nn.numerics import aligned_empty

if TYPE_CHECKING:
    from workers.nn.numerics import Array, Shape

_LONG = 256
"""Elements of a loop beside which its start costs little: 28 us against 114 for 221,184 in sixes."""


class ChannelVector:
    """A workspace for a vector along the last axis of arrays (..., C) of one shape."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        repeat = 1
        for n in reversed(shape[1:-1]):
            if repeat * shape[-1] >= _LONG:
                break
            repeat *= n
        self._repeated = aligned_empty((repeat, shape[-1]), np.dtype(dtype))
        self._rows = (math.prod(shape[:-1]) // max(repeat, 1), repeat * shape[-1])

    def of(self, vector: Array) -> Array:
        """In place. The vector in a form that goes with `rows`."""
        np.copyto(self._repeated, vector)
        return self._repeated.reshape(-1)

    def rows(self, x: Array) -> Array:
        """A contiguous array, seen as rows."""
        return x.reshape(self._rows)


class ChannelSums:
    """Sums over all axes but the last of arrays (..., C) of one shape.

    They are added up in two stages, so that float32 loses no digits over many elements.
    """

    def __init__(self, shape: Shape, dtype: str) -> None:
        inner = math.prod(shape[1:-1])
        self._shape = (shape[0], inner, shape[-1]) if inner > 1 else (1, shape[0], shape[-1])
        kind = np.dtype(dtype)
        self._ones = aligned_empty((max(self._shape[:2]),), kind)
        self._ones[...] = 1
        self._partial = aligned_empty((self._shape[0], self._shape[-1]), kind)

    def of(self, x: Array, out: Array | None = None) -> Array:
        """The sums, in a new array unless `out` is given."""
        outer, inner, _ = self._shape
        np.matmul(self._ones[:inner], x.reshape(self._shape), out=self._partial)
        return np.matmul(self._ones[:outer], self._partial, out=out)
