"""Write the shards of a checkpoint and commit it."""

from __future__ import annotations

import os
import platform
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from blake3 import blake3

from storage import catalog, zarr_format
from storage.errors import CheckpointError, ConfigurationError, StorageError, Superseded
from storage.layout import BLOCK_NBYTES
from storage.manifest import MANIFEST, TABLE, ArrayInfo, Base, Manifest, ObjectInfo, json_values, numbers
from storage.objects import sizes_in
from storage.shards import Shard, check_cover
from storage.strict_json import MAX_NBYTES, fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from storage.layout import StateArray
    from storage.run_directory import Attempt, RunDirectory
    from storage.store import Store

directory_name = catalog.directory_name

Compression: TypeAlias = Literal["zstd"] | None
"""How inner chunks are compressed."""

IN_FLIGHT = 2
"""Shards that a writer writes at a time, unless it is told otherwise."""

DIGEST_NBYTES = 32

_ZSTD_LEVEL = 3


def zstd_level(compression: str | None) -> int | None:
    """The level that "zstd" stands for; ConfigurationError for any other word."""
    if compression not in ("zstd", None):
        raise ConfigurationError(f'compression={compression!r} is not known: give "zstd" or None')
    return None if compression is None else _ZSTD_LEVEL


def digests_key(array: str) -> str:
    """Key, inside the checkpoint's directory, of the digests of an array's blocks."""
    return f"{array}/digests"


@dataclass(frozen=True, slots=True)
class Part:
    """What one writer wrote: its objects by key, its shards, and the digests of its blocks.

    `digests` holds, by shard, the BLAKE3 (32 bytes) of each 4 MiB block of it, padding left out.
    """

    objects: dict[str, ObjectInfo]
    shards: tuple[Shard, ...]
    digests: dict[str, bytes]

    def to_json(self) -> dict[str, Any]:
        """As JSON values: a part travels as a message."""
        return {
            "objects": {key: info.to_json() for key, info in self.objects.items()},
            "shards": [shard.to_json() for shard in self.shards],
            "digests": {key: digests.hex() for key, digests in self.digests.items()},
        }

    @classmethod
    def from_json(cls, obj: object) -> Part:
        """What `to_json` wrote, else ValueError."""
        doc = fields(obj, "part", {"objects": dict, "shards": list, "digests": dict})
        return cls(
            {key: ObjectInfo.from_json(info, key) for key, info in doc["objects"].items()},
            tuple(Shard.from_json(shard) for shard in doc["shards"]),
            {key: bytes.fromhex(digests) for key, digests in doc["digests"].items()},
        )


def write_part(
    store: Store,
    directory: str,
    arrays: Sequence[StateArray],
    flat: Mapping[str, NDArray[Any]],
    shards: Sequence[Shard],
    *,
    compression: Compression = None,
    in_flight: int = IN_FLIGHT,
) -> Part:
    """Write the given shards straight from `flat`, arrays padded_length long; returns what was written.

    At most `in_flight` shards are written at a time. Nothing is copied as a whole, so `flat` must not change
    before this returns.
    """
    by_name = {array.name: array for array in arrays}
    level = zstd_level(compression)

    def elements(shard: Shard) -> NDArray[Any]:
        return checked_buffer(by_name[shard.array], flat)[shard.start : shard.stop]

    def write(shard: Shard) -> ObjectInfo:
        encoded = _Hashed(shard, elements(shard), by_name[shard.array].chunk, level)
        nbytes = store.write(f"{directory}/{shard.key}", encoded)
        return ObjectInfo(nbytes, encoded.hexdigest)

    def digest(shard: Shard) -> bytes:
        return block_digests(by_name[shard.array], elements(shard), shard.start)

    with (
        ThreadPoolExecutor(in_flight, "holdfast-shard") as pool,
        ThreadPoolExecutor(1, "holdfast-digest") as hashing,  # while the others wait for the disk
    ):
        written = [pool.submit(write, shard) for shard in shards]
        digested = [hashing.submit(digest, shard) for shard in shards]
        try:
            objects = {shard.key: future.result() for shard, future in zip(shards, written, strict=True)}
            digests = {shard.key: future.result() for shard, future in zip(shards, digested, strict=True)}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            hashing.shutdown(wait=False, cancel_futures=True)
            raise
    return Part(objects, tuple(shards), digests)


class _Hashed:
    """The buffers of a shard object, hashed as they go by; each iteration begins anew."""

    def __init__(self, shard: Shard, values: NDArray[Any], chunk: int, level: int | None) -> None:
        self._shard = shard
        self._values = values
        self._chunk = chunk
        self._level = level
        self.hexdigest = ""

    def __iter__(self) -> Iterator[memoryview | bytes]:
        chunks = self._shard.uniform_length // self._chunk
        hasher = blake3()
        for buffer in zarr_format.encode_shard(self._values, self._chunk, chunks, self._level):
            hasher.update(buffer)
            yield buffer
        self.hexdigest = hasher.hexdigest()


def block_digests(array: StateArray, values: NDArray[Any], start: int) -> bytes:
    """The BLAKE3 of each 4 MiB block in `values`, which begin at element `start`, as far as the array's
    length.
    """
    data = values.view(np.uint8).data[: max(0, array.length - start) * array.itemsize]
    return b"".join(blake3(data[at : at + BLOCK_NBYTES]).digest() for at in range(0, len(data), BLOCK_NBYTES))


def state_digest(arrays: Sequence[StateArray], flat: Mapping[str, NDArray[Any]]) -> str:
    """One BLAKE3 (hex) for the whole state: over the digests of the 4 MiB blocks of its arrays, in order.

    Padding does not count, so it is independent of chunks, shards and writers.
    """
    hasher = blake3()
    for array in arrays:
        hasher.update(block_digests(array, flat[array.name][: array.length], 0))
    return hasher.hexdigest()


def digest_of_parts(arrays: Sequence[StateArray], parts: Iterable[Part]) -> str:
    """The same digest from what the writers reported; CheckpointError if a block is not there."""
    hasher = blake3()
    for digests in _digests(arrays, parts).values():
        hasher.update(digests)
    return hasher.hexdigest()


def _digests(arrays: Sequence[StateArray], parts: Iterable[Part]) -> dict[str, bytes]:
    """The digests of all blocks by array, from those of its shards."""
    found: dict[str, dict[int, bytes]] = {array.name: {} for array in arrays}
    for part in parts:
        for shard in part.shards:
            found[shard.array][shard.index] = part.digests.get(shard.key, b"")
    joined = {name: b"".join(shards[i] for i in sorted(shards)) for name, shards in found.items()}
    for array in arrays:
        count = len(joined[array.name]) / DIGEST_NBYTES
        if count != array.num_blocks:
            raise CheckpointError(f"{array.name}: digests of {count:g} blocks, not of {array.num_blocks}")
    return joined


def commit(
    run: RunDirectory,
    attempt: Attempt,
    directory: str,
    arrays: Sequence[StateArray],
    parts: Sequence[Part],
    *,
    step: int,
    parent: Base | None,
    counters: Mapping[str, Any],
    metrics: Mapping[str, float],
    fingerprint: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    compression: Compression = None,
    files: Mapping[str, ObjectInfo] | None = None,
) -> Manifest:
    """Make the checkpoint count: check what was written, then create its manifest.

    Raises CheckpointError if the parts are not the whole state, StorageError if an object is not as reported,
    Superseded if another attempt has begun: then the manifest may stand, but nobody may rely on it.
    """
    named = catalog.parse_directory(directory)
    identity = run.identity()
    if named is None or named[:2] != (step, attempt.number):
        raise ValueError(f"{directory} is no directory of step {step}, attempt {attempt.number}")
    if identity is None:
        raise CheckpointError(f"{run.store.url} has no run.json: a checkpoint needs a run to belong to")
    shards = [shard for part in parts for shard in part.shards]
    check_cover(arrays, shards)
    objects = {key: info for part in parts for key, info in part.objects.items()}
    if objects.keys() != {shard.key for shard in shards}:
        raise CheckpointError(f"{directory}: the writers reported other objects than their shards")
    digests = _digests(arrays, parts)
    if arrays and files:
        raise ValueError("a checkpoint holds arrays, or files, and not both")
    objects.update(files or {})

    lengths = {shard.array: shard.uniform_length for shard in shards}
    small = {} if files else zarr_format.documents(arrays, lengths, zstd_level(compression))
    small.update({digests_key(name): data for name, data in digests.items()})
    for key, data in small.items():
        if len(data) > MAX_NBYTES:
            raise ConfigurationError(
                f"{key} of {len(data)} bytes: save fewer variables, {MAX_NBYTES} can be read"
            )
        run.store.write(f"{directory}/{key}", (data,))
        objects[key] = ObjectInfo.of(data)
    manifest = Manifest(
        run_id=identity["run_id"],
        attempt=attempt.number,
        nonce=named[2],
        step=step,
        parent=parent,
        arrays=tuple(ArrayInfo(a.name, a.dtype, a.length, a.layout.fingerprint) for a in arrays),
        objects=objects,
        state_digest=blake3(b"".join(digests.values())).hexdigest(),
        counters=json_values("counters", counters),
        metrics=numbers("metrics", metrics),
        fingerprint=json_values("fingerprint", fingerprint),
        versions={
            "holdfast": version("holdfast"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        metadata=json_values("metadata", metadata or {}),
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        created_by={"host": socket.gethostname(), "pid": os.getpid()},
    )
    data, table = manifest.to_bytes()
    if table is not None:
        run.store.write(f"{directory}/{TABLE}", (table,))
    if reason := catalog.incompleteness(manifest, sizes_in(run.store, directory)):
        raise StorageError(f"{run.store.url}/{directory}: {reason}: this checkpoint is abandoned")
    if not run.store.create(f"{directory}/{MANIFEST}", data):
        raise CheckpointError(
            f"{run.store.url}/{directory} was committed before: each try needs its own nonce"
        )
    newest = run.newest_attempt()
    if newest > attempt.number:
        raise Superseded(
            f"attempt {newest} has taken over {run.store.url}: attempt {attempt.number} stops, "
            f"its checkpoint at step {step} is not acknowledged"
        )
    return manifest


def checked_buffer(array: StateArray, flat: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The buffer of an array; ValueError unless it has the array's dtype and padded length."""
    values = flat.get(array.name)
    if values is None or values.dtype != array.dtype or values.shape != (array.padded_length,):
        found = "nothing" if values is None else f"{values.dtype} of shape {values.shape}"
        raise ValueError(f"{array.name}: need {array.dtype} of shape ({array.padded_length},), got {found}")
    return values
