"""Finding, taking over and making the arena of a run on this node."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from contextlib import suppress
from glob import escape as glob_escape
from glob import glob

from storage.errors import InfrastructureError
from workers.output import SPOOL
from workers.processes import ProcessId, end_process, is_alive, shared_memory_directory
from workers.state import Arena, ArenaSpec, possible_writers

KEPT_S = 24 * 3600.0
"""Seconds that the memory of a killed run is kept after its last step, for whoever resumes it."""

_ARENA = re.compile(r"(holdfast-([0-9A-Za-z-]{1,64})(?:\.[0-9]+)?)(\.new|\.parts|\.steps|\.log-[a-z0-9-]+)?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def arena_path(place_id: str, slot: int = 0) -> str:
    """Where a run's arena is on this node; `slot` numbers the nodes that share one machine."""
    return os.path.join(shared_memory_directory(), f"holdfast-{place_id}" + (f".{slot}" if slot else ""))


def parts_path(arena: str) -> str:
    """Where the sums lie that the owner of an arena exchanges with other nodes."""
    return f"{arena}.parts"


def steps_path(arena: str) -> str:
    """Where the metrics of the last steps are kept, beside the arena."""
    return f"{arena}.steps"


def open_arena(spec: ArenaSpec, slot: int = 0) -> Arena:
    """The arena of a run, owned by this process: the one that is left on the node, else a new one.

    A surviving owner and every process that could still write are ended first. An arena of another shape, or
    one that was never finished, is replaced. Raises SharedMemoryTooSmall.
    """
    path = arena_path(spec.place_id, slot)
    with suppress(FileNotFoundError):
        os.unlink(parts_path(path))  # what a killed agent exchanged with other nodes
    old: Arena | None = None
    with suppress(FileNotFoundError, ValueError):
        old = Arena.attach(path)
    if old is not None:
        _take_over(old)
    if old is not None and old.spec == spec:
        arena = old
    else:
        arena = Arena.create(path, spec) if old is None else _replace(old, spec)
    arena.own(ProcessId.current())
    sweep(keep=spec.place_id)
    return arena


def _replace(old: Arena, spec: ArenaSpec) -> Arena:
    """An arena in the place of one of another shape, with its state where that is of the same arrays."""
    commit = old.committed()
    if commit is None or old.spec.arrays != spec.arrays:
        old.close()
        return Arena.create(old.path, spec)
    arena = Arena.create(f"{old.path}.new", spec)
    for name, values in old.buffers[commit.buffer].items():
        arena.buffers[0][name][:] = values
    with suppress(ValueError):  # without the aux block the state is of no use
        arena.commit(commit.attempt, commit.epoch, commit.step, 0, old.aux(commit.buffer))
    arena.rename(old.path)
    old.close()
    return arena


def is_arena(path: str) -> bool:
    """Whether a file is an arena by its name, and none that is being made."""
    match = _ARENA.fullmatch(os.path.basename(path))
    return match is not None and match[3] is None


def beside(arena: str) -> list[str]:
    """The files that lie beside an arena, and go when it does; some may not be there."""
    return [parts_path(arena), steps_path(arena), *glob(f"{glob_escape(arena)}{SPOOL}*")]


def discard_arena(place_id: str, step: int) -> None:
    """Delete what a killed run left on this node, unless it is beyond `step`, after ending its processes."""
    own = arena_path(place_id)
    for path in glob(glob_escape(own) + "*"):
        if not re.fullmatch(r"(\.\d+)?(\.new)?(\.parts)?", path.removeprefix(own)):
            continue  # it goes when its arena does, or is of a run whose name begins as this one's does
        if path.endswith(".parts"):
            with suppress(FileNotFoundError):
                os.unlink(path)
            continue
        try:
            arena = Arena.attach(path)
        except FileNotFoundError:
            continue
        except ValueError:
            _discard_unfinished(path)
            continue
        _take_over(arena)
        commit = arena.committed()
        if commit is None or commit.step <= step:
            arena.remove()
            for each in beside(path):
                with suppress(FileNotFoundError):
                    os.unlink(each)
        arena.close()


def _discard_unfinished(path: str) -> None:
    """Delete an arena that somebody died over making; one of another version may hold a state."""
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not any(os.pread(fd, 8, 0)):  # where the others have the number of their version
                os.unlink(path)
        except BlockingIOError:
            pass  # it is being made at this moment
        finally:
            os.close(fd)


def sweep(keep: str = "", kept_s: float = KEPT_S) -> list[str]:
    """Delete what runs that were killed left on this node and nobody has resumed; returns the paths.

    That is memory of this user's in which no step was committed for `kept_s` seconds, that nobody holds the
    lock of, and that no living process can write to. That of the run at the place `keep` stays.
    """
    directory = shared_memory_directory()
    swept: list[str] = []
    with suppress(OSError):  # whoever cannot look has nothing there either
        names = sorted(os.listdir(directory))  # an arena before what lies beside it
        for name in names:
            match = _ARENA.fullmatch(name)
            if match is None or match[2] == keep:
                continue
            path, arena = os.path.join(directory, name), os.path.join(directory, match[1])
            if match[3] not in (None, ".new") and os.path.lexists(arena):
                continue  # it goes when its arena does
            by_us = SPOOL in name or bool(_UUID.fullmatch(match[2]))
            with suppress(OSError):
                if _is_abandoned(path, time.time() - kept_s, named_by_us=by_us):
                    os.unlink(path)
                    swept.append(path)
    return swept


def _is_abandoned(path: str, before: float, *, named_by_us: bool) -> bool:
    """Whether a file is of this user's, has not changed since, and is nobody's any more.

    Where it has no header, as an arena that was never finished, only its name says whose it was.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mtime >= before:
        return False
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        now = os.fstat(fd)
        if now.st_mtime >= before or os.lstat(path).st_ino != now.st_ino:
            return False  # somebody has come meanwhile
        writers = possible_writers(fd)
        return named_by_us if writers is None else not any(is_alive(process) for process in writers)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _take_over(arena: Arena) -> None:
    """Take the lock of an arena that another process may own, after ending all who could write to it."""
    for process in arena.processes():
        if not end_process(process):
            raise InfrastructureError(
                f"process {process.pid} holds the run's shared memory {arena.path} and cannot be killed"
            )
    if not arena.lock():
        raise InfrastructureError(f"another process holds the run's shared memory {arena.path}")
    arena.forget_processes()
