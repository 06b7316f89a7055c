"""What the coordinator asks of the place where a run's processes live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.events import Event, Place
    from workers.messages import Command, Progress

HEARTBEAT_S = 1.0
"""Seconds that an agent lets pass at most before it answers."""

DEAD_S = 5.0
"""Seconds without an answer after which an agent that has answered before is taken to be dead."""

START_S = 60.0
"""Seconds that a process may take to start."""


class Runtime(Protocol):
    """Starts and watches processes on nodes, and carries messages to their agents."""

    is_silent: bool
    """Whether what the processes print does not reach this process's standard error by itself."""

    def places(self, wanted: int) -> Mapping[int, Place]:
        """The nodes that can take part now; where nodes can be added, they are asked for `wanted` workers."""

    def start(self, node: int, role: str, rank: int, generation: int) -> None:
        """Start a process without waiting for it; an agent that was found at work is connected to instead.

        Raises ConfigurationError or InfrastructureError if that cannot be.
        """

    def exchange(
        self, attempt: int, commands: Sequence[tuple[int, Command]], timeout_s: float
    ) -> tuple[list[Event], Mapping[int, Progress]]:
        """Send commands to agents and return what happened, waiting at most `timeout_s` for something.

        An agent that has ended or is silent gives NodeLost, and is not heard any more. Raises Superseded.
        """

    def abandon(self, node: int) -> None:
        """Kill what is left of a node's processes."""

    def close(self) -> None:
        """End every process that is left, and wait for that."""
