"""NumPy's `.npz`: a zip of arrays by name, read without pickle and no larger than it is."""

from __future__ import annotations

import io
import math
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import CorruptCheckpoint
from storage.formats.hdf5 import HARMLESS_NBYTES, MAX_EXPANSION
from storage.naming import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

SIGNATURE = b"PK\x03\x04"
"""Of a zip."""

_ENDING = ".npy"
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, SyntaxError)
"""What zipfile and NumPy make of a file that is damaged."""


def written(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The arrays as a file. bfloat16, which the format cannot name, is two bytes without a type."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(name + _ENDING, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def names_in(data: io.RawIOBase) -> list[str]:
    """The names of all entries. Raises ValueError for what is no zip."""
    try:
        with zipfile.ZipFile(data) as archive:
            return archive.namelist()
    except _DAMAGE as exc:
        raise ValueError(str(exc)) from exc


def read(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name. Raises CorruptCheckpoint for damage, objects, and bombs."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            nbytes = sum(info.file_size for info in infos)
            if nbytes > max(HARMLESS_NBYTES, MAX_EXPANSION * len(data)):
                raise CorruptCheckpoint(f"{where} promises {nbytes} bytes, and {len(data)} are stored")
            names = [info.filename for info in infos]
            if len({*names}) != len(names):
                raise CorruptCheckpoint(f"{where} has entries of the same name")
            return {_name(each, where): _array(archive.read(each), f"{where}: {each}") for each in names}
    except _DAMAGE as exc:
        raise CorruptCheckpoint(f"{where} is no .npz file, or is damaged: {exc}") from exc


def _name(entry: str, where: str) -> str:
    if not entry.endswith(_ENDING):
        raise CorruptCheckpoint(f"{where} holds {entry}, which is no array")
    return entry.removesuffix(_ENDING)


def _array(data: bytes, where: str) -> NDArray[Any]:
    """An array; its header is believed as far as the bytes go that follow."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise CorruptCheckpoint(f"{where} holds Python objects, which are not loaded")
    rest = data[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(rest):
        raise CorruptCheckpoint(f"{where}: {len(rest)} bytes for {dtype} of shape {shape}")
    found = np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")
    return found.view(numpy_dtype("bfloat16")) if dtype == np.dtype("V2") else found
