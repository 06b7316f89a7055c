"""What the coordinator tells an agent, and what an agent reports: frozen data, pickled as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from storage.checkpoint import Compression, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How far to train, where to checkpoint and when; the same on every node."""

    attempt: int
    epoch: int
    url: str
    steps: int
    checkpoint_every: int | None
    validate_every: int | None
    in_flight: int
    compression: Compression = None


# -- commands -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make the arena, or take over the one that is left of this run on the node."""

    place_id: str
    seed: int
    batch_size: int
    microbatches: int
    shuffle: bool


@dataclass(frozen=True, slots=True)
class Initialise:
    """Fill a buffer with the model's initial parameters and commit it as step 0."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Read a checkpoint into a buffer and commit it as its step."""

    attempt: int
    url: str
    directory: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """Go on from the step that the arena holds."""


@dataclass(frozen=True, slots=True)
class Train:
    """Train by the plan until its last step is checkpointed."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Settled:
    """The checkpoint of this step was committed, or given up."""

    step: int
    committed: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop at the next step boundary; with a checkpoint of it, if asked."""

    checkpoint: bool


@dataclass(frozen=True, slots=True)
class Close:
    """End workers, writer and agent; `remove` deletes the arena."""

    remove: bool


Command: TypeAlias = Prepare | Initialise | Restore | Adopt | Train | Settled | Stop | Close


# -- events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has loaded the job, or a writer has connected."""

    role: str
    rank: int
    pid: int


@dataclass(frozen=True, slots=True)
class Described:
    """What the first ready worker found the job to be: layout, slots, metrics, data, fingerprint."""

    description: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker or writer ended or was cut off; its work, if any, was handed on."""

    role: str
    rank: int
    pid: int
    ready: bool
    step: int
    phase: str


@dataclass(frozen=True, slots=True)
class Found:
    """A state in memory: who committed it, and with which arithmetic."""

    attempt: int
    step: int
    fingerprint: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The arena exists, and perhaps a state was found in it."""

    found: Found | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class Started:
    """A state is committed; training can begin."""

    step: int


@dataclass(frozen=True, slots=True)
class RestoreFailed:
    """The checkpoint could not be read."""

    directory: str
    error: Exception


@dataclass(frozen=True, slots=True)
class CheckpointSkipped:
    """A checkpoint fell due while it could not be written."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """Every shard of a checkpoint is stored; it lacks its manifest."""

    step: int
    directory: str
    part: Part
    counters: dict[str, Any]
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """A checkpoint could not be written."""

    step: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation data was evaluated with the state of this step."""

    step: int
    metrics: dict[str, float]


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
class Finished:
    """Training stopped at a step boundary: done, or stopped as asked."""

    step: int
    done: bool


Event: TypeAlias = (
    Ready
    | Described
    | Lost
    | Prepared
    | Started
    | RestoreFailed
    | CheckpointSkipped
    | CheckpointWritten
    | CheckpointFailed
    | Evaluated
    | Failed
    | Retried
    | Finished
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training is, for display."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    workers: int = 0
