"""The classes and functions that users let saved models refer to, by name.

A file holds names alone; what they stand for is what was registered here, or given with a scope.
Source: Keras 3 `keras.saving`.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Registered = TypeVar("Registered", bound="Callable[..., Any]")

_objects: dict[str, Any] = {}
"""What was registered, by "package>name"."""


class _Scopes(threading.local):
    """The objects of the scopes that this thread is in, the innermost first."""

    objects: tuple[Mapping[str, Any], ...] = ()


_scopes = _Scopes()


def register_keras_serializable(
    package: str = "Custom", name: str | None = None
) -> Callable[[Registered], Registered]:
    """A decorator: let saved models refer to a class or function as "package>name".

    `name` is by default the object's own. A class needs a `get_config`. Registering the same name again
    replaces what it stood for.
    """

    def register(obj: Registered) -> Registered:
        if isinstance(obj, type) and not hasattr(obj, "get_config"):
            raise ConfigurationError(
                f"{obj.__name__} cannot be registered: give it a get_config, which tells its settings"
            )
        if not isinstance(obj, type) and not callable(obj):
            raise ConfigurationError(f"{obj!r} cannot be registered: give a class or a function")
        _objects[f"{package}>{name or obj.__name__}"] = obj
        return obj

    return register


@contextmanager
def custom_object_scope(custom_objects: Mapping[str, Any] | None) -> Iterator[None]:
    """While it lasts, names in saved models stand for these classes and functions first of all.

    Raises ConfigurationError for what is neither.
    """
    given = dict(custom_objects or {})
    for key, obj in given.items():
        if not callable(obj):
            raise ConfigurationError(f"custom_objects: {key!r} is {obj!r}: give a class or a function")
    before = _scopes.objects
    _scopes.objects = (given, *before)
    try:
        yield
    finally:
        _scopes.objects = before


def get_registered_object(
    name: str,
    custom_objects: Mapping[str, Any] | None = None,
    module_objects: Mapping[str, Any] | None = None,
) -> Any:
    """The class or function of a name: of a scope, registered, or in the given ones; None if of none."""
    for known in (*_scopes.objects, _objects, custom_objects or {}, module_objects or {}):
        if name in known:
            return known[name]
    return None


def get_registered_name(obj: Any) -> str:
    """The name by which a class or function was registered; its own if it was not."""
    for name, registered in _objects.items():
        if registered is obj:
            return name
    return str(obj.__name__)
