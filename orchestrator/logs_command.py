"""The command `holdfast logs`: what the processes of a run printed, and what its coordinators did."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.arguments import Insecure  # noqa: TC001 typer reads it
from orchestrator.ckpt import RunDir  # noqa: TC001 typer reads it
from orchestrator.terminal import harmless, put, say
from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

AsJsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object for each line.")]
LOOK_S = 1.0
"""Seconds between two looks at what a run that is followed has printed."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(logs)


def logs(
    run_dir: RunDir,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, metavar="K", help="Of this attempt alone.")] = None,
    rank: Annotated[int | None, typer.Option(min=0, metavar="R", help="Of the workers of this rank.")] = None,
    coordinator: Annotated[bool, typer.Option("--coordinator", help="The coordinators' alone.")] = False,
    insecure: Insecure = False,
    as_json: AsJsonLines = False,
) -> int:
    """Show what a run has printed, and what happened to it.

    All its processes and attempts are shown, by time. It comes from the run directory, so it is there when
    the cluster is gone; while the run trains, it is some seconds behind.

    holdfast logs runs/digits -f --rank 0
    """
    from orchestrator.logs import COORDINATOR, LogReader
    from orchestrator.status import open_run, read_status

    if coordinator and rank is not None:
        raise ConfigurationError("--coordinator and --rank: give one of them")

    def wanted(line: dict[str, Any]) -> bool:
        if attempt is not None and line["attempt"] != attempt:
            return False
        if coordinator:
            return bool(line["role"] == COORDINATOR)
        return rank is None or (line["role"] == "worker" and line["rank"] == rank)

    run = open_run(run_dir, insecure=insecure)
    reader = LogReader(run, wanted)
    shown = 0
    while True:
        running = follow and read_status(run)[0].status == "running"  # before what is read, which is all then
        lines = reader.read()
        shown += len(lines)
        _show(lines, as_json=as_json)
        if not running:
            break
        time.sleep(LOOK_S)
    if not shown and not as_json:
        yet = " yet" if read_status(run)[0].status == "running" else ""
        say(f"{run_dir} has no such lines{yet}")
    return 0


def _show(lines: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    from orchestrator.logs import COORDINATOR

    for line in lines:
        if as_json:
            put(json.dumps(line))
        else:
            who = line["role"] if line["role"] == COORDINATOR else f"{line['role']} {line['rank']}"
            when = line["time"][:23].replace("T", " ")
            text = line["text"].rstrip().replace("\n", "\n    ")
            put(harmless(f"{when} {line['attempt']} {who:<11} {text}"))
