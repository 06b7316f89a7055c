"""Functional models: layers called on what other layers will give.

inputs = nn.Input((784,))
x = nn.Dense(64, activation="relu")(inputs)
model = nn.Model(inputs, nn.Dense(10)(x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.graph import trace
from workers.nn.layers.base import Layer
from workers.nn.layers.registry import LAYERS
from workers.nn.ops.base import apply
from workers.nn.tensor import History, KerasTensor, Spec, leaves, map_structure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike


class InputLayer(Layer):
    """Where data comes into a model."""

    def __init__(
        self,
        shape: Sequence[int | None] | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        batch_shape: Sequence[int | None] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        if batch_shape is None:
            if shape is None or isinstance(shape, int) or not all(n is None or _is_count(n) for n in shape):
                raise ConfigurationError(f"Input: shape must be a tuple of positive integers, not {shape!r}")
            batch_shape = (batch_size, *shape)
        self.batch_shape = tuple(batch_shape)
        self.built = True
        tensor = KerasTensor(Spec(self.batch_shape, self.dtype), History(self, 0, 0), name)
        self._calls = [CallNode((), {}, tensor)]

    @property
    def stem(self) -> str:
        """The name that Keras gives."""
        return "input_layer"

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of one sample."""
        return self.batch_shape[1:]

    def call(self, inputs: Any) -> Any:
        """The input."""
        return inputs

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"batch_shape": list(self.batch_shape), "dtype": self.dtype, "name": self._name}


def Input(
    shape: Sequence[int | None] | None = None,
    batch_size: int | None = None,
    dtype: DTypeLike | None = None,
    *,
    batch_shape: Sequence[int | None] | None = None,
    name: str | None = None,
) -> KerasTensor:
    """A tensor that stands for a model's data: `shape` is that of one sample, without the batch axis."""
    tensor: KerasTensor = InputLayer(shape, batch_size, dtype, batch_shape=batch_shape, name=name).output
    return tensor


@dataclass(frozen=True, slots=True)
class CallNode:
    """One call of a layer in a functional model: its arguments, with tensors in them, and what it gives."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Any

    @property
    def tensors(self) -> list[KerasTensor]:
        """The tensors among the arguments."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, KerasTensor)]


class Operation(Layer):
    """An operation on tensors of a functional model, as a layer without weights."""

    def __init__(self, op: str, attrs: Mapping[str, Any], name: str | None = None) -> None:
        super().__init__(name=name)
        self.op = op
        self.attrs = dict(attrs)
        self.built = True

    @property
    def stem(self) -> str:
        """The operation's name."""
        return self.op

    def call(self, *operands: Any) -> Any:
        """What the operation gives."""
        return apply(self.op, *operands, **self.attrs)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"op": self.op, "attrs": self.attrs, "name": self._name}


def apply_to_keras_tensors(op: str, attrs: Mapping[str, Any], operands: Sequence[Any]) -> Any:
    """What an operation will give."""
    return call_with_keras_tensors(Operation(op, attrs, None), tuple(operands), {})


def call_with_keras_tensors(layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a call of a layer will give; the layer is built, and remembers the call."""
    tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, KerasTensor)]

    def call(*given: Any) -> Any:
        symbols = iter(given)
        filled_args, filled_kwargs = map_structure(
            lambda leaf: next(symbols) if isinstance(leaf, KerasTensor) else leaf, (args, dict(kwargs))
        )
        return layer(*filled_args, **filled_kwargs)

    graph = trace(call, *(tensor.spec for tensor in tensors))
    specs = graph.specs()
    number = len(layer._calls)
    places = iter(range(len(graph.outputs)))
    outputs = map_structure(
        lambda place: KerasTensor(specs[graph.outputs[place]], History(layer, number, next(places))),
        graph.structure,
    )
    layer._calls.append(CallNode(args, dict(kwargs), outputs))
    return outputs


def layers_between(inputs: Any, outputs: Any) -> list[tuple[Layer, int]]:
    """The calls (layer, number) that lead from inputs to outputs, each behind those that it needs.

    Raises ConfigurationError if outputs need an input that was not given.
    """
    given = {id(tensor) for tensor in leaves(inputs)}
    found: list[tuple[Layer, int]] = []
    state: dict[tuple[int, int], bool] = {}
    stack: list[tuple[Any, bool]] = [(tensor, False) for tensor in reversed(leaves(outputs))]
    while stack:
        tensor, ready = stack.pop()
        if id(tensor) in given:
            continue
        if not isinstance(tensor, KerasTensor) or tensor.history is None:
            raise ConfigurationError(
                f"{tensor!r} is no output of a layer: a model's outputs come from its inputs"
            )
        layer, number = tensor.history.layer, tensor.history.node
        key = (id(layer), number)
        if ready:
            if not state[key]:
                state[key] = True
                found.append((layer, number))
            continue
        if key in state:
            continue
        if isinstance(layer, InputLayer):
            raise ConfigurationError(
                f"the outputs need the input {layer.name!r} of shape {layer.shape}, which is not among the "
                "inputs"
            )
        state[key] = False
        stack.append((tensor, True))
        stack += [(each, False) for each in reversed(layer._calls[number].tensors)]
    return found


def in_keras_order(outputs: Any, calls: Sequence[tuple[Layer, int]], sources: Sequence[Layer]) -> list[Layer]:
    """The layers of `layers_between`, and of the inputs, as Keras numbers them, and with them their weights.

    Those furthest from the outputs come first, and of equally far ones whichever is met first on the way back
    from the outputs. Source: Keras 3 `map_graph_network`.
    """
    within = {(id(layer), number) for layer, number in calls}
    met: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    stack = list(reversed(leaves(outputs)))
    while stack:
        layer, number = stack[-1].history.layer, stack.pop().history.node
        if (id(layer), number) not in seen:
            seen.add((id(layer), number))
            met.setdefault(id(layer), len(met))
            if (id(layer), number) in within:
                stack += reversed(layer._calls[number].tensors)
    of_call: dict[tuple[int, int], int] = {}
    of_layer = {id(layer): 0 for layer in sources}
    for layer, number in reversed(calls):
        depth = max(of_call.get((id(layer), number), 0), of_layer.get(id(layer), 0))
        of_call[id(layer), number] = of_layer[id(layer)] = depth
        for tensor in layer._calls[number].tensors:
            history = tensor.history
            assert history is not None
            key = (id(history.layer), history.node)
            of_call[key] = max(depth + 1, of_call.get(key, 0))
            if key not in within:
                of_layer[key[0]] = max(of_call[key], of_layer.get(key[0], 0))
    layers = {id(layer): layer for layer in [*sources, *(layer for layer, _ in calls)]}
    return sorted(layers.values(), key=lambda layer: (-of_layer[id(layer)], met.get(id(layer), -1)))


def replay(
    inputs: Any,
    outputs: Any,
    calls: Sequence[tuple[Layer, int]],
    given: Any,
    instead: Mapping[int, Layer] | None = None,
) -> Any:
    """What `calls` give for `given` in the place of `inputs`; `instead` are layers by the id of others."""
    others = instead or {}
    values: dict[int, Any] = {}
    for tensor, value in zip(leaves(inputs), leaves(given), strict=True):
        values[id(tensor)] = value

    def fill(leaf: Any) -> Any:
        return values[id(leaf)] if isinstance(leaf, KerasTensor) else leaf

    for layer, number in calls:
        node = layer._calls[number]
        called = others.get(id(layer), layer)
        found = called(*map_structure(fill, node.args), **map_structure(fill, dict(node.kwargs)))
        for tensor, value in zip(leaves(node.outputs), leaves(found), strict=True):
            values[id(tensor)] = value
    return map_structure(fill, outputs)


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


LAYERS["InputLayer"] = InputLayer
LAYERS["Operation"] = Operation
