"""HDF5 files of named arrays, read without trust and written as a whole (extra `hdf5`).

A file from a stranger may point to other files, promise more than it holds, or go round in circles: links
that are not hard ones, external and virtual datasets, filters that h5py does not have of its own, arrays
a hundred times as large as what is stored of them, and attributes that are longer than any of Keras's are
refused by name, before anything is allocated.

HDF5 does not notice flipped bits. So files that are written here hold, in an attribute of the root that other
readers do not look at, a checksum of each array and attribute; files without are read as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from crc32c import crc32c

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, ObjectMissing
from storage.files import RangeReader, file_at
from storage.formats.hdf5_attributes import Bytes
from storage.formats.hdf5_attributes import attributes as stored_attributes
from storage.formats.hdf5_attributes import texts as stored_texts
from storage.formats.hdf5_image import Image
from storage.memory import aligned_empty
from storage.naming import listed, numpy_dtype
from storage.strict_json import MAX_VALUES, canonical, parse, printable

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 64
MAX_OBJECTS = 200_000
MAX_NAME = 1024
MAX_EXPANSION = 100
HARMLESS_NBYTES = 256 << 20
"""An array of at most so many bytes may be any number of times as large as what is stored of it."""

MAX_ATTRIBUTES = 4096
"""Of one group or array."""
MAX_TEXT = 64 << 20
"""Bytes of an attribute, of all its texts together."""
SPLIT_NBYTES = 64512
"""What one attribute holds at most; longer lists are cut into NAME0, NAME1, ... as Keras does it."""

Attribute: TypeAlias = str | Sequence[str]
"""What can be written as an attribute: a text, or a list of texts."""

CHECKS = "holdfast_crc32c"
"""The attribute that holds checksums: of arrays by path, of attributes by "GROUP@NAME"."""

_THREADS = 2
"""That read and check arrays at a time: more wait for the same memory."""
_PIECE = 1 << 20
"""Bytes that are checked while the processor still has them at hand."""

_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_KINDS = "iufb"
_BFLOAT16 = "bfloat16"
_NONE: Mapping[str, int] = {}
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What h5py makes of damage."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """An array of a file, which is read when an array is made of it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, Any]
    _source: Any
    _checks: Mapping[str, int]
    _plain: tuple[Bytes, int] | None
    """The file and the place where the values lie one behind the other, as they are in memory."""

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Any:
        with _damage(f"{self.name} cannot be read"):
            if self._plain is None:
                values = np.asarray(self._source[()])
                found = _crc(values)
            else:
                values, found = _read(*self._plain, self.shape, self.dtype)
        if self._checks.get(self.name, found) != found:
            raise CorruptCheckpoint(f"{self.name} is damaged: it is not what was written")
        return np.asarray(values.view(self.dtype) if values.dtype.kind == "V" else values, dtype)


def _read(file: Bytes, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """An array that lies there in a file, and its checksum."""
    values = aligned_empty(shape, dtype)
    view = values.reshape(-1).view(np.uint8).data
    crc = 0
    for at in range(0, len(view), _PIECE):
        piece = view[at : at + _PIECE]
        file.read_into(start + at, piece)
        crc = crc32c(piece, crc)
    return values, crc


def read(arrays: Iterable[Any]) -> list[NDArray[Any]]:
    """All these arrays, those of files several at a time. Raises CorruptCheckpoint for a damaged one."""
    with ThreadPoolExecutor(_THREADS, "holdfast-hdf5") as pool:
        return [*pool.map(np.asarray, arrays)]


class Attributes(Mapping[str, Any]):
    """The attributes of a group or array: each is read when it is asked for.

    Texts are str, arrays of texts lists of str; of others there is None.
    """

    def __init__(self, file: Bytes, header: int, where: str, group: str, checks: Mapping[str, int]) -> None:
        self._file = file
        self._where = where
        self._group = group
        self._checks = checks
        with _damage(where):
            self._stored = stored_attributes(file, header)
        if len(self._stored) > MAX_ATTRIBUTES:
            raise CorruptCheckpoint(f"{where} has more than {MAX_ATTRIBUTES} attributes")

    def __getitem__(self, name: str) -> Any:
        stored = self._stored[name]
        if not stored.is_text:
            return None
        with _damage(f"{self._where}: the attribute {name}"):
            found = stored_texts(self._file, stored, MAX_TEXT)
        return found if stored.shape else found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def texts(self, name: str) -> list[str] | None:
        """The list of texts of that name, which may be cut into NAME0, NAME1, ...; None if there is none.

        Raises CorruptCheckpoint for an attribute that is no list of texts.
        """
        found = [self[name]] if name in self else [*self._pieces(name)]
        if found == [None] and self._stored[name].count == 0:
            found = [[]]  # h5py writes an empty list as one of numbers
        for piece in found:
            if not isinstance(piece, list):
                raise CorruptCheckpoint(f"{self._where}: the attribute {name} is no list of names")
        texts = [each for piece in found for each in piece] if found else None
        self._check(name, texts)
        return texts

    def text(self, name: str) -> str | None:
        """The text of that name; None if there is none. Raises CorruptCheckpoint for what is no text."""
        found = self.get(name)
        if name in self and not isinstance(found, str):
            raise CorruptCheckpoint(f"{self._where}: the attribute {name} is no text")
        if name in self:
            self._check(name, found)
        return found if isinstance(found, str) else None

    def _check(self, name: str, value: Any) -> None:
        """Raise CorruptCheckpoint if an attribute is not what was written."""
        written = self._checks.get(f"{self._group}@{name}")
        if written is not None and written != crc32c(canonical(value)):
            raise CorruptCheckpoint(
                f"{self._where}: the attribute {name} is damaged: it is not what was written"
            )

    def _pieces(self, name: str) -> Iterator[Any]:
        for i in range(MAX_ATTRIBUTES):
            if f"{name}{i}" not in self:
                return
            yield self[f"{name}{i}"]


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a file: its arrays by their paths, and the attributes of its groups; the root is ""."""

    arrays: dict[str, Dataset]
    groups: dict[str, Attributes]


def recognises(path: str) -> bool:
    """Whether there is an HDF5 file at a path or URL."""
    try:
        return file_at(path).read(0, len(SIGNATURE)) == SIGNATURE
    except (ObjectMissing, ConfigurationError):
        return False


def root_names(path: str) -> frozenset[str]:
    """The names of the root's attributes and members. Raises as `reading` does."""
    with _opened(path, None) as (file, raw), _damage(f"{path} is damaged"):
        return frozenset({*stored_attributes(raw, _header(file)), *map(str, file)})


@contextmanager
def reading(path: str, data: bytes | None = None) -> Iterator[Contents]:
    """What is in a file; `data` are its bytes, if they are known.

    Raises CheckpointError if there is none, CorruptCheckpoint if it is damaged or refused, ConfigurationError
    without h5py.
    """
    if data is None and "://" in path:
        try:
            data = file_at(path).read()  # in one request
        except ObjectMissing as exc:
            raise CheckpointError(f"there is no file {path}") from exc
    with _opened(path, data) as (file, raw):
        found = Contents({}, {})
        with _damage(f"{path} is damaged"):
            checks = _checks(Attributes(raw, _header(file), path, "", _NONE), path)
            _walk(file, raw, path, found, checks)
        if missing := [name for name in checks if "@" not in name and name not in found.arrays]:
            raise CorruptCheckpoint(f"{path} is damaged: it has lost {listed(missing)}")
        yield found


def _checks(root: Attributes, where: str) -> Mapping[str, int]:
    """The checksums in a file, if it has some."""
    text = root.text(CHECKS)
    if text is None:
        return _NONE
    try:
        found = parse(text.encode(), max_values=4 * MAX_VALUES)
    except ValueError as exc:
        raise CorruptCheckpoint(f"{where} is damaged: {CHECKS}: {exc}") from exc
    if not isinstance(found, dict) or not all(type(each) is int for each in found.values()):
        raise CorruptCheckpoint(f"{where} is damaged: {CHECKS} holds no numbers by name")
    return found


@contextmanager
def _opened(path: str, data: bytes | None) -> Iterator[tuple[Any, Bytes]]:
    """The file as h5py has it, and its bytes."""
    h5py = _h5py()
    with ExitStack() as stack:
        try:
            at = file_at(path) if data is None else None
            if at is None or at.path is None:
                source: Any = io.BytesIO(data or b"") if at is None else RangeReader(at, at.info().nbytes)
                opened = source
            else:
                source, opened = None, at.path
            file = stack.enter_context(h5py.File(opened, "r"))
            shared: int | bytes | None = data
            if source is None:  # by its path there may be another file by now
                handle = file.id.get_vfd_handle()
                source = stack.enter_context(open(f"/proc/self/fd/{handle}", "rb", buffering=0))
                shared = source.fileno()
            raw = Bytes(source, shared)
        except (ObjectMissing, FileNotFoundError) as exc:
            raise CheckpointError(f"there is no file {path}") from exc
        except _DAMAGE as exc:
            raise CorruptCheckpoint(f"{path} is no HDF5 file, or is damaged: {_line(exc)}") from exc
        yield file, raw


def _header(thing: Any) -> int:
    """Where the header of a group or array lies in the file."""
    return int(_h5py().h5o.get_info(thing.id).addr)


def write(
    path: str, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Mapping[str, Attribute]]
) -> None:
    """Write a file of arrays by their paths, whole or not at all; `attributes` are those of groups."""
    file_at(path).write(*written(arrays, attributes))


def written(
    arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Mapping[str, Attribute]]
) -> list[memoryview]:
    """The content of such a file as buffers, among them the arrays, which must not change meanwhile."""
    h5py = _h5py()
    image = Image(arrays.values())
    with ThreadPoolExecutor(_THREADS, "holdfast-hdf5") as pool, h5py.File(image, "w") as file:
        checks: dict[str, int] = {}
        sums = pool.map(_crc, arrays.values())  # while the library lays the file out
        for group, named in attributes.items():
            holder = file.require_group(group) if group else file
            for name, value in named.items():
                _put_attribute(holder.attrs, name, value)
                checks[f"{group}@{name}"] = crc32c(canonical(value))
        for path, array in arrays.items():
            made = file.create_dataset(path, data=array)
            if array.dtype.name == _BFLOAT16:
                made.attrs["dtype"] = _BFLOAT16
        checks |= zip(arrays, sums, strict=True)
        file.attrs[CHECKS] = canonical(checks).decode()
    return image.buffers()


def _put_attribute(attrs: Any, name: str, value: Attribute) -> None:
    """In place. Set an attribute, in pieces where it is a list that is too long for one."""
    if isinstance(value, str):
        attrs[name] = value
        return
    items = [each.encode() for each in value]
    if any(len(item) > SPLIT_NBYTES for item in items):
        raise ConfigurationError(f"{name}: HDF5 files hold no name of more than {SPLIT_NBYTES} bytes")
    width = max(map(len, items), default=0)
    fits = SPLIT_NBYTES // max(width, 16)  # texts of any length take 16 bytes beside their letters
    pieces = [items[i : i + fits] for i in range(0, len(items), fits)]
    if len(pieces) <= 1:
        attrs[name] = items
        return
    for i, piece in enumerate(pieces):
        attrs[f"{name}{i}"] = np.asarray(piece)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as exc:
        raise ConfigurationError("HDF5 files need h5py: pip install 'holdfast[hdf5]'") from exc
    return h5py


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Make of what h5py raises a CorruptCheckpoint that begins with `what`."""
    try:
        yield
    except _DAMAGE as exc:
        raise CorruptCheckpoint(f"{what}: {_line(exc)}") from exc


def _line(exc: BaseException) -> str:
    return printable(" ".join(str(exc).split())) or type(exc).__name__


def _crc(array: NDArray[Any]) -> int:
    return crc32c(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _walk(file: Any, raw: Bytes, where: str, found: Contents, checks: Mapping[str, int]) -> None:
    """In place. Find all arrays and groups below the root. A group that was seen is not entered again."""
    h5py = _h5py()
    waiting: list[tuple[str, Any, int]] = [("", file, 0)]
    seen: set[Any] = set()
    count = 0
    while waiting:
        prefix, group, depth = waiting.pop()
        place = _header(group)
        if place in seen or depth > MAX_DEPTH:
            raise CorruptCheckpoint(f"{where}: the group {prefix or '/'} lies within itself, or too deep")
        seen.add(place)
        about = f"{where}: {prefix}" if prefix else where
        found.groups[prefix] = Attributes(raw, place, about, prefix, checks)
        for name in group:
            if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
                raise CorruptCheckpoint(f"{where}: {prefix or '/'} holds something named {name[:80]!r}")
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
                about = f"{where}: {path}"
                attributes = Attributes(raw, _header(child), about, path, checks)
                found.arrays[path] = _checked(child, path, about, attributes, raw, checks)


def _checked(
    dataset: Any, path: str, what: str, attributes: Attributes, raw: Bytes, checks: Mapping[str, int]
) -> Dataset:
    """An array, made sure of that it is simply stored in the file. CorruptCheckpoint says what is not."""
    if dataset.is_virtual or dataset.external:
        raise CorruptCheckpoint(f"{what} is stored in other files, which are not read")
    dtype = dataset.dtype
    if dtype.kind == "V" and dtype.itemsize == 2 and attributes.get("dtype") == _BFLOAT16:
        dtype = numpy_dtype(_BFLOAT16)
    elif dtype.kind not in _KINDS or dtype.subdtype is not None or dataset.shape is None:
        raise CorruptCheckpoint(f"{what} holds no numbers but {dtype}")
    plist = dataset.id.get_create_plist()
    for i in range(plist.get_nfilters()):
        number = plist.get_filter(i)[0]
        if number not in _FILTERS:
            raise CorruptCheckpoint(f"{what} is compressed in a way that is not known (filter {number})")
    nbytes, stored = prod(dataset.shape) * dtype.itemsize, dataset.id.get_storage_size()
    if nbytes > HARMLESS_NBYTES and nbytes > MAX_EXPANSION * stored:
        raise CorruptCheckpoint(f"{what} promises {nbytes} bytes, of which {stored} are stored")
    place = _place(dataset, plist, nbytes)
    plain = None if place is None or not raw.is_shared else (raw, place)
    return Dataset(path, tuple(dataset.shape), dtype, attributes, dataset, checks, plain)


def _place(dataset: Any, plist: Any, nbytes: int) -> int | None:
    """Where the values lie in the file, if they do so as they would in memory, one behind the other."""
    h5py = _h5py()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters() or nbytes == 0:
        return None
    stored = dataset.id.get_type()
    if dataset.dtype.kind == "b":
        return None  # any byte may stand there
    if not dataset.dtype.isnative or not stored.equal(h5py.h5t.py_create(dataset.dtype, logical=True)):
        return None
    place = dataset.id.get_offset()
    return None if place is None or dataset.id.get_storage_size() != nbytes else int(place)
