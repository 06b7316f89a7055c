"""Which of the checkpoints of one name are kept: the last few, and one in so many hours. Pure.

Source: TensorFlow's `CheckpointManager` and `Saver`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Rule:
    """What is kept: the newest `max_to_keep` (None: all), and one in `every_hours`, for good."""

    max_to_keep: int | None
    every_hours: float | None = None

    def __post_init__(self) -> None:
        count, hours = self.max_to_keep, self.every_hours
        if count is not None and (type(count) is not int or count < 1):
            raise ConfigurationError(f"max_to_keep={count!r}: give a whole number from 1, or None for all")
        if hours is not None and (isinstance(hours, bool) or not hours > 0):
            raise ConfigurationError(
                f"keep_checkpoint_every_n_hours={hours!r}: give a number above 0, or None"
            )


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that may be deleted later, and when it was saved, in Unix seconds."""

    path: str
    at: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays in the list, what is deleted, and when the last one that is preserved for good was saved."""

    kept: tuple[Saved, ...]
    deleted: tuple[str, ...]
    preserved_at: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values, by names: the directory may be moved."""
        return {
            "names": [_name(each.path) for each in self.kept],
            "deleted": [_name(path) for path in self.deleted],
            "preserved_at": self.preserved_at,
        }


def plan(rule: Rule, kept: Sequence[Saved], preserved_at: float) -> Plan:
    """What becomes of the saved ones, in the order in which they were saved, as the rule has it.

    One that leaves the newest is preserved if it was saved at least `every_hours` after the last such one (at
    first: after the manager was made); it is no longer in the list then.
    """
    staying, deleted = list(kept), []
    while rule.max_to_keep is not None and len(staying) > rule.max_to_keep:
        oldest = staying.pop(0)
        if rule.every_hours is not None and oldest.at - rule.every_hours * 3600 >= preserved_at:
            preserved_at = oldest.at
        else:
            deleted.append(oldest.path)
    return Plan(tuple(staying), tuple(deleted), preserved_at)


def with_saved(kept: Sequence[Saved], saved: Saved) -> list[Saved]:
    """The list with one that was saved just now, at its end."""
    return [*(each for each in kept if each.path != saved.path), saved]


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
