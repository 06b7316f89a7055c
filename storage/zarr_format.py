"""Zarr v3 documents and shards, encoded and decoded without zarr.

zarr-python reads the result as it is (a test holds it to that); this module writes and checks it several
times as fast, straight from and into the buffers of the state. Source: the Zarr v3 core specification and its
sharding codec, version 1.0.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from storage.errors import ConfigurationError, CorruptCheckpoint
from storage.layout import DTYPES, MAX_LENGTH, Layout, StateArray, Variable, check_name, names_above
from storage.strict_json import MAX_NBYTES, canonical, fields, parse, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

assert sys.byteorder == "little", "buffers are stored as they lie in memory"

DOCUMENT = "zarr.json"
CRC_NBYTES = 4
_ABSENT = 2**64 - 1
_BYTES: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC: dict[str, Any] = {"name": "crc32c"}
_ZSTD_LEVELS = range(-7, 23)
_MIN_FRAME_NBYTES = 9  # of zstd: magic number, header, content size, one block's header
_VARIABLE_KINDS = {"offset": int, "shape": list, "dtype": str, "trainable": bool}


def documents(
    arrays: Sequence[StateArray], shard_lengths: Mapping[str, int], zstd_level: int | None = None
) -> dict[str, bytes]:
    """Key and content of every zarr.json of a checkpoint: the root, groups on the way, and the arrays.

    `shard_lengths` are elements of a full shard by array name; an array without any shard needs none. Raises
    ConfigurationError if one would be larger than what readers accept.
    """
    found = {DOCUMENT: group_document()}
    for array in arrays:
        found |= groups_above(array.name)
    for array in arrays:
        key = f"{array.name}/{DOCUMENT}"
        if key in found:
            raise ValueError(f"the array {array.name} cannot be a group too")
        found[key] = array_document(array, shard_lengths.get(array.name, array.chunk), zstd_level)
        if len(found[key]) > MAX_NBYTES:
            count = len(array.layout.variables)
            raise ConfigurationError(
                f"{array.name}: a table of {count} variables takes {len(found[key])} bytes, more than the "
                f"{MAX_NBYTES} that are read: join some"
            )
    return found


def array_document(array: StateArray, shard_length: int, zstd_level: int | None = None) -> bytes:
    """The zarr.json of a state array; its attributes hold the table of variables, in layout order."""
    codecs = [_BYTES, _CRC] if zstd_level is None else [_BYTES, _zstd(zstd_level), _CRC]
    doc = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [array.length],
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_length]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _fill_value(array.dtype),
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [array.chunk],
                    "codecs": codecs,
                    "index_codecs": [_BYTES, _CRC],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {
            "variables": {
                v.name: {
                    "offset": v.offset,
                    "shape": list(v.shape),
                    "dtype": v.dtype,
                    "trainable": v.trainable,
                }
                for v in array.layout.variables
            }
        },
    }
    return json.dumps(doc, indent=1).encode()


@dataclass(frozen=True, slots=True)
class StoredArray:
    """How an array is stored: elements of a full shard, and the zstd level if its chunks are compressed."""

    array: StateArray
    shard_length: int
    zstd_level: int | None = None

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of an inner chunk in memory."""
        return self.array.chunk * self.array.itemsize

    @property
    def shard_chunks(self) -> int:
        """Inner chunks of a full shard, which is how many its index lists."""
        return self.shard_length // self.array.chunk

    @property
    def index_nbytes(self) -> int:
        """Bytes of the index at the end of each shard, its CRC included."""
        return 16 * self.shard_chunks + CRC_NBYTES

    @property
    def num_shards(self) -> int:
        """Shard objects of the array."""
        return -(-self.array.padded_length // self.shard_length)

    @property
    def _max_frame_nbytes(self) -> int:
        """Bytes that zstd makes of a chunk at most: its ZSTD_COMPRESSBOUND."""
        nbytes = self.chunk_nbytes
        return nbytes + (nbytes >> 8) + (max(0, (128 << 10) - nbytes) >> 11)

    def shard_key(self, index: int) -> str:
        """Key of a shard object inside the checkpoint's directory."""
        return f"{self.array.name}/c/{index}"

    def num_chunks(self, index: int) -> int:
        """Inner chunks that a shard holds; the last one may be shorter."""
        rest = self.array.padded_length - index * self.shard_length
        return min(rest, self.shard_length) // self.array.chunk

    def check_nbytes(self, index: int, nbytes: int) -> None:
        """Raise CorruptCheckpoint if a shard object cannot be of this size; before anything is allocated."""
        num_chunks = self.num_chunks(index)
        exact = num_chunks * (self.chunk_nbytes + CRC_NBYTES) + self.index_nbytes
        least = num_chunks * (_MIN_FRAME_NBYTES + CRC_NBYTES) + self.index_nbytes
        most = num_chunks * (self._max_frame_nbytes + CRC_NBYTES) + self.index_nbytes
        if nbytes != exact if self.zstd_level is None else not least <= nbytes <= most:
            raise CorruptCheckpoint(f"{self.shard_key(index)} cannot hold its chunks in {nbytes} bytes")

    def chunk_range(self, index: int, entries: NDArray[np.uint64] | None, chunk: int) -> tuple[int, int]:
        """Where in a shard object an inner chunk lies with its CRC; `entries` are the index of a compressed
        one.
        """
        if entries is None:
            stored = self.chunk_nbytes + CRC_NBYTES
            return chunk * stored, (chunk + 1) * stored
        start, nbytes = (int(x) for x in entries[chunk])
        return start, start + nbytes

    def parse_index(self, index: int, data: bytes, shard_nbytes: int) -> NDArray[np.uint64]:
        """(offset, stored bytes) of each chunk from the index at the end of a shard object.

        Raises CorruptCheckpoint unless it lists its chunks one behind the other from the start of the object
        to the index itself, and each as large as it can be.
        """
        body, crc = data[:-CRC_NBYTES], data[-CRC_NBYTES:]
        if crc32c(body).to_bytes(CRC_NBYTES, "little") != crc:
            raise CorruptCheckpoint("the index does not match its CRC")
        num_chunks = self.num_chunks(index)
        entries = np.frombuffer(body, dtype="<u8").reshape(-1, 2)
        sizes = entries[:num_chunks, 1].copy()
        if self.zstd_level is None:
            sizes[:] = self.chunk_nbytes + CRC_NBYTES
        elif np.any(sizes > self._max_frame_nbytes + CRC_NBYTES) or np.any(
            sizes < _MIN_FRAME_NBYTES + CRC_NBYTES
        ):
            raise CorruptCheckpoint("the index lists a chunk of impossible size")
        if body != shard_index(sizes, self.shard_chunks) or int(sizes.sum()) + len(data) != shard_nbytes:
            raise CorruptCheckpoint("the index does not list its chunks one behind the other")
        return entries


def parse_array(name: str, data: bytes) -> StoredArray:
    """The array that `array_document` described, and how it is stored; else CorruptCheckpoint."""
    try:
        _check_density(data)
        doc = parse(data, max_values=len(data))
        shape, grid, attributes = doc["shape"], doc["chunk_grid"], doc["attributes"]
        if type(shape[0]) is not int:
            raise ValueError(f"bad length {shape[0]!r}")  # noqa: TRY301
        table = fields(attributes, "attributes", {"variables": dict})["variables"]
        variables = []
        for key, item in table.items():
            check_name(key)
            v = fields(item, key, _VARIABLE_KINDS)
            _check_shape(v["shape"])
            variables.append(Variable(key, v["offset"], tuple(v["shape"]), v["dtype"], v["trainable"]))
        array = StateArray(name, Layout(tuple(variables), shape[0]), doc["data_type"])
        shard_length = grid["configuration"]["chunk_shape"][0]
        if type(shard_length) is not int or not 0 < shard_length <= MAX_LENGTH or shard_length % array.chunk:
            raise ValueError(f"bad shard length {shard_length!r}")  # noqa: TRY301
        if shard_length < array.padded_length and shard_length % array.unit:
            raise ValueError(f"shards of {shard_length} elements cut a digest block")  # noqa: TRY301
        codecs = doc["codecs"][0]["configuration"]["codecs"]
        level = codecs[1]["configuration"]["level"] if len(codecs) > 2 else None
        if level is not None and (type(level) is not int or level not in _ZSTD_LEVELS):
            raise ValueError(f"bad zstd level {level!r}")  # noqa: TRY301
        if canonical(doc) != canonical(json.loads(array_document(array, shard_length, level))):
            raise ValueError("not as this version writes it")  # noqa: TRY301
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as exc:
        raise CorruptCheckpoint(f"{name}/{DOCUMENT}: {printable(str(exc))}") from exc
    return StoredArray(array, shard_length, level)


def _check_density(data: bytes) -> None:
    """Raise ValueError for a text of far more values than a table of variables of its length has: each takes
    many times its own length in memory.
    """
    if (
        data.count(b"[") + data.count(b"{") > 1000 + len(data) // 16
        or data.count(b",") > 1000 + len(data) // 8
    ):
        raise ValueError("it holds more values than a table of variables")


def _check_shape(shape: list[Any]) -> None:
    """Raise ValueError unless NumPy can make an array of this shape, an empty one too."""
    fits = len(shape) <= 32 and all(type(n) is int and 0 <= n <= MAX_LENGTH for n in shape)
    if not fits or math.prod(max(n, 1) for n in shape) > MAX_LENGTH:
        raise ValueError(f"bad shape {str(shape)[:80]}")


def encode_shard(
    values: NDArray[Any], chunk: int, shard_chunks: int, zstd_level: int | None = None
) -> Iterator[memoryview | bytes]:
    """The buffers of a shard object: each inner chunk (where it lies, if it is not compressed) and its
    CRC-32C, and the index at the end.

    `values` are whole inner chunks; the last shard of an array may hold fewer than `shard_chunks`.
    """
    num_chunks, rest = divmod(len(values), chunk)
    if values.ndim != 1 or rest or not 0 < num_chunks <= shard_chunks or not values.flags.c_contiguous:
        raise ValueError(f"{len(values)} elements are not 1 to {shard_chunks} chunks of {chunk}")
    raw = values.view(np.uint8).data
    nbytes = chunk * values.itemsize
    compress = None if zstd_level is None else _compressor(zstd_level)
    sizes = np.empty(num_chunks, dtype=np.uint64)
    for i in range(num_chunks):
        piece: memoryview | bytes = raw[i * nbytes : (i + 1) * nbytes]
        if compress is not None:
            piece = compress(piece)
        sizes[i] = len(piece) + CRC_NBYTES
        yield piece
        yield crc32c(piece).to_bytes(CRC_NBYTES, "little")
    index = shard_index(sizes, shard_chunks)
    yield index
    yield crc32c(index).to_bytes(CRC_NBYTES, "little")


def shard_index(sizes: NDArray[np.uint64], shard_chunks: int) -> bytes:
    """The index, without its CRC: (offset, stored bytes) of each inner chunk, all ones for an absent one."""
    index = np.full((shard_chunks, 2), _ABSENT, dtype="<u8")
    index[: len(sizes), 0] = np.cumsum(sizes, dtype=np.uint64) - sizes
    index[: len(sizes), 1] = sizes
    return index.tobytes()


def has_crc(chunk: bytes | memoryview, crc: bytes | memoryview) -> bool:
    """Whether `crc` is the stored CRC-32C of the stored bytes."""
    return crc32c(chunk).to_bytes(CRC_NBYTES, "little") == crc


def decompress(stored: memoryview, out: memoryview) -> None:
    """In place. Fill `out` with what one zstd frame holds.

    Raises CorruptCheckpoint unless the frame itself says, before anything is unpacked, that it holds just so
    much.
    """
    import zstandard

    try:
        size = zstandard.get_frame_parameters(stored).content_size
        if size != len(out):
            raise CorruptCheckpoint(f"a zstd frame of {size} bytes where a chunk has {len(out)}")
        data = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise CorruptCheckpoint(f"no zstd frame: {exc}") from exc
    if len(data) != len(out):
        raise CorruptCheckpoint(f"a zstd frame held {len(data)} bytes and not {len(out)}")
    out[:] = data


def _compressor(level: int) -> Callable[[memoryview | bytes], bytes]:
    import zstandard

    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress


def _zstd(level: int) -> dict[str, Any]:
    return {"name": "zstd", "configuration": {"level": level, "checksum": False}}


def groups_above(name: str) -> dict[str, bytes]:
    """Key and content of the documents of the groups that an array lies in: without them zarr hides it."""
    return {f"{each}/{DOCUMENT}": group_document() for each in names_above(name)}


def slab_shape(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """A chunk shape of at most `most` elements, such that chunks follow each other in C order: whole axes at
    the end, a part of one axis, single rows before it. The parts of that axis are as even as can be.
    """
    chunk = [1] * len(shape)
    for axis in reversed(range(len(shape))):
        length = shape[axis]
        if length > most:
            chunk[axis] = -(-length // -(-length // max(1, most)))
            break
        chunk[axis] = max(1, length)
        most //= chunk[axis]
    return tuple(chunk)


def group_document() -> bytes:
    """The zarr.json of a group."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}, indent=1).encode()


def _fill_value(dtype: str) -> str | int:
    """NaN, or the extreme of an integer type: what a lost chunk reads as must not look like data."""
    assert dtype in DTYPES
    if dtype.startswith("float"):
        return "NaN"
    limits = np.iinfo(dtype)
    return int(limits.min or limits.max)
