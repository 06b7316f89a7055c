"""The architecture of a functional model as JSON values, in Keras 3's form, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.functional import CallNode, InputLayer
from workers.nn.layers.registry import get, serialize
from workers.nn.tensor import KerasTensor, Tensor, leaves, map_structure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.layers.base import Layer


def to_config(
    layers: Sequence[Layer], calls: Sequence[tuple[Layer, int]], inputs: Any, outputs: Any
) -> dict[str, Any]:
    """Layers with their calls, and which tensors come in and out.

    Calls of a layer are numbered within the model: those that other models made do not count.
    """
    number = {(id(layer), 0): 0 for layer in layers if isinstance(layer, InputLayer)}
    of_layer: dict[int, list[CallNode]] = {id(layer): [] for layer in layers}
    for layer, call in calls:
        number[id(layer), call] = len(of_layer[id(layer)])
        of_layer[id(layer)].append(layer._calls[call])

    def history(tensor: KerasTensor) -> list[Any]:
        assert tensor.history is not None
        layer, call = tensor.history.layer, tensor.history.node
        return [layer.name, number[id(layer), call], tensor.history.tensor]

    def argument(leaf: Any) -> Any:
        if isinstance(leaf, KerasTensor):
            spec = {"shape": list(leaf.shape), "dtype": leaf.dtype, "keras_history": history(leaf)}
            return {"class_name": "__keras_tensor__", "config": spec}
        if isinstance(leaf, Tensor | np.ndarray):
            array = np.asarray(leaf)
            return {"class_name": "__numpy__", "config": {"value": array.tolist(), "dtype": array.dtype.name}}
        return leaf

    described = []
    for layer in layers:
        nodes = [
            {
                "args": map_structure(argument, list(node.args)),
                "kwargs": map_structure(argument, dict(node.kwargs)),
            }
            for node in of_layer[id(layer)]
        ]
        described.append({**serialize(layer), "name": layer.name, "inbound_nodes": nodes})
    return {
        "layers": described,
        "input_layers": map_structure(history, inputs),
        "output_layers": map_structure(history, outputs),
    }


def from_config(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The inputs and outputs of layers made anew from what `to_config` gave.

    Raises ConfigurationError for a call whose tensors no other call gives.
    """
    layers = {item["name"]: get(_without_calls(item)) for item in config["layers"]}
    for name, layer in layers.items():
        layer.name = name
    first = {name: len(layer._calls) for name, layer in layers.items()}
    for layer in layers.values():
        if isinstance(layer, InputLayer):
            first[layer.name] = 0
    waiting = [(item["name"], node) for item in config["layers"] for node in item["inbound_nodes"]]

    def found(history: Sequence[Any]) -> KerasTensor | None:
        name, number, tensor = history
        if name not in layers:
            raise ConfigurationError(f"the model's config names a layer {name!r}, which it does not hold")
        calls = layers[name]._calls
        place = first[name] + number
        if place >= len(calls):
            return None
        output: KerasTensor = leaves(calls[place].outputs)[tensor]
        return output

    while waiting:
        left, blocked = [], set()
        for name, node in waiting:
            missing = [h for h in _histories(node) if found(h) is None]
            if missing or name in blocked:  # a layer's calls keep their order
                blocked.add(name)
                left.append((name, node))
                continue
            args, given = _filled(node["args"], found), _filled(node["kwargs"], found)
            # Keras writes those down for layers that take none, too.
            kwargs = {k: v for k, v in given.items() if v is not None or k not in ("mask", "training")}
            layers[name](*args, **kwargs)
        if len(left) == len(waiting):
            raise ConfigurationError(f"the model's config calls {left[0][0]!r} with what no layer gives")
        waiting = left
    return (
        _ends(config["input_layers"], found),
        _ends(config["output_layers"], found),
    )


def _without_calls(item: Mapping[str, Any]) -> dict[str, Any]:
    # What it was built with is not needed either: the calls build it.
    return {key: value for key, value in item.items() if key not in ("inbound_nodes", "name", "build_config")}


def _is(value: Any, class_name: str) -> bool:
    return isinstance(value, dict) and value.get("class_name") == class_name


def _histories(value: Any) -> list[Any]:
    """The histories of all tensors in a serialized argument."""
    if _is(value, "__keras_tensor__"):
        return [value["config"]["keras_history"]]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [history for item in items for history in _histories(item)]


def _filled(value: Any, found: Any) -> Any:
    """A serialized argument with tensors in their places."""
    if _is(value, "__keras_tensor__"):
        return found(value["config"]["keras_history"])
    if _is(value, "__numpy__"):
        return np.asarray(value["config"]["value"], value["config"]["dtype"])
    if isinstance(value, dict):
        return {key: _filled(item, found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, found) for item in value]
    return value


def _ends(value: Any, found: Any) -> Any:
    """The tensors of a structure of histories."""
    if isinstance(value, dict):
        return {key: _ends(item, found) for key, item in value.items()}
    if len(value) == 3 and isinstance(value[0], str):
        tensor = found(value)
        if tensor is None:
            raise ConfigurationError(f"the model's config ends in {value}, which no layer gives")
        return tensor
    return [_ends(item, found) for item in value]
