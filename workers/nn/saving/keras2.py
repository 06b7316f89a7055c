"""Configs of Keras 2 in the form of Keras 3, and back.

Keras 2 wrote {class_name, config} without a module, shapes as `batch_input_shape`, calls of a functional
model as lists [[layer, call, tensor, kwargs], ...], and "auto" for a loss's reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from workers.nn import losses, metrics
from workers.nn.lookup import FUNCTION, check, serialize

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
        written = str(found["class_name"])
        found["class_name"] = written.removeprefix(_OPTIMIZER_PREFIX)
        if ">" in written:
            found.setdefault("registered_name", written)
        found["config"] = _settings(found["class_name"], found["config"])
        shape = found["config"].pop("build_input_shape", None)
        if shape is not None and found["class_name"] == "Sequential":
            found.setdefault("build_config", {"input_shape": shape})
    return found


def compile_config(training: Mapping[str, Any]) -> dict[str, Any]:
    """What `compile_from_config` takes, of an `.h5` file's `training_config`."""
    found = {key: modern(_unwrapped(training.get(key))) for key in _MEASURES}
    metrics = found["metrics"]
    if isinstance(metrics, list) and len(metrics) == 1 and isinstance(metrics[0], list):
        found["metrics"] = metrics[0]  # those of the only output
    return {
        **found,
        "optimizer": _optimizer(modern(training.get("optimizer_config"))),
        "loss_weights": training.get("loss_weights"),
    }


_MEASURES = ("loss", "metrics", "weighted_metrics")
_WRAPPERS = ("LossFunctionWrapper", "MeanMetricWrapper")


def _unwrapped(config: Any) -> Any:
    """Losses and metrics with what Keras 2 wrote as wrappers of functions under the functions' names."""
    if isinstance(config, list):
        return [_unwrapped(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    settings = config.get("config")
    if config.get("class_name") not in _WRAPPERS or not isinstance(settings, Mapping) or "fn" not in settings:
        return {key: _unwrapped(item) for key, item in config.items()}
    function = settings["fn"]
    name = function.get("config") if isinstance(function, Mapping) else function
    return {"class_name": name, "config": {key: item for key, item in settings.items() if key != "fn"}}


def _optimizer(config: Any) -> Any:
    """An optimizer's config, with a decay of the learning rate as the schedule that it was."""
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        return config
    settings = config["config"]
    decay = settings.pop("decay", None)
    if isinstance(decay, int | float) and decay and isinstance(settings.get("learning_rate"), int | float):
        settings["learning_rate"] = {
            "class_name": "InverseTimeDecay",
            "config": {
                "initial_learning_rate": settings["learning_rate"],
                "decay_steps": 1,
                "decay_rate": decay,
            },
        }
    return config


def _settings(class_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    if "batch_input_shape" in settings:
        shape = settings.pop("batch_input_shape")
        if class_name == "InputLayer":
            settings["batch_shape"] = shape
        else:
            settings["input_shape"] = shape[1:]
    axis = settings.get("axis")
    if class_name == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
        settings["axis"] = axis[0]
    if settings.get("reduction") == "auto":
        settings["reduction"] = "sum_over_batch_size"
    if "reduction" in settings and isinstance(settings.get("fn"), str):
        del settings["fn"]  # of a loss that is known by its class
    if "input_layers" in settings and "layers" in settings:
        layers, outputs = _numbered_from_0(settings["layers"], settings["output_layers"])
        settings["layers"] = [_layer(item) for item in layers]
        settings["input_layers"] = _only(settings["input_layers"])
        settings["output_layers"] = _only(outputs)
    return settings


def _numbered_from_0(layers: Any, outputs: Any) -> tuple[Any, Any]:
    """Calls of inner models numbered from 0: Keras 2 counts the making of such a model as its first."""
    inner = {
        item.get("name")
        for item in layers
        if isinstance(item, Mapping)
        and isinstance(item.get("config"), Mapping)
        and "layers" in item["config"]
        and all(isinstance(node, list) for node in item.get("inbound_nodes") or ())
    }
    calls = [
        item["inbound_nodes"] for item in layers if isinstance(item, Mapping) and "inbound_nodes" in item
    ]
    inner -= {history[0] for history in _histories([calls, outputs]) if history[1] == 0}
    if not inner:
        return layers, outputs

    def shifted(value: Any) -> Any:
        if _is_history(value) and value[0] in inner:
            return [value[0], value[1] - 1, *(shifted(item) for item in value[2:])]
        if isinstance(value, list):
            return [shifted(item) for item in value]
        return {key: shifted(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    moved = [{**item, "inbound_nodes": shifted(item.get("inbound_nodes") or [])} for item in layers]
    return moved, shifted(outputs)


def _histories(value: Any) -> list[Any]:
    """All [layer, call, tensor] in a structure."""
    own = [value] if _is_history(value) else []
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return own + [history for item in items for history in _histories(item)]


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


# -- writing ------------------------------------------------------------------------------------------------

_NEW = frozenset({"gradient_accumulation_steps", "loss_scale_factor", "rms_scaling", "use_ema", "use_gate"})
"""Settings that Keras 2 does not know, or not of every optimizer, and that ask for nothing where false."""


def classic(config: Any) -> Any:
    """The config of a model, as `serialize` gives it, in Keras 2's form, which Keras 3 reads too."""
    if isinstance(config, list):
        return [classic(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    if "class_name" not in config or not isinstance(config.get("config"), Mapping):
        return {key: classic(item) for key, item in config.items()}
    settings = {
        key: classic(item)
        for key, item in config["config"].items()
        if item is not None and (item or key not in _NEW)
    }
    class_name = config["class_name"]
    if class_name == "InputLayer":
        settings["batch_input_shape"] = settings.pop("batch_shape")
    if isinstance(settings.get("layers"), list):
        settings["layers"] = [_classic_layer(item) for item in settings["layers"]]
        for key in ("input_layers", "output_layers"):
            if _is_history(settings.get(key)):
                settings[key] = [settings[key]]
    found = {key: item for key, item in config.items() if key not in ("build_config", "compile_config")}
    return {**found, "config": settings}


def classic_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a whole model in Keras 2's form."""
    found = _classic_layer(classic(config))
    build = config.get("build_config")
    if not isinstance(build, Mapping):
        return found
    settings = found["config"]
    if "input_layers" in settings or _begins_with_input(settings.get("layers")):
        return found
    if isinstance(settings.get("layers"), list):
        settings["build_input_shape"] = build.get("input_shape")
    return {**found, "build_config": build}


def training_config(compiled: Mapping[str, Any]) -> dict[str, Any]:
    """An `.h5` file's `training_config`, of what `get_compile_config` gives.

    Losses and metrics are written as objects, not as their names, which Keras 3 cannot read from such a file.
    """
    optimizer = _classic_layer(classic(compiled["optimizer"]))
    if "use_ema" not in optimizer["config"]:
        optimizer["config"].pop("ema_momentum", None)
    return {
        "loss": _measure(compiled.get("loss"), losses.get),
        "metrics": _measure(compiled.get("metrics"), metrics.get),
        "weighted_metrics": _measure(compiled.get("weighted_metrics"), metrics.get),
        "loss_weights": compiled.get("loss_weights"),
        "optimizer_config": optimizer,
    }


_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")
"""Names of metrics that mean others for other outputs, which Keras reads as names."""


def _measure(config: Any, get: Callable[[Any], Any]) -> Any:
    if isinstance(config, str):
        return config if config in _BY_SHAPE else _measure(serialize(get(config)), get)
    if isinstance(config, list):
        return [_measure(item, get) for item in config]
    if not isinstance(config, Mapping):
        return config
    if "class_name" not in config:
        return {key: _measure(item, get) for key, item in config.items()}
    if config["class_name"] == FUNCTION:
        return config.get("registered_name") or config["config"]
    return _classic_layer(classic(config))


def _classic_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of an object, what Keras 2 writes: a class of the user's goes by the name that it is registered by."""
    registered = config.get("registered_name")
    found = {
        "class_name": registered if registered and not config.get("module") else config["class_name"],
        "config": config["config"],
    }
    if "inbound_nodes" in config:
        found |= {
            "name": config["name"],
            "inbound_nodes": [_classic_call(n) for n in config["inbound_nodes"]],
        }
    return found


def _classic_call(node: Any) -> Any:
    """A call as a list of its tensors, where it has just those; otherwise in Keras 3's form."""
    args, kwargs = node["args"], node["kwargs"]
    tensors = [] if len(args) != 1 else args[0] if isinstance(args[0], list) else [args[0]]
    simple = tensors and all(_is_tensor(each) for each in tensors) and not _holds_tensor(kwargs)
    if not simple:
        return node
    return [[*each["config"]["keras_history"], kwargs] for each in tensors]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__"


def _holds_tensor(value: Any) -> bool:
    if _is_tensor(value):
        return True
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(_holds_tensor(item) for item in items)


def _begins_with_input(layers: Any) -> bool:
    return isinstance(layers, list) and bool(layers) and layers[0]["class_name"] == "InputLayer"
