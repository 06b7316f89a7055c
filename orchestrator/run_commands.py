"""The commands that look after runs by their directories: list, stop, kill, resume, clone."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.arguments import Insecure, Parameters, parameters_of
from orchestrator.ckpt import AsJson, RunDir  # noqa: TC001 typer reads them
from orchestrator.terminal import duration, put, say
from storage.errors import ConfigurationError, CorruptCheckpoint, HoldfastError, RunAlive
from storage.strict_json import printable
from workers.redaction import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
Timeout = Annotated[float, typer.Option(min=0, metavar="S", help="Seconds to wait for its end.")]
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
    """List runs, and how each stands.

    They are those directly below a directory, or those that were submitted to a cluster.

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
    try:
        identity = run.identity()
    except HoldfastError:
        return run  # whoever looks at it is told
    if identity is None:  # one that failed before it had one has given signs of life
        return run if run.newest_attempt() else None
    return run if "batch_size" in identity else None  # else of `storage.save`


def _as_json(name: str, result: Result | None, error: str) -> dict[str, Any]:
    return {"name": name, "error": error} if result is None else {"name": name, **result.to_json()}


def _table(found: Sequence[tuple[str, Result | None, str]]) -> list[str]:
    if not found:
        return []
    rows = [("RUN", "STATUS", "STEP", "LOSS", "RESTARTS", "DEATHS")]
    for name, result, error in found:
        if result is None:
            rows.append((printable(name), "unreadable", printable(error), "", "", ""))
            continue
        loss = "" if result.loss is None else f"{result.loss:.4g}"
        counts = (str(result.restarts), str(result.worker_deaths))
        silent = f", silent for {duration(result.silent_s)}" if result.silent_s else ""
        rows.append((printable(name), printable(result.status) + silent, str(result.step), loss, *counts))
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
    """Stop a run with a checkpoint, and wait for its end.

    The checkpoint is of the step that the run has come to.

    holdfast stop runs/digits
    """
    return _end(run_dir, checkpoint=True, timeout_s=timeout, insecure=insecure, as_json=as_json)


def kill(
    run_dir: RunDir,
    timeout: Timeout = KILL_S,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """End a run at once, without a checkpoint.

    It can be resumed from the last one.

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
    """Go on with a run by the command that started it last.

    What is given here takes the place of what was given then. A run that was submitted is submitted again.

    holdfast resume runs/digits --workers 4
    """
    from orchestrator.requests import rewind
    from orchestrator.status import locate_run

    parameters_of(settings)
    run, server = locate_run(run_dir, insecure=insecure)
    _check_free(run, run_dir, server)
    folder, words = _command_of(run)
    changes = {"--run-dir": run.store.url, "--workers": workers, "--steps": steps}
    changes |= {} if server is None else {"--address": server.address}
    words = _changed(words, changes, settings, insecure=server is not None and insecure)
    if step is not None:
        _check(folder, words, run)  # before the steps after that one are given up
        rewind(run, step)
    return _run(folder, words, as_json=as_json)


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
    """Begin another run with a checkpoint of this one.

    What is given here takes the place of what the other was started with.

    holdfast clone runs/digits runs/longer --set steps=2000
    """
    from orchestrator.status import locate_run
    from storage.store import open_store
    from storage.transfer import copy

    parameters_of(settings)
    run, server = locate_run(run_dir, insecure=insecure)
    folder, words = _command_of(run)
    url = open_store(new_dir).url
    if url.rstrip("/") == run.store.url.rstrip("/"):
        raise ConfigurationError(f"{new_dir} is the run itself: give another directory for the new one")
    changes = {"--run-dir": url, "--workers": workers, "--steps": steps}
    changes |= {} if server is None else {"--address": server.address}
    if words[0] == "submit":
        changes["--name"] = url.rstrip("/").rpartition("/")[2]
    words = _changed(words, changes, settings, insecure=server is not None and insecure)
    _check(folder, words, run)  # before anything is copied
    copied = copy(run.store.url if step is None else f"{run.store.url}#{step}", url, lambda _: None)
    say(f"{copied.url}: copied and checked")
    return _run(folder, words, as_json=as_json)


def _check_free(run: RunDirectory, run_dir: str, server: JobServer | None) -> None:
    """Raise RunAlive while the run is at work; of one on another machine a sign of life is waited for."""
    from orchestrator.execution import check_at_rest
    from orchestrator.relaunch import check_not_awaited

    if server is not None:
        server.check_free(run.store.url)
    check_not_awaited(run, run_dir)
    try:
        check_at_rest(run, say)
    except RunAlive:
        how = f"stop it first with `holdfast stop {shlex.quote(run_dir)}`"
        raise RunAlive(f"{run_dir} is being trained: {how}") from None


def _command_of(run: RunDirectory) -> tuple[str, list[str]]:
    """The directory and the arguments of the last `holdfast run`, or `holdfast submit`, of a run.

    Raises ConfigurationError if there was none, or its directory is not there.
    """
    began = next((each for each in _beginnings(run) if each.get("command")), None)
    if began is None:
        raise ConfigurationError(
            f"{run.store.url} was not started by a command, or by an older version: give `holdfast run` the "
            "file and the options again"
        )
    submitted = began.get("submitted")
    given, verb = (submitted, "submit") if isinstance(submitted, dict) else (began, "run")
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


def _beginnings(run: RunDirectory) -> Iterator[dict[str, Any]]:
    """How attempts began, the newest first, as far as their journals can be read."""
    for key in reversed(run.journals()):
        with suppress(CorruptCheckpoint):
            yield from (each for each in reversed(run.read_journal(key)) if each.get("kind") == "began")


def _changed(
    words: Sequence[str],
    changes: Mapping[str, object],
    settings: Sequence[str] | None,
    *,
    insecure: bool = False,
) -> list[str]:
    """A command with other values of options: what is given now takes the place of what was given then."""
    changes = {option: value for option, value in changes.items() if value is not None}
    again = {setting.partition("=")[0] for setting in settings or ()}
    gone = {*changes, *(["--steps"] if "steps" in again else [])}
    kept, rest = [], iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in gone and option != "--set":
            kept += [word] if word not in ("--json", "--take-over") else []
            continue
        value = value if equals else next(rest, "")
        if option == "--set" and value.partition("=")[0] not in again:
            kept += [option, value]
    for option, given in changes.items():
        kept += [option, str(given)]
    for setting in settings or ():
        kept += ["--set", setting]
    return [*kept, "--insecure"] if insecure and "--insecure" not in kept else kept


def _check(folder: str, words: Sequence[str], run: RunDirectory) -> None:
    """Refuse a command for what the run, or a copy of it, would refuse it for, before anything is changed.

    Of one that is submitted the job is not looked at: it may load on the cluster alone.
    """
    from orchestrator import cli, submit_commands
    from orchestrator.execution import check_request

    os.chdir(folder)
    verb, *rest = words
    before = sys.argv
    try:
        given = cli.command_named(verb).make_context(verb, rest).params
    finally:
        sys.argv = before  # what has failed is this command
    if verb == "submit":
        submit_commands.submission_of(**_without(given, "dry_run", "detach", "config", "as_json"))
        return
    request = cli.request_of(**_without(given, "tensorboard", "config", "as_json"))
    check_request(request, run.identity(), run.store.url)


def _without(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in names}


def _run(folder: str, words: Sequence[str], *, as_json: bool) -> int:
    """Start a command of an earlier time anew."""
    words = [*words, *(["--json"] if as_json else [])]
    os.chdir(folder)
    say(f"holdfast {shlex.join(words)}")
    sys.argv = [sys.argv[0], *words]
    from orchestrator.cli import app

    code: int = app(words, standalone_mode=False)
    return code
