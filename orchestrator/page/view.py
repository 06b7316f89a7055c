"""A run, or the runs below a directory, as one JSON value: all that the page shows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.failures import last_line
from orchestrator.metrics import read_metrics
from orchestrator.page import curves, timeline
from orchestrator.run_commands import runs_below
from orchestrator.status import read_status
from storage import catalog
from storage.errors import HoldfastError
from storage.strict_json import printable, spelled
from workers.redaction import without_credentials

if TYPE_CHECKING:
    from orchestrator.result import Result
    from storage.run_directory import RunDirectory

_NOT_CURVES = {"step", "epoch", "attempt", "time"}
_LONGEST = 2000


def view_of(run: RunDirectory, name: str) -> dict[str, Any]:
    """Everything about a run: how it stands, its curves, its timeline, its checkpoints.

    What cannot be read is told in `problems`. Raises HoldfastError where not even its status can be.
    """
    problems: list[str] = []
    result, beat = read_status(run)
    entries: list[dict[str, Any]] = []
    for key in run.journals():
        try:
            entries += run.read_journal(key)
        except HoldfastError as error:
            problems.append(_line(str(error)))
    told = timeline.tell(entries, beat, running=result.status == "running")
    try:
        found = curves_of(run.store.url)
    except HoldfastError as error:
        found = []
        problems.append(_line(str(error)))
    return {
        "name": name,
        "run": _stands(result, beat),
        "curves": found,
        "timeline": told,
        "checkpoints": checkpoints_of(run),
        "problems": problems,
        "at": time.time(),
    }


def list_of(parent: str) -> list[dict[str, Any]]:
    """The runs directly below a directory, each in short; ConfigurationError if it is not there."""
    return [brief_of(name, run) for name, run in runs_below(parent)]


def brief_of(name: str, run: RunDirectory) -> dict[str, Any]:
    """A run in short; one that cannot be read has an `error` alone."""
    try:
        result, beat = read_status(run)
    except HoldfastError as error:
        return {"name": name, "error": _line(str(error))}
    found = _stands(result, beat)
    found["error"] = found["error"] and last_line(found["error"])
    return {"name": name, **found}


def curves_of(url: str) -> list[dict[str, Any]]:
    """The curves of all that was measured, in the order in which they are shown."""
    table = read_metrics(url)
    names = [name for name in table.column_names if name not in _NOT_CURVES]
    steps = np.asarray(table["step"].to_numpy(), np.int64)
    found = []
    for name in curves.in_order(names):
        column = table[name]
        there = np.asarray(column.is_valid().to_numpy(), bool)
        if there.any():
            values = np.asarray(column.drop_null().to_numpy(), np.float64)
            found.append(curves.series(name, steps[there], values))
    return found


def checkpoints_of(run: RunDirectory) -> list[dict[str, Any]]:
    """The checkpoints, the newest first, and what each is worth."""
    pins, verified = run.pins(), run.on_record(catalog.VERIFIED)
    return [
        {
            "step": entry.step,
            "attempt": entry.attempt,
            "status": entry.status,
            "reason": _line(entry.reason or ""),
            "nbytes": entry.nbytes,
            "directory": _line(entry.directory),
            "pinned": entry.directory in pins,
            "verified": entry.directory in verified,
            "created_at": _line(entry.manifest.created_at) if entry.manifest else None,
        }
        for entry in reversed(run.entries())
    ]


def _stands(result: Result, beat: dict[str, Any]) -> dict[str, Any]:
    """A result for the page: one line for each text but `error`, without what is secret in URLs."""
    found: dict[str, Any] = spelled(result.to_json())
    found["run_dir"] = without_credentials(result.run_dir)
    found["error"] = None if result.error is None else "\n".join(map(_line, result.error.splitlines()))
    found["next"] = None if result.next is None else _line(result.next)
    steps = beat.get("steps")
    found["steps"] = steps if type(steps) is int else None
    del found["disturbances"]
    return found


def _line(text: str) -> str:
    return printable(without_credentials(text), _LONGEST)
