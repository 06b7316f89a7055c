"""Compare two checkpoints variable by variable, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.checkpoint import DIGEST_NBYTES
from storage.layout import BLOCK_NBYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from storage.reader import CheckpointReader


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
    for name in a:
        if name not in b:
            continue
        kinds = [f"{c[name].dtype} of shape {c[name].shape}" for c in (a, b)]
        if kinds[0] != kinds[1]:
            other_kind.append((name, kinds[0], kinds[1]))
        elif difference := _compare(name, a, b):
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


def _compare(name: str, a: CheckpointReader, b: CheckpointReader) -> Difference | None:
    elements = nan_in_one = 0
    total = largest = 0.0
    for start, stop in _pieces(name, a, b):
        x, y = a.read_elements(name, start, stop), b.read_elements(name, start, stop)
        bits = np.dtype(f"u{x.dtype.itemsize}")
        differs = x.view(bits) != y.view(bits)
        count = int(np.count_nonzero(differs))
        if not count:
            continue
        elements += count
        left, right = _as_floats(x[differs]), _as_floats(y[differs])
        finite = np.isfinite(left) & np.isfinite(right)
        nan_in_one += int(np.count_nonzero(np.isfinite(left) != np.isfinite(right)))
        distance = np.abs(left[finite] - right[finite])
        total += float(distance.sum())
        largest = max(largest, float(distance.max(initial=0.0)))
    if not elements:
        return None
    size = math.prod(a[name].shape)
    return Difference(name, elements, size, largest, total / size, nan_in_one)


def _as_floats(values: NDArray[Any]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def _pieces(name: str, a: CheckpointReader, b: CheckpointReader) -> Iterator[tuple[int, int]]:
    """The ranges of elements that have to be compared, cut where the units of `a` are."""
    stored, variable = a.variables[name]
    array = stored.array
    alike = array in [each.array for each in b.arrays]
    for unit in a.units(stored, variable.offset, variable.offset + variable.size):
        if alike:
            first = unit.start * array.itemsize // BLOCK_NBYTES * DIGEST_NBYTES
            last = -(-unit.stop * array.itemsize // BLOCK_NBYTES) * DIGEST_NBYTES
            if a.digests[array.name][first:last] == b.digests[array.name][first:last]:
                continue
        start, stop = max(unit.start, variable.offset), min(unit.stop, variable.offset + variable.size)
        yield start - variable.offset, stop - variable.offset
