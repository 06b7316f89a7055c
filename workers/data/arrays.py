"""Arrays in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from storage.errors import ConfigurationError
from workers.data.mapping import Mappable
from workers.data.parts import check_numbers, common_length, is_flat, leaves, mapped, structure

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from workers.data.parts import Part
    from workers.engine import Batch


class ArrayDataset(Mappable):
    """Arrays in memory with the same first axis: `ArrayDataset(x, y)`, `ArrayDataset(x, y, sample_weight)`.

    For a model of several inputs or outputs each may be a tuple or a dict of arrays:
    `ArrayDataset((x1, x2), y)`, `ArrayDataset({"a": a, "b": b}, y)`. Contiguous arrays are kept as they are,
    not copied; do not change them afterwards.
    """

    def __init__(self, *arrays: ArrayLike | tuple[Part, ...] | dict[str, Part]) -> None:
        if not arrays:
            raise ConfigurationError("ArrayDataset needs at least one array, such as ArrayDataset(x, y)")
        self._parts: tuple[Part, ...] = mapped(lambda array: np.asarray(array, order="C"), arrays)
        found = [*leaves(self._parts)]
        for name, array in found:
            check_numbers("ArrayDataset", name, array)
        self._length = common_length("ArrayDataset", [array for _, array in found])
        self._identity: dict[str, Any] | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return self._length

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """These samples, in this order, nested as the arrays were given."""
        batch: Batch = mapped(lambda array: array.take(indices, axis=0), self._parts)
        return batch

    def identity(self) -> dict[str, Any]:
        """Number of samples, shapes, dtypes and the BLAKE3 of the contents; computed once."""
        if self._identity is None:
            digest = blake3()
            arrays = [array for _, array in leaves(self._parts)]
            for array in arrays:
                digest.update(array.reshape(-1).view(np.uint8).data)
            self._identity = {
                "kind": "arrays",
                "samples": len(self),
                "shapes": [list(array.shape[1:]) for array in arrays],
                "dtypes": [array.dtype.str for array in arrays],
                "blake3": digest.hexdigest(),
            }
            if not is_flat(self._parts):
                self._identity["parts"] = structure(self._parts)
        return self._identity
