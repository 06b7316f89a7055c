"""Finding, taking over and making the arena of a run on this node."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from glob import escape as glob_escape
from glob import glob

from storage.errors import InfrastructureError
from workers.processes import ProcessId, end_process, shared_memory_directory
from workers.state import Arena, ArenaSpec


def arena_path(place_id: str, slot: int = 0) -> str:
    """Where a run's arena is on this node; `slot` numbers the nodes that share one machine."""
    return os.path.join(shared_memory_directory(), f"holdfast-{place_id}" + (f".{slot}" if slot else ""))


def parts_path(arena: str) -> str:
    """Where the sums lie that the owner of an arena exchanges with other nodes."""
    return f"{arena}.parts"


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


def discard_arena(place_id: str, step: int) -> None:
    """Delete what a killed run left on this node, unless it is beyond `step`, after ending its processes."""
    own = arena_path(place_id)
    for path in glob(glob_escape(own) + "*"):
        if not re.fullmatch(r"(\.\d+)?(\.new)?(\.parts)?", path.removeprefix(own)):
            continue  # of a run whose name begins as this one's does
        if path.endswith(".parts"):
            with suppress(FileNotFoundError):
                os.unlink(path)
            continue
        try:
            arena = Arena.attach(path)
        except (FileNotFoundError, ValueError):
            continue
        _take_over(arena)
        commit = arena.committed()
        if commit is None or commit.step <= step:
            arena.remove()
        arena.close()


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
