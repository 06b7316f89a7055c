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

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, ObjectMissing
from storage.files import RangeReader, file_at
from storage.formats import hdf5
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
_SIGNATURE = b"PK\x03\x04"
MAX_ENTRIES = 10_000
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
    """Whether there is a `.keras` file, judged by the names in it alone."""
    try:
        file = file_at(path)
        if file.read(0, len(_SIGNATURE)) != _SIGNATURE:
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
    config = serialize(model)
    if not include_optimizer:
        config.pop("compile_config", None)
    made = {"keras_version": KERAS_VERSION, "date_saved": f"{datetime.now(UTC):%Y-%m-%d@%H:%M:%S}"}
    weights = hdf5.written(*weights_h5.contents(model, include_optimizer=include_optimizer))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(METADATA, json.dumps(made))
        archive.writestr(CONFIG, json.dumps(config))
        archive.writestr(WEIGHTS, weights)
    file_at(path).write(buffer.getvalue())


def save_weights(model: Model, path: str) -> None:
    """A `.keras` file holds a whole model: the same as `save_model`."""
    save_model(model, path)


def load_model(path: str, *, custom_objects: Mapping[str, Any] | None = None, compile: bool = True) -> Any:
    """The model in a file, compiled as it was, with its optimizer's state, if `compile`.

    No code of the file is run. Raises CheckpointError if there is none, CorruptCheckpoint if it is damaged,
    ConfigurationError for classes that are not known.
    """
    entries = _entries(path)
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
    return _load(model, path, _entries(path), skip_mismatch=skip_mismatch)


def _load(model: Model, path: str, entries: Mapping[str, bytes], *, skip_mismatch: bool = False) -> Status:
    where = f"{path}: {WEIGHTS}"
    with hdf5.reading(where, entries[WEIGHTS]) as file:
        return weights_h5.restore(model, file, where, skip_mismatch=skip_mismatch)


def _entries(path: str) -> dict[str, bytes]:
    """What is in the zip, unpacked only as far as it is as large as it says."""
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
