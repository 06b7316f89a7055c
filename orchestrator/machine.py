"""One attempt at a job, as a machine: (state, event) -> (state, actions). Pure.

The coordinator interprets the actions and feeds back what came of them as further events. PROTOCOL.md has the
same in prose.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from storage.errors import CheckpointError, HoldfastError, InfrastructureError, StorageError, UserCodeError
from workers import messages as m

if TYPE_CHECKING:
    from storage.manifest import Base

MAX_START_DEATHS = 3
"""Times that each worker may die while it loads the job, before loading it is what must be killing them."""

MAX_FINAL_FAILURES = 3
"""Tries at the last checkpoint."""


class Phase(Enum):
    """Where an attempt is."""

    JOINING = "joining"
    PREPARING = "preparing"
    STARTING = "starting"
    TRAINING = "training"
    STOPPING = "stopping"
    ENDED = "ended"


class Status(Enum):
    """How a run stands, as users see it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"


# -- events of the coordinator's own (the others are workers.messages.Event) -------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Start the attempt's processes."""

    num_workers: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The runtime saw a process end."""

    role: str
    rank: int
    cause: str


@dataclass(frozen=True, slots=True)
class Identified:
    """The run's identity stands and this job agrees with it."""

    prepare: m.Prepare


@dataclass(frozen=True, slots=True)
class BaseChosen:
    """Where to go on from: memory, a checkpoint's directory, or nothing yet."""

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
    """The process was asked to stop."""

    status: Status


@dataclass(frozen=True, slots=True)
class Broken:
    """Something the attempt cannot go on without has failed."""

    error: Exception


Event: TypeAlias = (
    m.Event | Begin | Exited | Identified | BaseChosen | Based | Committed | CommitFailed | Signalled | Broken
)


# -- actions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Start the `generation`-th process of this role and rank."""

    role: str
    rank: int
    generation: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a command to the agent."""

    command: m.Command


@dataclass(frozen=True, slots=True)
class Identify:
    """Create or check the run's identity; answered by Identified or Broken."""

    description: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChooseBase:
    """Find the newest state, leaving out checkpoints found bad; answered by BaseChosen or Broken."""

    found_in_memory: m.Found | None
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

    written: m.CheckpointWritten


@dataclass(frozen=True, slots=True)
class Note:
    """Put into the journal, and tell the user in these words."""

    kind: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


Action: TypeAlias = StartProcess | Tell | Identify | ChooseBase | RecordBase | CommitCheckpoint | Note


@dataclass(frozen=True, slots=True)
class State:
    """One attempt; `phase` ENDED comes with a status, and with the error if it failed."""

    phase: Phase = Phase.JOINING
    status: Status = Status.RUNNING
    error: Exception | None = None
    generations: dict[tuple[str, int], int] = field(default_factory=dict)
    ready: frozenset[tuple[str, int]] = frozenset()
    waiting_restore: m.Restore | None = None
    base: BaseChosen | None = None
    bad: tuple[str, ...] = ()
    found_in_memory: m.Found | None = None
    start_deaths: dict[str, int] = field(default_factory=dict)
    worker_deaths: int = 0
    failures: int = 0
    failed_step: int = -1
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    state_digest: str | None = None


def transition(state: State, event: Event, attempt: int, url: str) -> tuple[State, list[Action]]:
    """What follows from an event. Raises ValueError, changing nothing, if it cannot happen in this phase."""
    if state.phase is Phase.ENDED:
        return state, []
    if state.phase not in _WHEN.get(type(event), tuple(Phase)):
        raise _illegal(state, event)
    match event:
        case Begin(num_workers):
            members = [("agent", 0), ("writer", 0), *(("worker", rank) for rank in range(num_workers))]
            started = replace(state, generations=dict.fromkeys(members, 0))
            return started, [StartProcess(role, rank, 0) for role, rank in members]
        case m.Described(description):
            return state, [Identify(description)]
        case Identified(prepare):
            return replace(state, phase=Phase.PREPARING), [Tell(prepare)]
        case m.Prepared(found, nbytes):
            note = Note(
                "prepared", f"{nbytes / 1e6:.1f} MB of shared memory hold the state", {"nbytes": nbytes}
            )
            return replace(state, found_in_memory=found), [note, ChooseBase(found, state.bad)]
        case BaseChosen():
            return _start(state, event, attempt, url)
        case m.Started(step):
            assert state.base is not None
            return replace(state, step=step), [RecordBase(state.base.base)]
        case m.RestoreFailed(directory, error):
            return _fall_back(state, directory, error)
        case Based(plan):
            return replace(state, phase=Phase.TRAINING), [Tell(m.Train(plan))]
        case m.Ready(role, rank, pid):
            return _ready(state, role, rank, pid)
        case m.Lost(role, rank, pid, ready, step, phase):
            fields = {"role": role, "rank": rank, "pid": pid, "step": step, "phase": phase}
            text = f"{role} {rank} (process {pid}) is gone, in {phase} after step {step}"
            return state, [Note("lost", text, fields)] if ready else []
        case Exited(role, rank, cause):
            return _exited(state, role, rank, cause)
        case m.CheckpointSkipped(step, reason):
            return state, [
                Note("checkpoint-skipped", f"checkpoint of step {step} skipped: {reason}", {"step": step})
            ]
        case m.CheckpointWritten():
            return state, [CommitCheckpoint(event)]
        case m.CheckpointFailed(step, error) | CommitFailed(step, error):
            return _checkpoint_failed(state, step, error)
        case Committed(step, digest):
            text = f"checkpoint of step {step} committed"
            note = Note("checkpoint", text, {"step": step, "state_digest": digest})
            return replace(state, state_digest=digest), [note, Tell(m.Settled(step, True))]
        case m.Evaluated(step, metrics):
            text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            note = Note("evaluated", f"step {step}: {text}", {"step": step, "metrics": metrics})
            return replace(state, metrics=metrics), [note]
        case m.Retried(name, message):
            text = f"{name} raised and is done once more: {message}"
            return state, [Note("retried", text, {"item": name})]
        case m.Finished(step, done):
            if not done and state.phase is not Phase.STOPPING:
                raise _illegal(state, event)  # nobody told it to stop
            status = Status.DONE if done else state.status
            return replace(state, phase=Phase.ENDED, status=status, step=step), []
        case Signalled(status):
            return _signalled(state, status)
        case m.Failed(error) | Broken(error):
            return _failed(state, error), []
        case _:
            assert_never(event)


_AT_WORK = (Phase.TRAINING, Phase.STOPPING)

_WHEN: dict[type, tuple[Phase, ...]] = {
    Begin: (Phase.JOINING,),
    m.Described: (Phase.JOINING,),
    Identified: (Phase.JOINING,),
    m.Prepared: (Phase.PREPARING,),
    BaseChosen: (Phase.PREPARING,),
    m.Started: (Phase.STARTING,),
    m.RestoreFailed: (Phase.STARTING,),
    Based: (Phase.STARTING,),
    m.Retried: (Phase.STARTING, *_AT_WORK),
    m.Evaluated: _AT_WORK,
    m.CheckpointSkipped: _AT_WORK,
    m.CheckpointWritten: _AT_WORK,
    m.CheckpointFailed: _AT_WORK,
    Committed: _AT_WORK,
    CommitFailed: _AT_WORK,
    m.Finished: _AT_WORK,
}
"""In which phases an event can happen; what is not listed can in all of them."""


def _failed(state: State, error: Exception) -> State:
    """The end by an error; who was asked to stop and loses infrastructure or storage has stopped."""
    if state.phase is Phase.STOPPING and isinstance(error, InfrastructureError | StorageError):
        return replace(state, phase=Phase.ENDED, error=error)
    return replace(state, phase=Phase.ENDED, status=Status.FAILED, error=error)


def _illegal(state: State, event: Event) -> ValueError:
    return ValueError(f"{type(event).__name__} cannot happen while {state.phase.value}")


def _start(state: State, chosen: BaseChosen, attempt: int, url: str) -> tuple[State, list[Action]]:
    """Bring the chosen state into the buffers."""
    started = replace(state, phase=Phase.STARTING, base=chosen)
    if chosen.in_memory:
        assert chosen.base is not None
        step = chosen.base.step
        note = Note(
            "resume", f"going on from step {step}, found in shared memory", {"step": step, "from": "memory"}
        )
        return started, [note, Tell(m.Adopt())]
    if chosen.directory is None:
        return started, [Tell(m.Initialise(attempt))]
    assert chosen.base is not None
    step = chosen.base.step
    note = Note(
        "resume", f"going on from the checkpoint of step {step}", {"step": step, "from": chosen.directory}
    )
    restore = m.Restore(attempt, url, chosen.directory)
    if ("writer", 0) in state.ready:
        return started, [note, Tell(restore)]
    return replace(started, waiting_restore=restore), [note]


def _fall_back(state: State, directory: str, error: Exception) -> tuple[State, list[Action]]:
    """A checkpoint could not be read: if it is bad take the one before it, else the storage is to blame."""
    if not isinstance(error, CheckpointError):
        return _failed(state, error), []
    bad = (*state.bad, directory)
    note = Note("fall-back", f"{directory} is bad, falling back: {error}", {"directory": directory})
    return (
        replace(state, phase=Phase.PREPARING, bad=bad),
        [note, ChooseBase(state.found_in_memory, bad, str(error))],
    )


def _ready(state: State, role: str, rank: int, pid: int) -> tuple[State, list[Action]]:
    note = Note("ready", f"{role} {rank} is ready (process {pid})", {"role": role, "rank": rank, "pid": pid})
    ready = state.ready | {(role, rank)}
    state = replace(state, ready=ready, start_deaths={**state.start_deaths, role: 0})
    if role == "worker":
        return state, [note]
    if state.waiting_restore is not None:
        tell = Tell(state.waiting_restore)
        return replace(state, waiting_restore=None), [note, tell]
    return state, [note]


def _exited(state: State, role: str, rank: int, cause: str) -> tuple[State, list[Action]]:
    """A process ended that was not asked to: it is replaced, unless it is the agent."""
    if role == "agent":
        return _failed(state, InfrastructureError(f"the agent ended: {cause}")), []
    generation = state.generations[role, rank] + 1
    deaths = state.start_deaths.get(role, 0) + ((role, rank) not in state.ready)
    if deaths >= MAX_START_DEATHS * sum(other == role for other, _ in state.generations):
        return _failed(state, _cannot_start(role, deaths, cause)), []
    changed = replace(
        state,
        generations={**state.generations, (role, rank): generation},
        ready=state.ready - {(role, rank)},
        start_deaths={**state.start_deaths, role: deaths},
        worker_deaths=state.worker_deaths + (role == "worker"),
    )
    note = Note("replaced", f"{role} {rank} ended ({cause}) and is replaced", {"role": role, "rank": rank})
    return changed, [note, StartProcess(role, rank, generation)]


def _cannot_start(role: str, deaths: int, cause: str) -> HoldfastError:
    if role == "writer":
        return InfrastructureError(f"the writer died {deaths} times in a row before it was ready: {cause}")
    return UserCodeError(
        f"workers die while they load the job, {deaths} times in a row (the last: {cause}): look at the "
        "model and data functions, and at the memory that they need"
    )


def _checkpoint_failed(state: State, step: int, error: Exception) -> tuple[State, list[Action]]:
    note = Note("checkpoint-failed", f"checkpoint of step {step} given up: {error}", {"step": step})
    # Only the last checkpoint is tried again, so failures of one step are failures of that one.
    failures = state.failures + 1 if step == state.failed_step else 1
    final = isinstance(error, HoldfastError) and error.exit_code in (2, 4)  # no permission, superseded
    if final or failures >= MAX_FINAL_FAILURES:
        return _failed(state, error), [note]
    return replace(state, failures=failures, failed_step=step), [note, Tell(m.Settled(step, False))]


def _signalled(state: State, status: Status) -> tuple[State, list[Action]]:
    """Stop with a checkpoint if training has begun; a second Ctrl-C does not wait for it."""
    if state.phase is Phase.TRAINING:
        stopping = replace(state, phase=Phase.STOPPING, status=status)
        note = Note("stopping", f"{status.value}: stopping at the next step, with a checkpoint", {})
        return stopping, [note, Tell(m.Stop(checkpoint=True))]
    if state.phase is Phase.STOPPING and status is Status.PREEMPTED:
        return state, []  # one notice is enough
    return replace(state, phase=Phase.ENDED, status=status), []
