"""Arrays in .npy files: mapped into memory where they are here, read by ranges where they are elsewhere."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from storage.errors import ConfigurationError, DataError
from storage.files import StoredFile, file_at
from workers.data.mapping import Mappable
from workers.data.parts import check_indices, check_numbers, common_length

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from workers.engine import Batch

_MAX_HEADER_NBYTES = 1 << 16
_SAMPLED_BLOCKS = 256
_BLOCK_NBYTES = 256 << 10
_GAP_NBYTES = 128 << 10
"""Bytes between two rows that are read with them rather than asked for anew."""


class NpyDataset(Mappable):
    """Arrays in `.npy` files at any URL with the same first axis: `NpyDataset("x.npy", "y.npy")`.

    Files here are mapped into memory, so they may be larger than it; of files elsewhere, the rows that are
    asked for are read. Raises ConfigurationError for a file that holds no array of real numbers in C order,
    and DataError, naming the file, where it ends too early.
    """

    def __init__(self, *urls: str) -> None:
        if not urls:
            raise ConfigurationError(
                "NpyDataset needs at least one file, such as NpyDataset('x.npy', 'y.npy')"
            )
        self._arrays = [_opened(file_at(url)) for url in urls]
        self._length = common_length("NpyDataset", self._arrays)
        self._identity: dict[str, Any] | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return self._length

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """These samples, in this order, one array for each file."""
        check_indices(indices, len(self))
        return tuple(array.rows(indices) for array in self._arrays)

    def identity(self) -> dict[str, Any]:
        """Number of samples, shapes, dtypes, and the BLAKE3 of the contents; computed once.

        Of more than 64 MiB only 256 blocks of 256 KiB, evenly spaced from the first to the last, go into the
        digest: a change between them is not noticed.
        """
        if self._identity is None:
            self._identity = {
                "kind": "npy",
                "samples": len(self),
                "shapes": [list(array.shape[1:]) for array in self._arrays],
                "dtypes": [array.dtype.str for array in self._arrays],
                "blake3": [array.digest() for array in self._arrays],
            }
        return self._identity


@dataclass(frozen=True, slots=True)
class _NpyFile:
    """An array in a file: its header, and where its numbers begin."""

    file: StoredFile
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    mapped: NDArray[Any] | None
    """The array, where the file is on this machine."""

    @property
    def _row_nbytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """The rows of these indices, as an array of its own in the byte order of this machine."""
        native = self.dtype.newbyteorder("=")
        if self.mapped is not None:
            return self.mapped[indices].astype(native, copy=False)
        wanted, places = np.unique(indices, return_inverse=True)
        found = np.empty((len(wanted), *self.shape[1:]), native)

        def read(run: tuple[int, int]) -> None:
            low, high = run
            first, last = int(wanted[low]), int(wanted[high - 1]) + 1
            data = self._read(first * self._row_nbytes, last * self._row_nbytes)
            rows = np.frombuffer(data, self.dtype).reshape(last - first, *self.shape[1:])
            found[low:high] = rows[wanted[low:high] - first]

        if self._row_nbytes:
            with ThreadPoolExecutor(self.file.store.parallel_reads, "holdfast-npy") as pool:
                for _ in pool.map(read, _runs(wanted, _GAP_NBYTES // self._row_nbytes)):
                    pass
        return found[places]

    def digest(self) -> str:
        """The BLAKE3 of the array's bytes, or of blocks of them if there are many."""
        nbytes = self.shape[0] * self._row_nbytes
        blocks = -(-nbytes // _BLOCK_NBYTES)
        chosen = np.linspace(0, blocks - 1, min(blocks, _SAMPLED_BLOCKS)).astype(int).tolist()
        digest = blake3()

        def read(block: int) -> bytes:
            return self._read(block * _BLOCK_NBYTES, min((block + 1) * _BLOCK_NBYTES, nbytes))

        with ThreadPoolExecutor(self.file.store.parallel_reads, "holdfast-npy") as pool:
            for data in pool.map(read, chosen):
                digest.update(data)
        return digest.hexdigest()

    def _read(self, low: int, high: int) -> bytes:
        """Bytes of the array, all of them. Raises DataError where the file has fewer."""
        data = self.file.read(self.start + low, self.start + high)
        if len(data) != high - low:
            row = (low + len(data)) // self._row_nbytes
            raise DataError(f"{self.file.url} ends before its row {row} is complete: fetch it again")
        return data


def _runs(wanted: NDArray[np.int64], gap: int) -> Iterator[tuple[int, int]]:
    """Cut sorted numbers into [low, high) runs of their places, wherever more than `gap` are left out."""
    cuts = (np.flatnonzero(np.diff(wanted) > gap + 1) + 1).tolist()
    return zip([0, *cuts], [*cuts, len(wanted)], strict=True)


def _opened(file: StoredFile) -> _NpyFile:
    head = io.BytesIO(file.read(0, _MAX_HEADER_NBYTES))
    try:
        version = np.lib.format.read_magic(head)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
        else:
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(head)
    except ValueError as exc:
        raise ConfigurationError(f"{file.url}: not a .npy file: {exc}") from exc
    if fortran_order and len(shape) > 1:
        raise ConfigurationError(
            f"{file.url} is in Fortran order, in which no sample lies in one piece: save it with "
            "np.ascontiguousarray"
        )
    start = head.tell()
    array = _NpyFile(file, shape, dtype, start, None)
    check_numbers("NpyDataset", file.url, array)
    expected = start + math.prod(shape) * dtype.itemsize
    if (nbytes := file.info().nbytes) != expected:
        raise ConfigurationError(f"{file.url}: damaged .npy file, {nbytes} bytes instead of {expected}")
    if file.path is None or expected == start:  # nothing cannot be mapped
        return array
    return replace(array, mapped=np.memmap(file.path, dtype, "r", start, shape))
