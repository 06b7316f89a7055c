"""Where an attempt is: what the machine knows between two events. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from orchestrator.events import Action, BaseChosen, Place, Status, Tell
from storage.errors import InfrastructureError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from workers import messages as m


class Phase(Enum):
    """Where an attempt is."""

    JOINING = "joining"
    PREPARING = "preparing"
    STARTING = "starting"
    TRAINING = "training"
    STOPPING = "stopping"
    ENDED = "ended"


Key: TypeAlias = tuple[str, int]
"""Role and rank of a process; the rank of an agent or writer is the number of its node."""


@dataclass(frozen=True, slots=True)
class State:
    """One attempt; `phase` ENDED comes with a status, and with the error if it failed."""

    phase: Phase = Phase.JOINING
    status: Status = Status.RUNNING
    error: Exception | None = None
    least: int = 1
    most: int = 1
    over: int = 1  # nodes at least, if there are so many
    standby: int = 0  # workers more on each node, if there is room
    # Nodes and processes
    places: Mapping[int, Place] = field(default_factory=dict)
    down: frozenset[int] = frozenset()  # lost, and not returned
    draining: frozenset[int] = frozenset()
    nodes: frozenset[int] = frozenset()  # whose agent was started, or was found
    greeted: frozenset[int] = frozenset()
    described: frozenset[int] = frozenset()
    workers: Mapping[int, int] = field(default_factory=dict)  # rank -> node
    active: Mapping[int, int] = field(default_factory=dict)  # node -> how many of its workers compute
    generations: Mapping[Key, int] = field(default_factory=dict)
    ready: frozenset[Key] = frozenset()
    lacking: int = 0  # workers that there is no room for
    start_deaths: Mapping[str, int] = field(default_factory=dict)
    description: dict[str, Any] | None = None
    prepare: m.Prepare | None = None
    waited: bool = False
    # The round
    epoch: int = 0
    older_epoch: int = 0  # the highest that an agent was told of by an earlier coordinator
    members: tuple[int, ...] = ()
    shares: tuple[int, ...] = ()  # workers of each member that were ready to compute when it was sent off
    awaited: frozenset[int] = frozenset()
    found: Mapping[int, m.Prepared] = field(default_factory=dict)
    vain: int = 0  # rounds in a row that a failed fetch began before a step was committed
    pausing: bool = False  # a failed fetch began this round: it goes on when its pause is over
    lead: int | None = None  # the member that the others copy from
    holders: frozenset[int] = frozenset()  # nodes found at work, later those that were sent off together
    base: BaseChosen | None = None
    bad: tuple[str, ...] = ()
    restoring: bool = False  # the lead was told to read a checkpoint
    unread: int = 0  # writers that have died over that
    recording: bool = False  # the base record is being written
    plan: m.Plan | None = None  # of the whole attempt: its base is on record
    # Training
    written: Mapping[int, m.CheckpointWritten] = field(default_factory=dict)
    stored_step: int = -1
    checkpoint_s: float = 0.0
    failures: int = 0
    failed_step: int = -1
    finished: frozenset[int] = frozenset()
    asked: m.Stop | None = None
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    epochs_ended: int = 0  # passes over the data that are on record, where callbacks are told of them
    state_digest: str | None = None


Turn: TypeAlias = tuple[State, list[Action]]


def illegal(state: State, event: object) -> ValueError:
    """The error of an event that cannot happen in this phase."""
    return ValueError(f"{type(event).__name__} cannot happen while {state.phase.value}")


def then(first: list[Action], turn: Turn) -> Turn:
    """A turn whose actions come after others."""
    return turn[0], [*first, *turn[1]]


def tell(nodes: Iterable[int], command: m.Command) -> list[Action]:
    """Tell several nodes the same."""
    return [Tell(node, command) for node in nodes]


def failed(state: State, error: Exception) -> State:
    """The end by an error; who was asked to stop and loses infrastructure or storage has stopped."""
    if state.asked is not None and isinstance(error, InfrastructureError | StorageError):
        return replace(state, phase=Phase.ENDED, error=error)
    return replace(state, phase=Phase.ENDED, status=Status.FAILED, error=error)


def without(state: State, node: int) -> State:
    """The state without a node and its processes."""
    ranks = {rank for rank, other in state.workers.items() if other == node}
    gone = {("agent", node), ("writer", node), *(("worker", rank) for rank in ranks)}
    return replace(
        state,
        nodes=state.nodes - {node},
        greeted=state.greeted - {node},
        described=state.described - {node},
        workers={rank: other for rank, other in state.workers.items() if other != node},
        active={other: count for other, count in state.active.items() if other != node},
        ready=state.ready - gone,
        holders=state.holders - {node},
    )
