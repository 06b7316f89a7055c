"""How a run stands, as its caller is told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a run stands: what `holdfast run --json` and `holdfast status --json` print."""

    run_dir: str
    """URL of the run directory."""

    status: str
    """done, failed, preempted, interrupted or running."""

    error: str | None = None
    """Why it failed, in words."""

    step: int = 0
    """The last committed step."""

    attempt: int = 0
    """Number of the attempt that got there."""

    loss: float | None = None
    """Mean training loss of the last step."""

    metrics: dict[str, float] = field(default_factory=dict)
    """The other metrics of the last step, and with validation data val_loss, val_accuracy, ..."""

    state_digest: str | None = None
    """Digest of the last checkpoint's state: equal for two runs if and only if every bit is."""

    digest_step: int | None = None
    """The step of that checkpoint: training may have come further."""

    restarts: int = 0
    """How often the job went on after it had ended early, over the whole run."""

    worker_deaths: int = 0
    """Workers that died and were replaced, over the whole run."""

    steps_lost: int = 0
    """Steps that had been committed and were trained again, over the whole run."""

    steps_per_s: float | None = None
    """Committed steps per second of training, of the last attempt."""

    failure: str | None = None
    """The class of the error that ended it: infrastructure, user error, data error, ..."""

    silent_s: float | None = None
    """Seconds since its last sign of life, where it runs on another machine and has been silent for long."""

    next: str | None = None
    """What happens next, or what to do, in words."""

    restarts_left: int | None = None
    """Restarts after failures of the infrastructure that are in hand."""

    goodput: float | None = None
    """Steps per second over the whole time, divided by those while nothing disturbs the run."""

    disturbances: list[dict[str, Any]] = field(default_factory=list)
    """What has happened to the run, the last so many: class, cause, and what it cost."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values; numbers that are not finite become null."""
        value = asdict(self)
        value["loss"] = finite(self.loss)
        value["goodput"] = None if self.goodput is None else round(self.goodput, 4)
        value["metrics"] = {name: finite(number) for name, number in self.metrics.items()}
        return value


def finite(number: float | None) -> float | None:
    """The number, or None if JSON has no word for it."""
    return number if number is not None and math.isfinite(number) else None
