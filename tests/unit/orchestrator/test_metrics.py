"""Metrics are stored in whole parts; what stands is read, no step twice and none left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from orchestrator.metrics import EVERY_S, MetricsWriter, read_metrics
from storage.errors import CorruptCheckpoint, StorageError
from storage.store import open_store
from workers.reports import mean

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from storage.store import Store

DESCRIPTION: dict[str, Any] = {"metrics": [mean("loss"), mean("time")], "validation": {"kind": "x"}}


def writer(store: Store, attempt: int, base: int = 0) -> MetricsWriter:
    made = MetricsWriter(store, attempt, f"{attempt:08x}")
    made.describe(DESCRIPTION, 4)
    made.begin(base)
    return made


def rows(steps: Iterable[int], loss: float = 0.0) -> list[tuple[float, ...]]:
    return [(float(step), 1000.0 + step, loss + step, 7.0) for step in steps]


def read(path: Path) -> list[tuple[int, int, float]]:
    table = read_metrics(str(path))
    return [(r["step"], r["attempt"], r["loss"]) for r in table.to_pylist()]


def test_columns_and_values(tmp_path: Path) -> None:
    made = writer(open_store(str(tmp_path)), 1)
    made.take(rows(range(1, 7)))
    made.evaluated(6, {"val_loss": 0.5})
    made.store(0.0, last=True)
    table = read_metrics(str(tmp_path))
    assert table.column_names == [
        *("step", "epoch", "attempt", "time", "loss", "time_", "val_loss", "val_time", "steps_per_s")
    ]
    final = table.to_pylist()[-1]
    assert (final["epoch"], final["loss"], final["val_loss"], final["steps_per_s"]) == (1, 6.0, 0.5, 1.0)
    assert final["time"].timestamp() == 1006.0
    assert table["val_loss"].null_count == 5
    assert table["epoch"].to_pylist() == [0, 0, 0, 0, 1, 1]


def test_a_part_every_few_seconds_without_the_step_that_may_be_evaluated_yet(tmp_path: Path) -> None:
    made = writer(open_store(str(tmp_path)), 1)
    made.store(0.0)
    made.take(rows([1, 2, 3]))
    made.store(EVERY_S / 2)
    assert read(tmp_path) == []
    made.store(EVERY_S)
    assert [step for step, *_ in read(tmp_path)] == [1, 2]
    made.evaluated(3, {"val_loss": 0.25})
    made.take(rows([2, 3, 4]))
    made.store(3 * EVERY_S, last=True)
    assert [step for step, *_ in read(tmp_path)] == [1, 2, 3, 4]
    assert read_metrics(str(tmp_path))["val_loss"].to_pylist() == [None, None, 0.25, None]
    assert pq.read_table(tmp_path / "metrics").num_rows == 4  # one call reads them all


def test_the_last_attempt_wins_from_where_it_goes_on(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    first = writer(store, 1)
    first.take(rows(range(1, 8)))
    first.store(0.0, last=True)
    second = writer(store, 2, base=4)
    second.take(rows(range(1, 6), loss=100.0))  # a node tells of those before once more
    second.store(0.0, last=True)
    assert read(tmp_path) == [*((s, 1, float(s)) for s in range(1, 5)), (5, 2, 105.0)]
    third = writer(store, 3, base=6)  # step 6 was committed, and not stored by the second
    third.take(rows([5, 6, 7], loss=100.0))
    third.store(0.0, last=True)
    assert read(tmp_path)[4:] == [(5, 2, 105.0), (6, 3, 106.0), (7, 3, 107.0)]


def test_what_could_not_be_stored_is_stored_later_as_the_same_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    made = writer(store, 1)
    made.take(rows([1, 2]))
    monkeypatch.setattr(store, "write", _fails)
    with pytest.raises(StorageError, match="full"):
        made.store(0.0, last=True)
    monkeypatch.undo()
    made.take(rows([3]))
    made.store(0.0, last=True)
    assert [step for step, *_ in read(tmp_path)] == [1, 2, 3]
    assert len(store.list("metrics")) == 2


def _fails(*_: object) -> int:
    raise StorageError("full")


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    key = "metrics/a00000001-00000001-000000000001-000000000002.parquet"
    store.write(key, (b"PAR1 is no part",))
    with pytest.raises(CorruptCheckpoint, match="a00000001"):
        read_metrics(str(tmp_path))


def test_other_files_and_no_files_are_no_rows(tmp_path: Path) -> None:
    open_store(str(tmp_path)).write("metrics/notes.txt", (b"x",))
    assert read_metrics(str(tmp_path)).num_rows == 0
