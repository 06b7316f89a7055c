"""What several commands take: a job, its parameters, and numbers of workers."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from orchestrator.discretion import is_secret
from orchestrator.spec import check_range
from storage.errors import ConfigurationError
from workers.redaction import Redactor

Target = Annotated[str, typer.Argument(metavar="FILE[:NAME] | EXAMPLE", help="A job's file, or an example.")]
Parameters = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the job's function.")
]
Steps = Annotated[int | None, typer.Option(help="Steps to train, instead of the job's.")]
CpusPerWorker = Annotated[float, typer.Option(metavar="C", help="CPUs that Ray reserves for each.")]
Nodes = Annotated[int, typer.Option(metavar="N", help="Nodes to spread over, if there are so many.")]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Allow a cluster's plain address on another machine, without a token."),
]


def workers_of(text: str) -> tuple[int, int]:
    """The fewest and the most workers that `N` or `MIN:MAX` asks for; ConfigurationError for others."""
    first, colon, last = text.partition(":")
    try:
        least, most = int(first), int(last if colon else first)
    except ValueError:
        raise ConfigurationError(f"workers {text!r}: give a whole number, or MIN:MAX") from None
    check_range(least, most)
    return least, most


def check_workers_text(text: str) -> str:
    """The text, if `workers_of` understands it; else ConfigurationError."""
    workers_of(text)
    return text


def parameters_of(given: list[str] | None) -> dict[str, str]:
    """The parameters that `--set NAME=VALUE` gives, by name. ConfigurationError for anything else.

    It is also raised for a value that is secret: the words of a command are on record, so that it can be
    resumed, and everybody on the machine can read them. `env:VARIABLE` stands for such a value.
    """
    found, redactor = {}, Redactor.of(os.environ)
    for setting in given or ():
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigurationError(f"--set {name}{equals and '=...'}: give NAME=VALUE")
        if is_secret(name, value, redactor):
            raise ConfigurationError(
                f"--set {name}=...: this looks secret, and command lines are put on record and read by "
                f"everybody: put it into an environment variable and give --set {name}=env:VARIABLE"
            )
        found[name] = value
    return found
