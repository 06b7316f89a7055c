"""Processes of this node: who they are, whether they have ended, and the memory they may use."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import tempfile
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process by number and start time, so that a reused number is not taken for it."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this number now; started is 0 if it has ended already."""
        return cls(pid, start_time(pid))

    @classmethod
    def current(cls) -> ProcessId:
        """This process."""
        return cls.of(os.getpid())


def start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 if there is none or it cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command name in parentheses may hold anything; field 22 is the 20th after it.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def is_alive(process: ProcessId) -> bool:
    """Whether this very process still runs; a zombie does not."""
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return int(fields[19]) == process.started and fields[0] not in (b"Z", b"X")


def end_process(process: ProcessId, timeout_s: float = 10.0) -> bool:
    """Kill a process and wait until it has ended; False if it has not within `timeout_s`."""
    if process.pid == os.getpid() or not is_alive(process):
        return True
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(process):  # the number may have been reused before the pidfd held it
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(fd)


def shared_memory_directory() -> str:
    """Where arenas live: HOLDFAST_SHM_DIR, else /dev/shm, else (macOS) the temporary directory."""
    chosen = os.environ.get("HOLDFAST_SHM_DIR")
    if chosen:
        return chosen
    return "/dev/shm" if sys.platform == "linux" else tempfile.gettempdir()


def available_memory(directory: str) -> int:
    """Bytes that can still be reserved in `directory`, within the memory of machine and control group."""
    stats = os.statvfs(directory)
    limits = [stats.f_bavail * stats.f_frsize]
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        limits += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")]
    for group, limit, usage in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is a ValueError: no limit
            free = int(_text(f"{group}/{limit}")) - int(_text(f"{group}/{usage}"))
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)$", _text(f"{group}/memory.stat"), re.MULTILINE
            )
            limits.append(max(0, free + int(cached[1] if cached else 0)))  # cached files give way
    return min(limits)


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


class Watch:
    """Bounds how long something has waited to be noticed by a loop that handles, and then waits, by turns.

    What happens while the loop waits is noticed at once; what happens while it handles something, when that
    is done.
    """

    __slots__ = ("_busy_since", "_waits_since", "since")

    def __init__(self, now: float = 0.0) -> None:
        self.since = self._busy_since = self._waits_since = now

    def waits(self, now: float) -> None:
        """The loop begins to wait."""
        self._waits_since = now

    def wakes(self, now: float) -> None:
        """The loop has something to handle: it cannot have happened before `since`."""
        waited = now - self._waits_since > 0.001
        self.since = now if waited else self._busy_since
        self._busy_since = now
