"""Files that are saved together, and named arrays among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr

import storage
from storage import zarr_arrays
from storage.bundle import kind_of, open_files, save_files
from storage.errors import ConfigurationError, CorruptCheckpoint

ARRAYS: dict[str, Any] = {
    "a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a/scalar": np.float64(2.5),
    "b": np.array([True, False]),
    "c/empty": np.zeros((0, 3), np.int64),
    "d": np.array([1.5, -2], ml_dtypes.bfloat16),
}


def saved(path: Path) -> str:
    files = {f"arrays/{key}": data for key, data in zarr_arrays.encode(ARRAYS).items()}
    return save_files(str(path), "model", {**files, "note.json": b"{}"})


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    saved(tmp_path)
    found = zarr_arrays.StoredArrays(open_files(str(tmp_path)), "arrays")
    assert {*found} == {*ARRAYS}
    for name, array in ARRAYS.items():
        value = np.asarray(found[name])
        assert value.dtype == array.dtype
        assert value.shape == array.shape
        assert np.array_equal(value, array)


def test_zarr_reads_the_arrays(tmp_path: Path) -> None:
    group: Any = zarr.open_group(f"{saved(tmp_path)}/arrays", mode="r")
    assert np.array_equal(group["a/kernel"][:], ARRAYS["a/kernel"])
    assert group["a/scalar"][...] == 2.5
    assert group["b"][:].tolist() == [True, False]
    assert group["c/empty"].shape == (0, 3)
    assert group["d"].attrs["dtype"] == "bfloat16"


def test_large_arrays_are_cut_along_the_leading_axis(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(zarr_arrays, "_CHUNK_NBYTES", 32)
    url = saved(tmp_path)
    assert zarr_arrays.chunk_shape((3, 4), 4) == (2, 4)
    assert zarr_arrays.chunk_shape((3, 40), 4) == (1, 8)
    found = zarr_arrays.StoredArrays(open_files(str(tmp_path)), "arrays")
    assert np.array_equal(np.asarray(found["a/kernel"]), ARRAYS["a/kernel"])
    group: Any = zarr.open_group(f"{url}/arrays", mode="r")
    assert np.array_equal(group["a/kernel"][:], ARRAYS["a/kernel"])


def test_a_save_replaces_the_one_before(tmp_path: Path) -> None:
    first = saved(tmp_path)
    second = save_files(str(tmp_path), "model", {"note.json": b"2"})
    assert open_files(str(tmp_path)).read("note.json") == b"2"
    assert open_files(second).url == second == storage.latest(str(tmp_path))
    assert not Path(first).exists()
    assert kind_of(str(tmp_path)) == kind_of(second) == "model"


def test_the_old_stays_while_the_new_is_not_whole(tmp_path: Path) -> None:
    first = saved(tmp_path)

    class Dies(dict[str, bytes]):
        def __getitem__(self, key: str) -> bytes:
            if key == "b":
                raise KeyboardInterrupt
            return super().__getitem__(key)

    with pytest.raises(KeyboardInterrupt):
        save_files(str(tmp_path), "model", Dies(a=b"1", b=b"2"))
    assert open_files(str(tmp_path)).url == first


def test_a_directory_of_another_kind_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    storage.save(str(tmp_path / "a"), {"x": np.zeros(1)})
    with pytest.raises(ConfigurationError, match="is the directory of a saved model: save somewhere else"):
        storage.save(str(tmp_path / "m"), {"x": np.zeros(1)})
    with pytest.raises(ConfigurationError, match="is the directory of saved arrays"):
        save_files(str(tmp_path / "a"), "model", {"x": b""})


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    url = saved(tmp_path)
    chunk = Path(url, "arrays/a/kernel/c/0/0")
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data)
    found = zarr_arrays.StoredArrays(open_files(str(tmp_path)), "arrays")
    with pytest.raises(CorruptCheckpoint, match="a/kernel/c/0/0 does not match"):
        np.asarray(found["a/kernel"])
    assert [fault.object for fault in storage.verify(url).faults] == ["arrays/a/kernel/c/0/0"]
    chunk.unlink()
    with pytest.raises(CorruptCheckpoint, match="is missing, or has another size"):
        open_files(url)


def test_an_array_below_another_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a/b cannot lie below a"):
        zarr_arrays.encode({"a": np.zeros(1), "a/b": np.zeros(1)})
