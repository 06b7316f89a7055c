"""The objects of a checkpoint's directory, as the store lists them and as its manifest does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.errors import CorruptCheckpoint
from storage.manifest import MANIFEST, MAX_NBYTES, TABLE, Manifest
from storage.strict_json import printable

if TYPE_CHECKING:
    from storage.store import Store


def read_manifest(store: Store, directory: str) -> Manifest:
    """The manifest of a checkpoint, and its table of objects where it lies apart."""
    where = f"{store.url}/{directory}"
    try:
        return Manifest.parse(
            store.read(f"{directory}/{MANIFEST}", 0, MAX_NBYTES + 1),  # never more, whatever lies there
            lambda nbytes: store.read(f"{directory}/{TABLE}", 0, nbytes),
        )
    except CorruptCheckpoint as exc:
        raise CorruptCheckpoint(f"{where}: {printable(str(exc))}") from exc


def sizes_in(store: Store, directory: str) -> dict[str, int]:
    """Size of each object of a checkpoint, keyed relative to its directory."""
    return {key[len(directory) + 1 :]: nbytes for key, nbytes in store.list(directory).items()}
