"""Layers by the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.errors import ConfigurationError
from workers.nn.layers.base import Layer
from workers.nn.lookup import serialize as _serialize

LAYERS: dict[str, type[Layer]] = {}
"""The classes that come with the package, and those of models."""


def serialize(layer: Layer) -> dict[str, Any]:
    """The class name and the settings of a layer, and what it was built with, as JSON values."""
    config: dict[str, Any] = _serialize(layer)
    if (build := layer.get_build_config()) is not None:
        config["build_config"] = build
    return config


def get(identifier: object) -> Layer:
    """The layer that `serialize` described, or the layer itself.

    Raises ConfigurationError for an unknown class, and settings that the class does not take.
    """
    if isinstance(identifier, Layer):
        return identifier
    name = identifier.get("class_name") if isinstance(identifier, Mapping) else identifier
    if not isinstance(identifier, Mapping) or name not in LAYERS:
        raise ConfigurationError(f"unknown layer {name!r}: use an instance, or one of {', '.join(LAYERS)}")
    try:
        return LAYERS[name].from_config(dict(identifier.get("config", {})))
    except TypeError as error:
        raise ConfigurationError(f"{name} cannot be made from its config: {error}") from error


deserialize = get
