"""TensorFlow's V2 checkpoints ("tensor bundles"), read without TensorFlow and without trust.

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
from storage.formats.protobuf import Message, messages, number, parse, signed, varint
from storage.formats.sstable import entries, masked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from storage.store import Store

MAX_INDEX_NBYTES = 256 << 20
MAX_RANK = 64
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
    }.items()
}
"""TensorFlow's numbers of the types that NumPy has."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor is, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    crc: int
    is_cut: bool
    """Whether it is stored in slices, each under a name of its own."""


class TensorBundle:
    """A checkpoint of TensorFlow: its tensors by name, each read when it is asked for.

    The methods are those of `tf.train.load_checkpoint`; data types are named as NumPy names them.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._entries: dict[str, Entry] = {}
        self._num_shards = 0
        data = self._read_index()
        try:
            for key, value in entries(data):
                message = parse(value)
                if not key:
                    self._num_shards = _shards(message)
                elif key[0]:  # what begins with a zero is a slice of another one
                    self._entries[key.decode()] = _entry(message)
        except (ValueError, UnicodeDecodeError) as exc:
            raise self._corrupt(f"{prefix}.index", exc) from exc
        if not self._num_shards:
            raise self._corrupt(f"{prefix}.index", "it does not say how many files there are")

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
            raise ConfigurationError(f"{self._url()} has no tensor {name!r}: it has {near}, ...")
        if entry.is_cut:
            raise ConfigurationError(
                f"{self._url()}: {name} is stored in slices of a partitioned variable, which are not read: "
                "save it whole with TensorFlow"
            )
        try:
            return self._strings(entry) if entry.dtype == "string" else self._numbers(entry)
        except ValueError as exc:
            raise self._corrupt(self._data_key(entry), f"{name}: {exc}") from exc

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
                f"there is no TensorFlow checkpoint at {self._url()}: {key} is missing"
            ) from exc

    def _numbers(self, entry: Entry) -> NDArray[Any]:
        dtype = numpy_dtype(entry.dtype)
        nbytes = prod(entry.shape) * dtype.itemsize
        if nbytes != entry.nbytes:
            raise ValueError(f"{entry.nbytes} bytes for the shape {list(entry.shape)} of {entry.dtype}")
        raw = self._raw(entry)
        if masked(crc32c(raw.data)) != entry.crc:
            raise ValueError("it has a wrong checksum")
        return raw.view(dtype).reshape(entry.shape)

    def _strings(self, entry: Entry) -> Any:
        """Lengths, a checksum of those, and then the bytes of all."""
        count = prod(entry.shape)
        if count > entry.nbytes:
            raise ValueError(f"{entry.nbytes} bytes for {count} strings")
        data = self._raw(entry).tobytes()
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

    def _raw(self, entry: Entry) -> NDArray[np.uint8]:
        key = self._data_key(entry)
        try:
            size = self._store.info(key).nbytes
            if entry.offset + entry.nbytes > size:
                raise ValueError(f"bytes {entry.offset} to {entry.offset + entry.nbytes} of {size}")
            raw = np.empty(entry.nbytes, np.uint8)
            if entry.nbytes and self._store.read_into(key, entry.offset, [raw.data]) != entry.nbytes:
                raise ValueError("it is cut off")
        except ObjectMissing as exc:
            raise ValueError("the file is missing") from exc
        return raw

    def _data_key(self, entry: Entry) -> str:
        return f"{self._prefix}.data-{entry.shard:05d}-of-{self._num_shards:05d}"

    def _url(self) -> str:
        return f"{self._store.url}/{self._prefix}"

    def _corrupt(self, key: str, why: object) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self._store.url}/{key}: {why}")


def open_bundle(url: str) -> TensorBundle:
    """The checkpoint of TensorFlow with this prefix, such as "runs/cp.ckpt", at any fsspec URL.

    Raises CheckpointError if there is none.
    """
    file = file_at(url.removesuffix(".index"))
    return TensorBundle(file.store, file.key)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The type that `get_variable_to_dtype_map` names so; that of objects for strings."""
    return np.dtype(object if name == "string" else getattr(ml_dtypes, name, name))


def _shards(message: Message) -> int:
    count = number(message, 1)
    if number(message, 2):
        raise ValueError("it is of a big-endian machine")
    if not 1 <= count <= 99_999:
        raise ValueError(f"it consists of {count} files")
    return count


def _entry(message: Message) -> Entry:
    code = number(message, 1)
    if code != _STRING and code not in DTYPES:
        raise ValueError(f"a tensor has the type number {code}, which NumPy has none for")
    shape = [signed(dim, 1) for part in messages(message, 2) for dim in messages(part, 2)]
    if len(shape) > MAX_RANK or any(n < 0 for n in shape):
        raise ValueError(f"a tensor has the shape {shape}")
    place = (signed(message, 3), signed(message, 4), signed(message, 5))
    if min(place) < 0:
        raise ValueError(f"a tensor lies at {place}")
    dtype = "string" if code == _STRING else DTYPES[code].name
    return Entry(dtype, tuple(shape), *place, number(message, 6), 7 in message)
