"""How a run stands, read from its directory alone."""

from __future__ import annotations

from typing import Any

from orchestrator.life import check_beat, lives
from orchestrator.result import Result
from orchestrator.totals import Totals
from storage.errors import ConfigurationError
from storage.run_directory import RunDirectory
from storage.store import open_store


def open_run(url: str) -> RunDirectory:
    """The run at a URL. Raises ConfigurationError if there is none."""
    run = RunDirectory(open_store(url))
    if run.identity() is None and run.newest_beat() is None:
        raise ConfigurationError(f"there is no run at {run.store.url}: give the --run-dir of one")
    return run


def read_status(run: RunDirectory) -> tuple[Result, dict[str, Any]]:
    """How the run stands, and the last sign of life that says so ({} if there was none).

    A run whose coordinator is known to have died without a word has failed; one on another host is taken to
    be running until its coordinator says otherwise.
    """
    beat = run.newest_beat()
    latest = run.latest()
    manifest = latest.manifest if latest is not None else None
    digest = manifest.state_digest if manifest is not None else None
    if beat is None:
        url = run.store.url
        return Result(run_dir=url, status="failed", error="it was never started", state_digest=digest), {}
    check_beat(beat, run.store.url)
    totals = Totals.from_json(beat["totals"])
    status, error = beat["status"], beat["error"]
    if not beat["closed"] and lives(beat) is False:
        status = "failed"
        error = "its coordinator was killed: run the same command again to go on"
    step, metrics = beat["step"], dict(beat["metrics"])
    if latest is not None and manifest is not None and latest.step > step:
        step, metrics = latest.step, dict(manifest.metrics)  # newer than the last sign of life
    return (
        Result(
            run_dir=run.store.url,
            status=status,
            error=error,
            step=step,
            attempt=beat["attempt"],
            loss=metrics.pop("loss", None),
            metrics=metrics,
            state_digest=digest,
            restarts=totals.restarts,
            worker_deaths=totals.worker_deaths,
            steps_lost=totals.steps_lost,
            steps_per_s=beat["steps_per_s"],
        ),
        beat,
    )
