"""What this process prints is redacted, and kept in a spool file of the node's memory."""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from workers.lines import record, split_lines
from workers.processes import ProcessId, shared_memory_directory
from workers.redaction import FORWARD, RedactedStream, Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SPOOL = ".log-"
"""What follows, in the name of a file, the arena's name, or the agent's while there is no arena."""

SPOOL_NAME = re.compile(rf"{re.escape(SPOOL)}(agent|worker|writer)-(\d+)-(\d+)-(\d+)-(\d+)")
"""Role, rank, generation, process number and start time."""

_STREAMS = ((1, "stdout"), (2, "stderr"))


def redact_output() -> None:
    """From now on nothing secret of this process's environment is printed, by nobody's Python code."""
    redactor = Redactor.of(os.environ)
    for _, name in _STREAMS:
        stream = getattr(sys, name)
        if stream is not None:
            redacted = RedactedStream(stream, redactor, threading.RLock())
            setattr(sys, name, redacted)
            atexit.register(redacted.release)


def keep_secret(names: Iterable[str]) -> None:
    """From now on the values of these environment variables are secret, too, here and in what is started."""
    known = os.environ.get(FORWARD, "").split(",")
    named = dict.fromkeys(name for name in (*known, *names) if name)
    if not named:
        return
    os.environ[FORWARD] = ",".join(named)
    for _, name in _STREAMS:
        stream = getattr(sys, name)
        if isinstance(stream, RedactedStream):
            stream.redact_with(Redactor.of(os.environ))


class Output:
    """What a process that keeps its output can still do with it."""

    def __init__(self, show: Callable[[str], object], path: str = "") -> None:
        self.show = show
        """Prints text where the process's output is shown, without keeping it."""

        self._path = path

    def discard(self) -> None:
        """Delete the file, unless an agent has it: there is none any more."""
        with suppress(OSError):
            os.unlink(self._path)


def keep_output(address: str, role: str, rank: int, generation: int, *, quiet: bool = False) -> Output:
    """From now on what this process prints is redacted and kept for the agent at this address, too.

    Python's output also goes where it went before, at once; what is written by other means goes to the file
    alone, and the agent shows it. If `quiet`, nothing is shown: the coordinator does. Without memory for the
    file all goes where it went before.
    """
    try:
        path = spool_path(address, role, rank, generation, ProcessId.current())
        output = Output(_spool(path, quiet=quiet), path)
    except OSError:
        output = Output(sys.stderr.write)
    redact_output()
    return output


def spool_path(address: str, role: str, rank: int, generation: int, process: ProcessId) -> str:
    """Where a process of the agent at a socket address spools what it prints, until the agent has it."""
    return f"{spool_prefix(address)}{role}-{rank}-{generation}-{process.pid}-{process.started}"


def spool_prefix(address: str) -> str:
    """What the paths of all spools of the agent at a socket address begin with, until it has an arena."""
    name = os.path.basename(address.lstrip("\0")).removesuffix(".sock")
    return os.path.join(shared_memory_directory(), f"{name}{SPOOL}")


def _spool(path: str, *, quiet: bool) -> Callable[[str], object]:
    spool = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    for number, name in _STREAMS:
        stream = getattr(sys, name)
        if stream is not None:
            stream.flush()
        shown = open(  # noqa: SIM115 for as long as the process lives
            os.devnull if quiet else os.dup(number),
            "w",
            buffering=1,
            encoding="utf-8",
            errors="backslashreplace",
        )
        os.dup2(spool, number)
        setattr(sys, name, SpooledStream(shown, spool, number, name))
    return shown.write


class SpooledStream:
    """A text stream whose lines are spooled besides being written to where they are shown."""

    def __init__(self, shown: Any, spool: int, number: int, name: str) -> None:
        self._shown = shown
        self._spool = spool
        self._number = number
        self._name = name
        self._partial = ""
        self._lock = threading.RLock()
        atexit.register(self._spool_lines, "\n", last=True)

    def write(self, text: str) -> int:
        """Write; nobody's `print` fails because the one who looked on has gone, or for want of memory."""
        with suppress(OSError):
            self._shown.write(text)
        self._spool_lines(text)
        return len(text)

    def _spool_lines(self, text: str, *, last: bool = False) -> None:
        with self._lock:
            if last and not self._partial:
                return
            lines, self._partial = split_lines(self._partial + text)
            if lines:
                now_s = time.time()
                with suppress(OSError):
                    os.write(self._spool, b"".join(record(now_s, self._name, line) for line in lines))

    def writelines(self, lines: Any) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Show what was written."""
        with suppress(OSError):
            self._shown.flush()

    def fileno(self) -> int:
        """The standard stream's own: what child processes write to it is spooled as well."""
        return self._number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)
