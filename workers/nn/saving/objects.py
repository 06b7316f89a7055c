"""Objects as JSON values in Keras 3's form, and back: layers, models, losses, metrics, optimizers, functions.

A file names classes and functions; it never holds code. What a name stands for is one of ours, or was
registered, or is in a scope or in `custom_objects`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from storage.errors import CorruptCheckpoint, HoldfastError
from workers.nn import (
    activations,
    constraints,
    initializers,
    layers,
    lookup,
    losses,
    metrics,
    optimizers,
    regularizers,
)
from workers.nn.lookup import CannotBeMade, Unknown, check
from workers.nn.registration import (
    custom_object_scope,
    get_registered_name,
    get_registered_object,
    register_keras_serializable,
)
from workers.nn.saving.keras2 import modern

_MAX_ELEMENTS = 1 << 20
"""Of an array within a config."""

_KINDS: dict[str, Callable[[Any], Any]] = {
    "keras": layers.get,
    "keras.models": layers.get,
    "keras.layers": layers.get,
    "keras.activations": activations.get,
    "keras.losses": losses.get,
    "keras.metrics": metrics.get,
    "keras.optimizers": optimizers.get,
    "keras.optimizers.schedules": optimizers.schedules.deserialize,
    "keras.initializers": initializers.get,
    "keras.regularizers": regularizers.get,
    "keras.constraints": constraints.get,
}
"""What makes the objects of Keras's modules."""


def serialize(obj: Any) -> Any:
    """An object as JSON values: {module, class_name, config, registered_name}, and `build_config` of a layer.

    A model that is compiled also has its `compile_config`. Numbers, names, None, and structures of objects
    are as they are. Raises ConfigurationError for what has no settings.
    """
    found = lookup.as_json(obj, "serialize: what was given")
    compiled = obj.get_compile_config() if hasattr(obj, "get_compile_config") else None
    return found if compiled is None else {**found, "compile_config": compiled}


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None, *, compile: bool = True) -> Any:
    """The object that `serialize`, or Keras 3 or 2, wrote; without a module it is a layer or a model.

    A model is compiled as its `compile_config` says, if `compile`. Raises ConfigurationError for a class or
    function that is not known, for settings that a class does not take, and for what would hold code.
    """
    with custom_object_scope(custom_objects), only_fitting():
        if isinstance(config, Mapping) and "class_name" in config and "module" not in config:
            config = modern(config)
        found = _revived(config)
        compiled = config.get("compile_config") if isinstance(config, Mapping) else None
        if compile and compiled and hasattr(found, "compile_from_config"):
            found.compile_from_config(compiled)
        return found


def check_model(found: Any, where: str) -> None:
    """Raise CorruptCheckpoint unless a file's config made a model."""
    if not hasattr(found, "named_variables") or not hasattr(found, "compile_from_config"):
        raise CorruptCheckpoint(f"{where} describes no model")


@contextmanager
def only_fitting() -> Iterator[None]:
    """Make of what our own classes raise for settings of the wrong kind a CannotBeMade.

    What the code of users raises, whom we call, passes through.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as exc:
        frames = traceback.walk_tb(exc.__traceback__)
        packages = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames}
        if isinstance(exc, HoldfastError) or packages - _OURS - sys.stdlib_module_names:
            raise
        raise CannotBeMade(f"a config has settings that do not fit: {type(exc).__name__}: {exc}") from exc


_OURS = frozenset({"ml_dtypes", "numpy", "storage", "workers"})


def _revived(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return [_revived(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    name = config.get("class_name")
    if name is None:
        return {key: _revived(item) for key, item in config.items()}
    check(isinstance(name, str), f"{name!r} is no name of a class")
    if name in _SPECIAL:
        return _SPECIAL[name](config)
    module = _public(config.get("module"))
    if module in _KINDS and get_registered_object(name) is None:
        return _KINDS[module](config)
    known = layers.LAYERS if module is None else activations.KNOWN if module == "builtins" else {}
    return lookup.deserialize("function" if name == lookup.FUNCTION else "class", config, known)


def _public(module: Any) -> str | None:
    """The public module of one of Keras's: "keras.src.losses.losses" -> "keras.losses"."""
    if not isinstance(module, str):
        return None
    parts = module.split(".")
    if parts[:2] != ["keras", "src"]:
        return module
    if "learning_rate_schedule" in parts[-1]:
        return "keras.optimizers.schedules"
    return ".".join(["keras", *parts[2:3]])


def _array(config: Mapping[str, Any]) -> Any:
    inner = config.get("config", {})
    values = np.asarray(inner.get("value"), inner.get("dtype"))
    check(values.size <= _MAX_ELEMENTS and values.dtype.kind in "biufc", "an array in a config is no numbers")
    return values


def _refused(config: Mapping[str, Any]) -> Any:
    raise Unknown(f"a {config['class_name']} cannot be made from a file, as it would hold code")


_SPECIAL: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "__tuple__": lambda config: tuple(_revived(item) for item in config.get("items", ())),
    "__numpy__": _array,
    "__tensor__": _array,
    "__lambda__": _refused,
    "Lambda": _refused,
    "DTypePolicy": lambda config: config.get("config", {}).get("name", "float32"),
}
"""What Keras writes of values that are no objects of a class."""

serialize_keras_object = serialize
deserialize_keras_object = deserialize
CustomObjectScope = custom_object_scope

__all__ = [
    "CustomObjectScope",
    "custom_object_scope",
    "deserialize",
    "deserialize_keras_object",
    "get_registered_name",
    "get_registered_object",
    "register_keras_serializable",
    "serialize",
    "serialize_keras_object",
]
