"""A file that the HDF5 library writes, in pieces: arrays are not copied, only their places are noted.

The library gives a large array that is stored as it is to the file by its own address. So the file is a list
of buffers in the end, the arrays among them, which a store writes one behind the other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_PAGE = 1 << 16


class Image:
    """A file object for h5py. The arrays must stay as they are until the buffers are written."""

    def __init__(self, arrays: Iterable[NDArray[Any]]) -> None:
        self._known = {
            _address(array): array for array in arrays if array.flags.c_contiguous and array.nbytes
        }
        self._pages: dict[int, bytearray] = {}
        self._held: dict[int, NDArray[Any]] = {}
        self._at = 0
        self._end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place of the file; returns it."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        """Where the next read or write begins."""
        return self._at

    def flush(self) -> None:
        """Nothing waits."""

    def truncate(self, size: int | None = None, /) -> int:
        """Make the file so long."""
        self._end = self._at if size is None else size
        return self._end

    def write(self, data: Any, /) -> int:
        """Hold a known array where it is written as a whole; copy anything else."""
        piece = np.frombuffer(data, np.uint8)
        known = self._known.get(_address(piece))
        if known is not None and known.nbytes == piece.nbytes >= _PAGE:
            self._held[self._at] = known
        else:
            self._copy(self._at, piece)
        self._at += piece.nbytes
        self._end = max(self._end, self._at)
        return piece.nbytes

    def read(self, size: int = -1, /) -> bytes:
        """So many bytes from where it is, or all to the end."""
        left = max(self._end - self._at, 0)
        found = bytearray(left if size < 0 else min(size, left))
        self.readinto(found)
        return bytes(found)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as the file goes; returns how many bytes there were."""
        into = np.frombuffer(buffer, np.uint8)
        start, stop = self._at, min(self._at + into.nbytes, self._end)
        if stop <= start:
            return 0
        into[: stop - start] = np.frombuffer(b"".join(self._between(start, stop)), np.uint8)
        for place, array in self._held.items():
            first, last = max(start, place), min(stop, place + array.nbytes)
            if first < last:
                into[first - start : last - start] = _bytes(array)[first - place : last - place]
        self._at = stop
        return stop - start

    def buffers(self) -> list[memoryview]:
        """The whole file in order."""
        found: list[memoryview] = []
        at = 0
        for place, array in sorted(self._held.items()):
            found += [memoryview(piece) for piece in self._between(at, place)]
            found.append(_bytes(array).data)
            at = place + array.nbytes
        return found + [memoryview(piece) for piece in self._between(at, self._end)]

    def _copy(self, start: int, piece: NDArray[np.uint8]) -> None:
        done = 0
        while done < piece.nbytes:
            number, offset = divmod(start + done, _PAGE)
            page = self._pages.setdefault(number, bytearray(_PAGE))
            part = piece[done : done + _PAGE - offset]
            page[offset : offset + part.nbytes] = part.tobytes()
            done += part.nbytes

    def _between(self, start: int, stop: int) -> list[bytes]:
        """What was copied, as pieces; zeros where nothing was written."""
        found = []
        while start < stop:
            number, offset = divmod(start, _PAGE)
            nbytes = min(_PAGE - offset, stop - start)
            page = self._pages.get(number)
            found.append(bytes(nbytes) if page is None else bytes(page[offset : offset + nbytes]))
            start += nbytes
        return found


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
