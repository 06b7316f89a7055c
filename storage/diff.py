"""Compare two checkpoints variable by variable, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.checkpoint import DIGEST_NBYTES
from storage.layout import BLOCK_NBYTES
from storage.streaming import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.layout import StateArray
    from storage.reader import CheckpointReader

_PIECE = 1 << 18
"""Elements compared at a time: a few times 2 MiB of float64."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A variable whose elements are not the same bits: how many, and by how much where both are finite.

    `nan_in_one` counts elements that are NaN, or infinite, in one of the two alone.
    """

    name: str
    elements: int
    size: int
    max_abs: float
    mean_abs: float
    nan_in_one: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "elements": self.elements,
            "size": self.size,
            "max_abs": self.max_abs,
            "mean_abs": self.mean_abs,
            "nan_in_one": self.nan_in_one,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two checkpoints differ in. `other_kind` are names with what they are in each."""

    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    other_kind: tuple[tuple[str, str, str], ...]
    different: tuple[Difference, ...]
    equal: int

    @property
    def is_equal(self) -> bool:
        """Whether both hold the same variables with the same bits."""
        return not (self.only_a or self.only_b or self.other_kind or self.different)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "is_equal": self.is_equal,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "other_kind": [{"name": name, "a": a, "b": b} for name, a, b in self.other_kind],
            "different": [difference.to_json() for difference in self.different],
            "equal": self.equal,
        }


def compare(a: CheckpointReader, b: CheckpointReader) -> Comparison:
    """Compare all variables of two checkpoints.

    Blocks whose digests are equal, in arrays that are laid out alike, are equal and are not read.
    """
    other_kind, different = [], []
    equal = 0
    pair = _Pair(a, b)
    for name in a:
        if name not in b:
            continue
        kinds = [f"{c[name].dtype} of shape {c[name].shape}" for c in (a, b)]
        if kinds[0] != kinds[1]:
            other_kind.append((name, kinds[0], kinds[1]))
        elif difference := pair.compare(name):
            different.append(difference)
        else:
            equal += 1
    return Comparison(
        tuple(name for name in a if name not in b),
        tuple(name for name in b if name not in a),
        tuple(other_kind),
        tuple(different),
        equal,
    )


class _Pair:
    """Two checkpoints whose variables are compared one after the other."""

    def __init__(self, a: CheckpointReader, b: CheckpointReader) -> None:
        self._a = a
        self._b = b
        self._streams = (Stream(a, 0), Stream(b, 0))  # what is not compared is not read
        theirs = {stored.array.name: stored.array for stored in b.arrays}
        self._alike = {s.array.name for s in a.arrays if theirs.get(s.array.name) == s.array}

    def compare(self, name: str) -> Difference | None:
        """How a variable that is of the same kind in both differs; None if it does not."""
        elements = nan_in_one = 0
        total = largest = 0.0
        size = math.prod(self._a[name].shape)
        for start, stop in self._ranges(name):
            x, y = (stream.elements(name, start, stop) for stream in self._streams)
            bits = np.dtype(f"u{x.dtype.itemsize}")
            differs = x.view(bits) != y.view(bits)
            count = int(np.count_nonzero(differs))
            if not count:
                continue
            elements += count
            left, right = x[differs].astype(np.float64), y[differs].astype(np.float64)
            finite = np.isfinite(left) & np.isfinite(right)
            nan_in_one += int(np.count_nonzero(np.isfinite(left) != np.isfinite(right)))
            with np.errstate(over="ignore"):  # of numbers near the largest: then the difference is infinite
                distance = np.abs(left[finite] - right[finite])
                total += float((distance / size).sum())
            largest = max(largest, float(distance.max(initial=0.0)))
        return Difference(name, elements, size, largest, total, nan_in_one) if elements else None

    def _ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """The ranges of elements that have to be compared: those in blocks whose digests differ."""
        stored, variable = self._a.variables[name]
        array = stored.array
        for start, stop in self._streams[0].ranges(name, _PIECE):
            if array.name not in self._alike or self._differ(array, start, stop, variable.offset):
                yield start, stop

    def _differ(self, array: StateArray, start: int, stop: int, offset: int) -> bool:
        first = (offset + start) * array.itemsize // BLOCK_NBYTES * DIGEST_NBYTES
        last = -(-(offset + stop) * array.itemsize // BLOCK_NBYTES) * DIGEST_NBYTES
        mine, theirs = (c.digests[array.name][first:last] for c in (self._a, self._b))
        return mine != theirs
