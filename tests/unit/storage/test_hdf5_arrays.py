"""Arrays of HDF5 files come from their place in the file where they lie there as they are, else from h5py."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from storage.errors import CorruptCheckpoint
from storage.formats import hdf5

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def is_plain(array: hdf5.Dataset) -> bool:
    return array._plain is not None


def made(path: Path, values: NDArray[Any], **how: Any) -> str:
    with h5py.File(path, "w") as file:
        file.create_dataset("group/x", data=values, **how)
    return str(path)


@pytest.mark.parametrize(
    "values",
    [VALUES, VALUES.astype(np.int16), np.float32(3.5), np.arange(5, dtype=np.uint64)],
    ids=lambda values: f"{values.dtype.str}-{values.ndim}",
)
def test_what_lies_in_one_piece_is_read_from_there(tmp_path: Path, values: Any) -> None:
    with hdf5.reading(made(tmp_path / "x.h5", np.asarray(values))) as file:
        array = file.arrays["group/x"]
        assert is_plain(array)
        found = np.asarray(array)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("values", "how"),
    [
        (VALUES, {"chunks": (2, 3)}),
        (VALUES, {"compression": "gzip"}),
        (VALUES > 3, {}),
        (VALUES.astype(">f8"), {}),
        (np.empty((0, 3), np.float32), {}),
    ],
    ids=["chunks", "gzip", "bool", "big-endian", "empty"],
)
def test_everything_else_is_read_by_h5py(tmp_path: Path, values: Any, how: dict[str, Any]) -> None:
    with hdf5.reading(made(tmp_path / "x.h5", values, **how)) as file:
        array = file.arrays["group/x"]
        assert not is_plain(array)
        np.testing.assert_array_equal(np.asarray(array), values)


def test_an_array_that_was_never_written_is_what_the_file_says_it_is(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (3,), "f4", fillvalue=7)
    with hdf5.reading(str(tmp_path / "x.h5")) as found:
        assert np.asarray(found.arrays["x"]).tolist() == [7, 7, 7]


def test_a_file_in_memory_is_read_from_there() -> None:
    data = b"".join(hdf5.written({"x": VALUES}, {"": {}}))
    with hdf5.reading("a.h5", data) as file:
        np.testing.assert_array_equal(np.asarray(file.arrays["x"]), VALUES)
    assert h5py.File(io.BytesIO(data))["x"][()].tolist() == VALUES.tolist()


def test_many_are_read_at_a_time(tmp_path: Path) -> None:
    arrays = {f"a/{i}": np.full((100, 50), i, np.float32) for i in range(64)}
    hdf5.write(str(tmp_path / "x.h5"), arrays, {"": {}})
    with hdf5.reading(str(tmp_path / "x.h5")) as file, ThreadPoolExecutor(8) as pool:
        found = dict(zip(file.arrays, pool.map(np.asarray, file.arrays.values()), strict=True))
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    hdf5.write(str(path), {"x": VALUES}, {"": {}})
    data = bytearray(path.read_bytes())
    place = data.index(VALUES.tobytes())
    data[place + 5] ^= 4
    path.write_bytes(data)
    with hdf5.reading(str(path)) as file, pytest.raises(CorruptCheckpoint, match="x is damaged"):
        np.asarray(file.arrays["x"])
    with hdf5.reading(str(path)) as file:
        path.write_bytes(data[: place + 9])
        with pytest.raises(CorruptCheckpoint, match="x cannot be read"):
            np.asarray(file.arrays["x"])
