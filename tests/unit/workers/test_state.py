"""The node's memory: what is committed stays committed, whoever dies in the middle of whatever store."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import HoldfastError, SharedMemoryTooSmall
from storage.layout import Layout, StateArray
from workers import state
from workers.arenas import arena_path, open_arena
from workers.processes import ProcessId, is_alive
from workers.state import NUM_BUFFERS, Arena, ArenaSpec, Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYOUT = Layout.of({"w": (5, 7), "b": (3,)})


def spec_of(place: str = "test", num_slots: int = 3, num_metrics: int = 2, length: int = 0) -> ArenaSpec:
    layout = Layout.of({"w": (length,)}) if length else LAYOUT
    arrays = (StateArray("params", layout), StateArray("slots/m", layout))
    return ArenaSpec(place, arrays, num_slots, num_metrics)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(tmp_path))
    return tmp_path


# -- layout of the memory --------------------------------------------------------------------------------


def test_a_new_arena_is_private_whole_zero_and_of_the_size_that_its_spec_says(folder: Path) -> None:
    spec = spec_of()
    old_mask = os.umask(0)
    try:
        arena = Arena.create(str(folder / "arena"), spec)
    finally:
        os.umask(old_mask)
    found = os.stat(folder / "arena")
    assert found.st_mode & 0o777 == 0o600
    assert found.st_size == spec.nbytes
    assert found.st_blocks * 512 >= spec.nbytes, "a sparse file ends in SIGBUS"
    assert arena.committed() is None
    assert arena.processes() == []
    assert not any(array.any() for buffer in arena.buffers for array in buffer.values())
    assert len(arena.grads) == len(arena.sums) == spec.num_slots


def test_no_two_arrays_share_a_byte_and_all_are_aligned(folder: Path) -> None:
    spec = spec_of()
    arena = Arena.create(str(folder / "arena"), spec)
    areas: list[Any] = [*(array for buffer in arena.buffers for array in buffer.values()), *arena.grads]
    areas += arena.sums
    for i, array in enumerate(areas):
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous
        array.reshape(-1)[:] = i + 1
    for i, array in enumerate(areas):
        assert (array == i + 1).all()
    assert arena.spec == spec
    assert Arena.attach(arena.path).spec == spec, "the description survives every write"
    assert arena.committed() is None
    arena.commit(1, 0, 0, 2, {"metrics": {}})
    for i, array in enumerate(areas):
        assert (array == i + 1).all(), "a commit touches no array"


def test_what_one_process_writes_another_that_attached_reads(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    other = Arena.attach(arena.path)
    arena.buffers[1]["slots/m"][:] = 7
    arena.sums[2][:] = [[1, 2], [3, 4]]
    commit = arena.commit(3, 1, 17, 1, {"metrics": {"loss": 0.25}})
    assert (other.buffers[1]["slots/m"] == 7).all()
    assert other.sums[2].tolist() == [[1, 2], [3, 4]]
    assert other.committed() == commit == Commit(1, 3, 1, 17, 1)
    assert other.aux(1) == {"metrics": {"loss": 0.25}}


# -- commits ---------------------------------------------------------------------------------------------


class Watched(np.ndarray[Any, Any]):
    """An array that tells after each of its stores."""

    stored: Callable[[], None] = staticmethod(lambda: None)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        Watched.stored()


def test_a_commit_torn_at_any_store_shows_the_old_step_or_the_new_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each 8-byte store: another reader, and a successor that finds exactly this memory."""
    arena = Arena.create(str(folder / "arena"), spec_of())
    reader = Arena.attach(arena.path)
    arena._records = arena._records.view(Watched)
    torn = folder / "torn"
    expected: list[Commit | None] = [None, None]
    seen: list[Commit | None] = []

    def stored() -> None:
        found = reader.committed()
        assert found in expected
        seen.append(found)
        torn.write_bytes(Path(arena.path).read_bytes())
        successor = Arena.attach(str(torn))
        assert successor.committed() == found
        if found is not None:
            assert successor.aux(found.buffer) == {"metrics": {"loss": float(found.step)}}
        target = successor.spare_buffer(0 if found is None else found.buffer)
        again = successor.commit(9, 0, 1000, target, {"metrics": {"loss": 1000.0}})
        assert successor.committed() == again
        assert again.sequence == (0 if found is None else found.sequence) + 1

    monkeypatch.setattr(Watched, "stored", staticmethod(stored))
    for step in range(6):
        old = expected[1]
        expected = [old, Commit(step + 1, 2, 0, step, step % NUM_BUFFERS)]
        seen.clear()
        arena.commit(2, 0, step, step % NUM_BUFFERS, {"metrics": {"loss": float(step)}})
        assert seen[-1] == expected[1]
        assert seen[:-1] == [old] * (len(seen) - 1), "the new step showed before the last store"
        assert len(seen) >= 6


def test_a_flipped_bit_in_a_record_falls_back_to_the_one_before(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    first = arena.commit(1, 0, 10, 0, {})
    second = arena.commit(1, 0, 11, 1, {})
    for word in range(8):
        for bit in (0, 17, 31):
            arena._records[0][word] ^= np.uint64(1 << bit)
            assert arena.committed() == first, f"word {word}, bit {bit}"
            arena._records[0][word] ^= np.uint64(1 << bit)
    assert arena.committed() == second


def test_large_numbers_survive_in_a_record(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    arena.commit(2**40, 2**33, 2**50, 2, {})
    assert Arena.attach(arena.path).committed() == Commit(1, 2**40, 2**33, 2**50, 2)


def test_a_damaged_aux_block_is_not_believed(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    arena.commit(1, 0, 1, 2, {"metrics": {"loss": 1.5}})
    data = bytearray(arena._memory[:])
    start = arena._aux_offset + 2 * arena.spec.aux_nbytes
    for place in (start, start + 3, start + 4, start + 12):
        arena._memory[place] = data[place] ^ 0x40
        with pytest.raises(ValueError, match="buffer 2"):
            arena.aux(2)
        arena._memory[place] = data[place]
    assert arena.aux(2) == {"metrics": {"loss": 1.5}}


def test_the_aux_block_keeps_numbers_that_are_not_finite(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    arena.commit(1, 0, 1, 0, {"metrics": {"loss": float("nan"), "x": float("inf"), "y": 0.1}})
    metrics = arena.aux(0)["metrics"]
    assert np.isnan(metrics["loss"])
    assert (metrics["x"], metrics["y"]) == (float("inf"), 0.1)


def test_an_aux_block_that_does_not_fit_leaves_the_commit_as_it_was(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    old = arena.commit(1, 0, 1, 0, {"metrics": {}})
    with pytest.raises(AssertionError, match="aux"):
        arena.commit(1, 0, 2, 1, {"x": "y" * arena.spec.aux_nbytes})
    assert arena.committed() == old
    assert arena.aux(0) == {"metrics": {}}
    assert not arena.buffers[0]["params"].any()


# -- pins ------------------------------------------------------------------------------------------------


def test_the_spare_buffer_is_neither_the_current_nor_a_pinned_one(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    me = ProcessId.current()
    for current in range(NUM_BUFFERS):
        assert arena.spare_buffer(current) != current
        for pinned in range(NUM_BUFFERS):
            arena.pin(pinned, me)
            assert arena.spare_buffer(current) not in (current, pinned)
            arena.unpin(pinned)
    assert arena.processes() == []


def test_a_pin_names_its_holder_to_a_successor(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    arena.pin(1, ProcessId(4711, 99))
    assert Arena.attach(arena.path).processes() == [ProcessId(4711, 99)]


def test_members_come_and_go_and_their_places_are_used_again(folder: Path) -> None:
    arena = Arena.create(str(folder / "arena"), spec_of())
    for pid in range(1, 1000):
        arena.admit(ProcessId(pid, pid + 5))
        if pid > 50:
            arena.dismiss(ProcessId(pid - 50, 0))
    assert sorted(each.pid for each in arena.processes()) == list(range(950, 1000))
    arena.forget_processes()
    assert arena.processes() == []


# -- finding, replacing and refusing ---------------------------------------------------------------------


def abandon(arena: Arena) -> Path:
    """Give the lock up, as the end of its owner's process does."""
    fcntl.flock(arena._fd, fcntl.LOCK_UN)
    return Path(arena.path)


def test_what_is_too_large_is_refused_in_bytes_before_anything_is_reserved(folder: Path) -> None:
    spec = spec_of(length=1 << 44)
    with pytest.raises(SharedMemoryTooSmall) as caught:
        open_arena(spec)
    text = str(caught.value)
    assert str(spec.nbytes) in text
    assert str(folder) in text
    available = [int(word) for word in text.split() if word.isdigit() and int(word) != spec.nbytes]
    assert available
    assert 0 < available[0] < spec.nbytes
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 100, b"\0" * 100_000, b"garbage" * 3000])
def test_a_file_that_was_never_finished_is_replaced(content: bytes) -> None:
    path = Path(arena_path("test"))
    path.write_bytes(content)
    arena = open_arena(spec_of())
    assert arena.committed() is None
    assert os.stat(path).st_mode & 0o777 == 0o600


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("size", [0, 1, 5, 2**20, 2**40, 2**63, 2**64 - 1])
def test_an_arena_whose_description_has_a_wrong_length_is_replaced(size: int) -> None:
    path = abandon(Arena.create(arena_path("test"), spec_of()))
    damage(path, 8, size.to_bytes(8, "little"))
    assert open_arena(spec_of()).committed() is None


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"arrays": 3}', b'"x"', b"\xff"])
def test_an_arena_whose_description_is_damaged_is_replaced(text: bytes) -> None:
    path = abandon(Arena.create(arena_path("test"), spec_of()))
    damage(path, 3 * state.PAGE, text)
    damage(path, 8, len(text).to_bytes(8, "little"))
    assert open_arena(spec_of()).committed() is None


def test_a_truncated_arena_is_replaced(folder: Path) -> None:
    path = abandon(Arena.create(arena_path("test"), spec_of()))
    os.truncate(path, spec_of().nbytes - 1)
    assert open_arena(spec_of()).committed() is None
    assert path.stat().st_size == spec_of().nbytes


def test_a_surviving_arena_is_taken_over_with_its_step_and_without_its_pins() -> None:
    arena = Arena.create(arena_path("test"), spec_of())
    arena.buffers[2]["params"][:5] = [1, 2, 3, 4, 5]
    commit = arena.commit(4, 0, 12, 2, {"metrics": {"loss": 3.0}})
    arena.pin(0, ProcessId(2**22 + 1, 1))  # numbers that no process has
    arena.admit(ProcessId(2**22 + 2, 1))
    abandon(arena)
    found = open_arena(spec_of())
    assert found.committed() == commit
    assert found.buffers[2]["params"][:5].tolist() == [1, 2, 3, 4, 5]
    assert found.aux(2) == {"metrics": {"loss": 3.0}}
    assert found.processes() == [ProcessId.current()]


def test_an_arena_of_other_arrays_is_replaced() -> None:
    old = Arena.create(arena_path("test"), spec_of(length=99))
    old.commit(1, 0, 5, 1, {})
    abandon(old)
    arena = open_arena(spec_of())
    assert arena.spec == spec_of()
    assert arena.committed() is None


@pytest.mark.parametrize("other", [spec_of(num_slots=4), spec_of(num_metrics=3)])
def test_an_arena_with_other_slots_is_replaced_and_its_state_kept(other: ArenaSpec) -> None:
    """The job got another metric, say: nothing that was trained may be lost by that."""
    old = Arena.create(arena_path("test"), other)
    old.buffers[1]["params"][:3] = [1, 2, 3]
    old.commit(1, 0, 5, 1, {"metrics": {"loss": 2.0}})
    abandon(old)
    arena = open_arena(spec_of())
    assert arena.spec == spec_of()
    found = arena.committed()
    assert found is not None
    assert (found.attempt, found.step) == (1, 5)
    assert arena.buffers[found.buffer]["params"][:3].tolist() == [1, 2, 3]
    assert arena.aux(found.buffer) == {"metrics": {"loss": 2.0}}
    assert os.listdir(os.path.dirname(arena.path)) == [os.path.basename(arena.path)]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_memory_of_an_arena_that_is_replaced_is_given_back() -> None:
    """An open descriptor of a deleted file in /dev/shm keeps every byte of it."""
    old = Arena.create(arena_path("test"), spec_of(num_slots=4))
    abandon(old)
    os.close(old._fd)  # the process that had it is gone
    del old
    arena = open_arena(spec_of())
    held = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    held += Path("/proc/self/maps").read_text().splitlines()
    assert not [line for line in held if f"{arena.path} (deleted)" in line]


def test_a_missing_directory_for_shared_memory_is_one_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(folder / "nowhere"))
    with pytest.raises(HoldfastError, match="nowhere"):
        open_arena(spec_of())


AS_NOBODY = """
import json, os, sys
from storage.errors import HoldfastError
from workers.arenas import open_arena
from workers.state import ArenaSpec
spec = ArenaSpec.from_json(json.loads(sys.argv[1]))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    open_arena(spec)
except HoldfastError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_the_arena_of_another_user_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users of one machine resume the same run: the memory of the first cannot be opened, nor removed."""
    shared = Path(tempfile.mkdtemp(prefix="holdfast-test-"))  # outside of pytest's, which is private
    shared.chmod(0o1777)
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(shared))
    try:
        arena = Arena.create(arena_path("test"), spec_of())
        done = python(AS_NOBODY, spec_json())
        assert done.returncode == 0, done.stderr
        assert "refused:" in done.stdout
        assert arena.path in done.stdout
    finally:
        shutil.rmtree(shared)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_memory_that_another_user_planted_is_not_trusted() -> None:
    """Its header would name processes of ours to be killed, and its buffers parameters to go on from."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        arena = Arena.create(arena_path("test"), spec_of())
        arena.commit(1, 0, 5, 1, {"metrics": {}})
        arena.admit(ProcessId.of(victim.pid))
        os.chmod(arena.path, 0o666)
        os.chown(arena.path, 65534, 65534)
        abandon(arena)
        with contextlib.suppress(HoldfastError):
            assert open_arena(spec_of()).committed() is None
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


# -- succession ------------------------------------------------------------------------------------------

OWNER = """
import json, os, subprocess, sys, time
from workers.arenas import open_arena
from workers.processes import ProcessId
from workers.state import ArenaSpec
arena = open_arena(ArenaSpec.from_json(json.loads(sys.argv[1])))
arena.buffers[1]["params"][:3] = [1, 2, 3]
arena.commit(1, 0, 7, 1, {"metrics": {"loss": 0.5}})
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
arena.admit(ProcessId.of(worker.pid))
arena.pin(1, ProcessId.of(worker.pid))
print(worker.pid, flush=True)
time.sleep(60)
"""


def spec_json() -> str:
    return json.dumps(spec_of().to_json())


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def owner() -> Iterator[tuple[subprocess.Popen[str], ProcessId, ProcessId]]:
    """A living process that owns the arena, with a worker recorded in it."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, spec_json()], stdout=subprocess.PIPE, text=True
    ) as popen:
        assert popen.stdout is not None
        worker = ProcessId.of(int(popen.stdout.readline()))
        yield popen, ProcessId.of(popen.pid), worker
        popen.kill()
        if is_alive(worker):
            os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped by SIGSTOP"])
def test_a_successor_ends_the_owner_and_its_workers_and_goes_on_from_the_step(
    owner: tuple[subprocess.Popen[str], ProcessId, ProcessId], stopped: bool
) -> None:
    popen, process, worker = owner
    if stopped:
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(worker.pid, signal.SIGSTOP)
    rival = Arena.attach(arena_path("test"))
    assert not rival.lock(), "the owner's lock can be taken from it"
    began = time.monotonic()
    arena = open_arena(spec_of())
    assert time.monotonic() - began < 5
    assert not is_alive(process)
    assert not is_alive(worker)
    assert popen.wait(5) == -signal.SIGKILL
    found = arena.committed()
    assert found is not None
    assert (found.attempt, found.step, found.buffer) == (1, 7, 1)
    assert arena.buffers[1]["params"][:3].tolist() == [1, 2, 3]
    assert arena.processes() == [ProcessId.current()]
    assert not rival.lock(), "the successor holds the lock"


def test_an_owner_that_was_killed_leaves_a_worker_which_is_ended_too(
    owner: tuple[subprocess.Popen[str], ProcessId, ProcessId],
) -> None:
    popen, _, worker = owner
    popen.kill()
    popen.wait(5)
    assert is_alive(worker)
    arena = open_arena(spec_of())
    assert not is_alive(worker)
    assert arena.committed() is not None


def test_a_record_with_a_reused_process_number_kills_nobody() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        arena = Arena.create(arena_path("test"), spec_of())
        real = ProcessId.of(bystander.pid)
        arena.own(ProcessId(real.pid, real.started - 1))
        arena.admit(ProcessId(real.pid, real.started + 1))
        abandon(arena)
        open_arena(spec_of())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_removing_an_arena_leaves_its_mappings_usable() -> None:
    arena = Arena.create(arena_path("test"), spec_of())
    other = Arena.attach(arena.path)
    arena.remove()
    assert not os.path.exists(arena.path)
    arena.buffers[0]["params"][0] = 3
    assert other.buffers[0]["params"][0] == 3
    arena.remove()  # again does no harm
