"""The checkpoint that a node is writing, from the pin of a buffer to the coordinator's last word on it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    def obstacle(self, writer: Peer | None) -> str | None:
        """Why no checkpoint can begin now; None if one can."""
        if self.step is not None:
            return f"the checkpoint of step {self.step} is still being written"
        if self._pin is not None or writer is None:
            return "the writer is being replaced"
        return None

    def begin(
        self, arena: Arena, writer: Peer, plan: Plan, buffer: int, step: int, metrics: dict[str, float]
    ) -> None:
        """Pin the buffer and have the writer store it."""
        assert self.obstacle(writer) is None
        arena.pin(buffer, writer.process)
        self._pin = _Pin(arena, buffer, writer.id)
        self.step, self._since, self._metrics = step, time.monotonic(), metrics
        directory = directory_name(step, plan.attempt, secrets.token_hex(8))  # each try has its own
        writer.send("write", buffer, step, plan.url, directory, plan.compression, plan.in_flight)

    def written(self, step: int, part: Part, directory: str) -> CheckpointWritten:
        """The writer has stored everything; the buffer is free."""
        self._unpin()
        seconds = time.monotonic() - self._since
        return CheckpointWritten(step, directory, part, {"iterations": step}, self._metrics, seconds)

    def failed(self, error: Exception) -> CheckpointFailed:
        """The writer could not store it; the buffer is free."""
        assert self.step is not None
        self._unpin()
        return CheckpointFailed(self.step, error)

    def lost(self, error: Exception) -> CheckpointFailed | None:
        """The writer is dying; if it was reading, the pin stays until it is known to be gone."""
        return CheckpointFailed(self.step, error) if self._pin is not None and self.step is not None else None

    def gone(self, writer: int) -> None:
        """The process is known to have ended."""
        if self._pin is not None and self._pin.writer == writer:
            self._unpin()

    def settled(self, step: int, *, committed: bool) -> None:
        """The coordinator has committed the checkpoint, or given it up."""
        self.step = None
        if committed:
            self.stored_step = step

    def _unpin(self) -> None:
        assert self._pin is not None
        self._pin.arena.unpin(self._pin.buffer)
        self._pin = None
