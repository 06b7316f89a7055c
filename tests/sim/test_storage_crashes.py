"""Storage is interrupted after every single operation: what was acknowledged is found, whole, every time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from storage import file_store
from storage.checkpoint import commit, directory_name, write_part
from storage.errors import CheckpointError
from storage.file_store import FileStore
from storage.layout import Layout, StateArray
from storage.manifest import Base
from storage.reader import restore
from storage.retention import Retention
from storage.run_directory import RunDirectory
from storage.shards import plan
from tests.sim.storage_model import ModelStore, RecordingOs, after_power_loss, lay_out, moments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from storage.run_directory import Attempt
    from storage.store import Store

ARRAYS = (
    StateArray("params", Layout.of({"w": (3000,)})),
    StateArray("slots/m", Layout.of({"w": (3000,)})),
    StateArray("slots/v", Layout.of({"w": (3000,)})),
)
KEEP = Retention(keep=2)


def content(step: int) -> dict[str, Any]:
    """What the state is after so many steps."""
    found = {}
    for i, array in enumerate(ARRAYS):
        values = np.zeros(array.padded_length, np.float32)
        values[: array.length] = np.arange(array.length) * (i + 1) + step
        found[array.name] = values
    return found


def save(run: RunDirectory, attempt: Attempt, step: int, parent: Base | None) -> None:
    """One checkpoint by two writers; returning is the acknowledgement."""
    nonce = f"{step:04x}{attempt.number:04x}{len(run.store.url):08x}"
    directory = directory_name(step, attempt.number, nonce)
    shards = plan(ARRAYS, 2)
    parts = [
        write_part(
            run.store, directory, ARRAYS, content(step), [s for s in shards if s.writer == i], in_flight=1
        )
        for i in range(2)
    ]
    commit(
        run,
        attempt,
        directory,
        ARRAYS,
        parts,
        step=step,
        parent=parent,
        counters={},
        metrics={},
        fingerprint={},
    )


def history(store: Store, acknowledged: Callable[[tuple[int, int]], None]) -> None:
    """Two attempts with checkpoints, retention, something half-written, a pin, a quarantine, a collection."""
    run = RunDirectory(store)
    run.create_identity({"seed": 0})
    first = run.claim_attempt()
    run.record_base(first, None)
    for step in (1, 2, 3):
        save(run, first, step, Base(step - 1, 1) if step > 1 else None)
        acknowledged((step, 1))
        run.retain(KEEP, first)
    shards = plan(ARRAYS, 1)
    write_part(store, directory_name(4, 1, "00000000"), ARRAYS, content(4), shards[:2], in_flight=1)
    second = RunDirectory(store)
    attempt = second.claim_attempt()
    latest = second.latest()
    assert latest is not None
    second.record_base(attempt, Base(latest.step, latest.attempt))
    second.pin(latest.directory)
    for step in (4, 5, 6):
        save(second, attempt, step, Base(step - 1, attempt.number if step > 4 else 1))
        acknowledged((step, attempt.number))
        if step == 5:
            old = next(e for e in second.entries() if e.step == 4)
            second.quarantine(old.directory, "a byte was flipped")
        second.retain(KEEP, attempt)
        second.collect(0)
    second.unpin(latest.directory)
    save(second, attempt, 7, Base(6, attempt.number))
    acknowledged((7, attempt.number))
    second.retain(KEEP, attempt)


def check(store: Store, at_least: tuple[int, int] | None) -> tuple[int, int] | None:
    """The latest checkpoint is whole, as it was written, and not older than what was acknowledged."""
    latest = RunDirectory(store).latest()
    if latest is None:
        assert at_least is None, f"{at_least} was acknowledged and is lost"
        return None
    assert at_least is None or (latest.step, latest.attempt) >= at_least
    into = {array.name: np.full(array.padded_length, 7, np.float32) for array in ARRAYS}
    assert latest.manifest is not None
    restore(store, latest.directory, latest.manifest, ARRAYS, into)
    for name, values in content(latest.step).items():
        assert into[name].tobytes() == values.tobytes()
    return latest.step, latest.attempt


def go_on(store: Store) -> None:
    """A new coordinator takes up what is there, and writes, retains and collects as ever."""
    run = RunDirectory(store)
    run.create_identity({"seed": 0})
    attempt = run.claim_attempt()
    latest = run.latest()
    base = None if latest is None else Base(latest.step, latest.attempt)
    run.record_base(attempt, base)
    step = 1 if base is None else base.step + 1
    save(run, attempt, step, base)
    run.retain(KEEP, attempt)
    run.collect(0)
    assert check(store, (step, attempt.number)) == (step, attempt.number)
    assert len([e for e in run.entries() if e.status in ("complete", "latest")]) <= 4


def test_an_object_store_is_interrupted_after_every_operation() -> None:
    store = ModelStore()
    acknowledged: list[tuple[int, tuple[int, int]]] = []
    history(store, lambda place: acknowledged.append((len(store.changes), place)))
    assert [place for _, place in acknowledged] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]
    points = 0
    for made, objects in moments(store.changes):
        at_least = max((place for count, place in acknowledged if count <= made), default=None)
        check(ModelStore(objects), at_least)
        go_on(ModelStore(objects))
        points += 1
    print(f"{points} points of {len(store.changes)} operations")
    assert points > len(store.changes)


def test_a_file_system_loses_power_after_every_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    recording = RecordingOs()
    monkeypatch.setattr(file_store, "os", recording)
    monkeypatch.setattr(file_store, "shutil", recording.shutil)
    acknowledged: list[tuple[int, tuple[int, int]]] = []
    history(FileStore(str(root)), lambda place: acknowledged.append((len(recording.events), place)))
    monkeypatch.undo()
    seen: set[bytes] = set()
    points = 0
    for made in range(len(recording.events) + 1):
        at_least = max((place for count, place in acknowledged if count <= made), default=None)
        for files in after_power_loss(recording.events[:made], str(root)):
            points += 1
            key = blake3(repr((at_least, sorted((p, blake3(d).digest()) for p, d in files.items()))).encode())
            if key.digest() in seen:
                continue
            seen.add(key.digest())
            lay_out(files, str(root), tmp_path / "found")
            check(FileStore(str(tmp_path / "found")), at_least)
    print(f"{points} points of {len(recording.events)} system calls, {len(seen)} of them different")
    assert len(seen) > 200
    assert not [name for name in os.listdir(root) if name.startswith(".tmp-")]


def test_the_model_notices_a_store_that_does_not_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were no file flushed before its name appears, the simulation would find it."""
    root = tmp_path / "run"
    root.mkdir()
    recording = RecordingOs()
    monkeypatch.setattr(file_store, "os", recording)
    monkeypatch.setattr(file_store, "shutil", recording.shutil)
    acknowledged: list[int] = []
    history(FileStore(str(root)), lambda _: acknowledged.append(len(recording.events)))
    monkeypatch.undo()
    careless = [event for event in recording.events[: acknowledged[0]] if event[0] not in ("sync", "syncdir")]
    lost = 0
    for files in after_power_loss(careless, str(root)):
        lay_out(files, str(root), tmp_path / "found")
        try:
            check(FileStore(str(tmp_path / "found")), (1, 1))
        except (AssertionError, CheckpointError):
            lost += 1
    assert lost > 0
