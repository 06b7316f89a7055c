"""A bit that is flipped anywhere in a table: an error that names file and row group, or nothing at all.

Without page checksums Parquet cannot tell flipped bits of values from others: those, and only those, pass.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from storage.errors import ConfigurationError, DataError
from storage.testing import MemoryStore
from tests.unit.data.tables import GROUP, ROWS, arrow, parquet, table
from workers.data import ParquetDataset

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = table().select(["age", "pixels", "y"])
FLIPS = 250
GROUPS = [np.arange(low, min(low + GROUP, ROWS)) for low in range(0, ROWS, GROUP)]


def opened(data: bytes) -> ParquetDataset:
    store = MemoryStore()
    store.write("x.parquet", [data])
    return ParquetDataset(f"{store.url}/x.parquet", label="y")


@cache
def intact() -> list[tuple[np.ndarray, ...]]:
    dataset = opened(parquet(DATA))
    return [dataset.take(indices) for indices in GROUPS]


def flipped(data: bytes, stop: int) -> Iterator[bytes]:
    """The data with one bit flipped before `stop`, a few hundred times, spread evenly."""
    rng = random.Random(7)
    for i in range(FLIPS):
        spoilt = bytearray(data)
        spoilt[rng.randrange(stop * i // FLIPS, stop * (i + 1) // FLIPS)] ^= 1 << rng.randrange(8)
        yield bytes(spoilt)


def before_footer(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def outcomes(data: bytes) -> list[str]:
    """What becomes of each row group: "same", "other" values of the same shape, or "damaged", well told."""
    dataset = opened(data)
    found = []
    for group, (indices, expected) in enumerate(zip(GROUPS, intact(), strict=True)):
        message = ""
        try:
            batch = dataset.take(indices)
        except (DataError, ConfigurationError) as error:
            message = str(error)
        if message:
            assert f"/x.parquet, row group {group}" in message
            assert "\n" not in message
            found.append("damaged")
        else:
            assert [a.shape for a in batch] == [a.shape for a in expected]
            same = all(np.array_equal(a, b) for a, b in zip(batch, expected, strict=True))
            found.append("same" if same else "other")
    return found


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_with_page_checksums_no_flipped_bit_gives_other_values(compression: str) -> None:
    data = parquet(DATA, write_page_checksum=True, compression=compression)
    damaged = 0
    for spoilt in flipped(data, before_footer(data)):
        found = outcomes(spoilt)
        assert "other" not in found
        assert found.count("damaged") <= 1
        damaged += "damaged" in found
    assert damaged > FLIPS * 3 // 4


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_without_them_other_row_groups_are_still_as_they_were(compression: str) -> None:
    data = parquet(DATA, compression=compression)
    seen: set[str] = set()
    for spoilt in flipped(data, before_footer(data)):
        found = outcomes(spoilt)
        assert found.count("same") >= len(found) - 1
        seen |= {*found}
    assert seen == {"same", "other", "damaged"}


@pytest.mark.parametrize("data", [parquet(DATA), arrow(DATA)], ids=["parquet", "arrow"])
def test_a_footer_or_arrow_file_that_is_damaged_is_named(data: bytes) -> None:
    start = before_footer(data) if data.endswith(b"PAR1") else 0
    kinds: list[type[Exception]] = []
    messages: list[str] = []
    for spoilt in flipped(data[start:], len(data) - start):
        try:
            dataset = opened(data[:start] + spoilt)
            dataset.take(np.arange(len(dataset)))
        except (DataError, ConfigurationError) as error:
            kinds.append(type(error))
            messages.append(str(error))
    assert ConfigurationError in kinds
    assert all("/x.parquet" in message for message in messages)
