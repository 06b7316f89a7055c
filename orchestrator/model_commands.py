"""The commands `holdfast model ...`: look at saved models, check them, save them in another format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from orchestrator.ckpt import FAULTY, AsJson
from orchestrator.terminal import put
from storage.errors import ConfigurationError, CorruptCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable

model = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at saved models and weights, check and convert them.\n\nThey are directories of Holdfast, "
    ".keras, .h5, .weights.h5, TensorFlow's checkpoints (X.index), .safetensors, .npz, and checkpoints of "
    "runs.\n\nholdfast model show model.keras",
)

Path = Annotated[str, typer.Argument(metavar="PATH", help="A path or any fsspec URL; RUN_DIR#STEP of a run.")]


@model.command("show")
def show(path: Path, as_json: AsJson = False) -> int:
    """Tell what a saved model is made of.

    holdfast model show model.keras
    """
    from workers.nn.saving import conversion

    found = conversion.described(path)
    text = found.pop("summary")
    put(json.dumps(found) if as_json else _shown(found, text))
    return 0


def _shown(found: dict[str, Any], summary: str | None) -> str:
    lines = [f"{found['path']}: {found['format']}"]
    if summary is not None:
        lines += ["", summary]
        optimizer = found["model"]["optimizer"]
        if optimizer is not None:
            rate = f"{optimizer['learning_rate']:.6g}"
            lines.append(
                f" Optimizer: {optimizer['class']}, {optimizer['iterations']} steps, learning rate {rate}"
            )
    if found["error"] is not None:
        lines.append(f"its model cannot be made here: {found['error']}")
    width = max((len(each["name"]) for each in found["variables"]), default=0)
    lines.append("")
    lines += [
        f"{each['name']:<{width}}  {each['dtype']:<8}  {tuple(each['shape'])}" for each in found["variables"]
    ]
    return "\n".join(lines)


@model.command("verify")
def verify(path: Path, as_json: AsJson = False) -> int:
    """Read all of a model, and check it; exit code 3 if damaged.

    It is checked as far as its format allows.

    holdfast model verify s3://bucket/model
    """
    from workers.nn.saving import conversion

    fault, nbytes, kind = None, 0, None
    try:
        kind = conversion.kind_at(path)
        nbytes = conversion.verify(path)
    except CorruptCheckpoint as error:
        fault = str(error)
    checked = None if kind is None else kind.checked
    if as_json:
        name = None if kind is None else kind.name
        doc = {"path": path, "format": name, "ok": fault is None, "fault": fault}
        put(json.dumps({**doc, "checked": checked, "nbytes": nbytes}))
    elif fault is None:
        put(f"{path}: good, {decimal(nbytes)} of arrays; checked was {checked}")
    else:
        put(f"{path}: damaged: {fault}")
    return 0 if fault is None else FAULTY


@model.command("convert")
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What is there decides on its format.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Its ending decides; none: a directory.")],
    architecture: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="For weights alone: a model, its JSON, or a job."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")] = False,
    as_json: AsJson = False,
) -> int:
    """Save a model in another format, and tell what is lost.

    What ends in .onnx is written as ONNX: what the model computes without training.

    holdfast model convert a.keras s3://bucket/model
    """
    from workers.nn.saving import conversion

    made = None if architecture is None else _architecture(architecture)
    done = conversion.convert(source, target, architecture=made, overwrite=overwrite)
    if as_json:
        doc = {"source": source, "from": done.source.name, "target": target, "to": done.target.name}
        counts = {"parameters": done.parameters, "lost": [*done.lost], "notes": [*done.notes]}
        put(json.dumps({**doc, **counts}))
        return 0
    put(f"{target}: {done.target.name}, {done.parameters:,} parameters")
    put(f"lost: {', '.join(done.lost) or 'nothing'}")
    for note in done.notes:
        put(f"note: {note}")
    return 0


def _architecture(given: str) -> Callable[[], Any]:
    """What makes the model: of a job's file, of JSON, or of another saved model."""
    from orchestrator.examples import EXAMPLES
    from storage.files import file_at, is_file
    from workers.nn.saving import api, conversion

    if given.partition(":")[0].endswith(".py") or given in EXAMPLES:
        from orchestrator.jobs import JobSource

        found = JobSource.parse(given, {}).load().model

        def of_job() -> Any:
            from workers.nn.model import Model

            made = found()
            if not isinstance(made, Model):
                raise ConfigurationError(f"--architecture {given}: its job's model is none of nn")
            return made

        return of_job
    if given.endswith(".json"):
        if not is_file(given):
            raise ConfigurationError(f"--architecture {given}: there is no such file")
        return lambda: conversion.architecture_of(file_at(given).read())
    return lambda: api.load_model(given)
