"""What killed runs leave in a node's memory goes after a day, unless somebody has come for it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from storage.layout import Layout, StateArray
from workers.arenas import arena_path, open_arena, parts_path, sweep
from workers.processes import ProcessId
from workers.state import Arena, ArenaSpec

HOUR = 3600.0
HELD = """
import sys, time
from workers.state import Arena
arena = Arena.attach(sys.argv[1])
assert arena.lock()
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(tmp_path))
    return tmp_path


def left(place: str = "", hours: float = 25.0, slot: int = 0) -> str:
    """The path of an arena that a killed run has left so long ago."""
    arrays = (StateArray("params", Layout.of({"w": (5,)})),)
    spec = ArenaSpec(place or str(uuid.uuid4()), arrays, 2, 1)
    arena = Arena.create(arena_path(spec.place_id, slot), spec)
    arena.commit(1, 1, 7, 0, {"metrics": {}, "fingerprint": {}})
    arena.close()
    return aged(arena.path, hours)


def aged(path: str, hours: float) -> str:
    then = time.time() - hours * HOUR
    os.utime(path, (then, then))
    return path


def test_memory_is_kept_for_a_day_after_its_last_step() -> None:
    old, young = left(hours=24.1), left(hours=23.9)
    assert sweep() == [old]
    assert not os.path.exists(old)
    assert Arena.attach(young).committed() is not None


def test_a_commit_counts_as_the_time_of_the_last_change() -> None:
    path = left(hours=100)
    arena = Arena.attach(path)
    arena.commit(1, 1, 8, 1, {"metrics": {}, "fingerprint": {}})
    arena.close()
    assert time.time() - os.stat(path).st_mtime < 60
    assert sweep() == []


def test_the_memory_of_the_run_that_starts_stays_on_all_nodes_of_the_machine() -> None:
    place = str(uuid.uuid4())
    mine, other = [left(place), left(place, slot=1)], left()
    assert sweep(keep=place) == [other]
    assert all(map(os.path.exists, mine))


def test_what_lies_beside_an_arena_goes_with_it_and_not_before() -> None:
    old, young = left(), left(hours=1)
    beside = []
    for arena in (old, young):
        Path(parts_path(arena)).write_bytes(b"\0" * 4096)
        beside.append(aged(parts_path(arena), 25))
    assert sweep() == [old, beside[0]]
    assert os.path.exists(beside[1]), "its arena may be resumed"


def test_an_arena_that_was_being_replaced_or_never_finished_goes_too() -> None:
    place = str(uuid.uuid4())
    for name in (f"holdfast-{place}", f"holdfast-{place}.new"):
        Path(os.environ["HOLDFAST_SHM_DIR"], name).write_bytes(b"\0" * 100)
        aged(str(Path(os.environ["HOLDFAST_SHM_DIR"], name)), 25)
    assert len(sweep()) == 2


def test_memory_that_a_process_holds_is_left_alone() -> None:
    path = left()
    with subprocess.Popen([sys.executable, "-c", HELD, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        aged(path, 25)
        assert sweep() == []
        holder.kill()
        holder.wait()
    assert sweep() == [path]


def test_memory_that_a_process_can_still_write_to_is_left_alone() -> None:
    path = left()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as worker:
        arena = Arena.attach(path)
        arena.admit(ProcessId.of(worker.pid))
        arena.close()
        aged(path, 25)
        assert sweep() == []
        worker.kill()
        worker.wait()
    assert sweep() == [path]


def test_nothing_else_is_touched(folder: Path) -> None:
    names = ["holdfast", "holdfast-notes.txt", "holdfast-data", "other", f"holdfast-{uuid.uuid4()}.txt"]
    for name in names:
        (folder / name).write_bytes(b"mine")
        aged(str(folder / name), 100)
    (folder / f"holdfast-{uuid.uuid4()}").mkdir()
    (folder / f"holdfast-{uuid.uuid4()}").symlink_to(folder / "other")
    before = sorted(os.listdir(folder))
    assert sweep(kept_s=-HOUR) == []
    assert sorted(os.listdir(folder)) == before


def test_another_users_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    left()
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert sweep() == []


def test_an_agent_that_opens_its_memory_sweeps_that_of_others() -> None:
    old, place = left(), str(uuid.uuid4())
    mine = left(place, hours=30)
    spec = Arena.attach(mine).spec
    arena = open_arena(spec)
    assert not os.path.exists(old)
    assert arena.committed() is not None, "its own survives, however old"
    fcntl.flock(arena._fd, fcntl.LOCK_UN)
    arena.close()


def test_a_directory_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", "/nonexistent/place")
    assert sweep() == []
