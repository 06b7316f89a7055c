"""The objects of a checkpoint's directory, as the store lists them and as its manifest does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from storage.errors import CorruptCheckpoint, ObjectMissing, StorageError
from storage.manifest import MANIFEST, MAX_NBYTES, TABLE, Manifest
from storage.strict_json import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from storage.store import Store

_TRIES = 3
_REPLACED_TRIES = 5
_T = TypeVar("_T")


def read_manifest(store: Store, directory: str) -> Manifest:
    """The manifest of a checkpoint, and its table of objects where it lies apart.

    Raises CorruptCheckpoint for what was read twice with the same wrong content, and StorageError where each
    reading gave something else.
    """
    where = f"{store.url}/{directory}"
    before = None
    for _ in range(_TRIES):
        read: list[bytes] = []

        def noted(key: str, nbytes: int, read: list[bytes] = read) -> bytes:
            read.append(store.read(f"{directory}/{key}", 0, nbytes))
            return read[-1]

        try:
            data = noted(MANIFEST, MAX_NBYTES + 1)  # never more, whatever lies there
            return Manifest.parse(data, lambda nbytes: noted(TABLE, nbytes))
        except CorruptCheckpoint as exc:
            if read == before:
                raise CorruptCheckpoint(f"{where}: {printable(str(exc))}") from exc
            before = read
    raise StorageError(f"{where}/{MANIFEST}: each reading gives other bytes")


def sizes_in(store: Store, directory: str) -> dict[str, int]:
    """Size of each object of a checkpoint, keyed relative to its directory."""
    return {key[len(directory) + 1 :]: nbytes for key, nbytes in store.list(directory).items()}


def while_replaced(read: Callable[[], _T]) -> _T:
    """What `read` makes of a place, again where what it was reading has been replaced meanwhile."""
    for _ in range(_REPLACED_TRIES - 1):
        try:
            return read()
        except ObjectMissing:
            continue
    return read()


@contextmanager
def unless_deleted(store: Store, directory: str) -> Iterator[None]:
    """Raise ObjectMissing in the place of CorruptCheckpoint where a checkpoint is no longer there.

    Deletion begins with the manifest, so what then is missing is no damage.
    """
    try:
        yield
    except CorruptCheckpoint as exc:
        if MANIFEST in sizes_in(store, directory):
            raise
        raise ObjectMissing(f"{store.url}/{directory} was deleted while it was being read") from exc
