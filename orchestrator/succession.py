"""One coordinator after another within one `holdfast run`.

The process that a person starts only supervises: the coordinator is a child of it, and when that dies without
a word the next one finds the agents at work and goes on from their committed step. Whether it may is decided
by the restart policy, which the successor itself applies to what the run directory tells.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from orchestrator.entry import STOPS
from storage.errors import UserCodeError
from storage.libc import from_libc
from workers.processes import ProcessId

if TYPE_CHECKING:
    from types import FrameType

_INVOCATION = "HOLDFAST_INVOCATION"
_SECRET = "HOLDFAST_INVOCATION_SECRET"
_SUPERVISOR = "HOLDFAST_SUPERVISOR"
_DEATHS = "HOLDFAST_COORDINATOR_DEATHS"
_DEATH = "HOLDFAST_COORDINATOR_DEATH"
_BEGUN = "HOLDFAST_COORDINATOR_BEGUN"
MAX_STILLBORN = 3
"""Coordinators in a row that may die before they have begun, before the job must be what kills them."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_inherited: dict[str, str] = {}
"""What the supervisor has told this process."""


def inherit() -> bool:
    """Learn what a supervisor has told this process, if it has one; what it starts learns nothing of it."""
    for name in (_INVOCATION, _SECRET, _SUPERVISOR, _DEATHS, _DEATH, _BEGUN):
        if name in os.environ:
            _inherited[name] = os.environ.pop(name)
    if _SUPERVISOR not in _inherited:
        return False
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever kills the supervisor wants to stop the run
    if os.getppid() != int(_inherited[_SUPERVISOR]):
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def invocation() -> str:
    """What names the agents of this `holdfast run`; its coordinators share it."""
    return _inherited.setdefault(_INVOCATION, secrets.token_hex(8))


def secret() -> str:
    """What nodes of this run prove to each other that they belong to it with."""
    return _inherited.setdefault(_SECRET, secrets.token_hex(16))


def supervisor() -> ProcessId:
    """The process without which no successor comes: the parent that supervises, else this one."""
    return ProcessId.of(int(_inherited.get(_SUPERVISOR, os.getpid())))


def predecessors() -> int:
    """Coordinators of this `holdfast run` that were killed."""
    return int(_inherited.get(_DEATHS, "0"))


def begun() -> None:
    """From here on the run directory tells what becomes of this coordinator: its supervisor need not."""
    if pipe := _inherited.pop(_BEGUN, ""):
        with suppress(OSError):
            os.write(int(pipe), b"1")
            os.close(int(pipe))


def last_death() -> tuple[str, float | None]:
    """What killed the last of them, and when, in seconds since the machine was started."""
    cause, _, t = _inherited.get(_DEATH, "").partition("@")
    return cause or "killed", float(t) if t else None


def still_there(folder: str) -> str | None:
    """A folder to start a process in, by its name; None, for the one that this process is in, if it is gone.

    Nodes of a Ray cluster that share a machine unpack what was submitted to one place, each anew: the folder
    that a process was started in is deleted then, and another one has its name.
    """
    return folder if os.path.isdir(folder) else None


def supervise() -> int:
    """Run this command line in a child until one ends by itself; returns its exit code.

    Signals to stop are passed on. A child that is killed is followed by another. Raises UserCodeError if one
    after another dies before it has begun.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # the processes of a dead coordinator become ours to reap
    environment = {
        **os.environ,
        _INVOCATION: invocation(),
        _SECRET: secret(),
        _SUPERVISOR: str(os.getpid()),
    }
    deaths, death, stillborn, folder = 0, "", 0, os.getcwd()
    child: subprocess.Popen[bytes] | None = None
    stopped = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = number
        if child is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)

    for number in STOPS:
        signal.signal(number, stop)
    while True:
        command = [sys.executable, "-m", "orchestrator", *sys.argv[1:]]
        # In a group of its own, so that a terminal's Ctrl-C reaches it once, by way of us.
        reading, writing = os.pipe()
        told = {**environment, _DEATHS: str(deaths), _DEATH: death, _BEGUN: str(writing)}
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until it can say what becomes of it
        child = subprocess.Popen(
            command, cwd=still_there(folder), env=told, process_group=0, pass_fds=(writing,)
        )
        os.close(writing)
        if stopped:
            child.send_signal(stopped)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        code = _wait(child.pid)
        child.returncode = code
        stillborn = 0 if _has_begun(reading) else stillborn + 1
        if code >= 0:
            return code
        if stopped:
            return 130 if stopped == signal.SIGINT else 75
        deaths += 1
        cause = f"killed by {signal.Signals(-code).name}"
        death = f"{cause}@{time.monotonic():.4f}"
        _say(f"the coordinator was {cause}")
        if stillborn >= MAX_STILLBORN:
            raise UserCodeError(
                f"the coordinator died {stillborn} times in a row before it could begin (the last: {cause}): "
                "look at what the job's file does when it is loaded"
            )


def _say(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _has_begun(pipe: int) -> bool:
    """Whether a coordinator that has ended had begun."""
    os.set_blocking(pipe, False)  # somebody else may hold the other end
    try:
        return bool(os.read(pipe, 1))
    except BlockingIOError:
        return False
    finally:
        os.close(pipe)


def _wait(pid: int) -> int:
    """Wait for a child, reaping every other one; returns its exit code, negative for a signal."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _prctl(option: int, value: int) -> None:
    call = from_libc("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)
    if call is not None:  # where there is none, nothing is lost but this
        call(option, value, 0, 0, 0)
