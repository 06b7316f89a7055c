"""Where a `fit` stands, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.engine import Sums
    from workers.nn.callbacks import CallbackList
    from workers.nn.feeding import Feed
    from workers.nn.model import Model


@dataclass(slots=True)
class Position:
    """A place between two batches, or two epochs."""

    epoch: int
    """From 0: the one that has begun, or is about to."""
    is_between_epochs: bool = True
    batch: int = 0
    """How many of the epoch's batches are done."""
    first_step: int = 0
    """The optimizer's step when the epoch began."""
    batches: int = 0
    """How many were taken from the data in all."""
    sums: Sums | None = None
    """Of the metrics, over the epoch so far."""
    logs: dict[str, float] = field(default_factory=dict)
    """The metrics that were told last."""

    def begin_epoch(self, step: int) -> None:
        """In place. The epoch has begun."""
        self.is_between_epochs, self.batch, self.first_step = False, 0, step
        self.sums, self.logs = None, {}

    def add(self, sums: Sums) -> Sums:
        """In place. Take in what a batch has added to the metrics; gives the sums of the epoch."""
        self.sums = sums if self.sums is None else self.sums + sums
        return self.sums

    def end_batch(self, logs: dict[str, float]) -> None:
        """In place. A batch is done."""
        self.batch += 1
        self.batches += 1
        self.logs = logs

    def end_epoch(self, logs: dict[str, float]) -> None:
        """In place. The epoch is over, with validation."""
        self.epoch += 1
        self.is_between_epochs, self.batch, self.sums, self.logs = True, 0, None, logs


@dataclass(frozen=True, slots=True)
class Fit:
    """A training that is going on."""

    model: Model
    told: CallbackList
    feed: Feed
    position: Position
    seed: int | None
    """The one that `fit` was given, if it was."""
