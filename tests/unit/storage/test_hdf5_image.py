"""HDF5 files in pieces: the arrays themselves are among the buffers, and all together are the file."""

from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import pytest

from storage.formats import hdf5
from storage.formats.hdf5_image import Image


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
