"""The evaluation of validation data: when it is due, and what its batches add up to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.reports import results
from workers.schedule import combine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine import Sums
    from workers.reports import Report


class Validation:
    """The batches of the validation data, cut as the training batch is, and the last result."""

    def __init__(self, description: Mapping[str, Any], batch_size: int) -> None:
        self.num_batches = -(-description["validation_samples"] // batch_size)
        self._reports: list[Report] = description["metrics"]
        self._sums: dict[int, Sums] = {}
        self._step = -1
        self._metrics: dict[str, float] = {}
        self._is_told = True

    def due(self, step: int, every: int | None, *, last: bool) -> bool:
        """Whether the state of this step is to be evaluated now."""
        if not self.num_batches or self.is_done(step):
            return False
        return last or self.falls_on(step, every)

    def falls_on(self, step: int, every: int | None) -> bool:
        """Whether every so many steps fall on this one, and there is anything to evaluate."""
        return bool(self.num_batches) and every is not None and step > 0 and step % every == 0

    def is_done(self, step: int) -> bool:
        """Whether the state of this step was evaluated."""
        return step == self._step

    def collect(self, batch: int, sums: Sums) -> None:
        """Keep a batch's sums."""
        self._sums[batch] = sums

    def give_up(self) -> None:
        """Not all batches will be there."""
        self._sums = {}

    def finish(self, step: int) -> None:
        """All batches are there: their sums, added along the tree, as `val_` metrics."""
        leaves = {(0, batch): sums for batch, sums in self._sums.items()}
        self._metrics = results(self._reports, combine(leaves, len(leaves), np.add), "val_")
        self._step, self._sums, self._is_told = step, {}, False

    def to_tell(self, step: int) -> dict[str, float] | None:
        """The result, once, if it is of this step."""
        if self._is_told or step != self._step:
            return None
        self._is_told = True
        return self._metrics

    def metrics_of(self, step: int) -> dict[str, float]:
        """The result, if it is of this step."""
        return self._metrics if step == self._step else {}
