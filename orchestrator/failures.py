"""Which class a failure or an event is of, and what a person can do about it. Pure.

What each class costs, and what is done about it, stands in PROTOCOL.md, "Failure classes".
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from orchestrator.events import Draining, Exited, Heard, NodeLost, Signalled
from storage.errors import (
    CheckpointError,
    ConfigurationError,
    CrashLoop,
    DataError,
    DivergenceError,
    InfrastructureError,
    RunAlive,
    StorageError,
    Superseded,
    UserCodeError,
)
from workers import messages as m

if TYPE_CHECKING:
    from orchestrator.events import Event


class Kind(Enum):
    """The class of a failure, in words."""

    PREEMPTION = "preemption"
    WORKER_DEATH = "worker death"
    INFRASTRUCTURE = "infrastructure"
    USER_ERROR = "user error"
    DATA_ERROR = "data error"
    DIVERGENCE = "divergence"
    CONFIGURATION = "configuration"
    DAMAGE = "damaged checkpoints"
    SUPERSEDED = "superseded"
    INTERNAL = "internal error"


_ERRORS: tuple[tuple[type[BaseException], Kind], ...] = (
    (ConfigurationError, Kind.CONFIGURATION),
    (StorageError, Kind.INFRASTRUCTURE),
    (InfrastructureError, Kind.INFRASTRUCTURE),
    (CrashLoop, Kind.INFRASTRUCTURE),
    (UserCodeError, Kind.USER_ERROR),
    (DataError, Kind.DATA_ERROR),
    (DivergenceError, Kind.DIVERGENCE),
    (CheckpointError, Kind.DAMAGE),
    (Superseded, Kind.SUPERSEDED),
    (RunAlive, Kind.SUPERSEDED),
)

GONE = "it is gone"
"""The cause of an end of which nobody knows more yet."""

_AGAIN = "run the same command again to go on"

_REMEDIES = {
    Kind.PREEMPTION: _AGAIN,
    Kind.WORKER_DEATH: _AGAIN,
    Kind.INFRASTRUCTURE: _AGAIN,
    Kind.USER_ERROR: "mend the job, then run the same command again to go on",
    Kind.DATA_ERROR: 'mend the data or give the job on_data_error="skip", then run the same command again',
    Kind.DIVERGENCE: "change the job, such as its learning rate, then run the same command again, or go on "
    "from an earlier checkpoint with `holdfast resume --step N`",
    Kind.CONFIGURATION: "change what the error names, then run the command again",
    Kind.DAMAGE: "look at the checkpoints with `holdfast ckpt verify --all`, then run the same command again",
    Kind.SUPERSEDED: "nothing: another attempt carries the run on",
    Kind.INTERNAL: "report this as a bug of Holdfast; running the same command again goes on",
}


def classify(error: BaseException) -> Kind:
    """The class of an exception; what nobody raises on purpose is an internal error."""
    for kind, name in _ERRORS:
        if isinstance(error, kind):
            return name
    return Kind.INTERNAL


def classify_event(event: Event) -> Kind | None:
    """The class of what happened to an attempt; None where nothing failed."""
    match event:
        case Signalled() | Draining() | Heard(_, m.Noticed()):
            return Kind.PREEMPTION
        case Exited(_, "worker") | Heard(_, m.Lost("worker")):
            return Kind.WORKER_DEATH
        case NodeLost() | Exited() | Heard(_, m.Lost()):
            return Kind.INFRASTRUCTURE
        case Heard(_, m.Retried()):
            return Kind.USER_ERROR
        case Heard(_, m.Unreadable()):
            return Kind.DATA_ERROR
        case Heard(_, m.Failed(error)):
            return classify(error)
    return None


def can_restart(error: BaseException) -> bool:
    """Whether starting the job again can help against a failure."""
    return classify(error) is Kind.INFRASTRUCTURE and not isinstance(error, CrashLoop)


def remedy(kind: Kind) -> str:
    """What a person can do about a run that ended by a failure of this class."""
    return _REMEDIES[kind]


def in_short(error: BaseException) -> str:
    """What an error says, in one line; of a traceback that is the last one."""
    return last_line(str(error)) or type(error).__name__


def last_line(text: str) -> str:
    """Of a traceback what went wrong."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def died(cause: str) -> str:
    """How a process ended, as the end of a sentence about it."""
    if cause.startswith("killed by "):
        return f"was {cause}"
    if cause.startswith("it did not "):  # and was superseded
        return f"{cause.removeprefix('it ')} and was killed"
    return f"ended ({cause})" if cause and cause != GONE else "is gone"
