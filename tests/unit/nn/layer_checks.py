"""What every layer must do: exact gradients, equal bits eagerly and traced, and nothing left of before."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from workers import nn
from workers.nn.graph import trace
from workers.nn.ops.base import Run
from workers.nn.program import Program
from workers.nn.tensor import Spec


class _Shifted(nn.Layer):
    """A layer behind a sum with a variable, whose gradient is thus that of the layer's input."""

    def __init__(self, inner: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shift = self.add_weight(shape, nn.initializers.RandomNormal(stddev=0.5))
        self.inner = inner

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs + self.shift)


class _Traced:
    """The gradients of sum(y * weights) by a program's variables."""

    def __init__(self, layer: Any, x: np.ndarray, dtype: Any, training: bool) -> None:
        call = partial(layer, training=training)
        self.graph = trace(call, Spec((None, *x.shape[1:])))
        self.wanted = [i for i, v in enumerate(self.graph.variables) if v.trainable]
        self.program = Program(self.graph, len(x), self.wanted, dtype)
        self.values = [v.array.astype(dtype) for v in self.graph.variables]

    def forward(self, x: np.ndarray) -> np.ndarray:
        (y,) = self.program.forward([x], self.values, Run())
        return y

    def gradients(self, x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        y = self.forward(x).copy()
        found = [np.full_like(value, np.nan) for value in self.values]
        self.program.backward([weights.astype(y.dtype)], found)
        return y, found


def check_layer(
    layer: Any,
    x: np.ndarray,
    *,
    training: bool = True,
    shift: tuple[int, ...] | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-7,
) -> None:
    """Check all gradients of `layer` at `x` (float32), and those of its input summed to the shape `shift`."""
    x = x.astype(np.float32)
    whole = _Shifted(layer, x.shape[1:] if shift is None else shift)
    shape = whole(x, training=training).shape
    rng = np.random.default_rng(8)
    for variable in whole.trainable_variables[1:]:
        variable.assign(rng.normal(0.5, 0.5, variable.shape))
    weights = rng.standard_normal(shape).astype(np.float32)
    _check_finite_differences(whole, x, weights, training, rtol, atol)

    traced = _Traced(whole, x, np.float32, training)
    expected, gradients = traced.gradients(x, weights)
    with nn.GradientTape() as tape:
        y = whole(x, training=training)
        total = nn.ops.sum(y * weights)
    variables = [traced.graph.variables[i] for i in traced.wanted]
    np.testing.assert_array_equal(y.numpy(), expected)
    for i, gradient in zip(traced.wanted, tape.gradient(total, variables), strict=True):
        path = traced.graph.variables[i].path
        np.testing.assert_array_equal(gradient.numpy(), gradients[i], err_msg=path)

    traced.gradients(7 - 3 * x, 5 * weights)
    again, repeated = traced.gradients(x, weights)
    np.testing.assert_array_equal(again, expected)
    for i in traced.wanted:
        np.testing.assert_array_equal(repeated[i], gradients[i])


def _check_finite_differences(
    whole: Any, x: np.ndarray, weights: np.ndarray, training: bool, rtol: float, atol: float
) -> None:
    traced = _Traced(whole, x, np.float64, training)
    _, gradients = traced.gradients(x, weights)
    step = 1e-6
    for i in traced.wanted:
        values, path = traced.values[i], traced.graph.variables[i].path
        for place in np.ndindex(values.shape):
            at = []
            before = values[place]
            for moved in (before + step, before - step):
                values[place] = moved
                at.append(float((traced.forward(x) * weights).sum()))
            values[place] = before
            slope = (at[0] - at[1]) / (2 * step)
            assert slope == pytest.approx(gradients[i][place], rel=rtol, abs=atol), (path, place)


def predict(layer: Any, x: np.ndarray, training: bool = False) -> np.ndarray:
    """What a layer gives in float64, traced, with its float32 weights."""
    layer(x.astype(np.float32))
    return _Traced(layer, x, np.float64, training).forward(x).copy()
