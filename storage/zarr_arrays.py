"""Named arrays as Zarr v3 arrays of their own shapes, encoded and decoded without zarr.

An array is one document and chunks along its leading axes; each chunk is its bytes and their CRC-32C. Source:
the Zarr v3 core specification. What has no type in it, bfloat16, is held as uint16, and an attribute says so.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from storage.bundle import Bundle, Content, check_keys
from storage.errors import ConfigurationError, CorruptCheckpoint
from storage.layout import DTYPES
from storage.memory import aligned_empty
from storage.naming import numpy_dtype
from storage.strict_json import parse, printable
from storage.zarr_format import CRC_NBYTES, DOCUMENT, group_document, groups_above, has_crc, slab_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_CHUNK_NBYTES = 64 << 20
_THREADS = 4
_MAX_DOCUMENT_NBYTES = 1 << 16
_MAX_ELEMENTS = 1 << 48
_MAX_NDIM = 32
_TYPES = {**dict.fromkeys(DTYPES), "bool": None}


def encode(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Content]:
    """The objects that hold the arrays, by key: documents of groups and arrays, and chunks.

    A chunk that lies in one piece is that piece of the array itself, which must not change meanwhile. Raises
    ConfigurationError for a name below that of another array, and for a dtype that cannot be stored.
    """
    check_keys(arrays)
    found: dict[str, Content] = {DOCUMENT: group_document()}
    for name, array in arrays.items():
        found |= groups_above(name)
        values = np.asarray(array)
        dtype = values.dtype.name
        stored = values.view(np.uint16) if dtype == "bfloat16" else values
        if stored.dtype.name not in _TYPES:
            raise ConfigurationError(f"{name}: {values.dtype} cannot be saved: convert it to float32")
        chunk = chunk_shape(values.shape, values.dtype.itemsize)
        found[f"{name}/{DOCUMENT}"] = _document(values.shape, stored.dtype.name, dtype, chunk)
        for place, part in _parts(values.shape, chunk):
            data = _chunk(stored[part], chunk)
            found[_chunk_key(name, place)] = (data, crc32c(data).to_bytes(CRC_NBYTES, "little"))
    return found


def _chunk(inner: NDArray[Any], shape: Sequence[int]) -> memoryview:
    """The bytes of a chunk that holds these elements, and zeros behind the edge."""
    little = inner.dtype.newbyteorder("<")
    if inner.shape == tuple(shape) and inner.flags.c_contiguous and inner.dtype == little:
        return _bytes_of(inner)
    piece = np.zeros(shape, little)
    piece[tuple(slice(0, n) for n in inner.shape)] = inner
    return _bytes_of(piece)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of an array that lies in one piece."""
    return array.reshape(-1).view(np.uint8).data


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array of a group; `np.asarray` reads it."""

    bundle: Bundle
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The size of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_seen(self) -> bool:
        """Whether all of it was read, and found good."""
        chunk = chunk_shape(self.shape, self.dtype.itemsize)
        return all(_chunk_key(self.key, place) in self.bundle.seen for place, _ in _parts(self.shape, chunk))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        chunk = chunk_shape(self.shape, self.dtype.itemsize)
        nbytes = math.prod(chunk) * self.dtype.itemsize
        parts = list(_parts(self.shape, chunk))
        for place, _ in parts:  # before memory is taken for it
            key = _chunk_key(self.key, place)
            if key not in self.bundle or self.bundle.nbytes(key) != nbytes + CRC_NBYTES:
                raise CorruptCheckpoint(f"{self.bundle.url}/{key} is not a chunk of {nbytes} bytes")
        found = aligned_empty(self.shape, self.dtype)
        if len(parts) > 1:
            with ThreadPoolExecutor(_THREADS, "holdfast-chunk") as pool:
                for _ in pool.map(lambda each: self._read(found, chunk, *each), parts):
                    pass
        else:
            for place, part in parts:
                self._read(found, chunk, place, part)
        return found if dtype is None else found.astype(dtype, copy=False)

    def _read(
        self, out: NDArray[Any], chunk: Sequence[int], place: Sequence[int], part: tuple[Any, ...]
    ) -> None:
        """In place. Read a chunk into its part of an array, straight where that lies in one piece."""
        inner = out[part]
        fits = inner.shape == tuple(chunk) and inner.flags.c_contiguous
        piece = inner if fits else np.empty(chunk, self.dtype)
        data, crc = _bytes_of(piece), memoryview(bytearray(CRC_NBYTES))
        key = _chunk_key(self.key, place)
        self.bundle.read_into(key, (data, crc))
        if not has_crc(data, crc):
            raise CorruptCheckpoint(f"{self.bundle.url}/{key}: wrong CRC")
        if not fits:
            inner[...] = piece[tuple(slice(0, n) for n in inner.shape)]


class StoredArrays(Mapping[str, StoredArray]):
    """The arrays below a key of a bundle, by their names there; all documents are read at once."""

    def __init__(self, bundle: Bundle, prefix: str) -> None:
        self._bundle = bundle
        self._prefix = f"{prefix}/"
        ending = f"/{DOCUMENT}"
        below = [k.removesuffix(ending) for k in bundle if k.startswith(self._prefix) and k.endswith(ending)]
        self._found = {
            key.removeprefix(self._prefix): array for key in below if (array := _open(bundle, key))
        }

    def __getitem__(self, name: str) -> StoredArray:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _open(bundle: Bundle, key: str) -> StoredArray | None:
    """The array of a key; None for a group."""
    try:
        data = bundle.read(f"{key}/{DOCUMENT}", _MAX_DOCUMENT_NBYTES)
        if data == group_document():
            return None
        doc = parse(data)
        shape, stored = tuple(doc["shape"]), doc["data_type"]
        name = doc["attributes"].get("dtype", stored)
        fits = len(shape) <= _MAX_NDIM and all(type(n) is int and n >= 0 for n in shape)
        if not fits or math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
            raise ValueError(f"bad shape {str(shape)[:80]}")  # noqa: TRY301
        if stored not in _TYPES or name not in (stored, *(["bfloat16"] if stored == "uint16" else [])):
            raise ValueError(f"bad dtype {str(name)[:80]!r}")  # noqa: TRY301
        dtype = numpy_dtype(name)
        if data != _document(shape, stored, name, chunk_shape(shape, dtype.itemsize)):
            raise ValueError("not as this version writes it")  # noqa: TRY301
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise CorruptCheckpoint(f"{bundle.url}/{key}/{DOCUMENT}: {printable(str(exc))}") from exc
    return StoredArray(bundle, key, shape, dtype)


def chunk_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """A chunk of at most 64 MiB, as far as one element allows."""
    return slab_shape(shape, max(1, _CHUNK_NBYTES // itemsize))


def _parts(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """The place of each chunk, and the part of the array that it holds, which is an array for no axes too."""
    counts = [-(-n // step) for n, step in zip(shape, chunk, strict=True)]
    for place in itertools.product(*map(range, counts)):
        slices = (slice(i * step, (i + 1) * step) for i, step in zip(place, chunk, strict=True))
        yield place, (*slices, ...)


def _chunk_key(name: str, place: Sequence[int]) -> str:
    return "/".join([name, "c", *map(str, place)])


def _document(shape: Sequence[int], stored: str, dtype: str, chunk: Sequence[int]) -> bytes:
    doc = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": stored,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if stored.startswith("float") else False if stored == "bool" else 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": {} if dtype == stored else {"dtype": dtype},
    }
    return json.dumps(doc, indent=1).encode()
