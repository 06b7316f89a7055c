"""The reader of idx files."""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.errors import ConfigurationError, ObjectMissing
from workers.data import IdxDataset, read_idx

if TYPE_CHECKING:
    from pathlib import Path

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


def test_idx_files_make_a_dataset(tmp_path: Path) -> None:
    images, labels = np.arange(24, dtype=np.uint8).reshape(4, 3, 2), np.arange(4, dtype=np.uint8)
    (tmp_path / "images").write_bytes(idx(images))
    (tmp_path / "labels.gz").write_bytes(gzip.compress(idx(labels)))
    dataset = IdxDataset(str(tmp_path / "images"), f"file://{tmp_path}/labels.gz")
    x, y = dataset.take(np.array([2, 1]))
    assert np.array_equal(x, images[[2, 1]])
    assert np.array_equal(y, [2, 1])
    with pytest.raises(ObjectMissing, match="nothing"):
        IdxDataset(str(tmp_path / "nothing"))
    (tmp_path / "images").write_bytes(idx(images)[:-1])
    with pytest.raises(ConfigurationError, match=r"images: damaged idx file"):
        IdxDataset(str(tmp_path / "images"))
