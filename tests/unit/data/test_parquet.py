"""Tables in Parquet and Arrow files: which columns become what, and what is read when."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigurationError, DataError
from storage.testing import FaultyStore, MemoryStore
from tests.unit.data.tables import GROUP, ROWS, arrow, parquet, table
from workers.data import Dataset, Ordered, ParquetDataset, ReadsAhead
from workers.schedule import permutation

if TYPE_CHECKING:
    from pathlib import Path

DATA = table()
INDICES = np.array([99, 0, 17, 17, 50, 16])


def column(name: str) -> np.ndarray:
    return np.array(DATA.column(name).to_pylist())[INDICES]


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tables") / f"x.{request.param}"
    path.write_bytes((parquet if request.param == "parquet" else arrow)(DATA))
    return str(path)


@pytest.mark.parametrize("name", ["age", "size", "flag", "pixels", "listed"])
def test_a_column_becomes_an_array_and_lists_an_axis(url: str, name: str) -> None:
    dataset = ParquetDataset(url, columns=name)
    for protocol in (Dataset, Ordered, ReadsAhead):
        assert isinstance(dataset, protocol)
    assert len(dataset) == ROWS
    (x,) = dataset.take(INDICES)
    assert np.array_equal(x, column(name).astype(x.dtype))
    assert x.dtype == {"age": np.int32, "flag": bool, "pixels": np.float32}.get(name, np.float64)


def test_a_tensor_has_its_own_axes(url: str) -> None:
    (x,) = ParquetDataset(url, columns="tensor").take(INDICES)
    assert np.array_equal(x, column("pixels").reshape(-1, 2, 3).astype(np.float32))


def test_columns_stand_side_by_side_with_label_and_weight(url: str) -> None:
    dataset = ParquetDataset(url, columns=["age", "pixels", "flag"], label="y", weight="w")
    x, y, weight = dataset.take(INDICES)
    expected = np.column_stack([column("age"), column("pixels"), column("flag")])
    assert x.dtype == np.result_type(np.int32, np.float32)
    assert np.array_equal(x, expected.astype(x.dtype))
    assert np.array_equal(y, column("y"))
    assert np.array_equal(weight, column("w").astype(np.float32))


def test_a_dict_of_columns_is_a_batch_of_several_inputs(url: str) -> None:
    x, y = ParquetDataset(url, columns={"a": "pixels", "b": "age"}, label="y").take(INDICES)
    assert x.keys() == {"a", "b"}
    assert np.array_equal(x["a"], column("pixels").astype(np.float32))
    assert np.array_equal(x["b"], column("age"))
    assert np.array_equal(y, column("y"))


def test_without_columns_all_but_label_and_weight_are_taken(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet(DATA.select(["age", "y", "size", "w"])))
    x, _, _ = ParquetDataset(str(tmp_path / "x.parquet"), label="y", weight="w").take(INDICES)
    assert np.array_equal(x, np.column_stack([column("age"), column("size")]))


def test_a_column_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    renamed = DATA.select(["age", "y"]).rename_columns(["a.b", "a"])
    (tmp_path / "x.parquet").write_bytes(parquet(renamed))
    x, y = ParquetDataset(str(tmp_path / "x.parquet"), columns="a.b", label="a").take(INDICES)
    assert np.array_equal(x, column("age"))
    assert np.array_equal(y, column("y"))


def test_files_of_a_directory_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "train.parquet"  # as Spark names directories
    for name, low, high in (
        ("day=1/part 0.parquet", 0, 40),
        ("day=1/part 1.feather", 40, 41),
        ("z.pq", 41, 100),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write = arrow if name.endswith("feather") else parquet
        (folder / name).write_bytes(write(DATA.slice(low, high - low)))
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".hidden.parquet").write_bytes(b"no table")
    dataset = ParquetDataset(str(folder), columns="age")
    assert np.array_equal(dataset.take(INDICES)[0], column("age"))
    parts = [f"{folder}/z.pq", f"file://{folder}/day=1"]
    swapped = ParquetDataset(parts, columns="age")
    assert np.array_equal(swapped.take((INDICES + 59) % 100)[0], column("age"))
    assert swapped.identity() != dataset.identity()


@given(st.lists(st.integers(0, ROWS - 1), max_size=50).map(lambda found: np.array(found, np.int64)))
def test_any_samples_in_any_order(indices: np.ndarray) -> None:
    (x,) = SHARED.take(indices)
    assert x.shape == (len(indices),)
    assert np.array_equal(x, np.array(DATA.column("age").to_pylist(), np.int32)[indices])


def in_memory(data: bytes, **options: Any) -> ParquetDataset:
    store = MemoryStore()
    store.write("x.parquet", [data])
    return ParquetDataset(f"{store.url}/x.parquet", **options)


SHARED = in_memory(parquet(DATA), columns="age", cache_mb=2 * GROUP * 4 / 1e6)


def test_a_sample_that_is_not_there_is_an_index_error() -> None:
    for bad in (-1, ROWS):
        with pytest.raises(IndexError, match="of 100"):
            SHARED.take(np.array([0, bad]))


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "name"}, r"x\.parquet, column 'name' is string: .*numbers"),
        ({"columns": None}, r"column 'name' is string"),
        ({"columns": ["age", "none"]}, r"x\.parquet has no column 'none': it has age, size"),
        ({"columns": "age", "label": "z"}, "has no column 'z'"),
        ({"columns": "age", "weight": "w"}, "needs a label"),
        ({"columns": []}, "no columns are left"),
        ({"columns": "age", "shuffle_within": "files"}, "shuffle_within='files'"),
        ({"columns": "age", "window": 0}, "window of at least 1"),
        ({"columns": "age", "cache_mb": 0}, "cache_mb above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        in_memory(parquet(DATA), **options)


def with_value(name: str, row: int, value: Any) -> pa.Table:
    values = DATA.column(name).to_pylist()
    values[row] = value
    index = DATA.schema.get_field_index(name)
    return DATA.set_column(index, name, pa.array(values, DATA.schema.field(name).type))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("age", None, r"x\.parquet, row group 2, column 'age' holds 1 missing values \(null\)"),
        ("pixels", None, r"row group 2, column 'pixels' holds 1 missing"),
        ("listed", [1.0, None, 3.0, 4.0, 5.0, 6.0], r"row group 2, column 'listed' holds 1 missing"),
        ("listed", [1.0], r"row group 2, column 'listed' holds lists of 1 to 6 elements"),
    ],
)
def test_values_that_are_missing_and_ragged_lists_are_named(name: str, value: Any, message: str) -> None:
    dataset = in_memory(parquet(with_value(name, 2 * GROUP + 3, value)), columns=name)
    dataset.take(np.array([0, GROUP]))
    with pytest.raises(ConfigurationError, match=message):
        dataset.take(np.array([0, 2 * GROUP]))


def test_lists_that_are_equally_long_only_within_a_row_group_are_named() -> None:
    values = [[1.0] * (2 if i < GROUP else 3) for i in range(2 * GROUP)]
    dataset = in_memory(parquet(pa.table({"x": values})))
    with pytest.raises(
        ConfigurationError, match=r"row group 1 holds samples of shape \(3,\), others of \(2,\)"
    ):
        dataset.take(np.array([0, GROUP]))


def with_zeros(data: bytes) -> bytes:
    """A Parquet file whose footer begins with zeros."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:start] + bytes(12) + data[start + 12 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a Parquet or Arrow file"),
        (b"PAR1", "damaged table: memory:.*x.parquet"),
        (b"<html>", "is not a Parquet or Arrow file"),
        (parquet(DATA)[:-1], "is not a Parquet or Arrow file"),
        (parquet(DATA)[-60:], "damaged table: memory:.*x.parquet"),
        (with_zeros(parquet(DATA)), "damaged table: memory:.*x.parquet"),
        (arrow(DATA)[-100:], "damaged table: memory:.*x.parquet"),
        (parquet(DATA.slice(0, 0)), "there are no rows"),
    ],
)
def test_a_file_that_is_no_table_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        in_memory(content, columns="age")


def test_files_of_other_columns_and_places_without_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(DATA.select(["age", "y"])))
    with pytest.raises(ConfigurationError, match=r"/none: there is no such file, and no directory with"):
        ParquetDataset(str(tmp_path / "none"))
    for other, found in (
        (DATA.select(["y"]), "not there"),
        (DATA.select(["size"]).rename_columns(["age"]), "double"),
    ):
        (tmp_path / "b.parquet").write_bytes(parquet(other))
        with pytest.raises(ConfigurationError, match=rf"b\.parquet: column 'age' is {found}, but int32 in"):
            ParquetDataset(str(tmp_path), columns="age")


# -- what is read, and when ------------------------------------------------------------------------------


def watched(monkeypatch: pytest.MonkeyPatch, data: bytes, **options: Any) -> tuple[ParquetDataset, list[int]]:
    """A dataset, and the numbers of bytes that have been read."""
    from storage import files

    inner = MemoryStore()
    inner.write("x.parquet", [data])
    store = FaultyStore(inner)
    monkeypatch.setattr(files, "open_store", lambda url: store)
    sizes: list[int] = []
    real = inner.read

    def read(key: str, start: int | None = None, stop: int | None = None) -> bytes:
        found = real(key, start, stop)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(inner, "read", read)
    return ParquetDataset(f"{inner.url}/x.parquet", **options), sizes


LARGE = pa.table(
    {
        "x": np.random.default_rng(0).standard_normal(16 * 4096),
        "other": np.random.default_rng(1).standard_normal(16 * 4096),
    }
)


def large() -> bytes:
    from io import BytesIO

    import pyarrow.parquet as pq

    file = BytesIO()
    pq.write_table(LARGE, file, row_group_size=4096, compression="none", use_dictionary=False)
    return file.getvalue()


def test_only_the_columns_and_row_groups_that_are_needed_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, sizes = watched(monkeypatch, large(), columns="x")
    assert sum(sizes) <= 64 << 10  # the footer
    sizes.clear()
    dataset.take(np.array([5, 4095, 9 * 4096]))
    assert 2 * 32768 <= sum(sizes) < 2 * 34000
    sizes.clear()
    dataset.take(np.array([9 * 4096 + 7, 1]))
    assert sizes == []


def test_the_cache_forgets_what_was_used_least_recently(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, sizes = watched(monkeypatch, large(), columns="x", cache_mb=0.1)  # 3 row groups
    for group in (0, 1, 2, 0, 3, 0, 2):
        dataset.take(np.array([group * 4096]))
    sizes.clear()
    dataset.take(np.array([0, 2 * 4096, 3 * 4096]))
    assert sizes == []
    dataset.take(np.array([4096]))
    assert sum(sizes) >= 32768


def test_reading_ahead_fills_half_the_cache_and_take_need_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, sizes = watched(monkeypatch, large(), columns="x", cache_mb=0.3)
    sizes.clear()
    dataset.prefetch(np.arange(16) * 4096)
    for thread in reading():
        thread.join(30)
    assert 4 * 32768 <= sum(sizes) < 5 * 32768
    sizes.clear()
    dataset.take(np.arange(4) * 4096)
    assert sizes == []
    assert not reading()


def reading() -> list[Any]:
    import threading

    return [thread for thread in threading.enumerate() if thread.name == "holdfast-read-ahead"]


def test_what_fails_when_it_is_read_ahead_is_told_to_who_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = watched(
        monkeypatch, large()[: 20 * 32768] + bytes(5000) + large()[20 * 32768 + 5000 :], columns="x"
    )
    dataset.prefetch(np.arange(16) * 4096)
    for thread in reading():
        thread.join(30)
    with pytest.raises(DataError, match="row group"):
        dataset.take(np.arange(16) * 4096)


# -- order and identity ----------------------------------------------------------------------------------


def test_the_order_keeps_to_a_few_row_groups_if_that_is_asked_for() -> None:
    dataset = in_memory(parquet(DATA), columns="age", shuffle_within="row_groups", window=2)
    order = dataset.order(3, 1)
    assert sorted(order[0:ROWS]) == [*range(ROWS)]
    assert len({index // GROUP for index in order[0 : 2 * 4].tolist()}) <= 2
    assert SHARED.order(3, 1)[0:ROWS].tolist() == permutation(ROWS, 3, 1).tolist()


def test_identity_follows_content_columns_and_order_and_not_the_place(tmp_path: Path) -> None:
    def identity(data: bytes, folder: str, **options: Any) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "x.parquet").write_bytes(data)
        return ParquetDataset(str(tmp_path / folder), **{"columns": "age", **options}).identity()

    found = [
        identity(parquet(DATA), "a"),
        identity(parquet(with_value("age", 5, 99)), "a"),
        identity(parquet(DATA), "a", columns=["age"]),
        identity(parquet(DATA), "a", label="y"),
        identity(parquet(DATA), "a", shuffle_within="row_groups"),
        identity(parquet(DATA), "a", shuffle_within="row_groups", window=3),
        identity(parquet(DATA, compression="none"), "a"),
        identity(arrow(DATA), "a"),
    ]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert identity(parquet(DATA), "b", cache_mb=1) == found[0]


PROGRAM = """
import sys, time
import numpy as np
from workers.data import ParquetDataset
from workers.data.tables import TableFile

dataset = ParquetDataset(sys.argv[1], columns="age", cache_mb=100)
read = TableFile.read

def slow(self, group, columns):
    print("reads", flush=True)
    time.sleep(3)
    return read(self, group, columns)

TableFile.read = slow
dataset.prefetch(np.arange(len(dataset)))
"""


def test_the_end_of_the_process_waits_for_no_more_than_the_block_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet(DATA))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("reads") <= 2
