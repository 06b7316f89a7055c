"""Graphs of operations: what a model's `call` does, traced once, as data.

A graph is in static single assignment: values are numbered, inputs first, then variables, constants, and
the outputs of the nodes in their order. It names operations of the closed registry and their JSON
attributes, so it can be stored and run without the code that made it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.ops.base import OPS, infer
from workers.nn.tensor import Spec, Symbol, Tensor, leaves, map_structure
from workers.nn.variables import Variable, tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from workers.nn.numerics import Array


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: the values it takes, and the number of the first that it gives."""

    op: str
    attrs: Mapping[str, Any]
    inputs: tuple[int, ...]
    first: int
    outputs: tuple[Spec, ...]


@dataclass(slots=True)
class Graph:
    """Operations between inputs, variables and constants on one side, and outputs on the other."""

    inputs: list[Spec]
    variables: list[Variable]
    constants: list[Array]
    nodes: list[Node]
    outputs: list[int]
    """The values that are asked for, flat; `structure` says how they go together."""
    structure: Any = None
    """The outputs' structure of tuples, lists and dicts, with places in `outputs` as leaves."""
    assignments: list[tuple[int, int]] = field(default_factory=list)
    """(place in `variables`, value): what variables become after a step of training."""

    @property
    def first_variable(self) -> int:
        """The number of the first variable's value."""
        return len(self.inputs)

    @property
    def first_constant(self) -> int:
        """The number of the first constant's value."""
        return len(self.inputs) + len(self.variables)

    def specs(self) -> dict[int, Spec]:
        """The spec of each value."""
        leading = [*self.inputs, *(v.spec for v in self.variables), *(Tensor(c).spec for c in self.constants)]
        found = dict(enumerate(leading))
        for node in self.nodes:
            found.update({node.first + i: spec for i, spec in enumerate(node.outputs)})
        return found


class Builder:
    """A graph in the making. Value numbers are negative for variables and constants until it is finished."""

    def __init__(self) -> None:
        self._inputs: list[Spec] = []
        self._variables: dict[int, tuple[Variable, int]] = {}
        self._constants: dict[int, tuple[Tensor, int]] = {}
        self._nodes: list[Node] = []
        self._assignments: list[tuple[Variable, int]] = []
        self._next = 0
        self._num_random = 0

    def input(self, spec: Spec) -> Symbol:
        """In place. One more input."""
        self._inputs.append(spec)
        return self._symbol(spec)

    def add(self, op: str, attrs: Mapping[str, Any], operands: Sequence[Any]) -> Any:
        """In place. One more operation; gives its outputs."""
        if OPS[op].random:
            attrs = {**attrs, "stream": self._num_random}
            self._num_random += 1
        inputs = tuple(self.value(operand) for operand in operands)
        outputs = infer(op, attrs, [operand.spec for operand in operands])
        symbols = [self._symbol(spec) for spec in outputs]
        self._nodes.append(Node(op, attrs, inputs, symbols[0].value, outputs))
        return symbols[0] if len(symbols) == 1 else tuple(symbols)

    def assign(self, variable: Variable, value: Any) -> None:
        """In place. `variable` becomes `value` after the step."""
        if not isinstance(value, Symbol):
            value = self.add("identity", {}, [value if hasattr(value, "spec") else Tensor(np.asarray(value))])
        if value.spec.shape != variable.spec.shape:
            raise ConfigurationError(
                f"variable {variable.path!r} has shape {variable.spec.shape}, and was assigned "
                f"{value.spec.shape}"
            )
        if any(each is variable for each, _ in self._assignments):
            raise ConfigurationError(f"variable {variable.path!r} is assigned to twice in one step")
        self.value(variable)
        self._assignments.append((variable, value.value))

    def value(self, operand: Any) -> int:
        """In place. The number of an operand's value."""
        if isinstance(operand, Symbol):
            if operand.builder is not self:
                raise ConfigurationError(
                    "a tensor of another call was used: a layer may keep no tensor between two calls"
                )
            return operand.value
        known: dict[int, tuple[Any, int]] = (
            self._variables if isinstance(operand, Variable) else self._constants
        )
        if id(operand) not in known:
            known[id(operand)] = (operand, self._symbol(operand.spec).value)
        return known[id(operand)][1]

    def finish(self, outputs: Any) -> Graph:
        """The graph that gives these."""
        flat = [self.value(each) for each in leaves(outputs)]
        places = iter(range(len(flat)))
        structure = map_structure(lambda _: next(places), outputs)
        variables = [*self._variables.values()]
        constants = [*self._constants.values()]
        number: dict[int, int] = {}
        inputs = [value for value in range(self._next) if value < len(self._inputs)]
        for old in [*inputs, *(old for _, old in variables), *(old for _, old in constants)]:
            number[old] = len(number)
        for node in self._nodes:
            for i in range(len(node.outputs)):
                number[node.first + i] = len(number)
        nodes = [
            Node(n.op, n.attrs, tuple(number[i] for i in n.inputs), number[n.first], n.outputs)
            for n in self._nodes
        ]
        places_of = {id(variable): i for i, (variable, _) in enumerate(variables)}
        return Graph(
            list(self._inputs),
            [variable for variable, _ in variables],
            [tensor.array for tensor, _ in constants],
            nodes,
            [number[value] for value in flat],
            structure,
            [(places_of[id(variable)], number[value]) for variable, value in self._assignments],
        )

    def _symbol(self, spec: Spec) -> Symbol:
        symbol = Symbol(self, self._next, spec)
        self._next += 1
        return symbol


def trace(function: Callable[..., Any], *specs: Any, builder: Builder | None = None) -> Graph:
    """What `function` does with tensors of these specs (each a structure of them), as a graph.

    A `builder` of one's own sees each operation. Raises Untraceable with the line of the code if it asks for
    a tensor's value.
    """
    builder = Builder() if builder is None else builder
    arguments = [map_structure(builder.input, spec) for spec in specs]
    with tracing(builder):
        return builder.finish(function(*arguments))
