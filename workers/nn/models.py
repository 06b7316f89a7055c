"""Models: layers put together, compiled with an optimizer, a loss and metrics."""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import layers as _layers
from workers.nn import losses, metrics, optimizers
from workers.nn.core import SequentialEngine
from workers.nn.layers import Input, Layer
from workers.nn.lookup import check, serialize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike

    from workers.nn.numerics import Shape

_FLOAT32_BYTES = 4


class Sequential:
    """Layers in a row. The first is `nn.Input`, or a layer that was given `input_shape`.

    A layer without a name gets that of its class, numbered within this model: "dense", "dense_1". Variables
    are named after it: "dense/kernel".
    """

    def __init__(self, layers: Iterable[Layer | Input] = (), name: str = "sequential") -> None:
        self.name = name
        self._layers: list[Layer] = []
        self._input_shape: Shape | None = None
        self._compiled: tuple[optimizers.Optimizer, losses.Loss, list[metrics.Metric]] | None = None
        for layer in layers:
            self.add(layer)

    def add(self, layer: Layer | Input) -> None:
        """In place. Put a layer behind the last one."""
        if isinstance(layer, Input):
            check(not self._layers, "nn.Input must be the first of the model's layers")
            check(self._input_shape is None, "the model has an nn.Input already")
            self._input_shape = layer.shape
            return
        if not isinstance(layer, Layer):
            raise ConfigurationError(
                f"a model is made of layers, such as nn.Dense(10), not {type(layer).__name__}"
            )
        if not self._layers and self._input_shape is None:
            self._input_shape = layer.input_shape
        names = {other.name for other in self._layers}
        if layer.name is None:
            layer.name = _unique(_snake_case(type(layer).__name__), names)
        check(layer.name not in names, f"two layers are named {layer.name!r}: give each its own name=")
        self._layers.append(layer)

    @property
    def layers(self) -> list[Layer]:
        """The layers in order, without `Input`."""
        return list(self._layers)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of what goes in; None stands for the number of samples."""
        return (None, *self._built_shape())

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """The shape of what comes out; None stands for the number of samples."""
        shape = self._built_shape()
        for layer in self._layers:
            shape = layer.output_shape(shape)
        return (None, *shape)

    def count_params(self) -> int:
        """The number of all variables' elements."""
        return sum(count for _, _, count in self._rows())

    def compile(
        self,
        optimizer: str | optimizers.Optimizer | Mapping[str, Any],
        loss: str | losses.Loss | Mapping[str, Any],
        metrics: Sequence[str | metrics.Metric | Mapping[str, Any]] = (),
    ) -> None:
        """In place. Say how the model is trained; each may be an object or its Keras name."""
        of_loss = losses.get(loss)
        if isinstance(metrics, str):
            raise ConfigurationError(f"compile: metrics must be a list, such as [{metrics!r}]")
        of_metrics = [_metrics_get(metric, of_loss) for metric in metrics]
        names = ["loss", *(metric.name for metric in of_metrics)]
        check(len(set(names)) == len(names), f"compile: two metrics have the same name in {names}")
        self._compiled = (optimizers.get(optimizer), of_loss, of_metrics)

    def engine(self, dtype: DTypeLike = np.float32) -> SequentialEngine:
        """What the runtime trains, as `workers.engine.Engine`; all training is in float32."""
        shape = self._built_shape()
        if self._compiled is None:
            raise ConfigurationError(
                'the model is not compiled: call compile first, such as model.compile("adam", "mse")'
            )
        return SequentialEngine(self._layers, shape, *self._compiled, config=serialize(self), dtype=dtype)

    def summary(self, print_fn: Callable[[str], object] | None = None) -> None:
        """Print the layers, the shapes they give and the numbers of their parameters, as Keras does."""
        text = self._summary()
        if print_fn is None:
            sys.stdout.write(text + "\n")
        else:
            print_fn(text)

    def get_config(self) -> dict[str, Any]:
        """The architecture as JSON values: no weights, no compile settings."""
        return {
            "name": self.name,
            "input_shape": None if self._input_shape is None else list(self._input_shape),
            "layers": [serialize(layer) for layer in self._layers],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sequential:
        """A new, uncompiled model of the same architecture."""
        shape = config["input_shape"]
        layers = [_layers.get(layer) for layer in config["layers"]]
        return cls([] if shape is None else [Input(shape)], config["name"])._with(layers)

    def _with(self, layers: Iterable[Layer]) -> Sequential:
        for layer in layers:
            self.add(layer)
        return self

    def _built_shape(self) -> Shape:
        if self._input_shape is None:
            raise ConfigurationError(
                "the model's input shape is unknown: begin it with nn.Input((features,))"
            )
        return self._input_shape

    def _rows(self) -> Iterator[tuple[Layer, Shape, int]]:
        """Each layer with the shape it gives and the number of its parameters."""
        shape = self._built_shape()
        for layer in self._layers:
            count = sum(math.prod(dims) for dims, _ in layer.variables(shape).values())
            shape = layer.output_shape(shape)
            yield layer, shape, count

    def _summary(self) -> str:
        rows = [
            (f"{layer.name} ({type(layer).__name__})", str((None, *shape)), f"{count:,}")
            for layer, shape, count in self._rows()
        ]
        total = self.count_params()
        return "\n".join(
            [
                f'Model: "{self.name}"',
                *_table(("Layer (type)", "Output Shape", "Param #"), rows),
                f" Total params: {total:,} ({_size(total)})",
                f" Trainable params: {total:,} ({_size(total)})",
                f" Non-trainable params: 0 ({_size(0)})",
            ]
        )


_metrics_get = metrics.get  # `compile` has an argument of the module's name, as in Keras

_Row = tuple[str, str, str]
_WIDTHS = (31, 22, 13)
"""Of Keras's columns at its default line length, without the space on either side."""


def _table(head: _Row, rows: Sequence[_Row]) -> list[str]:
    """The lines of Keras's table: the last column to the right, columns as wide as their longest cell."""
    widths = [max(width, *(len(row[i]) for row in (head, *rows))) for i, width in enumerate(_WIDTHS)]

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


def _size(count: int) -> str:
    """The bytes of so many float32 numbers, as Keras writes them."""
    nbytes = float(count * _FLOAT32_BYTES)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if nbytes < 1024 or unit == "TB":
            break
        nbytes /= 1024
    return f"{nbytes:.2f} {unit}"


def _snake_case(name: str) -> str:
    """Keras's name for a class: Dense -> dense, MyLayer -> my_layer, Conv2D -> conv2d."""
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _unique(stem: str, taken: set[str | None]) -> str:
    """`stem`, or with the first number that is free."""
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    return name
