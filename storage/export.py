"""Write a checkpoint's variables as files that other libraries read."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError, MissingExtra
from storage.naming import choose
from storage.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from storage.reader import CheckpointReader

_PIECE_NBYTES = 8 << 20


def export(checkpoint: CheckpointReader, target: str, names: Sequence[str] | None = None) -> list[str]:
    """Write variables to `target`, which is made whole or not at all; returns their names.

    The ending decides: `.safetensors`, `.npz`, anything else is a directory that is a Zarr v3 group with one
    array for each variable. `names` are names or globs. A bfloat16 variable is uint16 in npz and Zarr. Raises
    ConfigurationError if something is there already, MissingExtra if the safetensors package is not
    installed.
    """
    chosen = choose(checkpoint, names, checkpoint.url)
    write = _WRITERS.get(Path(target.rstrip("/")).suffix, _write_zarr)
    scheme, separator, rest = target.partition("://")
    local = rest if scheme in ("file", "local") else "" if separator else os.path.expanduser(target)
    if local:
        _export_here(Path(os.path.abspath(local)), lambda path: write(path, checkpoint, chosen))
    else:
        _export_there(target.rstrip("/"), lambda path: write(path, checkpoint, chosen))
    return chosen


def _export_here(path: Path, write: Callable[[Path], None]) -> None:
    if path.exists():
        raise ConfigurationError(f"{path} is there already: give another --to")
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        for each in [scratch, *scratch.rglob("*")]:
            _sync(each)
        os.rename(scratch, path)
        _sync(path.parent)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc.strerror or exc}") from exc
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            scratch.unlink()


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
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _plain(checkpoint, name), allow_pickle=False)


def _write_zarr(path: Path, checkpoint: CheckpointReader, names: Sequence[str]) -> None:
    import zarr

    group = zarr.open_group(str(path), mode="w-", zarr_format=3)
    for name in names:
        values = _plain(checkpoint, name)
        dtype = str(checkpoint.dtype(name))
        attributes: dict[str, Any] = {"dtype": dtype} if values.dtype.name != dtype else {}
        group.create_array(name, data=values, attributes=attributes, config={"write_empty_chunks": True})


def _write_safetensors(path: Path, checkpoint: CheckpointReader, names: Sequence[str]) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError as exc:
        raise MissingExtra("safetensors is not installed: pip install 'holdfast[safetensors]'") from exc
    metadata = {"step": str(checkpoint.manifest.step), "state_digest": checkpoint.manifest.state_digest}
    save_file(checkpoint.load(names), path, metadata)


def _plain(checkpoint: CheckpointReader, name: str) -> NDArray[Any]:
    """A variable in a type that NumPy itself has."""
    values = checkpoint.load([name])[name]
    return values.view(np.uint16) if values.dtype.name == "bfloat16" else values


_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}
