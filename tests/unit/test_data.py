"""Datasets and the idx reader."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.errors import ConfigurationError, DataError, StorageError
from workers import data as module
from workers.data import ArrayDataset, Dataset, is_unreadable, read_idx, read_patiently

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim])
    dims = struct.pack(f">{array.ndim}I", *array.shape)
    return header + dims + array.astype(array.dtype.newbyteorder(">")).tobytes()


@given(
    st.sampled_from(list(CODES)).flatmap(
        lambda code: hnp.arrays(np.dtype(code), hnp.array_shapes(max_dims=4, max_side=4))
    )
)
def test_idx_round_trip_plain_and_gzipped(array: np.ndarray) -> None:
    for data in (idx(array), gzip.compress(idx(array))):
        found = read_idx(data, "x")
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()
        assert found.shape == array.shape


GOOD = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an idx file"),
        (b"<html>", "not an idx file, it begins with b'<htm'"),
        (b"\0\0\x07\x01" + bytes(9), "not an idx file"),
        (GOOD[:-1], "damaged idx file, 23 bytes instead of 24"),
        (GOOD + b"x", "damaged idx file, 25 bytes instead of 24"),
        (GOOD[:7], "damaged idx file"),
        (gzip.compress(GOOD)[:-9], "damaged gzip file"),
        (b"\x1f\x8bnonsense", "damaged gzip file"),
    ],
)
def test_a_damaged_idx_file_is_named_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^some/file: {message}") as caught:
        read_idx(data, "some/file")
    assert "\n" not in str(caught.value)


def test_take_gives_the_samples_in_the_order_asked_for() -> None:
    x, y = np.arange(20).reshape(10, 2), np.arange(10)
    dataset = ArrayDataset(x, y)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 10
    indices = np.array([7, 0, 7, 3])
    found_x, found_y = dataset.take(indices)
    assert (found_x == x[indices]).all()
    assert (found_y == y[indices]).all()
    with pytest.raises(IndexError):
        dataset.take(np.array([10]))


def test_identity_follows_the_content_alone() -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    identity = ArrayDataset(x).identity()
    assert identity["samples"] == 10
    assert identity["shapes"] == [[2]]
    assert identity["dtypes"] == ["<f4"]
    assert ArrayDataset(np.asfortranarray(x)).identity() == identity
    assert ArrayDataset(np.repeat(x, 2, axis=0)[::2]).identity() == identity
    others: list[Any] = [x + 1, x.astype(np.float64), x.reshape(10, 1, 2), x[:9]]
    assert all(ArrayDataset(other).identity() != identity for other in others)
    assert ArrayDataset(x, x).identity() != identity


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((), "at least one array"),
        (([[1, 2]], [1, 2, 3]), "hold 1, 3 samples"),
        ((np.zeros((0, 3)),), "no samples"),
        ((5,), "array 0 is one number"),
        ((["a", "b"],), "array 0 is <U1: give real numbers"),
    ],
)
def test_arrays_that_make_no_dataset_are_refused(arrays: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ArrayDataset(*arrays)


# -- data that cannot be read ----------------------------------------------------------------------------


class Unreliable(ArrayDataset):
    """Raises so many times before it gives what it is asked for."""

    def __init__(self, times: int, error: Exception) -> None:
        super().__init__(np.arange(4.0))
        self.left, self.asked, self.error = times, 0, error

    def take(self, indices: Any) -> Any:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise self.error
        return super().take(indices)


def arrow_error() -> Exception:
    pyarrow = pytest.importorskip("pyarrow")
    error: Exception = pyarrow.ArrowInvalid("row group 3 of x.parquet is damaged")
    return error


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("times", range(4))
@pytest.mark.parametrize("error", [FileNotFoundError("x.npy"), StorageError("no answer"), arrow_error()])
def test_what_cannot_be_read_is_read_again_three_times(times: int, error: Exception) -> None:
    dataset, told = Unreliable(times, error), list[str]()
    (found,) = read_patiently(dataset, np.array([2]), told.append)
    assert found == [2.0]
    assert len(told) == times
    assert all(str(error) in text for text in told)


@pytest.mark.usefixtures("impatient")
def test_the_fourth_failure_is_a_data_error_that_names_what_the_dataset_did() -> None:
    dataset = Unreliable(9, OSError(5, "Input/output error", "x.parquet"))
    with pytest.raises(DataError, match=r"tried 4 times: OSError: .*Input/output error: 'x\.parquet'"):
        read_patiently(dataset, np.array([2]), lambda _: None)
    assert dataset.asked == 4


@pytest.mark.parametrize(
    "error", [ValueError("x"), ConfigurationError("x"), IndexError(3), ZeroDivisionError()]
)
def test_the_jobs_own_mistakes_are_no_data_errors(error: Exception) -> None:
    dataset = Unreliable(1, error)
    with pytest.raises(type(error)):
        read_patiently(dataset, np.array([2]), lambda _: None)
    assert dataset.asked == 1
    assert not is_unreadable(error)
