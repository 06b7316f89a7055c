"""A graph made ready to run for one number of rows: operations with workspaces that every run uses again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.numerics import Array, aligned_empty
from workers.nn.ops.base import FLOATS, OPS, Op, Run, Site, infer
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import DTypeLike

    from workers.nn.graph import Graph, Node


class Program:
    """Runs a graph forwards and, from gradients of its outputs, backwards.

    `wanted` are the places of the variables whose gradients are wanted. `dtype` float64 computes all of
    float32 in that, to check gradients by finite differences. What a run returns is overwritten by the next
    one.
    """

    def __init__(
        self, graph: Graph, rows: int, wanted: Collection[int] = (), dtype: DTypeLike = np.float32
    ) -> None:
        self._graph = graph
        self._dtype = np.dtype(dtype).name
        specs = {i: self._at_hand(spec, rows) for i, spec in graph.specs().items() if i < self._first_node}
        self._constants = [
            np.array(c, specs[graph.first_constant + i].dtype, order="C")
            for i, c in enumerate(graph.constants)
        ]
        self.inputs = [specs[i] for i in range(len(graph.inputs))]
        self._inputs = [aligned_empty(spec.dims, np.dtype(spec.dtype)) for spec in self.inputs]
        self._wanted = frozenset(wanted)
        needed = {graph.first_variable + place for place in wanted}
        self._steps: list[tuple[Op, Node, bool]] = []
        for node in graph.nodes:
            inputs = tuple(specs[i] for i in node.inputs)
            attrs = self._attrs(node)
            outputs = infer(node.op, attrs, inputs)
            specs.update({node.first + i: spec for i, spec in enumerate(outputs)})
            needs = tuple(
                OPS[node.op].differentiable and i in needed and specs[i].dtype in FLOATS for i in node.inputs
            )
            if any(needs):
                needed.update(range(node.first, node.first + len(outputs)))
            op = OPS[node.op](Site(attrs, inputs, outputs, needs, reused=True))
            self._steps.append((op, node, any(needs)))
        self.specs = specs
        self._last_use = self._uses()
        self._values: list[Array] = []
        self._output_gradients: list[Array] = []

    @property
    def _first_node(self) -> int:
        return self._graph.first_constant + len(self._graph.constants)

    def _at_hand(self, spec: Spec, rows: int) -> Spec:
        spec = spec.with_rows(rows)
        return Spec(spec.shape, self._dtype) if spec.dtype == "float32" else spec

    def _attrs(self, node: Node) -> Any:
        dtype = node.attrs.get("dtype")
        return {**node.attrs, "dtype": self._dtype} if dtype == "float32" else node.attrs

    def _uses(self) -> set[tuple[int, int]]:
        """(node, operand) where backward comes to a variable first: its gradient can go to where it
        belongs."""
        seen: set[int] = set()
        found = set()
        for i, (op, node, _) in reversed([*enumerate(self._steps)]):
            for j, value in enumerate(node.inputs):
                if op.site.needs[j] and value not in seen:
                    seen.add(value)
                    found.add((i, j))
        return found

    def forward(self, inputs: Sequence[Array], variables: Sequence[Array], run: Run) -> list[Array]:
        """The outputs. Inputs are copied, and cast to the dtypes that were traced."""
        for buffer, array in zip(self._inputs, inputs, strict=True):
            if array.shape != buffer.shape:
                raise ConfigurationError(
                    f"the data's samples have shape {array.shape[1:]}, but the model's input is "
                    f"{buffer.shape[1:]}"
                )
            if array.dtype.kind not in "fiub":
                raise ConfigurationError(f"the data's samples are {array.dtype}: give real numbers")
            # Always copied: 2.3 us for 100 kB, and every operand is aligned and of one dtype from here on.
            np.copyto(buffer, array, casting="unsafe")
        values: list[Array] = [*self._inputs, *variables, *self._constants]
        for op, node, _ in self._steps:
            found = op.forward(run, *[values[i] for i in node.inputs])
            if isinstance(found, tuple):
                values.extend(found)
            else:
                values.append(found)
        self._values = values
        return [values[i] for i in self._graph.outputs]

    def output_gradients(self, count: int) -> list[Array]:
        """Workspaces for the gradients of the first outputs."""
        while len(self._output_gradients) < count:
            spec = self.specs[self._graph.outputs[len(self._output_gradients)]]
            self._output_gradients.append(aligned_empty(spec.dims, np.dtype(spec.dtype)))
        return self._output_gradients[:count]

    def value(self, number: int) -> Array:
        """A value of the last run forwards."""
        return self._values[number]

    def backward(self, outputs: Sequence[Array | None], gradients: Sequence[Array | None]) -> None:
        """Write the gradient of each wanted variable into its array of `gradients`; zeros if nothing comes
        to it.

        `outputs` are the gradients of the graph's outputs, which are overwritten; None for those of none.
        """
        graph, first = self._graph, self._graph.first_variable
        found: dict[int, Array] = {}
        for value, gradient in zip(graph.outputs, outputs, strict=True):
            if gradient is None:
                continue
            if value in found:
                found[value] += gradient
            else:
                found[value] = gradient
        for i in range(len(self._steps) - 1, -1, -1):
            op, node, needed = self._steps[i]
            if not needed:
                continue
            if len(node.outputs) == 1:
                dy: Any = found.pop(node.first, None)
                if dy is None:
                    continue
            else:
                dy = tuple(found.pop(node.first + j, None) for j in range(len(node.outputs)))
                if all(each is None for each in dy):
                    continue
            into = [
                gradients[value - first] if (i, j) in self._last_use and self._is_wanted(value) else None
                for j, value in enumerate(node.inputs)
            ]
            for value, gradient in zip(node.inputs, op.backward(dy, into), strict=True):
                if gradient is None:
                    continue
                if value in found:
                    found[value] += gradient
                else:
                    found[value] = gradient
        for place in self._wanted:
            gradient, target = found.get(first + place), gradients[place]
            assert target is not None
            if gradient is None:
                target[...] = 0
            elif gradient is not target:
                target[...] = gradient

    def _is_wanted(self, value: int) -> bool:
        return value - self._graph.first_variable in self._wanted and value < self._graph.first_constant
