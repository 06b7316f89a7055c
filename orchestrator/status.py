"""How a run stands, read from its directory alone."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.failures import Kind, remedy
from orchestrator.history import pace_of, read_ledger
from orchestrator.identity import check_is_training
from orchestrator.ledger import between
from orchestrator.life import check_beat, is_succeeded, lives
from orchestrator.relaunch import awaited
from orchestrator.result import Result
from orchestrator.submission import is_address
from orchestrator.terminal import duration
from storage.errors import ConfigurationError
from storage.run_directory import RunDirectory
from storage.store import open_store
from storage.strict_json import unspelled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.ledger import Ledger, Pace
    from orchestrator.ray_jobs import JobServer
    from storage.catalog import Entry

KILLED = "it was killed, with its coordinator, or could not write of its end"
SILENT_S = 60.0
"""Seconds without a sign of life that are worth a word; the clocks of two machines may differ by less."""

SHOWN = 10
"""Disturbances that a person is shown."""


def open_run(url: str, *, insecure: bool = False) -> RunDirectory:
    """The run at a URL, or submitted to the Ray cluster at `http://HOST:PORT[#NAME]`.

    `insecure` is as of `check_address`. Raises ConfigurationError if there is none.
    """
    return locate_run(url, insecure=insecure)[0]


def locate_run(url: str, *, insecure: bool = False) -> tuple[RunDirectory, JobServer | None]:
    """As `open_run`, and the job server that the run was found by, if it was."""
    server = None
    if is_address(url):
        from orchestrator.ray_jobs import find_submitted

        server, url = find_submitted(url, insecure=insecure)
    run = RunDirectory(open_store(url))
    if run.identity() is None and run.newest_beat() is None:
        if server is not None and (job := server.living(url)) is not None:
            raise ConfigurationError(f"{url} has not begun yet: its job {job.id} is {job.status}")
        raise ConfigurationError(f"there is no run at {run.store.url}: give the --run-dir of one")
    return run, server


def read_status(run: RunDirectory) -> tuple[Result, dict[str, Any]]:
    """How the run stands, and the last sign of life that says so ({} if there was none).

    A run whose coordinator is known to have died without a word, and that has nobody who starts another one,
    has failed. One that a supervisor is about to start again is running; one on another host is taken to be
    running until its coordinator says otherwise, and `silent_s` tells for how long it has said nothing.
    """
    beat = run.newest_beat()
    latest = run.latest()
    manifest = latest.manifest if latest is not None else None
    if beat is None:
        if (identity := run.identity()) is not None:  # it may be one of `storage.save`
            check_is_training(identity, run.store.url)
        return _never_started(run.store.url, latest), {}
    check_beat(beat, run.store.url)
    ledger, _ = read_ledger(run, beat)
    status, error, failure = beat["status"], beat["error"], beat.get("class")
    alive = True if beat["closed"] else lives(beat)  # None: nobody here can tell
    dead = alive is False
    succeeded = dead and is_succeeded(beat)
    if dead and not succeeded:
        status, error, failure = "failed", KILLED, Kind.INFRASTRUCTURE.value
    restart = awaited(run) if alive is None or status in ("failed", "preempted") else None
    if restart is not None:
        status, error = "running", None
    step, metrics = beat["step"], unspelled(beat["metrics"])
    if latest is not None and manifest is not None and latest.step > step:
        step, metrics = latest.step, dict(manifest.metrics)  # newer than the last sign of life
    left = beat.get("restarts_left")
    result = Result(
        run_dir=run.store.url,
        status=status,
        error=error,
        step=step,
        attempt=beat["attempt"],
        loss=metrics.pop("loss", None),
        metrics=metrics,
        state_digest=manifest.state_digest if manifest is not None else None,
        digest_step=latest.step if latest is not None else None,
        steps_per_s=beat["steps_per_s"],
        failure=failure if isinstance(failure, str) and status == "failed" else None,
        restarts_left=left if type(left) is int else None,
    )
    told = add_history(result, ledger, pace_of(beat))
    if status == "running":
        if restart is not None:
            return replace(told, next=_waits(restart["waiting"], restart.get("most"))), beat
        silent_s = between(beat.get("time", ""), datetime.now(UTC).isoformat()) if alive is None else None
        if silent_s is not None and silent_s > SILENT_S:
            silent_s = silent_s // SILENT_S * SILENT_S  # who watches is not told each second
            return replace(told, silent_s=silent_s, next=_is_silent(beat, silent_s)), beat
        told = replace(told, next=_what_runs(beat, succeeded=succeeded))
    return told, beat


def _never_started(url: str, latest: Entry | None) -> Result:
    """A run that was created and not begun, or a copy of one: that stands where the other one stood."""
    if latest is None or latest.manifest is None:
        error = "it was never started"
        return Result(run_dir=url, status="failed", error=error, next="start it with `holdfast run`")
    next_ = "it is a copy, and was not trained here: go on with `holdfast run`"
    return replace(at_checkpoint(url, latest, "interrupted"), next=next_)


def at_checkpoint(url: str, entry: Entry, status: str) -> Result:
    """A run of which nothing is known but a complete checkpoint: it stands there."""
    assert entry.manifest is not None
    metrics = dict(entry.manifest.metrics)
    return Result(
        run_dir=url,
        status=status,
        step=entry.step,
        attempt=entry.attempt,
        loss=metrics.pop("loss", None),
        metrics=metrics,
        state_digest=entry.manifest.state_digest,
        digest_step=entry.step,
    )


def add_history(result: Result, ledger: Ledger, pace: Pace) -> Result:
    """The result with what has happened to the run, and what is to be done next if it has ended."""
    return replace(
        result,
        restarts=ledger.restarts,
        worker_deaths=ledger.worker_deaths,
        steps_lost=ledger.steps_lost,
        goodput=pace.goodput,
        disturbances=[each.to_json() for each in ledger.disturbances],
        next=what_next(result),
    )


def what_next(result: Result) -> str | None:
    """What to do about a run that has ended; None where there is nothing to do."""
    if result.status in ("preempted", "interrupted"):
        return remedy(Kind.PREEMPTION)
    if result.status != "failed":
        return None
    kinds = {kind.value: kind for kind in Kind}
    if (result.error or "").startswith("stopped, because this is a crash loop"):
        return "look at what was tried, and mend it; then run the same command again to go on"
    return remedy(kinds.get(result.failure or "", Kind.INFRASTRUCTURE))


def _what_runs(beat: Mapping[str, Any], *, succeeded: bool) -> str:
    """What a run that goes on is doing."""
    if succeeded:
        return "its coordinator was killed: another one is being started, and training goes on meanwhile"
    waiting = beat.get("waiting")
    if isinstance(waiting, dict) and isinstance(waiting.get("until"), int | float):
        return _waits(waiting, beat.get("max_restarts"))
    nodes, workers = beat.get("nodes"), beat["workers"]
    where = f"on {_many(nodes, 'node')} with {_many(workers, 'worker')}"
    if beat.get("standby"):
        where += f" and {beat['standby']} standing by"
    match beat.get("phase"):
        case "joining":
            return "starting: waiting for its workers to load the job"
        case "stopping":
            return f"stopping at the next step, {where}"
        case "preparing" | "starting":
            return "bringing its nodes to the same step"
    return f"running {where}"


def _is_silent(beat: Mapping[str, Any], silent_s: float) -> str:
    return (
        f"process {beat['pid']} on {beat['host']} has given no sign of life for {duration(silent_s)}: if "
        "it is gone, run or submit the same again to go on, or `holdfast resume` it"
    )


def _waits(waiting: Mapping[str, Any], most: object) -> str:
    left_s = max(0.0, waiting["until"] - time.time())
    which = f"{waiting.get('number')} of {most}"
    return f"waiting {left_s:.0f} s before restart {which}: {waiting.get('cause')}"


def _many(count: object, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def what_happened(disturbances: list[dict[str, Any]]) -> list[str]:
    """The last disturbances of a run in words, one line each."""
    lines = [_in_words(each) for each in disturbances[-SHOWN:]]
    if (more := len(disturbances) - SHOWN) > 0:
        lines.insert(0, f"{more} more before these: see --json, and the journal")
    return lines


def _in_words(each: Mapping[str, Any]) -> str:
    clock = str(each["time"])[:19].replace("T", " ")
    what = f"{clock} {each['class']}: {each['what']}"
    if each["cause"] and each["cause"] not in what:
        what += f" ({each['cause']})"
    costs = []
    if each["detection_s"] is not None:
        costs.append(f"noticed within {brief(each['detection_s'])}")
    if each["action"]:
        costs.append(each["action"])
    if each["recovery_s"] is not None:
        costs.append(f"next step {brief(each['recovery_s'])} later")
    if each["process"] or each["recovery_s"] is not None:
        lost = each["steps_lost"]
        costs.append(f"{lost or 'no'} step{'' if lost in (0, 1) else 's'} lost")
    return f"{what}; {', '.join(costs)}" if costs else what


def brief(seconds: float) -> str:
    """A duration, as precise as anybody cares."""
    if seconds < 0.0015:
        return "1 ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
