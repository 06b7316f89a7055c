"""Keras 3's `.keras`: a zip of the config as JSON, the weights as HDF5, and who wrote it when."""

from __future__ import annotations

import io
import json
import lzma
import stat
import struct
import zipfile
import zlib
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crc32c import crc32c

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, ObjectMissing
from storage.files import RangeReader, file_at, is_file
from storage.formats import hdf5
from storage.formats.npz import SIGNATURE
from storage.strict_json import parse, printable
from workers.nn.saving import weights_h5
from workers.nn.saving.documents import KERAS_VERSION, MAX_DEPTH
from workers.nn.saving.objects import check_model, deserialize, serialize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.model import Model
    from workers.nn.saving.state import Status

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MAX_CONFIG_NBYTES = 64 << 20
_BELONG = "holdfast_files"
MAX_ENTRIES = 10_000
_ZIP64 = 1 << 31
_DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile makes of a file that is damaged, or that it does not know."""


def recognises(path: str) -> bool:
    """Whether there is a `.keras` file, or a directory of its parts, judged by names alone."""
    try:
        file = file_at(path)
        try:
            start = file.read(0, len(SIGNATURE))
        except (ConfigurationError, ObjectMissing):
            start = b""
        if not start:  # a directory, or nothing
            return is_file(f"{path}/{CONFIG}") and is_file(f"{path}/{METADATA}")
        if start != SIGNATURE:
            return False
        source = RangeReader(file, file.info().nbytes)
    except (ObjectMissing, ConfigurationError):
        return False
    try:
        with zipfile.ZipFile(source) as archive:
            return CONFIG in archive.namelist()
    except _DAMAGE:
        return False


def save_model(model: Model, path: str, *, include_optimizer: bool = True) -> None:
    """Write a model: its architecture, its weights, how it is compiled, and the optimizer's state."""
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for name, content in _parts(model, include_optimizer).items():
            with archive.open(name, "w", force_zip64=sum(map(len, content)) > _ZIP64) as entry:
                for each in content:
                    entry.write(each)
    file_at(path).write(*pieces.buffers)


class _Pieces:
    """A file that zipfile writes from the beginning to the end, and that stays in pieces."""

    def __init__(self) -> None:
        self.buffers: list[bytes | memoryview] = []

    def write(self, data: bytes | memoryview) -> int:
        self.buffers.append(data)
        return len(data)

    def flush(self) -> None:
        pass


def save_directory(model: Model, path: str, *, include_optimizer: bool = True) -> None:
    """Write the same as files in a directory, as Keras's `zipped=False` does.

    The file that tells who wrote it comes last, and tells which others belong to it (Keras does not look at
    that): what is there of two saves is refused when it is read.
    """
    parts = _parts(model, include_optimizer)
    about = json.loads(b"".join(parts.pop(METADATA)))
    about[_BELONG] = {name: [sum(map(len, content)), _crc(content)] for name, content in parts.items()}
    for name, content in {**parts, METADATA: [json.dumps(about).encode()]}.items():
        file_at(f"{path}/{name}").write(*content)


def _crc(content: Sequence[bytes | memoryview]) -> int:
    found = 0
    for piece in content:
        found = crc32c(piece, found)
    return found


def _parts(model: Model, include_optimizer: bool) -> dict[str, Sequence[bytes | memoryview]]:
    """What is in a file, in Keras's order, each as buffers."""
    config = serialize(model)
    if not include_optimizer:
        config.pop("compile_config", None)
    made = {"keras_version": KERAS_VERSION, "date_saved": f"{datetime.now(UTC):%Y-%m-%d@%H:%M:%S}"}
    return {
        METADATA: [json.dumps(made).encode()],
        CONFIG: [json.dumps(config).encode()],
        WEIGHTS: hdf5.written(*weights_h5.contents(model, include_optimizer=include_optimizer)),
    }


def save_weights(model: Model, path: str) -> None:
    """A `.keras` file holds a whole model: the same as `save_model`."""
    save_model(model, path)


def load_model(path: str, *, custom_objects: Mapping[str, Any] | None = None, compile: bool = True) -> Any:
    """The model in a file, compiled as it was, with its optimizer's state, if `compile`.

    No code of the file is run. Raises CheckpointError if there is none, CorruptCheckpoint if it is damaged,
    ConfigurationError for classes that are not known.
    """
    entries = entries_of(path)
    try:
        config = parse(entries[CONFIG], max_depth=MAX_DEPTH)
    except ValueError as exc:
        raise CorruptCheckpoint(f"{path}: {CONFIG}: {exc}") from exc
    model = deserialize(config, custom_objects, compile=compile)
    check_model(model, f"{path}: {CONFIG}")
    _load(model, path, entries).check_whole()
    return model


def load_weights(model: Model, path: str, *, skip_mismatch: bool = False, by_name: bool = False) -> Status:
    """In place. Give a built model the weights of the model in a file; places decide, not names."""
    return _load(model, path, entries_of(path), skip_mismatch=skip_mismatch)


def _load(model: Model, path: str, entries: Mapping[str, bytes], *, skip_mismatch: bool = False) -> Status:
    where = f"{path}: {WEIGHTS}"
    with hdf5.reading(where, entries[WEIGHTS]) as file:
        return weights_h5.restore(model, file, where, skip_mismatch=skip_mismatch)


def entries_of(path: str) -> dict[str, bytes]:
    """What is in the zip, unpacked only as far as it is as large as it says; or in the directory."""
    if not is_file(path) and is_file(f"{path}/{CONFIG}"):
        return _in_directory(path)
    try:
        data = file_at(path).read()
    except ObjectMissing as exc:
        raise CheckpointError(f"there is no file {path}") from exc
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check(archive.infolist(), path)
            return {name: archive.read(name) for name in (CONFIG, WEIGHTS)}
    except _DAMAGE as exc:
        raise CorruptCheckpoint(f"{path} is no zip file, or is damaged: {_line(exc)}") from exc


def _in_directory(path: str) -> dict[str, bytes]:
    found = {}
    for name in (METADATA, CONFIG, WEIGHTS):
        file = file_at(f"{path}/{name}")
        try:
            if name != WEIGHTS and file.info().nbytes > MAX_CONFIG_NBYTES:
                raise CorruptCheckpoint(f"{file.url} has more than {MAX_CONFIG_NBYTES} bytes")
            found[name] = file.read()
        except ObjectMissing as exc:
            raise CorruptCheckpoint(f"{path} has no file {name}") from exc
    try:
        about = parse(found.pop(METADATA))
    except ValueError as exc:
        raise CorruptCheckpoint(f"{path}/{METADATA}: {exc}") from exc
    belong = about.get(_BELONG) if isinstance(about, dict) else None
    if belong is not None and belong != {name: [len(each), _crc([each])] for name, each in found.items()}:
        raise CorruptCheckpoint(f"{path} is damaged: its files are not of one save")
    return found


def _check(entries: Sequence[zipfile.ZipInfo], path: str) -> None:
    """Raise CorruptCheckpoint for a zip that Keras would not write, whether or not the entry is needed."""
    if len(entries) > MAX_ENTRIES:
        raise CorruptCheckpoint(f"{path} has {len(entries)} entries, more than {MAX_ENTRIES}")
    names = Counter(entry.filename for entry in entries)
    for entry in entries:
        what = f"{path}: {printable(entry.filename)!r}"
        parts = entry.orig_filename.replace("\\", "/").removesuffix("/").split("/")
        if "" in parts or ".." in parts or "\0" in entry.orig_filename or ":" in parts[0]:
            raise CorruptCheckpoint(f"{what} is the name of an entry that leaves its directory")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise CorruptCheckpoint(f"{what} is a link")
        if names[entry.filename] > 1:
            raise CorruptCheckpoint(f"{what} is there {names[entry.filename]} times")
        size, stored = entry.file_size, entry.compress_size
        limit = MAX_CONFIG_NBYTES if entry.filename == CONFIG else hdf5.HARMLESS_NBYTES
        if size > limit and (entry.filename == CONFIG or size > hdf5.MAX_EXPANSION * stored):
            raise CorruptCheckpoint(f"{what} promises {size} bytes, and {stored} are stored")
    for name in (CONFIG, WEIGHTS):
        if name not in names:
            raise CorruptCheckpoint(f"{path} has no entry {name}")


def _line(exc: BaseException) -> str:
    return printable(" ".join(str(exc).split())) or type(exc).__name__
