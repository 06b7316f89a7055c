"""Zarr v3 documents and shards, encoded and decoded without zarr.

zarr-python reads the result as it is (a test holds it to that); this module writes and checks it several
times as fast, straight from and into the buffers of the state. Source: the Zarr v3 core specification and its
sharding codec, version 1.0.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from storage.errors import CorruptCheckpoint
from storage.layout import DTYPES, MAX_LENGTH, Layout, StateArray, Variable
from storage.strict_json import fields, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

assert sys.byteorder == "little", "buffers are stored as they lie in memory"

DOCUMENT = "zarr.json"
CRC_NBYTES = 4
_ABSENT = 2**64 - 1
_BYTES: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC: dict[str, Any] = {"name": "crc32c"}
_VARIABLE_KINDS = {"offset": int, "shape": list, "dtype": str, "trainable": bool}


def documents(arrays: Sequence[StateArray], shard_lengths: dict[str, int]) -> dict[str, bytes]:
    """Key and content of every zarr.json of a checkpoint: the root, groups on the way, and the arrays.

    `shard_lengths` are elements of a full shard by array name; an array without any shard needs none.
    """
    found = {DOCUMENT: _group()}
    for array in arrays:
        parts = array.name.split("/")
        for depth in range(1, len(parts)):  # without these zarr hides what is below
            found[f"{'/'.join(parts[:depth])}/{DOCUMENT}"] = _group()
    for array in arrays:
        key = f"{array.name}/{DOCUMENT}"
        if key in found:
            raise ValueError(f"the array {array.name} cannot be a group too")
        found[key] = array_document(array, shard_lengths.get(array.name, array.chunk))
    return found


def array_document(array: StateArray, shard_length: int) -> bytes:
    """The zarr.json of a state array; its attributes hold the table of variables, in layout order."""
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
                    "codecs": [_BYTES, _CRC],
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


def parse_array(name: str, data: bytes) -> tuple[StateArray, int]:
    """The array that `array_document` described, and its shard length; else CorruptCheckpoint."""
    try:
        doc = parse(data)
        shape, grid, attributes = doc["shape"], doc["chunk_grid"], doc["attributes"]
        table = fields(attributes, "attributes", {"variables": dict})["variables"]
        variables = []
        for key, item in table.items():
            v = fields(item, key, _VARIABLE_KINDS)
            variables.append(Variable(key, v["offset"], tuple(v["shape"]), v["dtype"], v["trainable"]))
        array = StateArray(name, Layout(tuple(variables), shape[0]), doc["data_type"])
        shard_length = grid["configuration"]["chunk_shape"][0]
        if type(shard_length) is not int or not 0 < shard_length <= MAX_LENGTH or shard_length % array.chunk:
            raise ValueError(f"bad shard length {shard_length!r}")  # noqa: TRY301
        if doc != json.loads(array_document(array, shard_length)):
            raise ValueError("not as this version writes it")  # noqa: TRY301
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as exc:
        raise CorruptCheckpoint(f"{name}/{DOCUMENT}: {exc}") from exc
    return array, shard_length


def encode_shard(values: NDArray[Any], chunk: int, shard_chunks: int) -> list[memoryview | bytes]:
    """The buffers of a shard object: each inner chunk where it lies, its CRC-32C, and the index at the end.

    `values` are whole inner chunks; the last shard of an array may hold fewer than `shard_chunks`.
    """
    num_chunks, rest = divmod(len(values), chunk)
    if values.ndim != 1 or rest or not 0 < num_chunks <= shard_chunks or not values.flags.c_contiguous:
        raise ValueError(f"{len(values)} elements are not 1 to {shard_chunks} chunks of {chunk}")
    raw = values.view(np.uint8).data
    chunk_nbytes = chunk * values.itemsize
    buffers: list[memoryview | bytes] = []
    for i in range(num_chunks):
        piece = raw[i * chunk_nbytes : (i + 1) * chunk_nbytes]
        buffers += (piece, crc32c(piece).to_bytes(CRC_NBYTES, "little"))
    index = shard_index(num_chunks, shard_chunks, chunk_nbytes)
    buffers += (index, crc32c(index).to_bytes(CRC_NBYTES, "little"))
    return buffers


def shard_index(num_chunks: int, shard_chunks: int, chunk_nbytes: int) -> bytes:
    """The index, without its CRC: (offset, stored bytes) of each inner chunk, all ones for an absent one."""
    index = np.full((shard_chunks, 2), _ABSENT, dtype="<u8")
    stored = chunk_nbytes + CRC_NBYTES
    index[:num_chunks, 0] = np.arange(num_chunks, dtype=np.uint64) * stored
    index[:num_chunks, 1] = stored
    return index.tobytes()


def shard_nbytes(num_chunks: int, shard_chunks: int, chunk_nbytes: int) -> int:
    """Size of the object that `encode_shard` makes."""
    return num_chunks * (chunk_nbytes + CRC_NBYTES) + shard_chunks * 16 + CRC_NBYTES


def check_index(data: bytes, num_chunks: int, shard_chunks: int, chunk_nbytes: int) -> None:
    """Raise CorruptCheckpoint unless `data` is the end of a shard: its index and the index's CRC."""
    index, crc = data[:-CRC_NBYTES], data[-CRC_NBYTES:]
    if crc32c(index).to_bytes(CRC_NBYTES, "little") != crc:
        raise CorruptCheckpoint("the index does not match its CRC")
    if index != shard_index(num_chunks, shard_chunks, chunk_nbytes):
        raise CorruptCheckpoint("the index does not list its chunks one behind the other")


def decode_chunks(data: memoryview, chunk: int, out: NDArray[Any], first: int = 0) -> None:
    """In place. Fill `out` from stored inner chunks that lie one behind the other.

    Raises CorruptCheckpoint, counting chunks from `first`, where one does not match its CRC.
    """
    raw = out.view(np.uint8).data
    nbytes = chunk * out.itemsize
    for i in range(len(out) // chunk):
        at = i * (nbytes + CRC_NBYTES)
        piece, crc = data[at : at + nbytes], data[at + nbytes : at + nbytes + CRC_NBYTES]
        if crc32c(piece).to_bytes(CRC_NBYTES, "little") != crc:
            raise CorruptCheckpoint(f"inner chunk {first + i} does not match its CRC")
        raw[i * nbytes : (i + 1) * nbytes] = piece


def _group() -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}, indent=1).encode()


def _fill_value(dtype: str) -> str | int:
    """NaN, or the extreme of an integer type: what a lost chunk reads as must not look like data."""
    assert dtype in DTYPES
    if dtype.startswith("float"):
        return "NaN"
    limits = np.iinfo(dtype)
    return int(limits.min or limits.max)
