"""HDF5 files of named arrays, read without trust and written as a whole (extra `hdf5`).

A file from a stranger may point to other files, promise more than it holds, or go round in circles: links
that are not hard ones, external and virtual datasets, filters that h5py does not have of its own, and arrays
a hundred times as large as what is stored of them are refused by name, before anything is allocated.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, ObjectMissing
from storage.files import file_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import DTypeLike, NDArray

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 64
MAX_OBJECTS = 200_000
MAX_EXPANSION = 100
HARMLESS_NBYTES = 256 << 20
"""An array of at most so many bytes may be any number of times as large as what is stored of it."""

_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_KINDS = "iufb"


@dataclass(frozen=True, slots=True)
class Dataset:
    """An array of a file, which is read when an array is made of it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, Any]
    _source: Any

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Any:
        try:
            return np.asarray(self._source[()], dtype)
        except OSError as exc:
            raise CorruptCheckpoint(f"{self.name} cannot be read: {exc}") from exc


def recognises(path: str) -> bool:
    """Whether there is an HDF5 file at a path or URL."""
    try:
        return file_at(path).read(0, len(SIGNATURE)) == SIGNATURE
    except (ObjectMissing, ConfigurationError):
        return False


@contextmanager
def reading(path: str, data: bytes | None = None) -> Iterator[tuple[dict[str, Dataset], Mapping[str, Any]]]:
    """The arrays of the file by their paths, and the attributes of its root; `data` is its content, if known.

    Raises CheckpointError if there is none, CorruptCheckpoint if it is damaged or refused, ConfigurationError
    without h5py.
    """
    h5py = _h5py()
    if data is None and "://" in path:
        try:
            data = file_at(path).read()
        except ObjectMissing as exc:
            raise CheckpointError(f"there is no file {path}") from exc
    try:
        file = h5py.File(path if data is None else io.BytesIO(data), "r")
    except FileNotFoundError as exc:
        raise CheckpointError(f"there is no file {path}") from exc
    except OSError as exc:
        raise CorruptCheckpoint(f"{path} is no HDF5 file, or is damaged: {exc}") from exc
    with file:
        try:
            found = dict(_datasets(h5py, file, path))
            attributes = dict(file.attrs)
        except (OSError, RuntimeError, KeyError, ValueError) as exc:  # what h5py makes of damage
            raise CorruptCheckpoint(f"{path} is damaged: {exc}") from exc
        yield found, attributes


def write(path: str, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Mapping[str, str]]) -> None:
    """Write a file of arrays by their paths, whole or not at all; `attributes` are those of groups."""
    file_at(path).write(written(arrays, attributes))


def written(arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Mapping[str, str]]) -> bytes:
    """The content of such a file."""
    buffer = io.BytesIO()
    with _h5py().File(buffer, "w") as file:
        for group, named in attributes.items():
            for name, value in named.items():
                file.require_group(group).attrs[name] = value
        for path, array in arrays.items():
            file.create_dataset(path, data=array)
    return buffer.getvalue()


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as exc:
        raise ConfigurationError("HDF5 files need h5py: pip install 'holdfast[hdf5]'") from exc
    return h5py


def _datasets(h5py: Any, file: Any, where: str) -> Iterator[tuple[str, Dataset]]:
    """All arrays below the root, in the file's order. Groups that were seen are not entered again."""
    waiting: list[tuple[str, Any, int]] = [("", file, 0)]
    seen: set[Any] = set()
    count = 0
    while waiting:
        prefix, group, depth = waiting.pop()
        place = h5py.h5o.get_info(group.id).addr
        if place in seen or depth > MAX_DEPTH:
            raise CorruptCheckpoint(f"{where}: the group {prefix or '/'} lies within itself, or too deep")
        seen.add(place)
        for name in group:
            path = f"{prefix}/{name}" if prefix else name
            count += 1
            if count > MAX_OBJECTS:
                raise CorruptCheckpoint(f"{where} holds more than {MAX_OBJECTS} objects")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise CorruptCheckpoint(
                    f"{where}: {path} is a link to something else ({type(link).__name__})"
                )
            child = group[name]
            if isinstance(child, h5py.Group):
                waiting.append((path, child, depth + 1))
            elif isinstance(child, h5py.Dataset):
                _check(child, f"{where}: {path}")
                yield path, Dataset(path, child.shape, child.dtype, dict(child.attrs), child)


def _check(dataset: Any, what: str) -> None:
    """Raise CorruptCheckpoint for an array that is not simply stored in the file."""
    if dataset.is_virtual or dataset.external:
        raise CorruptCheckpoint(f"{what} is stored in other files, which are not read")
    if dataset.dtype.kind not in _KINDS or dataset.shape is None:
        raise CorruptCheckpoint(f"{what} holds no numbers but {dataset.dtype}")
    plist = dataset.id.get_create_plist()
    for i in range(plist.get_nfilters()):
        number = plist.get_filter(i)[0]
        if number not in _FILTERS:
            raise CorruptCheckpoint(f"{what} is compressed in a way that is not known (filter {number})")
    nbytes, stored = prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if nbytes > HARMLESS_NBYTES and nbytes > MAX_EXPANSION * stored:
        raise CorruptCheckpoint(f"{what} promises {nbytes} bytes, of which {stored} are stored")
