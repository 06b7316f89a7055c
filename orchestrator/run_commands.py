"""The commands that look after runs by their directories: list, stop, kill, resume, clone."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.arguments import Insecure, Parameters, parameters_of
from orchestrator.ckpt import AsJson, RunDir  # noqa: TC001 typer reads them
from orchestrator.terminal import put, say
from storage.errors import ConfigurationError, HoldfastError, RunAlive
from workers.redaction import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.ray_jobs import JobServer
    from orchestrator.result import Result
    from storage.run_directory import RunDirectory
    from storage.store import Store

Step = Annotated[
    int | None, typer.Option(metavar="N", help="Go on from the checkpoint of this step, not the latest.")
]
Workers = Annotated[
    str | None, typer.Option("--workers", metavar="N | MIN:MAX", help="Workers, instead of those before.")
]
Steps = Annotated[int | None, typer.Option(help="Steps to train, instead of those before.")]
Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds to wait for its end.")]
STOP_S, KILL_S = 600.0, 30.0


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("list")(list_runs)
    for command in (stop, kill, resume, clone):
        app.command()(command)


def list_runs(
    parent: Annotated[
        str,
        typer.Argument(
            metavar="PARENT_DIR | ADDRESS", help="Where runs are kept: a path or a URL; or a Ray cluster."
        ),
    ],
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """List the runs directly below a directory, or those submitted to a cluster, and how each stands.

    holdfast list runs
    """
    from orchestrator.status import read_status
    from orchestrator.submission import is_address
    from orchestrator.submit_commands import list_cluster

    found: list[tuple[str, Result | None, str]] = []
    runs = list_cluster(parent, insecure=insecure) if is_address(parent) else runs_below(parent)
    for name, run in runs:
        try:
            found.append((name, read_status(run)[0], ""))
        except HoldfastError as error:
            found.append((name, None, str(error)))
    if as_json:
        put(json.dumps([_as_json(*each) for each in found]))
        return 0
    if not found:
        say(f"there are no runs in {parent}")
    for line in _table(found):
        put(line)
    return 0


def runs_below(parent: str) -> list[tuple[str, RunDirectory]]:
    """The training runs directly below a directory, by name; ConfigurationError if it is not there."""
    from storage.store import open_store

    store = open_store(parent)
    if not store.is_there():
        raise ConfigurationError(f"there is no directory {parent}: give the one in which runs are kept")
    return [(name, run) for name in store.children() if (run := _training_run(store, name)) is not None]


def run_below(parent: str, name: str) -> RunDirectory | None:
    """The training run of this name directly below a directory; None if there is none."""
    from storage.store import open_store

    store = open_store(parent)
    return _training_run(store, name) if name in store.children() else None


def _training_run(store: Store, name: str) -> RunDirectory | None:
    from storage.run_directory import RunDirectory
    from storage.store import open_store

    run = RunDirectory(open_store(f"{store.url}/{name}"))
    identity = run.identity()
    return run if identity is not None and "batch_size" in identity else None  # else of `storage.save`


def _as_json(name: str, result: Result | None, error: str) -> dict[str, Any]:
    return {"name": name, "error": error} if result is None else {"name": name, **result.to_json()}


def _table(found: Sequence[tuple[str, Result | None, str]]) -> list[str]:
    if not found:
        return []
    rows = [("RUN", "STATUS", "STEP", "LOSS", "RESTARTS", "DEATHS")]
    for name, result, error in found:
        if result is None:
            rows.append((name, "unreadable", error, "", "", ""))
            continue
        loss = "" if result.loss is None else f"{result.loss:.4g}"
        counts = (str(result.restarts), str(result.worker_deaths))
        rows.append((name, result.status, str(result.step), loss, *counts))
    widths = [max(len(row[i]) for row in rows if row[1] != "unreadable") for i in range(6)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def stop(
    run_dir: RunDir,
    timeout: Timeout = STOP_S,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """Stop a run that is at work, with a checkpoint of the step it has come to, and wait for its end.

    holdfast stop runs/digits
    """
    return _end(run_dir, checkpoint=True, timeout_s=timeout, insecure=insecure, as_json=as_json)


def kill(
    run_dir: RunDir,
    timeout: Timeout = KILL_S,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """End a run at once, without a checkpoint; it can be resumed from the last one.

    holdfast kill runs/digits
    """
    return _end(run_dir, checkpoint=False, timeout_s=timeout, insecure=insecure, as_json=as_json)


def _end(run_dir: str, *, checkpoint: bool, timeout_s: float, insecure: bool, as_json: bool) -> int:
    from orchestrator.cli import summary
    from orchestrator.requests import stop
    from orchestrator.status import open_run, read_status
    from orchestrator.submission import is_address
    from orchestrator.submit_commands import end_submitted

    if is_address(run_dir):
        stopped, run = end_submitted(run_dir, checkpoint=checkpoint, timeout_s=timeout_s, insecure=insecure)
    else:
        run = open_run(run_dir)
        stopped = stop(run, checkpoint=checkpoint, timeout_s=timeout_s)
    if not stopped:
        say(f"{run_dir} is not being trained: there is nothing to stop")
    result, _ = read_status(run)
    put(json.dumps(result.to_json()) if as_json else summary(result, with_error=True))
    return 0


def resume(
    run_dir: RunDir,
    step: Step = None,
    workers: Workers = None,
    steps: Steps = None,
    settings: Parameters = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """Go on with a run by the command that it was started with last; one that was submitted is so again.

    holdfast resume runs/digits --workers 4
    """
    from orchestrator.requests import rewind
    from orchestrator.status import locate_run

    parameters_of(settings)
    run, server = locate_run(run_dir, insecure=insecure)
    _check_free(run, run_dir, server)
    command = _command_of(run)
    more = [] if server is None else _to(server, insecure=insecure)
    if step is not None:
        rewind(run, step)
    return _run(command, run.store.url, workers, steps, settings, more, as_json=as_json)


def clone(
    run_dir: RunDir,
    new_dir: Annotated[str, typer.Argument(metavar="NEW_DIR", help="The new run's directory: any URL.")],
    step: Step = None,
    workers: Workers = None,
    steps: Steps = None,
    settings: Parameters = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """Begin another run with a checkpoint of this one, and with other settings.

    holdfast clone runs/digits runs/longer --set steps=2000
    """
    from orchestrator.status import locate_run
    from storage.store import open_store
    from storage.transfer import copy

    parameters_of(settings)
    run, server = locate_run(run_dir, insecure=insecure)
    command = _command_of(run)
    more = [] if server is None else _to(server, insecure=insecure)
    copied = copy(run.store.url if step is None else f"{run.store.url}#{step}", new_dir, lambda _: None)
    say(f"{copied.url}: copied and checked")
    url = open_store(new_dir).url
    if command[1][0] == "submit":
        more += ["--name", url.rstrip("/").rpartition("/")[2]]
    return _run(command, url, workers, steps, settings, more, as_json=as_json)


def _to(server: JobServer, *, insecure: bool) -> list[str]:
    """The words that submit a run to this cluster, wherever it was submitted to before."""
    return ["--address", server.address, *(["--insecure"] if insecure else [])]


def _check_free(run: RunDirectory, run_dir: str, server: JobServer | None) -> None:
    """Raise RunAlive while the run is at work; of one on another machine a sign of life is waited for."""
    from orchestrator.execution import check_not_alive
    from orchestrator.relaunch import awaited
    from orchestrator.submit_commands import check_not_submitted

    if server is not None:
        check_not_submitted(server, run.store.url)
    if awaited(run) is not None:
        raise RunAlive(
            f"{run_dir} is about to be started again: stop it first with `holdfast stop {run_dir}`"
        )
    if (beat := run.newest_beat()) is None:
        return
    try:
        check_not_alive(beat, run, say)
    except RunAlive:
        raise RunAlive(f"{run_dir} is being trained: stop it first with `holdfast stop {run_dir}`") from None


def _command_of(run: RunDirectory) -> tuple[str, list[str]]:
    """The directory and the arguments of the last `holdfast run`, or `holdfast submit`, of a run.

    Raises ConfigurationError if there was none, or its directory is not there.
    """
    began = [entry for entry in run.journal() if entry.get("kind") == "began" and entry.get("command")]
    if not began:
        raise ConfigurationError(
            f"{run.store.url} was not started by a command, or by an older version: give `holdfast run` the "
            "file and the options again"
        )
    submitted = began[-1].get("submitted")
    given, verb = (submitted, "submit") if isinstance(submitted, dict) else (began[-1], "run")
    command, folder = given.get("command"), given.get("folder", "")
    if not isinstance(command, list) or command[:1] != [verb] or not Path(folder).is_dir():
        how = "submitted from" if verb == "submit" else "started in"
        raise ConfigurationError(
            f"{run.store.url} was {how} {folder}, which is not on this machine: give `holdfast {verb}` the "
            "file and the options again"
        )
    words = [str(word) for word in command]
    if any(HIDDEN in word for word in words):
        raise ConfigurationError(
            f"the command that {run.store.url} was started with held something secret, which is not on "
            "record: give `holdfast run` the file and the options again"
        )
    return folder, words


def _run(
    command: tuple[str, list[str]],
    url: str,
    workers: str | None,
    steps: int | None,
    settings: list[str] | None,
    more: Sequence[str],
    *,
    as_json: bool,
) -> int:
    """Start the command anew; what is given now goes before what was given then."""
    folder, words = command
    words = [word for word in words if word not in ("--json", "--take-over")]
    words += ["--run-dir", url, *more]
    words += [] if workers is None else ["--workers", workers]
    words += [] if steps is None else ["--steps", str(steps)]
    for setting in settings or []:
        words += ["--set", setting]
    words += ["--json"] if as_json else []
    os.chdir(folder)
    say(f"holdfast {shlex.join(words)}")
    sys.argv = [sys.argv[0], *words]
    from orchestrator.cli import app

    code: int = app(words, standalone_mode=False)
    return code
