"""The processes of a run on this machine, as the kernel lists them, and ending them all at once."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.processes import ProcessId, is_alive, start_time

if TYPE_CHECKING:
    from collections.abc import Iterable

_AGENT = re.compile(r"@holdfast-[0-9a-f]+-(\d+)-(\d+)")
_RAY = re.compile(r"ray::Holdfast(Agent|Worker|Writer)\b")


@dataclass(frozen=True, slots=True)
class Member:
    """A process of a run. `node` and `rank` are None where its command line does not tell."""

    process: ProcessId
    role: str
    node: int | None = None
    rank: int | None = None

    def __str__(self) -> str:
        where = "" if self.node is None else f" of node {self.node}"
        rank = f" {self.rank}" if self.role == "worker" and self.rank is not None else ""
        return f"{self.role}{rank}{where} (process {self.process.pid})"

    def send(self, number: int) -> bool:
        """Send a signal to this very process; False if it has ended."""
        try:
            fd = os.pidfd_open(self.process.pid)
        except ProcessLookupError:
            return False
        try:
            if not is_alive(self.process):
                return False
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True


def members(supervisor: int) -> list[Member]:
    """The processes of a `holdfast run`: itself and what descends from it."""
    return [member for pid in _descendants(supervisor) if (member := member_of(pid, supervisor)) is not None]


def member_of(pid: int, supervisor: int) -> Member | None:
    """What a process is to the run of a supervisor; None if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode(errors="replace").split("\0")
    except OSError:
        return None
    process = ProcessId.of(pid)
    if not process.started:
        return None
    if pid == supervisor:
        return Member(process, "supervisor")
    if ray := _RAY.match(words[0]):
        return Member(process, ray[1].lower())
    if "workers.main" in words:
        role = words[words.index("workers.main") + 1]
        found = _AGENT.fullmatch(_value(words, "--address"))
        rank = _value(words, "--rank")
        return Member(process, role, int(found[1]) if found else None, int(rank) if rank.isdigit() else None)
    if "orchestrator" in words and "run" in words:
        return Member(process, "coordinator")
    return Member(process, "other")


def _value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1] if option in words[:-1] else ""


def _descendants(root: int) -> list[int]:
    """A process and all below it that are alive, parents first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    found = [root] if start_time(root) else []
    for pid in found:
        found += children.get(pid, [])
    return found


def kill_all(supervisor: int, others: Iterable[Member] = ()) -> list[Member]:
    """Kill a whole run at one moment: nobody may notice a death and act on it before its own.

    `others` are processes of it that do not descend from the supervisor. Returns when all have ended.
    """
    frozen: dict[ProcessId, Member] = {}
    while new := [
        m for m in (*others, *members(supervisor)) if m.process not in frozen and is_alive(m.process)
    ]:
        for member in new:
            member.send(signal.SIGSTOP)
            frozen[member.process] = member
    for member in frozen.values():
        member.send(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(is_alive(process) for process in frozen) and time.monotonic() < deadline:
        time.sleep(0.001)
    return [*frozen.values()]
