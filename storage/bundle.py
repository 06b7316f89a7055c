"""Files that count together: each save of them is a whole or nothing, and a reader checks every byte.

The directory is that of `storage.save`: an attempt for each save, a manifest that commits it. What is saved
replaces what was there before, which goes once the new is whole.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blake3 import blake3

from storage import families
from storage.address import find
from storage.errors import ConfigurationError, CorruptCheckpoint, ObjectMissing
from storage.layout import check_name, names_above
from storage.manifest import Manifest, ObjectInfo
from storage.objects import read_manifest, sizes_in, unless_deleted
from storage.reader import read_object
from storage.retention import Retention
from storage.run_directory import RunDirectory
from storage.saving import Save, begin, finish, tidy
from storage.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from storage.store import Store

Content = bytes | memoryview | tuple[bytes | memoryview, ...]
"""What a file holds, whole, or in pieces one behind the other."""

_IN_FLIGHT = 4
_READ_TRIES = 3


def save_files(url: str, kind: str, files: Mapping[str, Content], *, keep: int = 1) -> str:
    """Save files by key as the content of the directory at `url`; returns the URL of this generation.

    `kind` is what run.json says of the directory; another kind is refused. The newest `keep` generations
    stay. Raises ConfigurationError, also for keys that cannot be there together, StorageError,
    CheckpointError (what says which generation counts is damaged) and Superseded (another has saved
    meanwhile).
    """
    check_keys(files)
    retention = Retention(keep=keep)
    begun = begin(url, kind, at_least=families.next_step(url), replaces=True)
    with ThreadPoolExecutor(_IN_FLIGHT, "holdfast-file") as pool:
        infos = dict(zip(files, pool.map(lambda key: _write(begun, key, files[key]), files), strict=True))
    finish(begun, (), (), files=infos)
    tidy(begun, retention, keeps_base=keep > 1)
    return begun.url


def check_keys(keys: Iterable[str]) -> None:
    """Raise ConfigurationError for what cannot be a key, and a key that lies below another."""
    known = {*keys}
    for key in known:
        try:
            check_name(key)
        except ValueError as exc:
            raise ConfigurationError(str(exc)) from exc
        above = next((each for each in names_above(key) if each in known), None)
        if above is not None:
            raise ConfigurationError(f"{key} cannot lie below {above}, which is a file: rename one of them")


def _write(save: Save, key: str, content: Content) -> ObjectInfo:
    pieces = content if isinstance(content, tuple) else (content,)
    nbytes = save.run.store.write(f"{save.directory}/{key}", pieces)
    return ObjectInfo(nbytes, _digest(pieces))


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A generation of files: a mapping of keys to sizes, and each file's bytes, checked as they are read."""

    store: Store
    directory: str
    manifest: Manifest
    seen: set[str] = field(default_factory=set, compare=False)
    """Keys of the files whose bytes were read, and are what was written."""

    @property
    def url(self) -> str:
        """The URL of this generation."""
        return f"{self.store.url}/{self.directory}"

    def __contains__(self, key: object) -> bool:
        return key in self.manifest.objects

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.objects)

    def nbytes(self, key: str) -> int:
        """The size of a file."""
        return self.manifest.objects[key].nbytes

    def read(self, key: str, max_nbytes: int | None = None) -> bytes:
        """The bytes of a file. Raises CorruptCheckpoint if they are not what was written, or too many."""
        if key not in self:
            raise CorruptCheckpoint(f"{self.url} holds no {key}")
        if max_nbytes is not None and self.nbytes(key) > max_nbytes:
            raise CorruptCheckpoint(f"{self.url}/{key} has {self.nbytes(key)} bytes, more than {max_nbytes}")
        with unless_deleted(self.store, self.directory):
            data = read_object(self.store, self.directory, self.manifest, key)
        self.seen.add(key)
        return data

    def read_into(self, key: str, buffers: Sequence[memoryview]) -> None:
        """In place. Fill the buffers, one behind the other, with just the bytes of a file.

        Raises CorruptCheckpoint if they are not what was written, or of another size.
        """
        info = self.manifest.objects.get(key)
        if info is None or info.nbytes != sum(len(buffer) for buffer in buffers):
            raise CorruptCheckpoint(f"{self.url}/{key} has another size than it should")
        with unless_deleted(self.store, self.directory):
            for _ in range(_READ_TRIES):
                try:
                    count = self.store.read_into(f"{self.directory}/{key}", 0, buffers)
                except ObjectMissing as exc:
                    raise CorruptCheckpoint(str(exc)) from exc
                if count == info.nbytes and _digest(buffers) == info.blake3:
                    self.seen.add(key)
                    return
            raise CorruptCheckpoint(f"{self.url}/{key} does not match the manifest's digest")


def kind_of(url: str) -> str | None:
    """What run.json says is in a directory, or in that of a generation; None if there is none."""
    try:
        run, _, _ = find(url)
    except ConfigurationError:
        run = RunDirectory(open_store(url))
    identity = run.identity()
    kind = None if identity is None else identity.get("kind")
    return kind if isinstance(kind, str) else None


def open_files(url: str) -> Bundle:
    """The latest generation of the directory at `url`, or the one that is at `url` itself.

    Raises ConfigurationError where there is none, CorruptCheckpoint where it is damaged.
    """
    for rest in reversed(range(_READ_TRIES)):
        _, store, directory = find(url)
        try:
            with unless_deleted(store, directory):
                manifest = read_manifest(store, directory)
            break
        except ObjectMissing:  # it was replaced meanwhile
            if not rest:
                raise
    listed = sizes_in(store, directory)
    for key, info in manifest.objects.items():
        if listed.get(key) != info.nbytes:
            raise CorruptCheckpoint(f"{store.url}/{directory}/{key} is missing, or has another size")
    return Bundle(store, directory, manifest)
