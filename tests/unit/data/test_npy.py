"""Arrays in .npy files, here and elsewhere."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ConfigurationError, DataError, ObjectMissing
from storage.testing import MemoryStore
from workers.data import Dataset, NpyDataset, npy

if TYPE_CHECKING:
    from pathlib import Path

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20, dtype=">i4")


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(params=["here", "elsewhere"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Stores an array or bytes under a name; returns the URL."""
    store = MemoryStore()

    def put(name: str, content: Any) -> str:
        data = content if isinstance(content, bytes) else saved(content)
        if request.param == "here":
            (tmp_path / name).write_bytes(data)
            return str(tmp_path / name)
        store.write(name, [data])
        return f"{store.url}/{name}"

    return put


def test_samples_come_in_the_order_asked_for(put: Any) -> None:
    dataset = NpyDataset(put("x.npy", X), put("y.npy", Y))
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 20
    indices = np.array([19, 0, 7, 7, 8])
    x, y = dataset.take(indices)
    assert np.array_equal(x, X[indices])
    assert np.array_equal(y, Y[indices])
    assert y.dtype == np.dtype("=i4")
    x[:] = 0  # a copy of one's own
    assert np.array_equal(dataset.take(indices)[0], X[indices])
    for bad in (-1, 20):
        with pytest.raises(IndexError, match=r"of 20"):
            dataset.take(np.array([bad]))


@settings(max_examples=50)
@given(indices=st.lists(st.integers(0, 499), min_size=1, max_size=60), gap=st.integers(0, 40))
def test_rows_that_lie_near_to_each_other_are_read_at_once(indices: list[int], gap: int) -> None:
    store = MemoryStore()
    array = np.arange(1000).reshape(500, 2)
    store.write("x.npy", [saved(array)])
    dataset = NpyDataset(f"{store.url}/x.npy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy, "_GAP_NBYTES", gap * 16)
        (found,) = dataset.take(np.array(indices))
    assert np.array_equal(found, array[indices])


def test_identity_is_of_the_content_wherever_it_is(tmp_path: Path) -> None:
    store = MemoryStore()
    store.write("x.npy", [saved(X)])
    (tmp_path / "other.npy").write_bytes(saved(X))
    there, here = NpyDataset(f"{store.url}/x.npy"), NpyDataset(str(tmp_path / "other.npy"))
    assert there.identity() == here.identity()
    (tmp_path / "other.npy").write_bytes(saved(X + 1))
    assert NpyDataset(str(tmp_path / "other.npy")).identity() != there.identity()


def test_of_a_large_array_blocks_are_digested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "_SAMPLED_BLOCKS", 3)
    monkeypatch.setattr(npy, "_BLOCK_NBYTES", 8)
    path = tmp_path / "x.npy"

    def identity(**changed: int) -> Any:
        array = np.arange(82, dtype=np.uint8)
        for place, value in changed.items():
            array[int(place[1:])] = value
        path.write_bytes(saved(array))
        return NpyDataset(str(path)).identity()

    assert identity() != identity(_0=9)
    assert identity() != identity(_41=9)
    assert identity() != identity(_81=9)
    assert identity() == identity(_20=9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "not a .npy file"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr'", "not a .npy file"),
        (saved(X)[:-1], "damaged .npy file, 367 bytes instead of 368"),
        (np.asfortranarray(X), "Fortran order"),
        (np.array(["a", "b"]), "is <U1: give real numbers"),
        (np.array([1, None]), "is object: give real numbers"),
        (np.float32(3), "is one number"),
        (np.zeros((0, 3)), "no samples"),
    ],
)
def test_a_file_that_makes_no_dataset_is_refused(put: Any, content: Any, message: str) -> None:
    url = put("x.npy", content)
    with pytest.raises(ConfigurationError, match=message):
        NpyDataset(url)


def test_files_of_different_lengths_missing_and_no_files_are_refused(put: Any) -> None:
    with pytest.raises(ConfigurationError, match="hold 20, 19 samples"):
        NpyDataset(put("x.npy", X), put("y.npy", Y[:-1]))
    with pytest.raises(ObjectMissing, match=r"none\.npy"):
        NpyDataset(put("x.npy", X).replace("x.npy", "none.npy"))
    with pytest.raises(ConfigurationError, match="at least one file"):
        NpyDataset()


def test_a_file_that_has_become_shorter_is_named_with_the_row() -> None:
    store = MemoryStore()
    store.write("x.npy", [saved(X)])
    dataset = NpyDataset(f"{store.url}/x.npy")
    store.write("x.npy", [saved(X)[:-30]])
    with pytest.raises(DataError, match=r"x\.npy ends before its row 18 is complete"):
        dataset.take(np.array([18]))
