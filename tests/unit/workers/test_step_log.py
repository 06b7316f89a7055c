"""Rows of steps outlive who wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.step_log import StepLog

if TYPE_CHECKING:
    from pathlib import Path


def log(tmp_path: Path, rows: int = 8) -> StepLog:
    return StepLog(str(tmp_path / "a.steps"), 1, rows)


def row(step: int) -> tuple[float, float, float]:
    return (float(step), 100.0 + step, step / 2)


def test_each_row_is_taken_once(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(row(1))
    one.add(row(2))
    assert one.take() == [row(1), row(2)]
    assert one.take() == []


def test_who_opens_it_after_a_kill_recalls_the_steps_that_were_committed(tmp_path: Path) -> None:
    one = log(tmp_path)
    for step in range(1, 6):
        one.add(row(step))
    other = log(tmp_path)  # the first was never closed
    other.recall(4)
    assert other.take() == [row(step) for step in range(1, 5)]


def test_the_newest_rows_are_kept_and_a_row_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    one = log(tmp_path)
    for step in range(1, 13):
        one.add(row(step))
    one.recall(12)
    assert one.take() == [row(step) for step in range(5, 13)]
    one.recall(6)
    assert one.take() == [row(5), row(6)]


def test_rows_of_a_job_with_other_metrics_are_forgotten(tmp_path: Path) -> None:
    log(tmp_path).add(row(1))
    other = StepLog(str(tmp_path / "a.steps"), 2, 8)
    other.recall(1)
    assert other.take() == []


def test_closed_it_stays_or_goes(tmp_path: Path) -> None:
    log(tmp_path).close(remove=False)
    assert (tmp_path / "a.steps").exists()
    log(tmp_path).close(remove=True)
    assert not (tmp_path / "a.steps").exists()
