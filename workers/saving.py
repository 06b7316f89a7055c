"""The checkpoint that a node is writing, from the pin of a buffer to the coordinator's last word on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from storage.checkpoint import Part, directory_name
from workers.messages import CheckpointFailed, CheckpointWritten, Plan

if TYPE_CHECKING:
    from workers.peer import Peer
    from workers.state import Arena


@dataclass(slots=True)
class _Pin:
    """A buffer that a writer reads."""

    arena: Arena
    buffer: int
    writer: int


class Saving:
    """At most one checkpoint at a time.

    The pin ends when the writer has read the buffer or is known to be dead; the checkpoint is over only when
    the coordinator has committed it or given it up.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        """Step of the checkpoint that is not settled yet."""
        self.stored_step = -1
        """Step of the last checkpoint that is known to stand."""
        self._pin: _Pin | None = None
        self._since = 0.0
        self._metrics: dict[str, float] = {}
        self._counters: dict[str, Any] = {}
        self._directory = ""
        self._epoch = 0
        self._given_up: dict[int, int] = {}  # steps of checkpoints of this epoch, and how often
        self._tries = 0  # how often that which is being written was given up before

    def given_up(self, step: int) -> bool:
        """Whether other nodes have given up the checkpoint of this step, so that it cannot be whole."""
        return step in self._given_up

    def obstacle(self, writer: Peer | None) -> str | None:
        """Why no checkpoint can begin now; None if one can."""
        if self.step is not None:
            return f"the checkpoint of step {self.step} is still being written"
        if self._pin is not None or writer is None:
            return "the writer is still busy, or is being replaced"
        return None

    def begin(
        self,
        arena: Arena,
        writer: Peer,
        plan: Plan,
        buffer: int,
        step: int,
        metrics: dict[str, float],
        counters: dict[str, Any],
        share: tuple[int, int],
    ) -> None:
        """Pin the buffer and have the writer store its share: (number, count) of the nodes' writers."""
        assert self.obstacle(writer) is None
        arena.pin(buffer, writer.process)
        self._pin = _Pin(arena, buffer, writer.id)
        self.step, self._since, self._metrics = step, time.monotonic(), metrics
        self._counters = {"iterations": step, **counters}
        # Each try has a name of its own, which all nodes know without asking.
        self._tries = self._given_up.get(step, 0)
        name = f"{plan.nonce} {plan.epoch} {step} {self._tries}".encode()
        self._directory = directory_name(step, plan.attempt, blake3(name).hexdigest(8))
        self._epoch = plan.epoch
        writer.send("write", buffer, step, plan.url, self._directory, plan.compression, plan.in_flight, share)

    def written(self, step: int, part: Part, directory: str) -> CheckpointWritten | None:
        """The writer has stored everything; the buffer is free. None if nobody waits for it any more."""
        self._unpin()
        if (self.step, self._directory) != (step, directory):
            return None
        seconds = time.monotonic() - self._since
        about = (self._counters, self._metrics)
        return CheckpointWritten(step, directory, part, *about, seconds, self._epoch)

    def failed(self, error: Exception) -> CheckpointFailed | None:
        """The writer could not store it; the buffer is free."""
        self._unpin()
        return None if self.step is None else self._failure(self.step, error)

    def lost(self, writer: int, error: Exception) -> CheckpointFailed | None:
        """A writer is dying; if it was reading, the pin stays until it is known to be gone."""
        if self._pin is None or self._pin.writer != writer or self.step is None:
            return None
        return self._failure(self.step, error)

    def _failure(self, step: int, error: Exception) -> CheckpointFailed:
        return CheckpointFailed(step, error, self._epoch, self._tries)

    def abandon(self) -> None:
        """A new epoch begins: what is under way will not count."""
        self.step, self._given_up = None, {}

    def gone(self, writer: int) -> None:
        """The process is known to have ended."""
        if self._pin is not None and self._pin.writer == writer:
            self._unpin()

    def settled(self, step: int, *, committed: bool, tries: int = 0) -> None:
        """The coordinator has committed the checkpoint, or given it up for the `tries`-th time."""
        if self.step == step:
            self.step = None
        if committed:
            self.stored_step = step
        else:
            self._given_up[step] = tries

    def _unpin(self) -> None:
        assert self._pin is not None
        self._pin.arena.unpin(self._pin.buffer)
        self._pin = None
