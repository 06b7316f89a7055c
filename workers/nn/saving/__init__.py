"""Save and load: models, weights and the objects that they are made of. Exported as `nn.saving`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.nn.saving import onnx
    from workers.nn.saving.api import load_model
    from workers.nn.saving.objects import (
        CustomObjectScope,
        custom_object_scope,
        deserialize,
        deserialize_keras_object,
        get_registered_name,
        get_registered_object,
        register_keras_serializable,
        serialize,
        serialize_keras_object,
    )

_OF_MODELS = ("load_model",)
_MODULES = ("onnx",)

__all__ = [
    "CustomObjectScope",
    "custom_object_scope",
    "deserialize",
    "deserialize_keras_object",
    "get_registered_name",
    "get_registered_object",
    "load_model",
    "onnx",
    "register_keras_serializable",
    "serialize",
    "serialize_keras_object",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: layers use parts of this package."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        from workers.nn.saving import api, objects

        return getattr(api if name in _OF_MODELS else objects, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
