"""Objects by their Keras names, and their settings as JSON values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from storage.errors import ConfigurationError

T = TypeVar("T")


class Configured(Protocol):
    """Anything that can tell the settings it was made with."""

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values, such that `cls(**config)` makes an equal object."""


def serialize(obj: Any) -> Any:
    """The class name and the settings of an object (`Configured`), as JSON values; None stays."""
    return None if obj is None else {"class_name": type(obj).__name__, "config": obj.get_config()}


def get(kind: str, identifier: object, base: type[T], known: Mapping[str, Callable[..., T]]) -> T:
    """The object that `identifier` stands for: itself, a name in `known`, or what `serialize` wrote.

    Raises ConfigurationError naming the `kind` ("optimizer") and the known names.
    """
    if isinstance(identifier, base):
        return identifier
    if isinstance(identifier, str) and identifier in known:
        return known[identifier]()
    if isinstance(identifier, Mapping) and identifier.get("class_name") in known:
        return known[identifier["class_name"]](**identifier.get("config", {}))
    raise ConfigurationError(f"unknown {kind} {identifier!r}: use an instance, or one of {', '.join(known)}")


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
