"""Configs of Keras 2 in the form of Keras 3.

Keras 2 wrote {class_name, config} without a module, shapes as `batch_input_shape`, calls of a functional
model as lists [[layer, call, tensor, kwargs], ...], and "auto" for a loss's reduction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.nn.lookup import check

_OPTIMIZER_PREFIX = "Custom>"
"""tf_keras registers its own optimizers as if they were a user's."""


def modern(config: Any) -> Any:
    """The config with every object in it in Keras 3's form; what is in it already stays as it is."""
    if isinstance(config, list):
        return [modern(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    found = {key: modern(item) for key, item in config.items()}
    if "class_name" in found and isinstance(found.get("config"), dict):
        found["class_name"] = str(found["class_name"]).removeprefix(_OPTIMIZER_PREFIX)
        found["config"] = _settings(found["class_name"], found["config"])
    return found


def _settings(class_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    if "batch_input_shape" in settings:
        shape = settings.pop("batch_input_shape")
        if class_name == "InputLayer":
            settings["batch_shape"] = shape
        else:
            settings["input_shape"] = shape[1:]
    if settings.get("reduction") == "auto":
        settings["reduction"] = "sum_over_batch_size"
    if "reduction" in settings and isinstance(settings.get("fn"), str):
        del settings["fn"]  # of a loss that is known by its class
    if "input_layers" in settings and "layers" in settings:
        settings["layers"] = [_layer(item) for item in settings["layers"]]
        for key in ("input_layers", "output_layers"):
            settings[key] = _only(settings[key])
    return settings


def _layer(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "inbound_nodes": [_call(node) for node in item.get("inbound_nodes", [])]}


def _call(node: Any) -> Any:
    """A call's arguments: those of tensors, and by name."""
    if isinstance(node, Mapping):
        return node
    check(isinstance(node, list) and len(node) > 0, f"a call of a layer is {node!r}")
    if _is_history(node):
        node = [node]
    tensors = [_tensor(each) for each in node]
    kwargs = node[0][3] if len(node[0]) > 3 else {}
    named = {key: _tensor(item) if _is_history(item) else item for key, item in kwargs.items()}
    return {"args": [tensors[0] if len(tensors) == 1 else tensors], "kwargs": named}


def _tensor(history: Any) -> dict[str, Any]:
    check(_is_history(history), f"a tensor of a model's config is {history!r}")
    return {"class_name": "__keras_tensor__", "config": {"keras_history": list(history[:3])}}


def _is_history(value: Any) -> bool:
    """Whether it is [layer, call, tensor], maybe with keyword arguments."""
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and all(isinstance(n, int) for n in value[1:3])
    )


def _only(ends: Any) -> Any:
    """One of a single input or output, which Keras 2 wrote as a list of it."""
    return ends[0] if isinstance(ends, list) and len(ends) == 1 and _is_history(ends[0]) else ends
