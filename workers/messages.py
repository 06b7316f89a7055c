"""What the coordinator tells an agent, and what an agent reports: frozen data, pickled as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from storage.checkpoint import Compression, Part
    from workers.lines import Line
    from workers.schedule import Remainder


@dataclass(frozen=True, slots=True)
class Member:
    """A node that trains: where its agent serves others, and the microbatches [low, high) it computes."""

    node: int
    address: str
    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How far to train, where to checkpoint and when, and with whom; the same on every node.

    `members` are empty where there is no other node. `nonce` is the attempt's; `stored_step` is the step of
    the last checkpoint that stands, -1 for none.
    """

    attempt: int
    epoch: int
    url: str
    steps: int
    checkpoint_every: int | None
    validate_every: int | None
    nonce: str = ""
    in_flight: int = 2
    compression: Compression = None
    members: tuple[Member, ...] = ()
    stored_step: int = -1


@dataclass(frozen=True, slots=True)
class Process:
    """A worker or writer that is connected to an agent: the `generation`-th of its role and rank."""

    role: str
    rank: int
    generation: int
    pid: int
    ready: bool


# -- commands -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Greet:
    """Who an agent works for from now on, and as which node; it answers `Greeted`."""

    attempt: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Come to rest between two steps, and say which step the memory holds; it is made where there is none.

    Begins an epoch: what is under way for an older one takes no effect. `slot` numbers the arenas of one
    machine; with `peers`, other nodes are to be served. Without time-outs, they follow from what is measured.
    """

    attempt: int = 0
    epoch: int = 0
    place_id: str
    slot: int = 0
    seed: int
    batch_size: int
    microbatches: int
    shuffle: bool
    remainder: Remainder = "keep"
    url: str = ""
    peers: bool = False
    paranoid: float = 0.0
    token: str = ""
    stop_on_divergence: bool = True
    worker_timeout_s: float | None = None
    checkpoint_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Initialise:
    """Fill a buffer with the model's initial parameters and commit it as step 0."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Read a checkpoint into a buffer and commit it as its step."""

    directory: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """Go on from the step that the arena holds."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the state that another node holds, and commit it as what it is there."""

    address: str
    step: int
    attempt: int
    """The attempt that made the state."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Make the step that another node is ahead by: with the sums of the gradients that it has kept."""

    address: str
    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop at the next step boundary; with a checkpoint of it, if asked."""

    checkpoint: bool


@dataclass(frozen=True, slots=True)
class Train:
    """Train by the plan until its last step is checkpointed, or until the next step if `stop` says so."""

    plan: Plan
    stop: Stop | None = None


@dataclass(frozen=True, slots=True)
class Activate:
    """Have so many workers compute; the others stand by for one of them to be lost. Not told: all compute."""

    count: int


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Let a worker finish what it is doing, and end it."""

    rank: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The checkpoint of this step was committed, or given up."""

    step: int
    committed: bool
    tries: int = 0
    """How often this checkpoint has been given up since the epoch began."""


@dataclass(frozen=True, slots=True)
class Close:
    """End workers, writer and agent; `remove` deletes the arena."""

    remove: bool


Command: TypeAlias = (
    Greet
    | Prepare
    | Initialise
    | Restore
    | Adopt
    | Copy
    | Replay
    | Train
    | Activate
    | Dismiss
    | Settled
    | Stop
    | Close
)


# -- events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Greeted:
    """The answer to `Greet`: these processes are there, and there were epochs up to `told` before."""

    processes: tuple[Process, ...]
    attempt: int = 0
    told: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has loaded the job, or a writer has connected."""

    role: str
    rank: int
    pid: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Described:
    """What the first ready worker found the job to be: layout, slots, metrics, data, fingerprint."""

    description: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker or writer ended or was cut off; its work, if any, was handed on.

    `cause` says why it was superseded; it is empty where the process ended by itself.
    That was noticed `detection_s` seconds after it happened, at most.
    """

    role: str
    rank: int
    pid: int
    ready: bool
    step: int
    phase: str
    generation: int = 0
    cause: str = ""
    detection_s: float | None = None


@dataclass(frozen=True, slots=True)
class Missed:
    """What a coordinator that is gone was told; it may not have got to putting it on record."""

    lost: Lost


@dataclass(frozen=True, slots=True)
class Noticed:
    """The node is to be taken away, in so many seconds (None: nobody knows)."""

    reason: str
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A state in memory: who committed it, and with which arithmetic."""

    attempt: int
    step: int
    fingerprint: dict[str, Any]
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """The arena exists, and perhaps a state was found in it; other nodes reach this one at `address`."""

    found: Found | None
    nbytes: int
    epoch: int = 0
    address: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A state is committed; training can begin."""

    step: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class RestoreFailed:
    """The checkpoint could not be read."""

    directory: str
    error: Exception
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class PeerFailed:
    """What another node has could not be had: this node waits for the next epoch."""

    address: str
    error: Exception
    epoch: int


@dataclass(frozen=True, slots=True)
class CheckpointSkipped:
    """A checkpoint fell due while it could not be written."""

    step: int
    reason: str
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """Every shard of a checkpoint is stored; it lacks its manifest."""

    step: int
    directory: str
    part: Part
    counters: dict[str, Any]
    metrics: dict[str, float]
    seconds: float
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """A checkpoint could not be written; it had been given up `tries` times before."""

    step: int
    error: Exception
    epoch: int = 0
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation data was evaluated with the state of this step."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """A pass over the data has ended, with these metrics, and those that callbacks added.

    With `stopped`, a callback has ended training.
    """

    number: int
    logs: dict[str, float]
    stopped: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """The run cannot go on: a user's or a configuration error, told once."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Retried:
    """A piece of work raised in the user's code and is done once more."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """The loss or the gradient of a step is not finite, and that is how it is: the run cannot go on.

    `microbatch` is None where each is finite and their sum is not. `loss` is that of the microbatch, or of
    the step; `finite` says whether the gradient is, whose BLAKE3 is `digest`.
    """

    step: int
    microbatch: int | None
    loss: float
    finite: bool
    digest: str


@dataclass(frozen=True, slots=True)
class Doubted:
    """A worker computed a piece of work with other bits than another one: it is not trusted any more."""

    rank: int
    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The dataset could not read a piece of work: it is read again, or skipped for good."""

    name: str
    message: str
    skipped: bool


@dataclass(frozen=True, slots=True)
class Recovered:
    """The first step is committed since training began, or since workers were lost, `seconds` ago."""

    step: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Training stopped at a step boundary: done, or stopped as asked."""

    step: int
    done: bool
    epoch: int = 0


Event: TypeAlias = (
    Greeted
    | Ready
    | Described
    | Lost
    | Missed
    | Noticed
    | Prepared
    | Started
    | RestoreFailed
    | PeerFailed
    | CheckpointSkipped
    | CheckpointWritten
    | CheckpointFailed
    | Evaluated
    | EpochEnded
    | Failed
    | Retried
    | Diverged
    | Doubted
    | Unreadable
    | Recovered
    | Finished
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training is, for display."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    standby: int = 0
    """Ready workers that stand by, beside those that compute."""

    rows: tuple[tuple[float, ...], ...] = ()
    """Of the steps that were not told of yet: step, Unix seconds, the metrics in the description's order."""

    lines: tuple[Line, ...] = ()
    """What the node's processes have printed since."""
