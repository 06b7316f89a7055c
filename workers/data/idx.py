"""The idx files of MNIST and its kin."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.files import file_at
from workers.data.arrays import ArrayDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


class IdxDataset(ArrayDataset):
    """The arrays of idx files at any URL, gzipped or not, in memory: `IdxDataset(images, labels)`.

    Raises ConfigurationError where one is damaged.
    """

    def __init__(self, *urls: str) -> None:
        files = [file_at(url) for url in urls]
        super().__init__(*(read_idx(file.read(), file.url) for file in files))
