"""Watching a run's committed steps in the shared memory of this machine, a thousand times a second."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from glob import escape, glob
from typing import TYPE_CHECKING

from storage.errors import HoldfastError
from storage.run_directory import RunDirectory
from storage.store import open_store
from workers.arenas import arena_path, beside, is_arena
from workers.processes import ProcessId, is_alive
from workers.state import Arena

if TYPE_CHECKING:
    from workers.state import Commit

POLL_S = 0.001
LOOK_S = 0.05
"""Seconds between two looks at which memories there are, and whose they are."""


@dataclass(slots=True)
class _Memory:
    """The memory of a node: a file that may be replaced by another one of the same name."""

    arena: Arena
    inode: int
    owned: bool = False
    commit: Commit | None = None


class Watch(threading.Thread):
    """Follows a run until `close`; the attributes may be read at any time.

    The step that a run has made is the lowest of its nodes; a node that is more than one step behind the
    highest, or whose agent is dead while another lives, is not training with the others.
    """

    def __init__(self, url: str, steps: int) -> None:
        super().__init__(name="watch", daemon=True)
        self._steps = steps
        self._run = RunDirectory(open_store(url))
        self._place_id: str | None = None
        self._memories: dict[str, _Memory] = {}
        self._closing = threading.Event()
        self._reading = threading.Lock()
        self._next_look = 0.0
        self.step = 0
        self.trace: list[tuple[float, int]] = []
        """When the step rose, by `time.monotonic`, and to what."""

        self.setbacks: list[str] = []
        self.stale: list[str] = []

    def run(self) -> None:
        """The thread."""
        while not self._closing.wait(POLL_S):
            with self._reading:
                now = time.monotonic()
                if now >= self._next_look:
                    self._next_look = now + LOOK_S
                    self._look()
                self._read(now)

    def step_now(self) -> int:
        """The step that is committed at this moment, not at the last look."""
        with self._reading:
            self._read(time.monotonic())
        return self.step

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        self.join()
        for memory in self._memories.values():
            memory.arena.close()
        self._memories = {}

    def forget_memory(self, node: int) -> None:
        """Remove the memory of one node, as the loss of its machine does."""
        if self._place_id is not None:
            path = arena_path(self._place_id, node)
            for name in (path, *beside(path)):
                with suppress(FileNotFoundError):
                    os.unlink(name)

    def remove_memory(self) -> None:
        """Remove what there is in memory of a run that has ended and will not go on."""
        if self._place_id is None:
            self._look()
        if self._place_id is not None:
            for path in glob(escape(arena_path(self._place_id)) + "*"):
                with suppress(FileNotFoundError):
                    os.unlink(path)

    def others_hold_the_state(self, node: int) -> bool:
        """Whether the step survives the loss of a node's memory, in that of a node whose agent lives."""
        if self._place_id is None:
            return False
        mine = arena_path(self._place_id, node)
        return any(
            memory.owned and memory.commit is not None and memory.commit.step >= self.step
            for path, memory in [*self._memories.items()]
            if path != mine
        )

    def processes(self) -> dict[str, list[ProcessId]]:
        """For each memory the processes that it names: its agent, workers and writer."""
        return {path: memory.arena.processes() for path, memory in [*self._memories.items()]}

    def _look(self) -> None:
        if self._place_id is None:
            with suppress(HoldfastError):
                identity = self._run.identity()
                self._place_id = None if identity is None else self._run.place(identity)
        if self._place_id is None:
            return
        paths = {path for path in glob(escape(arena_path(self._place_id)) + "*") if is_arena(path)}
        for path in [*self._memories]:
            if path not in paths or _inode(path) != self._memories[path].inode:
                self._memories.pop(path).arena.close()
        for path in paths - self._memories.keys():
            with suppress(OSError, ValueError, HoldfastError):
                self._memories[path] = _Memory(Arena.attach(path), _inode(path))
        for memory in self._memories.values():
            memory.owned = is_alive(memory.arena.processes()[0]) if memory.arena.processes() else False

    def _read(self, now: float) -> None:
        for path, memory in self._memories.items():
            last, commit = memory.commit, memory.arena.committed()
            if commit is None or (last is not None and commit.sequence <= last.sequence):
                continue
            memory.commit = commit
            if last is not None and (commit.attempt, commit.epoch) < (last.attempt, last.epoch):
                self.stale.append(
                    f"{path}: attempt {commit.attempt}, epoch {commit.epoch} committed step {commit.step} "
                    f"after attempt {last.attempt}, epoch {last.epoch} had committed"
                )
        known = [(m.commit.step, m.owned) for m in self._memories.values() if m.commit is not None]
        if not known:
            return
        highest = max(step for step, _ in known)
        if highest < self.step < self._steps:  # at the end memories go one by one
            text = f"step {self.step} was committed and then in no node's memory: the highest is {highest}"
            if not self.setbacks or self.setbacks[-1] != text:
                self.setbacks.append(text)
        steps = [step for step, owned in known if owned] or [step for step, _ in known]
        together = min(step for step in steps if step >= max(steps) - 1)
        if together > self.step:
            self.step = together
            self.trace.append((now, together))


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return -1
