"""A variable of a checkpoint that is read when it is looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from storage.reader import CheckpointReader


@dataclass(frozen=True, slots=True)
class LazyArray:
    """One variable. Indexing and `numpy.asarray` read, and check, only the chunks that are needed."""

    checkpoint: CheckpointReader
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.checkpoint.variables[self.name][1].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.checkpoint.dtype(self.name)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"{self.name} has no axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{self.name}: {self.dtype} of shape {self.shape} in {self.checkpoint.url}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.name} is read from storage: it cannot be had without a copy")
        return np.asarray(self[...], dtype)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """What NumPy gives for the same index.

        Of the first axis, a number or a slice reads the rows between the first and the last that it takes;
        anything else there (an array, a mask, `...`, None) reads the whole.
        """
        first, *rest = (index if isinstance(index, tuple) else (index,)) or (Ellipsis,)
        takes_rows = isinstance(first, int | np.integer | slice) and not isinstance(first, bool)
        if not self.shape or not takes_rows:  # a bool is a mask, not a number
            return np.asarray(self._rows(0, self.shape[0] if self.shape else 1).reshape(self.shape)[index])
        rows = self.shape[0]
        if isinstance(first, slice):
            wanted = range(*first.indices(rows))
            if not wanted:
                return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]
            low, high = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
            found = self._rows(low, high + 1)[:: abs(wanted.step)]
            return found[(slice(None, None, -1 if wanted.step < 0 else 1), *rest)]
        if not -rows <= first < rows:
            raise IndexError(f"index {first} is out of bounds for {self.name} of shape {self.shape}")
        row = int(first) % rows
        return np.asarray(self._rows(row, row + 1)[(0, *rest)])

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        row = math.prod(self.shape[1:])
        found = self.checkpoint.read_elements(self.name, start * row, stop * row)
        return found.reshape((stop - start, *self.shape[1:]))
