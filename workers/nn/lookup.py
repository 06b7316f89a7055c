"""Objects by their Keras names, and their settings as JSON values.

An object is written as Keras 3 does it, {"module", "class_name", "config", "registered_name"}, with its
"build_config" where it has one. Only known classes, and those that were registered or are in a scope, are
made of what was written; nothing is imported.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.registration import get_registered_name, get_registered_object

T = TypeVar("T")

FUNCTION = "function"
"""The class name of a function, whose config is its name."""

_UNFIT = (AttributeError, LookupError, TypeError, ValueError)
"""What a class of ours may raise for settings of the wrong kind, which only a file made up would have."""

_KERAS_MODULES = {
    "functional": "keras.layers",
    "model": "keras",
    "sequential": "keras",
    "optimizers.schedules": "keras.optimizers.schedules",
}
_HOME = "workers.nn."


class CannotBeMade(ConfigurationError):
    """What was written cannot be made."""


class Unknown(CannotBeMade):
    """What was written is of a class or function that is not known."""


class Configured(Protocol):
    """Anything that can tell the settings it was made with."""

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values, such that `cls(**config)` makes an equal object."""


def serialize(obj: Any) -> Any:
    """An object (`Configured`) or a function as JSON values; None and names stay.

    Raises ConfigurationError for what has neither settings nor a name.
    """
    obj = getattr(obj, "written_as", obj)
    if obj is None or isinstance(obj, str | Mapping):
        return obj
    if not hasattr(obj, "get_config") or isinstance(obj, type):
        return _serialized_function(obj)
    cls = type(obj)
    module = keras_module(cls)
    found = {
        "module": module,
        "class_name": cls.__name__,
        "config": {key: as_json(value, f"{cls.__name__}: {key}") for key, value in obj.get_config().items()},
        "registered_name": None if module is not None else get_registered_name(cls),
    }
    build = obj.get_build_config() if hasattr(obj, "get_build_config") else None
    return found if build is None else {**found, "build_config": build}


def as_json(value: Any, where: str) -> Any:
    """A setting as JSON values: tuples are lists, objects in it as `serialize` writes them.

    Raises ConfigurationError, beginning with `where`, for what cannot be written.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): as_json(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, where) for item in value]
    if hasattr(value, "get_config") or (callable(value) and hasattr(value, "__name__")):
        return serialize(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return {"class_name": "__numpy__", "config": {"value": array.tolist(), "dtype": array.dtype.name}}
    raise ConfigurationError(f"{where} is a {type(value).__name__}, which cannot be written: see get_config")


def get(
    kind: str,
    identifier: object,
    base: type[T],
    known: Mapping[str, Callable[..., T]],
    of_function: Callable[[Callable[..., Any]], Any] | None = None,
) -> Any:
    """The object that `identifier` stands for: itself, a class, a name, or what `serialize` wrote.

    Names are those in `known`, and those of custom objects. `of_function` makes an object of a function,
    where functions will do. Raises ConfigurationError naming the `kind` ("optimizer") and the known names.
    """
    if isinstance(identifier, str | Mapping):
        identifier = deserialize(kind, identifier, known)
    if isinstance(identifier, base):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, base):
        return made(identifier, {})
    if of_function is not None and callable(identifier) and not isinstance(identifier, type):
        return of_function(identifier)
    raise ConfigurationError(f"unknown {kind} {identifier!r}: use one of {', '.join(known)}, or an instance")


def deserialize(kind: str, identifier: str | Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """The object of a name or of what `serialize` wrote; the function, where it is one.

    Raises ConfigurationError for a class or function that is not known, with the remedy.
    """
    if isinstance(identifier, str):
        target = _find(known, identifier)
        if target is None:
            raise ConfigurationError(
                f"unknown {kind} {identifier!r}: use one of {', '.join(known)}, or an instance"
            )
        return made(target, {}) if isinstance(target, type) else target
    name, config = identifier.get("class_name"), identifier.get("config")
    if name == FUNCTION:
        name, config = config, None
    registered = identifier.get("registered_name")
    target = _find(known, *(each for each in (registered, name) if isinstance(each, str)))
    if target is None:
        raise Unknown(_unknown(kind, name, registered))
    if not isinstance(target, type):
        return target
    if config is not None and not isinstance(config, Mapping):
        raise ConfigurationError(f"{name}: its config is {config!r}, not its settings by name")
    found = made(target, dict(config or {}))
    build = identifier.get("build_config")
    if isinstance(build, Mapping) and hasattr(found, "build_from_config") and not found.built:
        found.build_from_config(dict(build))
    return found


def _unknown(kind: str, name: object, registered: object) -> str:
    also = f" ({registered!r})" if registered not in (None, name) else ""
    return (
        f"unknown {kind} {name!r}{also}: give it with custom_objects={{{str(name)!r}: ...}}, or register it "
        "with nn.saving.register_keras_serializable"
    )


def made(cls: Any, config: dict[str, Any]) -> Any:
    """An object of a class with settings as they were written; ConfigurationError if it takes no such."""
    settings = {key: _dtype_name(value) if key == "dtype" else value for key, value in config.items()}
    ours = keras_module(cls) is not None
    if ours:
        taken = _settings_of(cls)
        settings = {k: v for k, v in settings.items() if k in taken or not _means_nothing(k, v)}
    try:
        return cls.from_config(settings) if hasattr(cls, "from_config") else cls(**settings)
    except ConfigurationError:
        raise
    except _UNFIT as error:
        if not ours and not isinstance(error, TypeError):
            raise  # of the user's code
        raise CannotBeMade(f"{cls.__name__} cannot be made from its config: {error}") from error


def keras_module(cls: type) -> str | None:
    """The module in which Keras has a class of ours; None for a class of the user's."""
    if not cls.__module__.startswith(_HOME):
        return None
    if cls.__name__ == "Functional":
        return "keras.src.models.functional"
    place = cls.__module__.removeprefix(_HOME)
    return _KERAS_MODULES.get(place, f"keras.{place.partition('.')[0]}")


def check(condition: bool, message: str) -> None:
    """Raise ConfigurationError with `message` unless the condition holds."""
    if not condition:
        raise ConfigurationError(message)


def is_count(value: object) -> bool:
    """Whether `value` is a positive integer, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def snake_case(name: str) -> str:
    """Keras's name for a class: Dense -> dense, MyLayer -> my_layer, Conv2D -> conv2d."""
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _serialized_function(function: Any) -> dict[str, Any]:
    name = getattr(function, "__name__", None)
    check(callable(function) and name is not None, f"{function!r} cannot be written: give it a get_config")
    return {
        "module": "builtins",
        "class_name": FUNCTION,
        "config": name,
        "registered_name": get_registered_name(function),
    }


def _find(known: Mapping[str, Any], *names: str) -> Any:
    """What the first of the names that is known stands for: custom objects go first."""
    for name in names:
        if (found := get_registered_object(name)) is not None:
            return found
    return next((known[name] for name in names if name in known), None)


def _dtype_name(dtype: Any) -> Any:
    """The dtype of the weights; Keras 3 writes a policy, which also says what is computed in."""
    if not isinstance(dtype, Mapping):
        return dtype
    settings = dtype.get("config")
    name = str(settings.get("name", "float32") if isinstance(settings, Mapping) else "float32")
    return "float32" if name.startswith("mixed_") or name == "bfloat16" else name


_MEANINGLESS = frozenset({"build_input_shape", "dtype", "implementation", "jit_compile", "renorm_momentum"})
"""Settings of Keras that change nothing here, whatever their value."""


def _means_nothing(key: str, value: Any) -> bool:
    """Whether a setting that is not known here asks for nothing."""
    return value is None or value is False or key in _MEANINGLESS


@cache
def _settings_of(cls: type) -> frozenset[str]:
    """The names of what a class takes when it is made, its bases' too."""
    classes = [*cls.__mro__, *getattr(cls, "cell_class", object).__mro__]
    return frozenset(name for each in classes for name in inspect.signature(each.__init__).parameters)
