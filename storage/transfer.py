"""Copy a checkpoint from one place to another, so that a run can go on from it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from storage import catalog
from storage.address import check_run_url, find
from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, Superseded
from storage.manifest import MANIFEST, TABLE, Base, ObjectInfo
from storage.objects import read_manifest, sizes_in
from storage.run_directory import Attempt, RunDirectory
from storage.store import open_store
from storage.verification import verify_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from storage.catalog import Chain, Entry
    from storage.manifest import Manifest
    from storage.store import Store

_PIECE_NBYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did."""

    url: str
    step: int
    nbytes: int
    was_there: bool


def copy(source: str, destination: str, progress: Callable[[int], None] = lambda nbytes: None) -> Copied:
    """Copy the checkpoint at an address into the run directory at another URL.

    Every object is compared with the manifest while it is read and once more where it was written; only then
    the copy is committed and becomes the latest there. A new directory becomes a copy of the run. Memory is
    bounded. Raises ConfigurationError if another run, or a later step, is there, Superseded if another has
    copied or trained there meanwhile. `progress` is told the bytes done.
    """
    check_run_url(destination)
    run, store, directory = find(source)
    manifest = read_manifest(store, directory)
    identity = run.identity()
    if identity is None or identity["run_id"] != manifest.run_id:
        raise CheckpointError(f"{store.url}/{directory} does not belong to the run of {store.url}")
    target = RunDirectory(open_store(destination))
    there = target.identity()
    _check_run(there, manifest, destination)
    latest = target.latest()
    _check_step(latest, manifest, destination)
    url = f"{target.store.url}/{directory}"
    attempt = None
    was_there = latest is not None and latest.directory == directory
    if was_there:
        report = verify_checkpoint(target.store, directory, read_data=True, progress=progress)
        if report.faults:
            raise CorruptCheckpoint(f"{url} is there already, and damaged: {report.faults[0]}")
    else:
        _copy_objects(store, target.store, directory, manifest.objects, progress)
        _copy_manifest(store, target.store, directory)
        attempt = _make_latest(
            target, manifest, _line_to(run, Base(manifest.step, manifest.attempt)), destination
        )
    if there is None:  # last, so that nobody starts from zero in a copy that was not finished
        target.copy_identity(identity)
        _check_run(target.identity(), manifest, destination)
    if attempt is not None:
        _acknowledge(target, attempt, destination)
    return Copied(url, manifest.step, manifest.nbytes, was_there)


def _check_run(identity: Mapping[str, Any] | None, manifest: Manifest, destination: str) -> None:
    if identity is not None and identity["run_id"] != manifest.run_id:
        raise ConfigurationError(f"{destination} holds another run: copy to a new directory")


def _check_step(latest: Entry | None, manifest: Manifest, destination: str) -> None:
    if latest is not None and latest.step > manifest.step:
        raise ConfigurationError(
            f"{destination} is at step {latest.step} already: a copy of step {manifest.step} would undo that"
        )


def _make_latest(target: RunDirectory, manifest: Manifest, line: Chain, destination: str) -> Attempt:
    """Record the line that ends in the copy, in the order in which a coordinator does: the claim comes first.

    Copying takes long, and what was committed there meanwhile must not be cut off.
    """
    attempt = target.claim_attempt()
    _check_run(target.identity(), manifest, destination)
    _check_step(target.latest(), manifest, destination)
    target.record_line(attempt, Base(manifest.step, manifest.attempt), line)
    return attempt


def _acknowledge(target: RunDirectory, attempt: Attempt, destination: str) -> None:
    """Raise Superseded if another attempt has begun there, which may not have seen the copy."""
    newest = target.newest_attempt()
    if newest > attempt.number:
        raise Superseded(
            f"attempt {newest} has taken over {destination}: whether the copy counts there is not known, "
            "copy again"
        )


def _copy_manifest(source: Store, target: Store, directory: str) -> None:
    """Commit the copy."""
    if TABLE in sizes_in(source, directory):
        target.write(f"{directory}/{TABLE}", (source.read(f"{directory}/{TABLE}"),))
    key = f"{directory}/{MANIFEST}"
    data = source.read(key)
    if not target.create(key, data) and target.read(key) != data:
        raise CheckpointError(f"{target.url}/{key} is another manifest: copy to a new directory")
    if read_manifest(target, directory) != read_manifest(source, directory):
        raise CorruptCheckpoint(f"{target.url}/{key} is not what was copied")


def _line_to(run: RunDirectory, base: Base) -> Chain:
    """What counts before a checkpoint, as far as its run knows."""
    number, chain = run.line()
    if number is None or chain is None:
        return (base,)
    return catalog.extend(base, {number: chain}) or (base,)


def _copy_objects(
    source: Store,
    target: Store,
    directory: str,
    objects: Mapping[str, ObjectInfo],
    progress: Callable[[int], None],
) -> None:
    done = 0
    for key, info in sorted(objects.items()):
        reading = _Object(source, f"{directory}/{key}", info.nbytes)
        target.write(f"{directory}/{key}", reading)
        again = _Object(target, f"{directory}/{key}", info.nbytes)
        for _ in again:
            pass
        for place, found in ((source, reading), (target, again)):
            if found.hexdigest != info.blake3:
                raise CorruptCheckpoint(
                    f"{place.url}/{directory}/{key} does not match its digest: nothing was committed"
                )
        done += info.nbytes
        progress(done)


class _Object:
    """The content of an object, hashed while it goes by; each iteration reads it anew."""

    def __init__(self, store: Store, key: str, nbytes: int) -> None:
        self._store = store
        self._key = key
        self._nbytes = nbytes
        self.hexdigest = ""

    def __iter__(self) -> Iterator[bytes]:
        hasher = blake3()
        for start in range(0, max(1, self._nbytes), _PIECE_NBYTES):
            data = self._store.read(self._key, start, min(start + _PIECE_NBYTES, self._nbytes))
            hasher.update(data)
            yield data
        self.hexdigest = hasher.hexdigest()
