"""What supervisor and submitter of a run say and hear in its directory while they wait to start it again.

`requests/relaunch.json`. Between two attempts there is nobody else who could be asked for anything, and Ray
knows only of a job that runs.
"""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator.life import lives, own_life
from storage.errors import HoldfastError, RunAlive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from storage.run_directory import RunDirectory

RELAUNCH, STOP = "relaunch", "stop"
LOOK_S = 1.0
"""Seconds between two looks for a request to stop."""

BEGIN_S = 120.0
"""Seconds that an attempt may take to begin, once it was due."""


class Relaunches:
    """The side of who starts a run again and again; begins to hear of requests to stop when it is made."""

    def __init__(self, run: RunDirectory, most: int) -> None:
        self._run = run
        self._most = most
        self._announced = 0
        self._own = ""  # what names the last announcement
        self._known = self._asked()

    def wait(self, delay_s: float, cause: str, ends: Callable[[], bool] = bool) -> bool:
        """Say that the run is started again after so many seconds, and wait; False if it is to be stopped.

        It is, too, when `ends`, asked each second, says so.
        """
        self._announced += 1
        waiting = {"until": round(time.time() + delay_s, 3), "number": self._announced, "cause": cause}
        with suppress(HoldfastError):
            self._own = announce(self._run, waiting, self._most)
        until = time.monotonic() + delay_s
        while not ends() and not self.is_stopped():
            if (left_s := until - time.monotonic()) <= 0:
                return True
            time.sleep(min(LOOK_S, left_s))
        return False

    def is_stopped(self) -> bool:
        """Whether a stop was asked for. A storage that does not answer is no request."""
        asked = self._asked()
        if self._known is None:
            self._known = asked  # what was asked for before cannot be told from what is asked for now
        return bool(asked) and asked != self._known

    def end(self) -> None:
        """Nothing is waited for any more; what others have announced since stands."""
        with suppress(HoldfastError):
            if self._own and (self._run.requested(RELAUNCH) or {}).get("nonce") == self._own:
                withdraw(self._run)

    def _asked(self) -> str | None:
        """What names the last request to stop, "" if there is none; None where the storage fails."""
        with suppress(HoldfastError):
            request = self._run.requested(STOP)
            return "" if request is None else str(request["nonce"])
        return None


def announce(run: RunDirectory, waiting: Mapping[str, Any], most: int) -> str:
    """Say that the attempt after the newest one is due: `until` when, by what `cause`, and its `number`."""
    return run.request(
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


def check_not_awaited(run: RunDirectory, shown: str) -> None:
    """Raise RunAlive, which calls the run as it is `shown`, if somebody is about to start it again."""
    if awaited(run) is not None:
        raise RunAlive(
            f"{shown} is about to be started again: stop it first with `holdfast stop {shlex.quote(shown)}`"
        )
