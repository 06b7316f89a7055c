"""Asking a run that is at work for another number of workers, by way of its directory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from orchestrator.events import Scaled
from orchestrator.life import lives
from orchestrator.spec import check_workers
from storage.errors import ConfigurationError, InfrastructureError

if TYPE_CHECKING:
    from storage.run_directory import RunDirectory

NAME = "scale"
ANSWER_S = 30.0
"""Seconds that a coordinator has to say that it has read a request."""


class Requests:
    """The coordinator's side: what was asked for since the attempt began."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._last = self._nonce()

    def new(self) -> tuple[Scaled, str] | None:
        """What is asked for now that was not before, and what names it; None if nothing is."""
        request = self._run.requested(NAME)
        if request is None or request["nonce"] == self._last:
            return None
        self._last = request["nonce"]
        least, most = request.get("least"), request.get("most")
        if type(least) is not int or type(most) is not int or not 1 <= least <= most:
            return None
        return Scaled(least, most), request["nonce"]

    def _nonce(self) -> str | None:
        request = self._run.requested(NAME)
        return None if request is None else request["nonce"]


def scale(run: RunDirectory, least: int, most: int) -> None:
    """Ask for between `least` and `most` workers; returns when the run's coordinator has read it.

    Raises ConfigurationError if the run is not at work or cannot use so many, InfrastructureError if nobody
    answers.
    """
    identity, beat = run.identity(), run.newest_beat()
    url = run.store.url
    if identity is None or beat is None or beat["closed"] or lives(beat) is False:
        raise ConfigurationError(f"{url} is not being trained: start it with --workers {most}")
    for count in (least, most):
        check_workers(count, identity["microbatches"])
    if least > most:
        raise ConfigurationError(f"between {least} and {most} workers: give the lower number first")
    nonce = run.request(NAME, {"least": least, "most": most})
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        newest = run.newest_beat() or beat
        if newest.get("scaled") == nonce:
            return
        if newest["closed"]:
            raise ConfigurationError(f"{url} ended before it could be given {most} workers")
        time.sleep(0.2)
    raise InfrastructureError(
        f"nobody has answered at {url} within {ANSWER_S:.0f} s: the request stays, and is read when its "
        "coordinator is well again"
    )
