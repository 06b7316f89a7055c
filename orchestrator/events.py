"""What can happen to an attempt, besides what its agents report, and what can be done about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.manifest import Base
    from workers import messages as m


class Status(Enum):
    """How a run stands, as users see it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Place:
    """A node that can take part, and how many workers fit on it.

    `slot` numbers the nodes that share one machine's memory. `alive` is the generation of an agent that an
    earlier coordinator of this invocation has left at work there, if there is one.
    """

    workers: int
    slot: int = 0
    alive: int | None = None


# -- events ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Start the attempt with between `least` and `most` workers, over at least `over` of these nodes.

    On each node that is used, `standby` more workers wait for one that computes to die.
    """

    least: int
    most: int
    places: Mapping[int, Place] = field(default_factory=lambda: {0: Place(1 << 20)})
    over: int = 1
    standby: int = 0


@dataclass(frozen=True, slots=True)
class Available:
    """The nodes that can take part have changed."""

    places: Mapping[int, Place]


@dataclass(frozen=True, slots=True)
class Scaled:
    """A person wants another number of workers."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Heard:
    """The agent of a node reports."""

    node: int
    event: m.Event


@dataclass(frozen=True, slots=True)
class Exited:
    """The runtime saw a worker or writer end; `detail` is all that it was told."""

    node: int
    role: str
    rank: int
    generation: int
    cause: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NodeLost:
    """The agent of a node has ended, or is silent, or its machine is gone.

    `cause` ends a sentence about the agent. It was noticed `detection_s` seconds after it happened, at most.
    """

    node: int
    cause: str
    detection_s: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """A node that was lost may be started again."""

    node: int


@dataclass(frozen=True, slots=True)
class Draining:
    """A node is about to be taken away, in so many seconds (None: nobody knows)."""

    node: int
    reason: str
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Waited:
    """Nodes that are not there by now are not waited for any longer."""


@dataclass(frozen=True, slots=True)
class PauseOver:
    """The members of this round have been at rest for as long as they were to be."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Identified:
    """The run's identity stands and this job agrees with it; each node is told so much of it."""

    prepare: m.Prepare


@dataclass(frozen=True, slots=True)
class BaseChosen:
    """Where to go on from: memory, a checkpoint's directory, or nothing yet."""

    epoch: int
    base: Base | None
    directory: str | None
    in_memory: bool


@dataclass(frozen=True, slots=True)
class Based:
    """The base record stands; training may begin."""

    plan: m.Plan


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint's manifest stands, acknowledged."""

    step: int
    state_digest: str


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """A checkpoint's manifest could not be written."""

    step: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Signalled:
    """The process was asked to stop, within so many seconds (None: nobody knows)."""

    status: Status
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """Something the attempt cannot go on without has failed."""

    error: Exception


Event: TypeAlias = (
    Begin
    | Available
    | Scaled
    | Heard
    | Exited
    | NodeLost
    | Returned
    | Draining
    | Waited
    | PauseOver
    | Identified
    | BaseChosen
    | Based
    | Committed
    | CommitFailed
    | Signalled
    | Broken
)


# -- actions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Start the `generation`-th process of this role and rank on a node."""

    node: int
    role: str
    rank: int
    generation: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a command to the agent of a node."""

    node: int
    command: m.Command


@dataclass(frozen=True, slots=True)
class Abandon:
    """Kill what is left of a node's processes."""

    node: int


@dataclass(frozen=True, slots=True)
class Recover:
    """Decide by the restart policy whether a lost node is started again; answered by Returned, or never."""

    node: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before this round goes on; answered by PauseOver."""

    epoch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Identify:
    """Create or check the run's identity; answered by Identified or Broken."""

    description: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChooseBase:
    """Find the newest state, leaving out checkpoints found bad; answered by BaseChosen or Broken."""

    epoch: int
    found_in_memory: tuple[m.Found, ...]
    bad: tuple[str, ...]
    reason: str = ""
    """What is wrong with the last of them."""


@dataclass(frozen=True, slots=True)
class RecordBase:
    """Write down where this attempt stands; answered by Based or Broken."""

    base: Base | None


@dataclass(frozen=True, slots=True)
class CommitCheckpoint:
    """Write the manifest of a checkpoint whose shards are stored; answered by Committed or CommitFailed."""

    parts: tuple[m.CheckpointWritten, ...]


@dataclass(frozen=True, slots=True)
class RecordDivergence:
    """Keep in the run directory what is needed to look into a divergence."""

    found: m.Diverged


OUTPUT = "output"
"""The kind of a note that is a line that a process has printed."""


@dataclass(frozen=True, slots=True)
class Note:
    """Put into the journal, and tell the user in these words."""

    kind: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


Action: TypeAlias = (
    StartProcess
    | Tell
    | Abandon
    | Recover
    | Pause
    | Identify
    | ChooseBase
    | RecordBase
    | CommitCheckpoint
    | RecordDivergence
    | Note
)
