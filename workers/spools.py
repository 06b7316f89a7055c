"""The agent's side of spool files: what the processes of its node print, on its way to the coordinator.

The files lie beside the arena, and are as old as it: a successor of a killed agent finds them. Of each the
last 64 KiB stay, so that the next coordinator can be given what the one before may not have stored.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.libc import from_libc
from workers.lines import RAW, Line, attempt_mark, first_attempt, parse
from workers.output import SPOOL, SPOOL_NAME, spool_prefix
from workers.processes import ProcessId, is_alive
from workers.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = 64 << 10
"""Bytes of a file that stay for the next coordinator."""

CHUNK = 256 << 10
"""Bytes that are read at once, of each file; more than the longest record."""

TOO_MUCH = 4 << 20
"""Bytes of a file that wait to be read: where there are more, all but the last CHUNK are passed over."""

ENDED_S = 60.0
"""Seconds that the file of a process that has ended stays when all of it was read."""

_PAGE = 4096
_PUNCH_A_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_fallocate = from_libc("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@dataclass(slots=True)
class _File:
    """A spool file: what of it was read, and what is kept."""

    path: str
    fd: int
    role: str
    rank: int
    generation: int
    process: ProcessId
    marks: list[tuple[int, int]]  # (from which byte on, which attempt)
    kept: int = 0
    at: int = 0
    told: int = 0
    size: int = -1  # when it was read last
    unmarked: bool = False
    ended_s: float | None = None

    def attempt(self, at: int) -> int:
        """The attempt that what stands at a byte belongs to."""
        return next(attempt for start, attempt in reversed(self.marks) if start <= at or not start)


class Spools:
    """The spool files of the processes of the agent at an address; any thread may call."""

    def __init__(self, address: str, show: Callable[[str], object] = lambda _: None) -> None:
        self._directory, self._prefix = os.path.split(spool_prefix(address))
        self._show = show
        self._redactor = Redactor.of(os.environ)
        self._lock = threading.RLock()
        self._attempt = 0
        self._arena = ""
        self._files: dict[str, _File] = {}

    def serve(self, attempt: int) -> None:
        """From now on this attempt is served: its coordinator is given what is kept once more."""
        with self._lock:
            self._look()
            first, self._attempt = not self._attempt, attempt
            for file in self._files.values():
                self._mark(file)
                if first and not file.told:
                    file.marks = [(0, attempt)]
                file.at = file.kept

    def belong_to(self, arena: str) -> None:
        """The files belong to this arena, and those that lie beside it already to this agent."""
        with self._lock:
            self._arena = arena
            for file in [*self._files.values()]:
                self._rename(file)
            self._look()

    def take(self) -> tuple[Line, ...]:
        """What was printed since the last call."""
        with self._lock:
            self._look()
            lines: list[Line] = []
            for file in [*self._files.values()]:
                with suppress(OSError):
                    if file.unmarked:
                        self._mark(file)
                    lines += self._read(file)
                    self._forget(file)
            return tuple(lines)

    def close(self, *, remove: bool) -> None:
        """The end; deletes the files if nobody will ask for them again."""
        with self._lock:
            self._look()
            for file in self._files.values():
                os.close(file.fd)
                if remove:
                    with suppress(FileNotFoundError):
                        os.unlink(file.path)
            self._files = {}

    def _look(self) -> None:
        """Find new files."""
        left = os.path.basename(self._arena) + SPOOL
        with suppress(OSError):
            for name in os.listdir(self._directory):
                own = name.startswith(self._prefix)
                if not own and not (self._arena and name.startswith(left)):
                    continue
                path = os.path.join(self._directory, name)
                match = SPOOL_NAME.fullmatch(name, name.index(SPOOL))
                if match is not None and path not in self._files:
                    with suppress(OSError):
                        self._open(path, match[1], *map(int, match.groups()[1:]), own=own)

    def _open(
        self, path: str, role: str, rank: int, generation: int, pid: int, started: int, *, own: bool
    ) -> None:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        process = ProcessId(pid, started)
        file = _File(path, fd, role, rank, generation, process, [(0, self._attempt)])
        self._files[path] = file
        if own:
            self._rename(file)
        else:  # of a predecessor, which may have given away any of it
            file.told = os.fstat(fd).st_size
        with suppress(OSError):
            file.kept = os.lseek(fd, 0, os.SEEK_DATA)
        data = os.pread(fd, TOO_MUCH, file.kept)
        if file.kept:
            file.kept += data.find(b"\n") + 1
        file.at = file.kept
        if (attempt := first_attempt(data)) is not None:
            file.marks = [(0, attempt)]
        self._mark(file)

    def _mark(self, file: _File) -> None:
        """Mark the attempt, as soon as no line is being written."""
        file.unmarked = bool(self._attempt)
        size = os.fstat(file.fd).st_size
        if file.unmarked and os.pread(file.fd, 1, max(0, size - 1)) in (b"", b"\n"):
            with suppress(OSError):
                os.write(file.fd, attempt_mark(self._attempt))
            file.unmarked = False

    def _rename(self, file: _File) -> None:
        """To where a successor looks for it."""
        if not self._arena:
            return
        path = self._arena + file.path[file.path.index(SPOOL, len(self._directory)) :]
        if path != file.path:
            with suppress(OSError):
                os.rename(file.path, path)
                del self._files[file.path]
                file.path = path
                self._files[path] = file

    def _read(self, file: _File) -> list[Line]:
        size = os.fstat(file.fd).st_size
        lines: list[Line] = []
        if size - file.at > TOO_MUCH:
            skipped = size - CHUNK - file.at
            text = f"({skipped} bytes are left out here: too much was printed at once)"
            lines.append(self._line(file, time.time(), "stderr", text, file.at))
            file.at += skipped
            file.at += os.pread(file.fd, CHUNK, file.at).find(b"\n") + 1
        data = os.pread(file.fd, CHUNK, file.at)
        whole = data.rfind(b"\n") + 1
        if not whole and (len(data) == CHUNK or (data and size == file.size)):
            whole = len(data)  # text without end, or without an end for now
        file.size = size
        now_s = time.time()
        at = file.at
        for line in data[:whole].removesuffix(b"\n").split(b"\n") if whole else ():
            for number, said in enumerate(parse(line, now_s)):
                if not isinstance(said, int):
                    lines.append(self._line(file, *said, at + number))
                elif said != file.marks[-1][1] and at > file.marks[-1][0]:
                    file.marks.append((at, said))
            at += len(line) + 1
        file.at = at = file.at + whole
        self._show_raw(file, lines)
        file.told = max(file.told, at)
        return lines

    def _line(self, file: _File, time_s: float, stream: str, text: str, at: int) -> Line:
        return Line(
            time_s,
            file.attempt(at),
            file.role,
            file.rank,
            file.generation,
            file.process.pid,
            file.process.started,
            stream,
            self._redactor.text(text),
            at,
            again=at < file.told,
        )

    def _show_raw(self, file: _File, lines: list[Line]) -> None:
        for line in lines:
            if line.stream == RAW and not line.again:
                self._show(line.text + "\n")

    def _forget(self, file: _File) -> None:
        """Give back the memory of what was read long ago, and the file of whoever has ended."""
        hole = (file.at - KEPT) // _PAGE * _PAGE
        if hole - file.kept >= KEPT:
            start = os.pread(file.fd, CHUNK, hole).find(b"\n") + 1
            _punch(file.fd, hole)
            file.kept = hole + start
            file.marks = [(0, file.attempt(file.kept)), *(m for m in file.marks if m[0] > file.kept)]
            self._mark(file)  # for a successor, which does not see the ones before
        if is_alive(file.process):
            return
        now_s = time.monotonic()
        if file.ended_s is None or file.at < os.fstat(file.fd).st_size:
            file.ended_s = now_s
        elif now_s - file.ended_s > ENDED_S:
            os.close(file.fd)
            del self._files[file.path]
            os.unlink(file.path)


def _punch(fd: int, end: int) -> None:
    """Free the memory of a file's beginning; its size stays."""
    if _fallocate is not None:
        _fallocate(fd, _PUNCH_A_HOLE, 0, end)
