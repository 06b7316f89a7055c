"""The table that `summary` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.nn.layers.base import Layer
    from workers.nn.model import Model
    from workers.nn.variables import Variable

_Row = tuple[str, str, str]
_WIDTHS = (31, 22, 13)
"""Of Keras's columns at its default line length, without the space on either side."""


def summary_text(model: Model, line_length: int | None = None) -> str:
    """Layers, shapes and numbers of parameters, as Keras shows them."""
    rows = [
        (f"{layer.name} ({type(layer).__name__})", shape, f"{layer.count_params():,}")
        for layer, shape in _shapes(model)
    ]
    trainable, frozen = model.trainable_weights, model.non_trainable_weights
    lines = [
        f'Model: "{model.name}"',
        *_table(("Layer (type)", "Output Shape", "Param #"), rows, line_length),
        f" Total params: {_totals([*trainable, *frozen])}",
        f" Trainable params: {_totals(trainable)}",
        f" Non-trainable params: {_totals(frozen)}",
    ]
    return "\n".join(lines)


def _shapes(model: Model) -> list[tuple[Layer, str]]:
    """Each of the model's layers with the shape that it gives, "?" where that cannot be told."""
    from workers.nn.model import Functional
    from workers.nn.sequential import Sequential
    from workers.nn.tensor import leaves

    if isinstance(model, Functional):
        return [
            (layer, ", ".join(str(t.shape) for t in leaves(layer._calls[0].outputs)))
            for layer in model.layers
        ]
    found = []
    shape = model.input_shape if isinstance(model, Sequential) else None
    for layer in model.layers:
        if shape is not None:
            shape = layer.compute_output_shape(shape)
            found.append((layer, str(shape)))
        elif layer._built_with is not None:
            try:
                found.append((layer, str(layer.compute_output_shape(layer._built_with))))
            except ConfigurationError:
                found.append((layer, "?"))
        else:
            found.append((layer, "?"))
    return found


def _table(head: _Row, rows: Sequence[_Row], line_length: int | None) -> list[str]:
    """The lines of Keras's table: the last column to the right, columns as wide as their longest cell."""
    least = _WIDTHS if line_length is None else tuple(w * line_length // 76 for w in _WIDTHS)
    widths = [max(width, *(len(row[i]) for row in (head, *rows))) for i, width in enumerate(least)]

    def rule(left: str, fill: str, between: str, right: str) -> str:
        return left + between.join(fill * (width + 2) for width in widths) + right

    def line(row: _Row, edge: str) -> str:
        a, b, c = row
        cells = (f" {a:<{widths[0]}} ", f" {b:<{widths[1]}} ", f" {c:>{widths[2]}} ")
        return edge + edge.join(cells) + edge

    lines = [rule("┏", "━", "┳", "┓"), line(head, "┃"), rule("┡", "━", "╇", "┩")]
    for i, row in enumerate(rows):
        lines += ([rule("├", "─", "┼", "┤")] if i else []) + [line(row, "│")]
    return [*lines, rule("└", "─", "┴", "┘")]


def _totals(variables: Sequence[Variable]) -> str:
    """Elements and bytes of variables, as Keras writes them."""
    count = sum(variable.size for variable in variables)
    nbytes = float(sum(variable.size * np.dtype(variable.dtype).itemsize for variable in variables))
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if nbytes < 1024 or unit == "TB":
            break
        nbytes /= 1024
    return f"{count:,} ({nbytes:.2f} {unit})"
