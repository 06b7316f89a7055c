"""Find everything that is wrong with a checkpoint, with the object and the bytes of each fault."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from storage import catalog, zarr_format
from storage.checkpoint import digests_key
from storage.errors import CheckpointError, ObjectMissing, StorageError
from storage.manifest import MANIFEST
from storage.objects import read_manifest, sizes_in
from storage.reader import CheckpointReader, Unit, open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from storage.store import Store
    from storage.zarr_format import StoredArray

_READ_NBYTES = 8 << 20
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an object, and with which of its bytes: [start, stop), None for the whole object."""

    object: str
    start: int | None
    stop: int | None
    text: str

    def __str__(self) -> str:
        where = "" if self.start is None else f", bytes {self.start} to {self.stop}"
        return f"{self.object}{where}: {self.text}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"object": self.object, "start": self.start, "stop": self.stop, "text": self.text}


@dataclass(frozen=True, slots=True)
class Report:
    """What verifying a checkpoint found; it is good if there are no faults."""

    directory: str
    step: int | None
    objects: int
    nbytes_read: int
    faults: tuple[Fault, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "directory": self.directory,
            "step": self.step,
            "objects": self.objects,
            "nbytes_read": self.nbytes_read,
            "faults": [fault.to_json() for fault in self.faults],
        }


def verify_checkpoint(
    store: Store,
    directory: str,
    *,
    read_data: bool = False,
    subset: float | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Report:
    """Check a checkpoint's manifest, sizes, documents, digests and indexes, and as much of its data as is
    asked for.

    With `read_data` every byte is read: the BLAKE3 of objects, the CRC of chunks and the digests of blocks
    are checked. With `subset`, a share from 0 to 1 of all blocks, chosen at random by `seed`. Memory is
    bounded. Damage of any kind is a fault; an error of the storage is raised, and ObjectMissing where the
    checkpoint is deleted meanwhile. `progress` is told the bytes of data read, time and again.
    """
    checking = _Checking(store, directory, progress)
    checking.run(read_data, subset, seed)
    manifest = checking.manifest
    if checking.faults and manifest is not None and MANIFEST not in sizes_in(store, directory):
        raise ObjectMissing(f"{store.url}/{directory} was deleted while it was being verified")
    return Report(
        directory,
        manifest.step if manifest else None,
        len(manifest.objects) if manifest else 0,
        checking.nbytes_read,
        tuple(checking.faults),
    )


class _Checking:
    """The faults found so far."""

    def __init__(self, store: Store, directory: str, progress: Callable[[int], None]) -> None:
        self._store = store
        self._directory = directory
        self._progress = progress
        self.manifest: Any = None
        self.faults: list[Fault] = []
        self.nbytes_read = 0

    def run(self, read_data: bool, subset: float | None, seed: int) -> None:
        """Everything that was asked for, as far as what was found allows it."""
        try:
            self.manifest = read_manifest(self._store, self._directory)
        except (CheckpointError, ObjectMissing) as exc:
            self._fault(MANIFEST, self._plain(exc))
            return
        named = catalog.parse_directory(self._directory)
        if named != (self.manifest.step, self.manifest.attempt, self.manifest.nonce):
            self._fault(MANIFEST, "it belongs to another directory")
        sizes = sizes_in(self._store, self._directory)
        if catalog.incompleteness(self.manifest, sizes):
            sizes = sizes_in(self._store, self._directory)
        for key, info in self.manifest.objects.items():
            if key not in sizes:
                self._fault(key, "it is missing")
            elif sizes[key] != info.nbytes:
                low, high = sorted((sizes[key], info.nbytes))
                self._fault(key, f"it has {sizes[key]} bytes, not {info.nbytes}", low, high)
        absent = {fault.object for fault in self.faults}
        small = {key for key in self.manifest.objects if key.endswith(f"/{zarr_format.DOCUMENT}")}
        small |= {zarr_format.DOCUMENT, *(digests_key(info.name) for info in self.manifest.arrays)}
        for key in sorted((small & self.manifest.objects.keys()) - absent):
            self._whole(key)
        if any(fault.object in small for fault in self.faults):
            self._data_without_documents(read_data, absent | small)
            return
        try:
            checkpoint = open_checkpoint(self._store, self._directory, self.manifest)
            checkpoint.digests  # noqa: B018 - read, and checked against the state digest
        except CheckpointError as exc:
            self._fault(MANIFEST, self._plain(exc))
            self._data_without_documents(read_data, absent | small)
            return
        self._shards(checkpoint, absent, read_data)
        if read_data and not checkpoint.arrays:  # it holds files
            self._data_without_documents(read_data, absent | small)
        if subset is not None and not read_data:
            self._sample(checkpoint, absent, subset, seed)

    def _shards(self, checkpoint: CheckpointReader, absent: set[str], read_data: bool) -> None:
        for stored in checkpoint.arrays:
            for shard in range(stored.num_shards):
                key = stored.shard_key(shard)
                if key in absent:
                    continue
                before = len(self.faults)
                try:
                    checkpoint.check_index(stored, shard)
                except CheckpointError as exc:
                    nbytes = self.manifest.objects[key].nbytes
                    self._fault(key, self._plain(exc), nbytes - stored.index_nbytes, nbytes)
                has_index = len(self.faults) == before
                if read_data and (has_index or stored.zstd_level is None):
                    self._units(checkpoint, stored, shard)
                    if len(self.faults) == before:
                        self._whole(key)

    def _units(self, checkpoint: CheckpointReader, stored: StoredArray, shard: int) -> None:
        start = shard * stored.shard_length
        for unit in checkpoint.units(stored, start, start + stored.shard_length):
            self._unit(checkpoint, unit)

    def _unit(self, checkpoint: CheckpointReader, unit: Unit) -> None:
        key = unit.stored.shard_key(unit.start // unit.stored.shard_length)
        try:
            faults = checkpoint.faults_of(unit)
        except CheckpointError as exc:  # its index, without which it cannot be found
            self._fault(key, self._plain(exc))
            return
        for fault in faults:
            self._fault(key, *fault)
        self._read((unit.stop - unit.start) * unit.stored.array.itemsize)

    def _sample(self, checkpoint: CheckpointReader, absent: set[str], subset: float, seed: int) -> None:
        units = [unit for stored in checkpoint.arrays for unit in checkpoint.units(stored)]
        count = min(len(units), max(1, round(subset * len(units)))) if units else 0
        for unit in random.Random(seed).sample(units, count):
            key = unit.stored.shard_key(unit.start // unit.stored.shard_length)
            if key not in absent:
                self._unit(checkpoint, unit)

    def _data_without_documents(self, read_data: bool, done: set[str]) -> None:
        """What can still be said of shards whose description is damaged."""
        if read_data:
            for key in sorted(self.manifest.objects.keys() - done):
                self._whole(key)

    def _whole(self, key: str) -> None:
        """Check an object against its BLAKE3, in pieces; what is wrong is read again."""
        before = None
        for _ in range(_TRIES):
            hasher, at = blake3(), 0
            try:
                for data in self._pieces(key):
                    hasher.update(data)
                    at += len(data)
                found = hasher.hexdigest()
            except ObjectMissing:
                found = ""
            if found == self.manifest.objects[key].blake3:
                return
            if found == before:
                break
            before = found
        else:
            where = f"{self._store.url}/{self._directory}/{key}"
            raise StorageError(f"{where} does not match its digest, and each reading gives other bytes")
        if found:
            self._fault(key, "it does not match the manifest's digest", 0, at)
        else:
            self._fault(key, "it is missing")

    def _pieces(self, key: str) -> Iterator[bytes]:
        nbytes = self.manifest.objects[key].nbytes
        for start in range(0, max(1, nbytes), _READ_NBYTES):
            data = self._store.read(f"{self._directory}/{key}", start, min(start + _READ_NBYTES, nbytes))
            self._read(len(data))
            yield data

    def _read(self, nbytes: int) -> None:
        self.nbytes_read += nbytes
        self._progress(self.nbytes_read)

    def _fault(self, key: str, text: str, start: int | None = None, stop: int | None = None) -> None:
        self.faults.append(Fault(key, start, stop, text))

    def _plain(self, exc: Exception) -> str:
        """The message without the place, which the report names already."""
        return str(exc).removeprefix(f"{self._store.url}/{self._directory}").lstrip("/: ")
