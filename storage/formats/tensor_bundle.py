"""TensorFlow's V2 checkpoints ("tensor bundles"), read without TensorFlow and without trust, and written.

`PREFIX.index` is a sorted string table of where each tensor lies in `PREFIX.data-0000i-of-0000n`; the empty
key holds how many of those there are. Source: tensorflow/core/protobuf/tensor_bundle.proto and the files
themselves. Every tensor is checked by its CRC-32C.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from crc32c import crc32c

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, ObjectMissing
from storage.files import file_at
from storage.formats.object_graph import ObjectGraph
from storage.formats.protobuf import (
    Message,
    messages,
    number,
    parse,
    signed,
    varint,
    varint_of,
    written,
    written_fixed32,
)
from storage.formats.sstable import entries, masked, masked_crc, table
from storage.formats.tensor_slices import Slice, check_pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from storage.store import Store

MAX_INDEX_NBYTES = 256 << 20
MAX_RANK = 64
_READ_NBYTES = 8 << 20
_COUNTS = (1, 2, 3)
"""How many files of data a checkpoint that is written may have: all but the first are empty."""
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"

_STRING = 7
DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(kind)
    for code, kind in {
        1: "float32",
        2: "float64",
        3: "int32",
        4: "uint8",
        5: "int16",
        6: "int8",
        8: "complex64",
        9: "int64",
        10: "bool",
        14: ml_dtypes.bfloat16,
        17: "uint16",
        18: "complex128",
        19: "float16",
        22: "uint32",
        23: "uint64",
        24: ml_dtypes.float8_e5m2,
        25: ml_dtypes.float8_e4m3fn,
        26: ml_dtypes.float8_e4m3fnuz,
        27: ml_dtypes.float8_e4m3b11fnuz,
        28: ml_dtypes.float8_e5m2fnuz,
        29: ml_dtypes.int4,
        30: ml_dtypes.uint4,
        31: ml_dtypes.int2,
        32: ml_dtypes.uint2,
        33: ml_dtypes.float4_e2m1fn,
    }.items()
}
"""TensorFlow's numbers of the types that NumPy has."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_UNREADABLE = {
    11: "qint8",
    12: "quint8",
    13: "qint32",
    15: "qint16",
    16: "quint16",
    20: "resource",
    21: "variant",
}
"""Those of types that it has not: what they hold only TensorFlow knows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor is, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    crc: int
    pieces: tuple[Slice, ...] = ()
    """Where it is stored in pieces, each under a key of its own: where those lie in it."""


class TensorBundle:
    """A checkpoint of TensorFlow: its tensors by name, each read when it is asked for.

    The methods are those of `tf.train.load_checkpoint`; data types are named as NumPy names them.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._entries: dict[str, Entry] = {}
        self._pieces: dict[bytes, Entry] = {}
        self._sizes: dict[str, int] = {}
        self._num_shards = 0
        data = self._read_index()
        try:
            for key, value in entries(data):
                message = parse(value)
                if not key:
                    self._num_shards = _shards(message)
                elif key[0]:
                    self._entries[key.decode()] = self._entry(message)
                else:  # a piece of another one
                    self._pieces[key] = self._entry(message)
        except (ValueError, UnicodeDecodeError) as exc:
            raise self._corrupt(f"{prefix}.index", exc) from exc
        if not self._num_shards:
            raise self._corrupt(f"{prefix}.index", "it does not say how many files there are")

    @property
    def url(self) -> str:
        """The prefix that its files have, as a path or URL."""
        return f"{self._store.url}/{self._prefix}"

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """The shape of each tensor."""
        return {name: list(entry.shape) for name, entry in self._entries.items()}

    def get_variable_to_dtype_map(self) -> dict[str, str]:
        """The data type of each tensor, as NumPy names it, or "string"."""
        return {name: entry.dtype for name, entry in self._entries.items()}

    def has_tensor(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._entries

    def get_tensor(self, name: str) -> Any:
        """A tensor as an array, its checksum verified; of strings an array of bytes, of a single one bytes.

        Raises ConfigurationError for an unknown name, and what cannot be read; CorruptCheckpoint.
        """
        entry = self._entries.get(name)
        if entry is None:
            near = ", ".join(sorted(self._entries)[:10])
            raise ConfigurationError(f"{self.url} has no tensor {name!r}: it has {near}, ...")
        if entry.dtype in _UNREADABLE.values():
            raise ConfigurationError(
                f"{self.url}: {name} holds values of TensorFlow's type {entry.dtype}, which nothing but "
                "TensorFlow can read"
            )
        try:
            if entry.pieces:
                return self._assembled(name, entry)
            return self._strings(entry) if entry.dtype == "string" else self._numbers(entry)
        except ValueError as exc:
            raise self._corrupt(self._data_key(entry), f"{name}: {exc}") from exc

    def verify(self) -> None:
        """Read every tensor. Raises CorruptCheckpoint for the first one that is damaged."""
        whole = [(name, entry) for name, entry in self._entries.items() if not entry.pieces]
        cut = [(name, entry) for name, entry in self._entries.items() if entry.pieces]
        for name, entry in (*whole, *((key.decode(errors="replace"), e) for key, e in self._pieces.items())):
            try:
                if entry.dtype == "string":
                    self._strings(entry)
                elif entry.dtype in _UNREADABLE.values():
                    self._raw(entry)  # whose checksum is not of its bytes
                else:
                    self._numbers(entry)
            except ValueError as exc:
                raise self._corrupt(self._data_key(entry), f"{name}: {exc}") from exc
        for name, _ in cut:
            self.get_tensor(name)

    def object_graph(self) -> ObjectGraph | None:
        """Which object's attribute is stored under which name; None where a TF1 Saver has written it."""
        if not self.has_tensor(OBJECT_GRAPH):
            return None
        data = self.get_tensor(OBJECT_GRAPH)
        try:
            return ObjectGraph.parse(data if isinstance(data, bytes) else b"")
        except (ValueError, UnicodeDecodeError) as exc:
            raise self._corrupt(f"{self._prefix}.index", f"the object graph: {exc}") from exc

    # -- parts --------------------------------------------------------------------------------------------

    def _read_index(self) -> bytes:
        key = f"{self._prefix}.index"
        try:
            size = self._store.info(key).nbytes
            if size > MAX_INDEX_NBYTES:
                raise self._corrupt(key, f"an index of {size} bytes is longer than {MAX_INDEX_NBYTES}")
            return self._store.read(key)
        except ObjectMissing as exc:
            raise CheckpointError(
                f"there is no TensorFlow checkpoint at {self.url}: {key} is missing"
            ) from exc

    def _entry(self, message: Message) -> Entry:
        entry = _entry(message)
        if self._num_shards and entry.shard >= self._num_shards:
            raise ValueError(f"a tensor lies in file {entry.shard} of {self._num_shards}")
        return entry

    def _assembled(self, name: str, entry: Entry) -> NDArray[Any]:
        """A tensor of its pieces, which are looked for before there is room for the whole."""
        places = [piece.within(entry.shape) for piece in entry.pieces]
        check_pieces(places, entry.shape)
        parts = []
        for piece, place in zip(entry.pieces, places, strict=True):
            part = self._pieces.get(piece.key(name))
            if part is None:
                raise ValueError("one of its pieces is missing")
            if part.dtype != entry.dtype or part.shape != tuple(each.stop - each.start for each in place):
                raise ValueError(f"a piece is of {part.dtype} and shape {list(part.shape)}")
            parts.append(self._strings(part) if part.dtype == "string" else self._numbers(part))
        whole = np.empty(entry.shape, numpy_dtype(entry.dtype))
        for place, array in zip(places, parts, strict=True):
            whole[place] = array
        return whole

    def _numbers(self, entry: Entry) -> NDArray[Any]:
        dtype = numpy_dtype(entry.dtype)
        nbytes = prod(entry.shape) * dtype.itemsize
        if nbytes != entry.nbytes:
            raise ValueError(f"{entry.nbytes} bytes for the shape {list(entry.shape)} of {entry.dtype}")
        raw, crc = self._raw(entry)
        if masked(crc) != entry.crc:
            raise ValueError("it has a wrong checksum")
        return raw.view(dtype).reshape(entry.shape)

    def _strings(self, entry: Entry) -> Any:
        """Lengths, a checksum of those, and then the bytes of all."""
        count = prod(entry.shape)
        if count > entry.nbytes:
            raise ValueError(f"{entry.nbytes} bytes for {count} strings")
        data = self._raw(entry)[0].tobytes()
        lengths, place, crc = [], 0, 0
        for _ in range(count):
            length, place = varint(data, place)
            lengths.append(length)
            crc = crc32c(length.to_bytes(4 if length < 1 << 32 else 8, "little"), crc)
        sums = data[place : place + 4]
        if int.from_bytes(sums, "little") != masked(crc) or place + 4 + sum(lengths) != len(data):
            raise ValueError("the lengths of its strings are wrong")
        if masked(crc32c(data[place + 4 :], crc32c(sums, crc))) != entry.crc:
            raise ValueError("it has a wrong checksum")
        place += 4
        found = np.empty(count, object)
        for i, length in enumerate(lengths):
            found[i] = data[place : place + length]
            place += length
        return found.reshape(entry.shape) if entry.shape else found[0]

    def _raw(self, entry: Entry) -> tuple[NDArray[np.uint8], int]:
        """The bytes of a tensor, and their CRC-32C, which is computed while they are in the cache."""
        key = self._data_key(entry)
        crc = 0
        try:
            size = self._sizes.get(key)
            if size is None:
                size = self._sizes[key] = self._store.info(key).nbytes
            if entry.offset + entry.nbytes > size:
                raise ValueError(f"bytes {entry.offset} to {entry.offset + entry.nbytes} of {size}")
            raw = np.empty(entry.nbytes, np.uint8)
            step = (entry.nbytes or 1) if "://" in self._store.url else _READ_NBYTES
            for start in range(0, entry.nbytes, step):
                part = raw[start : start + step].data
                if self._store.read_into(key, entry.offset + start, [part]) != len(part):
                    raise ValueError("it is cut off")
                crc = crc32c(part, crc)
        except ObjectMissing as exc:
            raise ValueError("the file is missing") from exc
        return raw, crc

    def _data_key(self, entry: Entry) -> str:
        return data_key(self._prefix, entry.shard, self._num_shards)

    def _corrupt(self, key: str, why: object) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self._store.url}/{key}: {why}")


def open_bundle(url: str) -> TensorBundle:
    """The checkpoint of TensorFlow with this prefix, such as "runs/cp.ckpt", at any fsspec URL.

    Raises CheckpointError if there is none.
    """
    file = file_at(url.removesuffix(".index"))
    return TensorBundle(file.store, file.key)


def write_bundle(url: str, tensors: Mapping[str, Any]) -> None:
    """Write arrays, and strings as bytes or arrays of them, by name, as the checkpoint with this prefix.

    The index is what makes it count. Data go to files whose names an earlier checkpoint does not have, whose
    own go afterwards: a reader finds the old one or the new. Raises ConfigurationError for a type that
    TensorFlow has none for; StorageError.
    """
    file = file_at(url.removesuffix(".index"))
    store, prefix = file.store, file.key
    before = [n for n in _COUNTS if _exists(store, data_key(prefix, 0, n))]
    count = next((n for n in _COUNTS if n not in before), 1)
    items = [(b"", written((1, count), (3, written((1, 1)))))]
    parts: list[bytes | memoryview] = []
    offset = 0
    for name in sorted(tensors, key=str.encode):
        entry, buffers, nbytes = _stored(name, tensors[name], offset)
        items.append((name.encode(), entry))
        parts += buffers
        offset += nbytes
    store.write(data_key(prefix, 0, count), parts)
    for shard in range(1, count):
        store.write(data_key(prefix, shard, count), ())
    store.write(f"{prefix}.index", (table(items),))
    store.delete(data_key(prefix, shard, n) for n in before if n != count for shard in range(n))


def data_key(prefix: str, shard: int, num_shards: int) -> str:
    """The key of a file of data."""
    return f"{prefix}.data-{shard:05d}-of-{num_shards:05d}"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The type that `get_variable_to_dtype_map` names so; objects for strings and the unreadable."""
    is_object = name == "string" or name in _UNREADABLE.values()
    return np.dtype(object if is_object else getattr(ml_dtypes, name, name))


def _exists(store: Store, key: str) -> bool:
    try:
        store.info(key)
    except ObjectMissing:
        return False
    return True


def _stored(name: str, value: Any, offset: int) -> tuple[bytes, list[bytes | memoryview], int]:
    """The entry of a tensor, its bytes, and how many those are."""
    array = np.asarray(value, object if isinstance(value, bytes) else None)
    buffers: list[bytes | memoryview]
    if array.dtype == object:
        code, strings = _STRING, [bytes(each) for each in array.ravel()]
        lengths = b"".join(len(each).to_bytes(4, "little") for each in strings)
        sums = masked_crc(lengths).to_bytes(4, "little")
        buffers = [b"".join(varint_of(len(each)) for each in strings), sums, *strings]
        crc = crc32c(b"".join(strings), crc32c(sums, crc32c(lengths)))
    else:
        found = _CODES.get(array.dtype)
        if found is None:
            raise ConfigurationError(f"{name} is of {array.dtype}, which TensorFlow has no type for")
        code = found
        buffers = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
        crc = crc32c(buffers[0])
    nbytes = sum(len(each) for each in buffers)
    shape = written(*((2, written((1, n))) for n in array.shape))
    fields: list[tuple[int, int | bytes]] = [(1, code), (2, shape)]
    fields += [(field, given) for field, given in ((4, offset), (5, nbytes)) if given]
    return written(*fields) + written_fixed32(6, masked(crc)), buffers, nbytes


def _shards(message: Message) -> int:
    count = number(message, 1)
    if number(message, 2):
        raise ValueError("it is of a big-endian machine")
    if not 1 <= count <= 99_999:
        raise ValueError(f"it consists of {count} files")
    return count


def _entry(message: Message) -> Entry:
    code = number(message, 1)
    shape = [signed(dim, 1) for part in messages(message, 2) for dim in messages(part, 2)]
    if len(shape) > MAX_RANK or any(n < 0 for n in shape):
        raise ValueError(f"a tensor has the shape {shape}")
    place = (signed(message, 3), signed(message, 4), signed(message, 5))
    if min(place) < 0:
        raise ValueError(f"a tensor lies at {place}")
    if code == _STRING:
        dtype = "string"
    elif code in DTYPES:
        dtype = DTYPES[code].name
    elif code in _UNREADABLE:
        dtype = _UNREADABLE[code]
    else:
        raise ValueError(f"a tensor has the type number {code}, which TensorFlow has none for")
    pieces = tuple(Slice.parse(each) for each in messages(message, 7))
    return Entry(dtype, tuple(shape), *place, number(message, 6), pieces)
