"""A process is known by number and start time, and is ended for certain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from workers.processes import (
    ProcessId,
    available_memory,
    end_process,
    is_alive,
    shared_memory_directory,
    start_time,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process start times come from /proc")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as popen:
        yield popen
        popen.kill()


def test_this_process_is_alive_and_cannot_end_itself() -> None:
    me = ProcessId.current()
    assert me.pid == os.getpid()
    assert is_alive(me)
    assert end_process(me)
    assert is_alive(me)


def test_a_process_is_told_from_another_with_its_number(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    for other in (process.started - 1, process.started + 1, 0):
        stranger = ProcessId(process.pid, other)
        assert not is_alive(stranger)
        assert end_process(stranger)
    assert sleeper.poll() is None
    assert is_alive(process)


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_process_is_ended_for_certain(sleeper: subprocess.Popen[bytes], stopped: bool) -> None:
    process = ProcessId.of(sleeper.pid)
    if stopped:
        os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert end_process(process, 5)
    assert time.monotonic() - began < 2
    assert not is_alive(process), "not reaped yet, but ended"
    assert sleeper.wait(5) == -signal.SIGKILL
    assert end_process(process), "again does no harm"


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    sleeper.kill()
    deadline = time.monotonic() + 5
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(process)
    assert start_time(process.pid) == process.started, "its number is not free yet"


def test_a_number_that_no_process_has_is_not_alive() -> None:
    nobody = ProcessId.of(2**22 + 1)
    assert nobody.started == 0
    assert not is_alive(nobody)
    assert end_process(nobody)


def test_a_command_name_with_parentheses_and_spaces_does_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 0 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as popen:
        process = ProcessId.of(popen.pid)
        plain = ProcessId.current()
        assert plain.started <= process.started < plain.started + 10_000_000
        assert is_alive(process)
        popen.kill()


def test_the_directory_of_shared_memory_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", "/somewhere")
    assert shared_memory_directory() == "/somewhere"
    monkeypatch.setenv("HOLDFAST_SHM_DIR", "")
    assert shared_memory_directory() == "/dev/shm"


def test_available_memory_is_bounded_by_the_file_system_and_by_the_machine(tmp_path: Path) -> None:
    stats = os.statvfs(tmp_path)
    found = available_memory(str(tmp_path))
    assert 0 < found <= stats.f_blocks * stats.f_frsize
    with open("/proc/meminfo", encoding="ascii") as file:
        total = int(file.readline().split()[1]) * 1024
    assert found <= total
