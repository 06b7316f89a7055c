"""Which of a run's checkpoints are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from storage.catalog import Entry


_MAX_HOURS = 1e9  # well below what a timedelta holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What keeps a checkpoint; one reason is enough. With no rule at all, everything is kept.

    The latest valid one, the last verified one, what the newest attempt started from and pinned ones stay in
    any case. `keep_every_hours` is tf.train.CheckpointManager's keep_checkpoint_every_n_hours.
    """

    keep: int | None = 3
    """The newest so many. None: all."""

    keep_every_steps: int | None = None
    """Those whose step is a multiple of it."""

    keep_every_hours: float | None = None
    """The oldest, and each that was committed so much later than the last one kept by this rule."""

    keep_best: int | None = None
    """The best so many by `best_metric`; those without it, or with NaN, are not among them."""

    best_metric: str = "loss"
    best_mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name in ("keep", "keep_every_steps", "keep_best"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigurationError(f"{name}={value!r}: give a whole number from 1, or None")
        hours = self.keep_every_hours
        number = isinstance(hours, int | float) and not isinstance(hours, bool)
        if hours is not None and not (number and 0 < hours <= _MAX_HOURS):
            raise ConfigurationError(
                f"keep_every_hours={hours!r}: give a number above 0, at most {_MAX_HOURS:.0f}, or None"
            )
        if not isinstance(self.best_metric, str) or not self.best_metric:
            raise ConfigurationError(f"best_metric={self.best_metric!r}: give the name of a metric")
        if self.best_mode not in ("min", "max"):
            raise ConfigurationError(f'best_mode={self.best_mode!r}: give "min" or "max"')


def to_delete(entries: Sequence[Entry], retention: Retention, protected: Collection[str] = ()) -> list[Entry]:
    """The valid complete entries that no rule keeps, oldest first; the latest and the protected stay."""
    good = sorted((e for e in entries if e.status in ("complete", "latest")), key=lambda e: e.order)
    if retention.keep is None or not good:
        return []
    kept = {e.directory for e in good[-retention.keep :]} | {*protected}
    if every := retention.keep_every_steps:
        kept |= {e.directory for e in good if e.step % every == 0}
    if hours := retention.keep_every_hours:
        kept |= _spaced(good, timedelta(hours=hours))
    if best := retention.keep_best:
        kept |= _best(good, best, retention.best_metric, retention.best_mode)
    return [e for e in good if e.directory not in kept]


def _spaced(entries: Sequence[Entry], distance: timedelta) -> set[str]:
    """The first entry, and each that is `distance` later than the last one taken."""
    found: set[str] = set()
    last: datetime | None = None
    for entry in entries:
        at = _created(entry)
        if at is not None and (last is None or at - last >= distance):
            found.add(entry.directory)
            last = at
    return found


def _created(entry: Entry) -> datetime | None:
    try:
        at = datetime.fromisoformat(entry.manifest.created_at if entry.manifest else "")
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _best(entries: Sequence[Entry], count: int, metric: str, mode: str) -> set[str]:
    sign = 1 if mode == "min" else -1
    scored = []
    for entry in entries:
        value = entry.manifest.metrics.get(metric) if entry.manifest else None
        if value is not None and not math.isnan(value):
            scored.append((sign * value, entry.order, entry.directory))
    return {directory for _, _, directory in sorted(scored)[:count]}
