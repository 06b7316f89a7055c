"""What the supervisor of a submitted run says, in the run directory, while it waits to start the run again.

`requests/relaunch.json`. Between two attempts there is nobody else who could be asked for anything, and Ray
knows only of a job that runs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from orchestrator.life import lives, own_life

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.run_directory import RunDirectory

RELAUNCH = "relaunch"
BEGIN_S = 120.0
"""Seconds that an attempt may take to begin, once it was due."""


def announce(run: RunDirectory, waiting: Mapping[str, Any], most: int) -> None:
    """Say that the attempt after the newest one is due: `until` when, by what `cause`, and its `number`."""
    run.request(
        RELAUNCH, {**own_life(), "after": run.newest_attempt(), "waiting": dict(waiting), "most": most}
    )


def withdraw(run: RunDirectory) -> None:
    """Say that no attempt is due any more."""
    run.request(RELAUNCH, {})


def awaited(run: RunDirectory) -> dict[str, Any] | None:
    """What was announced, if it is still to come; None if nothing is, or nobody can make it come."""
    said = run.requested(RELAUNCH) or {}
    waiting = said.get("waiting")
    until = waiting.get("until") if isinstance(waiting, dict) else None
    if not isinstance(until, int | float) or time.time() > until + BEGIN_S:
        return None
    try:
        is_dead = lives(said) is False
    except (KeyError, TypeError, ValueError):
        return None
    return None if is_dead or said.get("after") != run.newest_attempt() else said
