"""Write a checkpoint's variables as files that other libraries read."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import tempfile
import time
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.formats import safetensors_file
from storage.layout import names_above
from storage.naming import choose
from storage.store import open_store
from storage.streaming import Stream
from storage.zarr_format import slab_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from storage.reader import CheckpointReader

_PIECE_NBYTES = 8 << 20
_PAUSES_S = (0.05, 0.1, 0.2, 0.4)  # a thread of zarr may be writing a chunk still when we are interrupted
_CHUNK_NBYTES = 4 << 20  # of an exported Zarr array, at most


def export(checkpoint: CheckpointReader, target: str, names: Sequence[str] | None = None) -> list[str]:
    """Write variables to `target`, which is made whole or not at all; returns their names.

    The ending decides: `.safetensors`, `.npz`, anything else is a directory that is a Zarr v3 group with one
    array for each variable. `names` are names or globs. A bfloat16 variable is uint16 in npz and Zarr. Memory
    is bounded. Raises ConfigurationError if something is there already, or for names that cannot be there.
    """
    chosen = choose(checkpoint, names, checkpoint.url)
    write = _WRITERS.get(Path(target.rstrip("/")).suffix.lower(), _write_zarr)
    scheme, separator, rest = target.partition("://")
    local = rest if scheme in ("file", "local") else "" if separator else os.path.expanduser(target)
    if local:
        _export_here(Path(os.path.abspath(local)), lambda path: write(path, checkpoint, chosen))
    else:
        _export_there(target.rstrip("/"), lambda path: write(path, checkpoint, chosen))
    return chosen


def _export_here(path: Path, write: Callable[[Path], None]) -> None:
    _refuse_present(path)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        for each in [scratch, *scratch.rglob("*")]:
            _sync(each)
        _refuse_present(path)  # renaming would replace it
        os.rename(scratch, path)
        _sync(path.parent)
    except FileExistsError as exc:
        raise ConfigurationError(f"cannot write {path}: what is above it is not a directory") from exc
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc.strerror or exc}") from exc
    finally:
        _remove(scratch)


def _remove(scratch: Path) -> None:
    """Remove what is left of an export that failed."""
    for pause_s in _PAUSES_S:
        with contextlib.suppress(OSError):
            if not scratch.is_dir():
                scratch.unlink(missing_ok=True)
                return
        shutil.rmtree(scratch, ignore_errors=True)
        time.sleep(pause_s)


def _refuse_present(path: Path) -> None:
    with contextlib.suppress(OSError):  # what cannot be looked at cannot be written either, which says more
        if path.exists() or path.is_symlink():
            raise ConfigurationError(f"{path} is there already: give another --to")


def _export_there(url: str, write: Callable[[Path], None]) -> None:
    """Make it here and send it; of a Zarr group the root's document goes last."""
    parent, _, name = url.rpartition("/")
    store = open_store(parent)
    if name in store.list() or store.list(name):
        raise ConfigurationError(f"{url} is there already: give another --to")
    with tempfile.TemporaryDirectory(prefix="holdfast-export-") as folder:
        path = Path(folder) / name
        write(path)
        files = sorted(each for each in [path, *path.rglob("*")] if each.is_file())
        for each in sorted(files, key=lambda each: each == path / "zarr.json"):
            inside = each.relative_to(path).as_posix()
            store.write(name if each == path else f"{name}/{inside}", _File(each))


class _File:
    """The content of a file in pieces, from the start at each iteration."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while piece := file.read(_PIECE_NBYTES):
                yield piece


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_npz(path: Path, checkpoint: CheckpointReader, names: Sequence[str]) -> None:
    stream = Stream(checkpoint)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in names:
            header: dict[str, Any] = {
                "descr": np.lib.format.dtype_to_descr(_plain_dtype(checkpoint, name)),
                "fortran_order": False,
                "shape": checkpoint[name].shape,
            }
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in _pieces(stream, name):
                    member.write(piece)


def _write_zarr(path: Path, checkpoint: CheckpointReader, names: Sequence[str]) -> None:
    import zarr

    _refuse_names_below_others(names)
    stream = Stream(checkpoint)
    group = zarr.open_group(str(path), mode="w-", zarr_format=3)
    for name in names:
        shape, dtype = checkpoint[name].shape, _plain_dtype(checkpoint, name)
        stored = str(checkpoint.dtype(name))
        attributes: dict[str, Any] = {"dtype": stored} if dtype.name != stored else {}
        chunk = slab_shape(shape, _CHUNK_NBYTES // dtype.itemsize)
        array = group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunk,
            attributes=attributes,
            config={"write_empty_chunks": True},
        )
        at = 0
        for place in itertools.product(*(range(0, n, step) for n, step in zip(shape, chunk, strict=True))):
            ends = [min(i + step, n) for i, step, n in zip(place, chunk, shape, strict=True)]
            part = tuple(slice(i, end) for i, end in zip(place, ends, strict=True))
            extent = [end - i for i, end in zip(place, ends, strict=True)]
            values = _gathered(stream, name, at, math.prod(extent), dtype)
            array[part] = values.reshape(extent)
            at += values.size


def _gathered(stream: Stream, name: str, start: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Elements [start, start + count) of a variable in an array of their own."""
    found = np.empty(count, dtype)
    for a, b in stream.ranges(name, _PIECE_NBYTES // dtype.itemsize, start, start + count):
        found[a - start : b - start] = stream.elements(name, a, b).view(dtype)
    return found


def _refuse_names_below_others(names: Sequence[str]) -> None:
    """Raise ConfigurationError for names that no Zarr hierarchy can hold together."""
    there = {*names}
    for name in names:
        above = next((each for each in names_above(name) if each in there), None)
        if above is not None:
            raise ConfigurationError(
                f"{name} cannot lie below {above}, which is an array: choose with --names, or export to npz"
            )
        if "zarr.json" in name.split("/"):
            raise ConfigurationError(f"{name} cannot be the name of a Zarr array: export to npz")


def _write_safetensors(path: Path, checkpoint: CheckpointReader, names: Sequence[str]) -> None:
    """The format is the length of a header, the header in JSON, and the tensors one behind the other.

    Large elements come first, so that all are aligned: as the safetensors library writes them, and in the
    order of the checkpoint otherwise.
    """
    manifest = checkpoint.manifest
    header: dict[str, Any] = {
        "__metadata__": {"step": str(manifest.step), "state_digest": manifest.state_digest}
    }
    names = sorted(names, key=lambda name: -checkpoint.dtype(name).itemsize)
    end = 0
    for name in names:
        if name in header:
            raise ConfigurationError(f"{name} cannot be the name of a tensor: choose others with --names")
        variable = checkpoint[name]
        header[name] = {
            "dtype": safetensors_file.DTYPES[str(variable.dtype)],
            "shape": list(variable.shape),
            "data_offsets": [end, end + variable.nbytes],
        }
        end += variable.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > safetensors_file.MAX_HEADER_NBYTES:
        raise ConfigurationError(
            f"{len(names)} names do not fit into a safetensors header: choose with --names"
        )
    stream = Stream(checkpoint)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for piece in _pieces(stream, name):
                file.write(piece)


def _pieces(stream: Stream, name: str) -> Iterator[memoryview]:
    """The bytes of a variable in C order."""
    for start, stop in stream.ranges(name, _PIECE_NBYTES):
        yield stream.elements(name, start, stop).view(np.uint8).data


def _plain_dtype(checkpoint: CheckpointReader, name: str) -> np.dtype[Any]:
    """The type of a variable, or that of the same bits where NumPy itself has none such."""
    dtype = checkpoint.dtype(name)
    return np.dtype(np.uint16) if dtype.name == "bfloat16" else dtype


_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}
