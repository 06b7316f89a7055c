"""`nn.train.CheckpointManager`, and which names it keeps."""

from __future__ import annotations

import itertools
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigurationError
from storage.testing import MemoryStore
from workers import nn
from workers.nn.train.keeping import Rule, Saved, plan, with_saved
from workers.nn.train.manager import Keeper

if TYPE_CHECKING:
    from pathlib import Path


def counting() -> tuple[Any, Any]:
    value = nn.Variable(0.0)
    return nn.train.Checkpoint(value=value), value


def names(paths: list[str]) -> list[str]:
    return [os.path.basename(path) for path in paths]


def test_row_22_after_six_saves_with_three_kept_the_last_three_are_there(tmp_path: Path) -> None:
    checkpoint, value = counting()
    manager = nn.train.CheckpointManager(checkpoint, tmp_path / "made", max_to_keep=3)
    assert manager.latest_checkpoint is None
    for number in range(6):
        value.assign(float(number))
        assert manager.save() == str(tmp_path / f"made/ckpt-{number + 1}")
    assert names(manager.checkpoints) == ["ckpt-4", "ckpt-5", "ckpt-6"]
    assert sorted(os.listdir(tmp_path / "made")) == ["ckpt-4", "ckpt-5", "ckpt-6"]
    assert manager.latest_checkpoint == str(tmp_path / "made/ckpt-6")
    assert nn.train.latest_checkpoint(tmp_path / "made") == manager.latest_checkpoint
    value.assign(-1.0)
    checkpoint.restore(manager.checkpoints[0]).assert_consumed()
    assert float(value) == 3.0


def test_row_22_another_process_goes_on_with_the_same_names(tmp_path: Path) -> None:
    checkpoint, value = counting()
    manager = nn.train.CheckpointManager(checkpoint, tmp_path, 2, checkpoint_name="model")
    for number in (1.0, 2.0, 3.0):
        value.assign(number)
        manager.save()
    again, other = counting()
    resumed = nn.train.CheckpointManager(again, tmp_path, 2, checkpoint_name="model")
    assert names(resumed.checkpoints) == ["model-2", "model-3"]
    assert resumed.restore_or_initialize() == str(tmp_path / "model-3")
    assert (float(other), int(again.save_counter)) == (3.0, 3)
    resumed.save()
    assert names(resumed.checkpoints) == ["model-3", "model-4"]
    assert sorted(os.listdir(tmp_path)) == ["model-3", "model-4"]


def test_row_22_a_number_of_ones_own_and_an_interval_of_steps(tmp_path: Path) -> None:
    checkpoint, _ = counting()
    step = nn.Variable(np.int64(0))
    manager = nn.train.CheckpointManager(
        checkpoint, tmp_path, None, step_counter=step, checkpoint_interval=10
    )
    saved = []
    for number in range(25):
        step.assign(np.int64(number))
        saved.append(manager.save(checkpoint_number=step))
    assert [path for path in saved if path] == [str(tmp_path / f"ckpt-{n}") for n in (0, 10, 20)]
    assert manager.save(24, check_interval=False) == str(tmp_path / "ckpt-24")
    with pytest.raises(ConfigurationError, match="give step_counter"):
        nn.train.CheckpointManager(checkpoint, tmp_path, None, checkpoint_interval=10)


def test_row_22_where_nothing_is_there_the_function_initializes(tmp_path: Path) -> None:
    checkpoint, value = counting()
    manager = nn.train.CheckpointManager(checkpoint, tmp_path, 3, init_fn=lambda: value.assign(9.0))
    assert manager.restore_or_initialize() is None
    assert float(value) == 9.0


def test_row_5_a_damaged_latest_is_skipped_and_its_number_is_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, value = counting()
    manager = nn.train.CheckpointManager(checkpoint, tmp_path, 3)
    for number in (1.0, 2.0, 3.0):
        value.assign(number)
        manager.save()
    for chunk in (tmp_path / "ckpt-3").glob("checkpoints/*/variables/value/c"):
        chunk.write_bytes(bytes(3))
    again, other = counting()
    resumed = nn.train.CheckpointManager(again, tmp_path, 3)
    with caplog.at_level(logging.WARNING):
        assert resumed.restore_or_initialize() == str(tmp_path / "ckpt-2")
    assert "ckpt-3" in caplog.text
    assert "variables/value/c" in caplog.text
    assert float(other) == 2.0
    assert resumed.save() == str(tmp_path / "ckpt-3")
    assert names(resumed.checkpoints) == ["ckpt-1", "ckpt-2", "ckpt-3"]
    assert nn.train.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-3")


def test_what_a_killed_process_did_not_come_to_delete_goes_with_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = counting()
    manager = nn.train.CheckpointManager(checkpoint, tmp_path, 1)
    manager.save()
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "carry_out", lambda self, planned: None)  # killed before it
        manager.save()
    assert sorted(os.listdir(tmp_path)) == ["ckpt-1", "ckpt-2"]
    again, _ = counting()
    resumed = nn.train.CheckpointManager(again, tmp_path, 1)
    resumed.restore_or_initialize()
    resumed.save()
    assert os.listdir(tmp_path) == ["ckpt-3"]


def test_managers_work_on_any_url() -> None:
    place = f"{MemoryStore().url}/run"
    checkpoint, _ = counting()
    manager = nn.train.CheckpointManager(checkpoint, place, 2)
    for _ in range(3):
        manager.save()
    assert manager.checkpoints == [f"{place}/ckpt-2", f"{place}/ckpt-3"]
    again, _ = counting()
    assert nn.train.CheckpointManager(again, place, 2).restore_or_initialize() == f"{place}/ckpt-3"
    assert nn.train.latest_checkpoint(place) == f"{place}/ckpt-3"


def saves(rule: Rule, times: list[float], start: float = 0.0) -> tuple[list[str], list[str]]:
    """The list at the end, and what else is still there."""
    kept: tuple[Saved, ...] = ()
    there: list[str] = []
    for number, at in enumerate(times):
        found = plan(rule, with_saved(kept, Saved(f"ckpt-{number + 1}", at)), start)
        kept, start = found.kept, found.preserved_at
        there = [name for name in [*there, f"ckpt-{number + 1}"] if name not in found.deleted]
    listed = [saved.path for saved in kept]
    return listed, [name for name in there if name not in listed]


def test_row_22_one_in_so_many_hours_is_kept_for_good() -> None:
    hours = [3600.0 * n for n in range(1, 11)]
    listed, preserved = saves(Rule(2, 3.0), hours)
    assert listed == ["ckpt-9", "ckpt-10"]
    assert preserved == ["ckpt-3", "ckpt-6"]


@given(st.lists(st.floats(0, 1e6), max_size=30).map(sorted), st.integers(1, 6))
def test_the_newest_are_always_kept_and_those_for_good_are_apart(times: list[float], count: int) -> None:
    listed, preserved = saves(Rule(count, 10.0), times)
    assert listed == [f"ckpt-{n + 1}" for n in range(len(times))][-count:]
    at = [0.0, *(times[int(name.removeprefix("ckpt-")) - 1] for name in preserved)]
    assert all(b - 36000 >= a for a, b in itertools.pairwise(at))


def test_rules_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_to_keep=0"):
        Rule(0)
    with pytest.raises(ConfigurationError, match="keep_checkpoint_every_n_hours=-1"):
        Rule(3, -1)
