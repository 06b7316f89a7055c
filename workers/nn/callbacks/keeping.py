"""Which of the saves of a `ModelCheckpoint` are kept. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Saved:
    """One that may be deleted later, when it was saved, in Unix seconds, and its metric; NaN without one."""

    path: str
    at: float
    value: float = math.nan


@dataclass(frozen=True, slots=True)
class Rule:
    """The newest `max_to_keep` stay and the `best` ones; with neither, all. One reason is enough.

    Of those that would go, one in `every_hours` stays for good.
    """

    max_to_keep: int | None = None
    best: int | None = None
    every_hours: float | None = None
    higher: bool = False
    """Whether a higher value is better."""

    def __post_init__(self) -> None:
        for name in ("max_to_keep", "best"):
            count = getattr(self, name)
            if count is not None and (type(count) is not int or count < 1):
                raise ConfigurationError(
                    f"ModelCheckpoint: {name}={count!r}: give a whole number from 1, or None"
                )
        hours = self.every_hours
        if hours is not None and (isinstance(hours, bool | str) or not hours > 0):
            raise ConfigurationError(
                f"ModelCheckpoint: keep_every_n_hours={hours!r}: give a number above 0, or None"
            )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stays in the list, what is to be deleted, when the last one that stays for good was saved."""

    kept: tuple[Saved, ...]
    deleted: tuple[str, ...]
    preserved_at: float


def judge(rule: Rule, saved: Sequence[Saved], preserved_at: float) -> Verdict:
    """What becomes of the saved ones, in the order in which they were saved."""
    if rule.max_to_keep is None and rule.best is None:
        return Verdict(tuple(saved), (), preserved_at)
    staying = {each.path for each in saved[-rule.max_to_keep :]} if rule.max_to_keep else set()
    staying |= {each.path for each in ranked(rule, saved)[: rule.best or 0]}
    deleted = []
    for each in saved:
        if each.path in staying:
            continue
        if rule.every_hours is not None and each.at - rule.every_hours * 3600 >= preserved_at:
            preserved_at = each.at
        else:
            deleted.append(each.path)
    return Verdict(tuple(each for each in saved if each.path in staying), tuple(deleted), preserved_at)


def ranked(rule: Rule, saved: Sequence[Saved]) -> list[Saved]:
    """Those with a value, the best first; of equals the earlier."""
    sign = -1.0 if rule.higher else 1.0
    return sorted((each for each in saved if not math.isnan(each.value)), key=lambda each: sign * each.value)


def is_wanted(rule: Rule, saved: Sequence[Saved], new: Saved) -> bool:
    """Whether one that is about to be saved would stay."""
    others = [each for each in saved if each.path != new.path]
    return any(each.path == new.path for each in judge(rule, [*others, new], math.inf).kept)
