"""Datasets: samples by number, so that any worker can make any batch.

A dataset holds no position. Which samples make up a batch is decided by the seed and the step alone.
"""

from __future__ import annotations

import gzip
import math
import struct
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from blake3 import blake3

from storage.errors import ConfigurationError, DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from workers.engine import Batch


@runtime_checkable
class Dataset(Protocol):
    """Samples that can be taken by number."""

    def __len__(self) -> int:
        """The number of samples."""

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """These samples, in this order, one array for each of the dataset's parts."""

    def identity(self) -> dict[str, Any]:
        """What the data is, as JSON values: equal for equal content, on any machine."""


REREADS = 3
PAUSE_S = 0.1
"""Seconds before the first of them; each next pause is twice as long."""


def is_unreadable(error: BaseException) -> bool:
    """Whether an exception of a dataset's `take` says that input cannot be read, and not that code is wrong.

    It is one of the operating system, of a store, or of Arrow (which may not have been imported).
    """
    arrow = getattr(sys.modules.get("pyarrow"), "ArrowException", None)
    kinds = (OSError, StorageError, *([arrow] if isinstance(arrow, type) else []))
    return isinstance(error, kinds)


def read_patiently(dataset: Dataset, indices: NDArray[np.int64], tell: Callable[[str], None]) -> Batch:
    """Take samples; what cannot be read is read again, and `tell` told why.

    Raises DataError with what the dataset raised if that does not help. Other exceptions are the dataset's.
    """
    for tries in range(REREADS + 1):
        try:
            return dataset.take(indices)
        except Exception as error:
            if not is_unreadable(error):
                raise
            what = f"{type(error).__name__}: {error}"
            if tries == REREADS:
                many = f"{REREADS + 1} times"
                raise DataError(f"the data could not be read, which was tried {many}: {what}") from error
            tell(what)
            time.sleep(PAUSE_S * 2**tries)
    raise AssertionError("the last try returns or raises")


class ArrayDataset:
    """Arrays in memory with the same first axis: `ArrayDataset(x, y)`.

    Contiguous arrays are kept as they are, not copied; do not change them afterwards.
    """

    def __init__(self, *arrays: ArrayLike) -> None:
        if not arrays:
            raise ConfigurationError("ArrayDataset needs at least one array, such as ArrayDataset(x, y)")
        self._arrays = tuple(np.asarray(array, order="C") for array in arrays)
        for i, array in enumerate(self._arrays):
            if array.dtype.kind not in "fiub":
                raise ConfigurationError(f"ArrayDataset: array {i} is {array.dtype}: give real numbers")
            if array.ndim == 0:
                raise ConfigurationError(f"ArrayDataset: array {i} is one number: give an axis of samples")
        lengths = [len(array) for array in self._arrays]
        if len(set(lengths)) > 1:
            raise ConfigurationError(
                f"ArrayDataset: the arrays hold {', '.join(map(str, lengths))} samples: give equally many"
            )
        if lengths[0] == 0:
            raise ConfigurationError("ArrayDataset: the arrays hold no samples")
        self._identity: dict[str, Any] | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._arrays[0])

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """These samples, in this order, one array for each of the dataset's arrays."""
        return tuple(array.take(indices, axis=0) for array in self._arrays)

    def identity(self) -> dict[str, Any]:
        """Number of samples, shapes, dtypes and the BLAKE3 of the contents; computed once."""
        if self._identity is None:
            digest = blake3()
            for array in self._arrays:
                digest.update(array.reshape(-1).view(np.uint8).data)
            self._identity = {
                "kind": "arrays",
                "samples": len(self),
                "shapes": [list(array.shape[1:]) for array in self._arrays],
                "dtypes": [array.dtype.str for array in self._arrays],
                "blake3": digest.hexdigest(),
            }
        return self._identity


_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(data: bytes, name: str) -> NDArray[Any]:
    """The array in the bytes of an idx file, gzipped or not; `name` is for messages.

    Source: the format of http://yann.lecun.com/exdb/mnist. Raises ConfigurationError where it is damaged.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as exc:
            raise ConfigurationError(f"{name}: damaged gzip file ({exc}): fetch it again") from exc
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_DTYPES:
        raise ConfigurationError(f"{name}: not an idx file, it begins with {data[:4]!r}")
    dtype, ndim = np.dtype(_IDX_DTYPES[data[2]]), data[3]
    start = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", data[4:start]) if len(data) >= start else ()
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise ConfigurationError(f"{name}: damaged idx file, {len(data)} bytes instead of {expected}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
