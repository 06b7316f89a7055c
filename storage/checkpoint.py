"""Write the shards of a checkpoint, commit it, restore it with every byte checked."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from storage import catalog, zarr_format
from storage.errors import (
    CheckpointError,
    CorruptCheckpoint,
    IncompatibleCheckpoint,
    ObjectMissing,
    StorageError,
    Superseded,
)
from storage.manifest import MANIFEST, ArrayInfo, Base, Manifest, ObjectInfo
from storage.shards import BLOCK_NBYTES, Shard, check_cover
from storage.strict_json import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from storage.layout import StateArray
    from storage.run_directory import Attempt, RunDirectory
    from storage.store import Store

directory_name = catalog.directory_name

_WINDOW_CHUNKS = 8  # 32 MiB of float32 are read and checked at a time


@dataclass(frozen=True, slots=True)
class Part:
    """What one writer wrote: its objects by key, its shards, and the digests of its blocks.

    `digests` holds, by array, the BLAKE3 (hex) of each 4 MiB block of the array, padding left out.
    """

    objects: dict[str, ObjectInfo]
    shards: tuple[Shard, ...]
    digests: dict[str, dict[int, str]]

    def to_json(self) -> dict[str, Any]:
        """As JSON values: a part travels as a message."""
        return {
            "objects": {key: info.to_json() for key, info in self.objects.items()},
            "shards": [shard.to_json() for shard in self.shards],
            "digests": {
                name: {str(i): d for i, d in blocks.items()} for name, blocks in self.digests.items()
            },
        }

    @classmethod
    def from_json(cls, obj: object) -> Part:
        """What `to_json` wrote, else ValueError."""
        doc = fields(obj, "part", {"objects": dict, "shards": list, "digests": dict})
        return cls(
            {key: ObjectInfo.from_json(info, key) for key, info in doc["objects"].items()},
            tuple(Shard.from_json(shard) for shard in doc["shards"]),
            {name: {int(i): str(d) for i, d in blocks.items()} for name, blocks in doc["digests"].items()},
        )


def write_part(
    store: Store,
    directory: str,
    arrays: Sequence[StateArray],
    flat: Mapping[str, NDArray[Any]],
    shards: Sequence[Shard],
) -> Part:
    """Write the given shards straight from `flat`, arrays padded_length long; returns what was written.

    Nothing is copied, so `flat` must not change before this returns.
    """
    by_name = {array.name: array for array in arrays}
    objects: dict[str, ObjectInfo] = {}
    digests: dict[str, dict[int, str]] = {}
    for shard in shards:
        array = by_name[shard.array]
        values = _checked(array, flat)[shard.start : shard.stop]
        buffers = zarr_format.encode_shard(values, array.chunk, shard.uniform_length // array.chunk)
        hasher = blake3()
        for buffer in buffers:
            hasher.update(buffer)
        nbytes = store.write(f"{directory}/{shard.key}", buffers)
        objects[shard.key] = ObjectInfo(nbytes, hasher.hexdigest())
        digests.setdefault(array.name, {}).update(_block_digests(array, values, shard.start))
    return Part(objects, tuple(shards), digests)


def state_digest(arrays: Sequence[StateArray], flat: Mapping[str, NDArray[Any]]) -> str:
    """One BLAKE3 (hex) for the whole state: over the digests of the 4 MiB blocks of its arrays, in order.

    Padding does not count, so it is independent of chunks, shards and writers.
    """
    return _combine(arrays, {a.name: _block_digests(a, flat[a.name][: a.length], 0) for a in arrays})


def digest_of_parts(arrays: Sequence[StateArray], parts: Iterable[Part]) -> str:
    """The same digest from what the writers reported; CheckpointError if a block is not there."""
    merged: dict[str, dict[int, str]] = {array.name: {} for array in arrays}
    for part in parts:
        for name, blocks in part.digests.items():
            merged.setdefault(name, {}).update(blocks)
    return _combine(arrays, merged)


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
    digest = digest_of_parts(arrays, parts)

    lengths = {shard.array: shard.uniform_length for shard in shards}
    for key, document in zarr_format.documents(arrays, lengths).items():
        run.store.write(f"{directory}/{key}", (document,))
        objects[key] = ObjectInfo.of(document)
    manifest = Manifest(
        run_id=identity["run_id"],
        attempt=attempt.number,
        nonce=named[2],
        step=step,
        parent=parent,
        arrays=tuple(ArrayInfo(a.name, a.dtype, a.length, a.layout.fingerprint) for a in arrays),
        objects=objects,
        state_digest=digest,
        counters=dict(counters),
        metrics=dict(metrics),
        fingerprint=dict(fingerprint),
        versions={
            "holdfast": version("holdfast"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )
    data = manifest.to_bytes()
    if reason := catalog.incompleteness(manifest, _sizes(run.store, directory)):
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


def restore(
    store: Store,
    directory: str,
    manifest: Manifest,
    arrays: Sequence[StateArray],
    into: Mapping[str, NDArray[Any]],
) -> None:
    """In place. Fill `into`, arrays padded_length long, with the checkpoint's state and zeros behind it.

    Every byte is checked: object sizes and BLAKE3, CRC-32C of each chunk, the state digest. Raises
    CorruptCheckpoint naming the object (`into` then holds anything) or IncompatibleCheckpoint naming the
    variable (`into` is as it was).
    """
    buffers = {array.name: _checked(array, into) for array in arrays}
    _check_compatible(store, directory, manifest, arrays)
    where = f"{store.url}/{directory}"
    if reason := catalog.incompleteness(manifest, _sizes(store, directory)):
        raise CorruptCheckpoint(f"{where}: {reason}")
    lengths = {array.name: _read_document(store, directory, manifest, array.name)[1] for array in arrays}
    expected = set(zarr_format.documents(arrays, lengths))
    for array in arrays:
        flat = buffers[array.name]
        for index, start in enumerate(range(0, array.padded_length, lengths[array.name])):
            stop = min(start + lengths[array.name], array.padded_length)
            shard = Shard(array.name, index, start, stop, 0)
            _read_shard(store, directory, manifest, array, shard, flat[start:stop])
            expected.add(shard.key)
        flat[array.length :] = 0
    if expected != manifest.objects.keys():
        odd = sorted(expected ^ manifest.objects.keys())[0]
        raise CorruptCheckpoint(f"{where}: {odd} is not an object of this state, or not in the manifest")
    for key in sorted(expected):
        if key.endswith(zarr_format.DOCUMENT):
            _read_object(store, directory, manifest, key)
    if state_digest(arrays, buffers) != manifest.state_digest:
        raise CorruptCheckpoint(f"{where}: the state does not match the manifest's state_digest")


def _check_compatible(store: Store, directory: str, manifest: Manifest, arrays: Sequence[StateArray]) -> None:
    wanted = {array.name: array for array in arrays}
    stored = {info.name: info for info in manifest.arrays}
    faults = [f"{name}: missing in the checkpoint" for name in wanted if name not in stored]
    faults += [f"{name}: in the checkpoint, but not asked for" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        array, info = wanted[name], stored[name]
        if array.dtype != info.dtype:
            faults.append(f"{name}: dtype {array.dtype} here, {info.dtype} there")
        if array.layout.fingerprint != info.layout:
            there, _ = _read_document(store, directory, manifest, name)
            faults.append(f"{name}: {array.layout.difference(there.layout) or 'layouts differ'}")
    if not faults and [a.name for a in arrays] != [info.name for info in manifest.arrays]:
        faults.append(f"order of arrays {list(wanted)} here, {list(stored)} there")
    if faults:
        raise IncompatibleCheckpoint(
            f"{store.url}/{directory} holds another state: {'; '.join(sorted(faults))}"
        )


def _read_document(store: Store, directory: str, manifest: Manifest, name: str) -> tuple[StateArray, int]:
    """An array's description and its shard length in elements."""
    data = _read_object(store, directory, manifest, f"{name}/{zarr_format.DOCUMENT}")
    try:
        return zarr_format.parse_array(name, data)
    except CorruptCheckpoint as exc:
        raise CorruptCheckpoint(f"{store.url}/{directory}/{exc}") from exc


def _read_object(store: Store, directory: str, manifest: Manifest, key: str) -> bytes:
    """A small object, checked against the manifest."""
    info = manifest.objects.get(key)
    if info is None:
        raise CorruptCheckpoint(f"{store.url}/{directory}: the manifest does not list {key}")
    try:
        data = store.read(f"{directory}/{key}", 0, info.nbytes + 1)
    except ObjectMissing as exc:
        raise CorruptCheckpoint(str(exc)) from exc
    if ObjectInfo.of(data) != info:
        raise CorruptCheckpoint(f"{store.url}/{directory}/{key} does not match the manifest's digest")
    return data


def _read_shard(
    store: Store, directory: str, manifest: Manifest, array: StateArray, shard: Shard, out: NDArray[Any]
) -> None:
    """In place. Fill `out` from one shard object, window by window."""
    key = f"{directory}/{shard.key}"
    chunk_nbytes = array.chunk * array.itemsize
    stored = chunk_nbytes + zarr_format.CRC_NBYTES
    num_chunks, shard_chunks = len(out) // array.chunk, shard.uniform_length // array.chunk
    nbytes = zarr_format.shard_nbytes(num_chunks, shard_chunks, chunk_nbytes)
    info = manifest.objects.get(shard.key)
    if info is None or info.nbytes != nbytes:
        raise CorruptCheckpoint(f"{store.url}/{key}: the manifest does not list it with {nbytes} bytes")
    hasher = blake3()

    def read(start: int, stop: int) -> bytes:
        data = store.read(key, start, stop)
        if len(data) != stop - start:
            raise CorruptCheckpoint(f"it ends at byte {start + len(data)} of {nbytes}")
        hasher.update(data)
        return data

    try:
        for first in range(0, num_chunks, _WINDOW_CHUNKS):
            last = min(first + _WINDOW_CHUNKS, num_chunks)
            data = read(first * stored, last * stored)
            piece = out[first * array.chunk : last * array.chunk]
            zarr_format.decode_chunks(memoryview(data), array.chunk, piece, first)
        zarr_format.check_index(read(num_chunks * stored, nbytes), num_chunks, shard_chunks, chunk_nbytes)
        if hasher.hexdigest() != info.blake3:
            raise CorruptCheckpoint("it does not match the manifest's digest")  # noqa: TRY301
    except ObjectMissing as exc:
        raise CorruptCheckpoint(str(exc)) from exc
    except CorruptCheckpoint as exc:
        raise CorruptCheckpoint(f"{store.url}/{key}: {exc}") from exc


def _checked(array: StateArray, flat: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    values = flat.get(array.name)
    if values is None or values.dtype != array.dtype or values.shape != (array.padded_length,):
        found = "nothing" if values is None else f"{values.dtype} of shape {values.shape}"
        raise ValueError(f"{array.name}: need {array.dtype} of shape ({array.padded_length},), got {found}")
    return values


def _sizes(store: Store, directory: str) -> dict[str, int]:
    return {key[len(directory) + 1 :]: nbytes for key, nbytes in store.list(directory).items()}


def _block_digests(array: StateArray, values: NDArray[Any], start: int) -> dict[int, str]:
    """Digests of the blocks in `values`, which begin at element `start`, as far as the array's length."""
    block = BLOCK_NBYTES // array.itemsize
    assert start % block == 0, (array.name, start)
    data = values.view(np.uint8).data[: max(0, array.length - start) * array.itemsize]
    return {
        (start // block) + i: blake3(data[at : at + BLOCK_NBYTES]).hexdigest()
        for i, at in enumerate(range(0, len(data), BLOCK_NBYTES))
    }


def _combine(arrays: Sequence[StateArray], digests: Mapping[str, Mapping[int, str]]) -> str:
    hasher = blake3()
    for array in arrays:
        blocks = digests[array.name]
        expected = range(-(-array.length * array.itemsize // BLOCK_NBYTES))
        if blocks.keys() != set(expected):
            raise CheckpointError(f"{array.name}: digests of {len(blocks)} blocks, not of {len(expected)}")
        for i in expected:
            hasher.update(bytes.fromhex(blocks[i]))
    return hasher.hexdigest()
