"""A function of two tensors, as one of two arrays with gradients: what losses of one's own run as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.tensor import Spec
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.nn.graph import Graph
    from workers.nn.numerics import Array, Shape
    from workers.nn.program import Program

_MAX_PROGRAMS = 8
"""Shapes whose workspaces are kept: microbatches of two sizes, and evaluation's."""


class Traced:
    """`function(y_true, y_pred)`, traced once for each pair of shapes; `name` is for messages."""

    def __init__(self, function: Callable[[Any, Any], Any], name: str) -> None:
        self._function = function
        self._name = name
        self._programs: dict[tuple[Shape, Shape, str], tuple[Graph, Program, Variable]] = {}

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """What the function gives; where given, `grad` gets the derivatives of the sum by `y_pred`."""
        from workers.nn.ops.base import Run

        if (*y_true.shape, 1) == y_pred.shape or y_true.shape == (*y_pred.shape, 1):
            y_true = y_true.reshape(y_pred.shape)  # else the two would be broadcast against each other
        graph, program, predictions = self._program(y_true.shape, y_pred)
        given = [y_pred if v is predictions else v.array for v in graph.variables]
        (found,) = program.forward([y_true], given, Run())
        values = np.array(found)  # the workspace is overwritten, and may be a view of the predictions
        if grad is not None:
            slots = [grad if v is predictions else None for v in graph.variables]
            if any(slot is grad for slot in slots):
                program.backward([np.ones_like(values)], slots)
            else:
                grad[...] = 0
        return values

    def _program(self, true_shape: Shape, y_pred: Array) -> tuple[Graph, Program, Variable]:
        key = (true_shape, y_pred.shape, y_pred.dtype.name)
        found = self._programs.get(key)
        if found is None:
            if len(self._programs) >= _MAX_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            found = self._programs[key] = self._made(true_shape, y_pred)
        return found

    def _made(self, true_shape: Shape, y_pred: Array) -> tuple[Graph, Program, Variable]:
        from workers.nn.graph import trace
        from workers.nn.program import Program

        # Programs give gradients of variables alone, so the predictions are one, which holds no value.
        predictions = Variable("zeros", y_pred.shape, name="y_pred")

        def call(y_true: Any) -> Any:
            # Not the variable itself: code that asks it for its value would get zeros, and no error.
            found = self._function(y_true, y_true.builder.add("identity", {}, [predictions]))
            if not hasattr(found, "spec"):
                raise ConfigurationError(
                    f"loss {self._name!r} gave {type(found).__name__}: give a tensor with one value a sample"
                )
            return found

        graph = trace(call, Spec(true_shape))
        wanted = [i for i, variable in enumerate(graph.variables) if variable is predictions]
        return graph, Program(graph, len(y_pred), wanted, y_pred.dtype), predictions
