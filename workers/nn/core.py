"""The engine of a Sequential model: its loss and gradient on flat buffers.

Everything that lasts longer than a call is a workspace that the next call overwrites, or a cached view: the
result is a pure function of the arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.layout import Layout
from workers.nn.layers import Cell, Layer, Site
from workers.nn.lookup import serialize
from workers.nn.numerics import Array, Shape, aligned_empty, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from workers.engine import Batch, Flat, Optimizer, Sums
    from workers.nn.initializers import Initializer
    from workers.nn.losses import Loss
    from workers.nn.metrics import Metric
    from workers.rng import Streams

_MAX_PROGRAMS = 8
"""Row counts whose workspaces are kept: microbatches of two sizes, and evaluation's."""
_MAX_VIEWED = 256
"""Flat buffers whose views are kept: parameters, and one gradient slot a microbatch."""


class SequentialEngine:
    """`workers.engine.Engine` of layers in a row.

    `dtype` is float32 in all training; float64 serves to check gradients by finite differences.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: Shape,
        optimizer: Optimizer,
        loss: Loss,
        metrics: Sequence[Metric],
        config: dict[str, Any],
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._layers = tuple(layers)
        self._shapes = [input_shape]
        self._initializers: list[Initializer] = []
        self._counts: list[int] = []
        shapes: dict[str, Shape] = {}
        for layer in layers:
            variables = layer.variables(self._shapes[-1])
            self._counts.append(len(variables))
            for variable, (shape, initializer) in variables.items():
                shapes[f"{layer.name}/{variable}"] = shape
                self._initializers.append(initializer)
            self._shapes.append(layer.output_shape(self._shapes[-1]))
        if not shapes:
            raise ConfigurationError(
                "the model has nothing to train: add a layer with variables, such as Dense"
            )
        self._first = next(i for i, count in enumerate(self._counts) if count)
        self.layout = Layout.of(shapes)
        self.optimizer = optimizer
        self.metrics = ("loss", *(metric.name for metric in metrics))
        self._loss = loss
        self._metrics = tuple(metrics)
        self._config = config
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._programs: dict[int, _Program] = {}
        self._viewed: dict[int, tuple[Array, list[list[Array]]]] = {}

    def init(self, params: Flat, streams: Streams) -> None:
        """In place. Fill `params` with initial values; variable number i draws from stream i."""
        for i, (view, initializer) in enumerate(
            zip(self.layout.views(params).values(), self._initializers, strict=True)
        ):
            view[...] = initializer(view.shape, streams.generator(i))

    def loss_and_grad(self, params: Flat, batch: Batch, streams: Streams, out: Flat) -> Sums:
        """Write the gradient of the sum over the batch's samples into `out`; return the sums."""
        x, y_true, sample_weight = _unpack(batch)
        program = self._program(len(x))
        weights = self._views(params)
        grads = self._views(out)
        with quiet():
            y_pred = program.forward(x, weights, streams)
            sums = self._sums(y_true, y_pred, sample_weight, program.loss_grad)
            program.backward(weights, grads)
        return sums

    def evaluate(self, params: Flat, batch: Batch) -> Sums:
        """The sums of the same metrics, without randomness."""
        x, y_true, sample_weight = _unpack(batch)
        with quiet():
            y_pred = self._program(len(x)).forward(x, self._views(params), None)
            return self._sums(y_true, y_pred, sample_weight)

    def predict(self, params: Flat, x: Array) -> Array:
        """The model's output for these samples, as an array of its own, without randomness."""
        with quiet():
            return self._program(len(x)).forward(x, self._views(params), None).copy()

    def config(self) -> dict[str, Any]:
        """Model, optimizer, loss and metrics as JSON values."""
        return {
            **self._config,
            "compile_config": {
                "optimizer": serialize(self.optimizer),
                "loss": serialize(self._loss),
                "metrics": [serialize(metric) for metric in self._metrics],
            },
        }

    def _sums(
        self, y_true: Array, y_pred: Array, sample_weight: Array | None, grad: Array | None = None
    ) -> Sums:
        rows = [self._loss.sums(y_true, y_pred, sample_weight, grad)]
        rows += [metric.sums(y_true, y_pred) for metric in self._metrics]
        return np.array(rows, np.float64)

    def _program(self, rows: int) -> _Program:
        """The workspaces for this number of rows; the least recently made go first."""
        program = self._programs.get(rows)
        if program is None:
            if len(self._programs) >= _MAX_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            program = _Program(self._layers, self._shapes, self._first, rows, self._dtype)
            self._programs[rows] = program
        return program

    def _views(self, flat: Array) -> list[list[Array]]:
        """For each layer the views of its variables; cached, as the caller has few buffers."""
        found = self._viewed.get(id(flat))
        if found is not None:  # it holds the buffer, so the id cannot have passed to another one
            return found[1]
        views = iter(self.layout.views(flat).values())
        by_layer = [[next(views) for _ in range(count)] for count in self._counts]
        if len(self._viewed) >= _MAX_VIEWED:
            self._viewed.clear()
        self._viewed[id(flat)] = (flat, by_layer)
        return by_layer


class _Program:
    """The cells and workspaces of a model for one number of rows."""

    def __init__(
        self,
        layers: Sequence[Layer],
        shapes: Sequence[Shape],
        first: int,
        rows: int,
        dtype: np.dtype[Any],
    ) -> None:
        self._x = aligned_empty((rows, *shapes[0]), dtype)
        self._cells: list[Cell] = [
            layer.cell(Site(i, rows, shape, dtype, wants_dx=i > first))
            for i, (layer, shape) in enumerate(zip(layers, shapes, strict=False))
        ]
        self._backward_order = range(len(layers) - 1, first - 1, -1)
        self.loss_grad = aligned_empty((rows, *shapes[-1]), dtype)

    def forward(self, x: Array, weights: Sequence[Sequence[Array]], streams: Streams | None) -> Array:
        if x.shape != self._x.shape:
            raise ConfigurationError(
                f"the data's samples have shape {x.shape[1:]}, but the model's Input is {self._x.shape[1:]}"
            )
        if x.dtype.kind not in "fiub":
            raise ConfigurationError(f"the data's samples are {x.dtype}: give real numbers")
        # Always copied: 2.3 us for 100 kB, and every operand is aligned and of one dtype from here on.
        np.copyto(self._x, x, casting="unsafe")
        y = self._x
        for cell, variables in zip(self._cells, weights, strict=True):
            y = cell.forward(y, variables, streams)
        return y

    def backward(self, weights: Sequence[Sequence[Array]], grads: Sequence[Sequence[Array]]) -> None:
        """Write all gradients, from what the loss left in `loss_grad`."""
        dy: Array | None = self.loss_grad
        for i in self._backward_order:
            assert dy is not None
            dy = self._cells[i].backward(dy, weights[i], grads[i])


def _unpack(batch: Batch) -> tuple[Array, Array, Array | None]:
    """The batch's x, y and, where given, sample weights."""
    if len(batch) not in (2, 3):
        raise ConfigurationError(
            f"the dataset gives {len(batch)} arrays a batch: give (x, y) or (x, y, sample_weight)"
        )
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None
