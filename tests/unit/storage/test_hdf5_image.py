"""HDF5 files in pieces: the arrays themselves are among the buffers, and all together are the file."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from storage.errors import CorruptCheckpoint
from storage.formats import hdf5
from storage.formats.hdf5_image import Image

if TYPE_CHECKING:
    from pathlib import Path


def test_large_arrays_are_not_copied_and_small_ones_come_back() -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "large": rng.standard_normal((300, 301), np.float32),
        "a/large": rng.standard_normal(1 << 16),
        "small": np.arange(5),
        "scalar": np.float64(3.5),
        "empty": np.zeros((0, 3), np.float32),
        "across": rng.standard_normal((200, 100), np.float32).T,
        "bools": np.array([True, False]),
    }
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    buffers = hdf5.written(
        arrays, {"a": {"name": "layer"}, "": {"names": [f"layer_{i:04}" for i in range(9000)]}}
    )
    own = {np.frombuffer(each, np.uint8).__array_interface__["data"][0] for each in buffers}
    for name in ("large", "a/large"):
        assert arrays[name].__array_interface__["data"][0] in own, name
    with h5py.File(io.BytesIO(b"".join(buffers))) as file:
        for name, array in arrays.items():
            assert np.array_equal(file[name][()], array), name
        assert file["a"].attrs["name"] == "layer"


@pytest.mark.parametrize("seed", range(20))
def test_reads_and_writes_anywhere_are_those_of_a_file(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = rng.integers(0, 256, 1 << 17, np.uint8)
    image, file = Image([known]), io.BytesIO()
    place = int(rng.integers(0, 1 << 18))
    for each in (image, file):
        each.seek(place)
        each.write(known.data)
    for _ in range(30):
        start, nbytes = int(rng.integers(0, place + 1)), int(rng.integers(1, 1 << 17))
        data = rng.integers(0, 256, min(nbytes, place - start), np.uint8)
        for each in (image, file):
            each.seek(start)
            each.write(data.tobytes())
        start = int(rng.integers(0, place + len(known)))
        image.seek(start)
        file.seek(start)
        assert image.read(nbytes) == file.read(nbytes)
    assert b"".join(image.buffers()) == file.getvalue()


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "bytes"])
def test_arrays_are_read_as_the_library_reads_them_however_they_are_stored(
    tmp_path: Path, in_memory: bool
) -> None:
    values = np.arange(600_000, dtype=np.float32).reshape(600, 1000)
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for kind in ("<f4", ">f4", "<f2", "<i8", ">i2", "u1", "?"):
            file.create_dataset(f"plain{kind.strip('<>')}{kind[0] == '>'}", data=(values % 100).astype(kind))
        file.create_dataset("cut", data=values, chunks=(100, 100))
        file.create_dataset("squeezed", data=values, compression="gzip", shuffle=True)
        file.create_dataset("filled", shape=(7, 8), dtype="f4", fillvalue=2.5)  # nothing is stored of it
        odd = h5py.h5t.IEEE_F32LE.copy()  # as many bytes as a float32, and another number
        odd.set_ebias(120)
        space = h5py.h5s.create_simple((600, 1000))
        h5py.h5d.create(file.id, b"odd", odd, space).write(h5py.h5s.ALL, h5py.h5s.ALL, values / 1e6)
        expected = {name: file[name][()] for name in file}
    with hdf5.reading(str(path), path.read_bytes() if in_memory else None) as found:
        read = dict(zip(found.arrays, hdf5.read(found.arrays.values()), strict=True))
    assert set(read) == set(expected)
    for name, array in expected.items():
        assert np.array_equal(read[name], array), name


def test_a_file_that_becomes_shorter_while_it_is_read_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    hdf5.write(str(path), {"a": np.ones((1000, 1000), np.float32)}, {})
    with hdf5.reading(str(path)) as found:
        os.truncate(path, 1 << 20)
        with pytest.raises(CorruptCheckpoint, match=r"a cannot be read: it ends at 1048576"):
            hdf5.read(found.arrays.values())
