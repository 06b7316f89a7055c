"""What the coordinator asks of the place where a run's processes live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.machine import Exited
    from workers.messages import Command, Event, Progress


class Runtime(Protocol):
    """Starts and watches processes, and carries messages to the agent."""

    def start(self, role: str, rank: int, generation: int) -> None:
        """Start a process without waiting for it.

        Raises ConfigurationError or InfrastructureError if that cannot be.
        """

    def exchange(self, commands: Sequence[Command], timeout_s: float) -> tuple[list[Event], Progress]:
        """Send commands to the agent and return what happened, waiting at most `timeout_s` for something.

        Raises InfrastructureError if the agent is gone.
        """

    def exited(self) -> list[Exited]:
        """Processes that have ended since the last call."""

    def close(self) -> None:
        """End every process that is left, and wait for that."""
