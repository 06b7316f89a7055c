"""Asking a run that is at work for something, by way of its directory: other workers, or its end."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator.events import Scaled, Signalled, Status
from orchestrator.life import SIGN_OF_LIFE_S, lives, supervisor_of
from orchestrator.relaunch import STOP, awaited
from orchestrator.spec import check_range, check_workers
from storage.errors import ConfigurationError, InfrastructureError
from storage.manifest import Base
from workers.processes import ProcessId, is_alive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.events import Event
    from storage.run_directory import RunDirectory

SCALE = "scale"
ANSWER_S = 30.0
"""Seconds that a coordinator has to say that it has read a request."""

LOOK_S = 0.2


class Requests:
    """The coordinator's side: what was asked for since this was made."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._last = {name: self._nonce(run.requested(name)) for name in (SCALE, STOP)}

    def new(self) -> list[tuple[str, str, list[Event]]]:
        """What is asked for now that was not before: its name, its nonce, and what it makes happen."""
        found = []
        for name, events_of in ((SCALE, _scaled), (STOP, _stopped)):
            request = self._run.requested(name)
            if request is None or request["nonce"] == self._last[name]:
                continue
            self._last[name] = request["nonce"]
            if events := events_of(request):
                found.append((name, request["nonce"], events))
        return found

    @staticmethod
    def _nonce(request: Mapping[str, Any] | None) -> str | None:
        return None if request is None else request["nonce"]


def _scaled(request: Mapping[str, Any]) -> list[Event]:
    least, most = request.get("least"), request.get("most")
    if type(least) is not int or type(most) is not int or not 1 <= least <= most:
        return []
    return [Scaled(least, most)]


def _stopped(request: Mapping[str, Any]) -> list[Event]:
    """As Ctrl-C, which without a checkpoint is said twice."""
    if request.get("checkpoint") is True:
        return [Signalled(Status.INTERRUPTED)]
    return [Signalled(Status.INTERRUPTED, 0.0), Signalled(Status.INTERRUPTED)]


def scale(run: RunDirectory, least: int, most: int) -> None:
    """Ask for between `least` and `most` workers; returns when the run's coordinator has read it.

    Raises ConfigurationError if the run is not at work or cannot use so many, InfrastructureError if nobody
    answers.
    """
    identity, beat = run.identity(), run.newest_beat()
    url = run.store.url
    if identity is None or not is_at_work(beat):
        raise ConfigurationError(f"{url} is not being trained: start it with --workers {most}")
    check_range(least, most)
    check_workers(most, identity["microbatches"])
    nonce = run.request(SCALE, {"least": least, "most": most})
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        newest = run.newest_beat() or {}
        if newest.get("granted", {}).get(SCALE) == nonce:
            return
        if newest.get("closed"):
            raise ConfigurationError(f"{url} ended before it could be given {most} workers")
        time.sleep(LOOK_S)
    raise InfrastructureError(
        f"nobody has answered at {url} within {ANSWER_S:.0f} s: the request stays, and is read when its "
        "coordinator is well again"
    )


def is_at_work(beat: Mapping[str, Any] | None) -> bool:
    """Whether the coordinator that gave this sign of life has not ended, as far as this machine can tell."""
    return beat is not None and not beat["closed"] and lives(beat) is not False


def stop(run: RunDirectory, *, checkpoint: bool, timeout_s: float) -> bool:
    """Have a run stop, and wait for its end; False if it is not at work, nor about to be started again.

    Without a checkpoint a coordinator of this machine that does not answer in time is killed, and with it all
    that it has started. Raises InfrastructureError if the run has not ended then, or a coordinator of another
    machine seems to be gone.
    """
    deadline = time.monotonic() + timeout_s
    asked = None  # the newest attempt when the run was asked
    while True:
        if awaited(run) is not None:
            if asked is None:  # its supervisor reads it
                run.request(STOP, {"checkpoint": checkpoint})
                asked = run.newest_attempt()
            elif time.monotonic() > deadline:
                raise _goes_on(run, timeout_s)
        elif asked is not None and asked == run.newest_attempt():
            return True
        elif (beat := run.newest_beat()) is not None and is_at_work(beat):
            _stop(run, beat, checkpoint=checkpoint, timeout_s=timeout_s, until=deadline)
            asked = run.newest_attempt()
        else:
            if asked is None and beat is not None and not beat["closed"]:
                run.request(STOP, {"checkpoint": checkpoint})  # its submitter may wait for the cluster
            return asked is not None
        time.sleep(LOOK_S)


def _stop(
    run: RunDirectory, beat: Mapping[str, Any], *, checkpoint: bool, timeout_s: float, until: float
) -> None:
    run.request(STOP, {"checkpoint": checkpoint})
    if _has_ended(run, until - time.monotonic()):
        return
    newest = run.newest_beat() or beat
    if not checkpoint and lives(newest):
        _kill(newest)
        if _has_ended(run, timeout_s):
            return
    raise _goes_on(run, timeout_s)


def _goes_on(run: RunDirectory, timeout_s: float) -> InfrastructureError:
    return InfrastructureError(
        f"{run.store.url} has not ended within {timeout_s:g} s: the request stays, and is read when its "
        "coordinator is well again; look at it with `holdfast status`"
    )


def _has_ended(run: RunDirectory, timeout_s: float) -> bool:
    since = time.monotonic()
    deadline, heard = since + timeout_s, None
    while time.monotonic() < deadline:
        beat = run.newest_beat()
        if beat is None or not is_at_work(beat):
            return True
        if (sign := (beat.get("attempt"), beat.get("counter"))) != heard:
            since, heard = time.monotonic(), sign
        elif lives(beat) is None and time.monotonic() - since > SIGN_OF_LIFE_S:
            raise _is_silent(beat, run.store.url)
        time.sleep(LOOK_S)
    return False


def _is_silent(beat: Mapping[str, Any], url: str) -> InfrastructureError:
    return InfrastructureError(
        f"process {beat['pid']} on {beat['host']}, which trains {url}, has given no sign of life for "
        f"{SIGN_OF_LIFE_S:.0f} s: if it is gone, nothing is left to stop; else it reads the request when it "
        "is well again"
    )


def _kill(beat: Mapping[str, Any]) -> None:
    """Kill a coordinator of this machine, and before it who would start another one."""
    for process in (supervisor_of(beat), ProcessId(beat["pid"], beat["started"])):
        if process is not None and is_alive(process):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def rewind(run: RunDirectory, step: int) -> None:
    """Have a run that is not at work go on from its checkpoint of this step; what came after does not count.

    Raises ConfigurationError, naming the steps that there are, if there is none of it.
    """
    entries = [*run.candidates()]
    entry = next((each for each in entries if each.step == step), None)
    if entry is None:
        there = ", ".join(str(each.step) for each in reversed(entries)) or "none"
        raise ConfigurationError(f"{run.store.url} has no checkpoint of step {step}: there are {there}")
    run.record_base(run.claim_attempt(), Base(step=entry.step, attempt=entry.attempt))
