"""The command `holdfast metrics`: what a run has measured, as a table, CSV, JSON lines or a picture."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.arguments import Insecure  # noqa: TC001 typer reads it
from orchestrator.ckpt import RunDir  # noqa: TC001 typer reads it
from orchestrator.terminal import put, say
from storage.errors import ConfigurationError

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(metrics)


def metrics(
    run_dir: RunDir,
    last: Annotated[bool, typer.Option("--last", help="The last step's alone.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of all rows.")] = False,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the curves: a .png, .svg or .pdf.")
    ] = None,
    insecure: Insecure = False,
) -> int:
    """Show what each step of a run has measured.

    Without an option, twenty steps from the first to the last.

    holdfast metrics runs/digits --plot loss.png
    """
    from orchestrator.metrics import read_metrics
    from orchestrator.status import open_run

    if as_csv and as_json:
        raise ConfigurationError("--csv and --json: give one of them")
    table = read_metrics(open_run(run_dir, insecure=insecure).store.url)
    if last:
        table = table.slice(max(0, table.num_rows - 1))
    if plot is not None:
        _draw(table, plot, run_dir)
    if as_csv:
        put(_csv(table))
    elif as_json:
        put(json.dumps([_json_row(row) for row in table.to_pylist()]))
    elif plot is not None:
        put(f"{plot}: {table.num_rows} steps")
    elif not table.num_rows:
        say(f"{run_dir} has no metrics yet")
    else:
        for line in _lines(table):
            put(line)
    return 0


def _csv(table: pa.Table) -> str:
    from pyarrow import csv

    sink = io.BytesIO()
    csv.write_csv(table, sink, csv.WriteOptions(quoting_style="needed"))
    return sink.getvalue().decode().rstrip("\n")


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON values: time as ISO 8601, numbers that are not finite as null."""
    row["time"] = row["time"].isoformat(timespec="milliseconds")
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _lines(table: pa.Table) -> list[str]:
    count = table.num_rows
    chosen = sorted({round(i * (count - 1) / (_SHOWN - 1)) for i in range(_SHOWN)})
    rows = table.take(chosen).drop_columns(["time"]).to_pylist()
    cells = [list(rows[0])]
    cells += [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(table: pa.Table, path: str, title: str) -> None:
    """The curves over steps, those of validation data with the training's of the same name."""
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigurationError("--plot needs matplotlib: pip install 'holdfast[plot]'") from exc
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise ConfigurationError(f"--plot {path}: give a file that ends in .png, .svg or .pdf")
    from storage.files import file_at

    skipped = ("step", "epoch", "attempt", "time")
    names = [name for name in table.column_names if name not in skipped and not name.startswith("val_")]
    figure = Figure(figsize=(8, 2.5 * len(names)), layout="constrained")
    figure.suptitle(title)
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(len(names), 1, place)
        for column in (name, f"val_{name}"):
            if column in table.column_names:
                known = table.filter(table[column].is_valid())
                marker = "." if known.num_rows < 50 else ""
                axes.plot(known["step"].to_numpy(), known[column].to_numpy(), marker=marker, label=column)
        axes.legend(loc="best")
        axes.set_xlabel("step")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:])
    file_at(path).write(drawn.getvalue())
