"""A worker or writer, as the agent's logic sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from workers.processes import ProcessId


class Peer(Protocol):
    """Somebody at the other end of a connection."""

    id: int
    role: str
    rank: int
    generation: int
    process: ProcessId

    def send(self, *message: object) -> None:
        """Tell it something; a peer that is gone is told nothing."""
