"""Layers by the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.nn import lookup
from workers.nn.layers.base import Layer
from workers.nn.lookup import Unknown

LAYERS: dict[str, type[Layer]] = {}
"""The classes that come with the package, and those of models."""


def serialize(layer: Layer) -> dict[str, Any]:
    """The class name and the settings of a layer, and what it was built with, as JSON values."""
    config: dict[str, Any] = lookup.serialize(layer)
    return config


def get(identifier: object) -> Layer:
    """The layer that `serialize` described, or the layer itself.

    Raises ConfigurationError for an unknown class, and settings that the class does not take.
    """
    name = identifier.get("class_name") if isinstance(identifier, Mapping) else None
    if name == "Lambda":
        raise Unknown("a Lambda layer cannot be made from a file, as it would hold code: write a class")
    layer: Layer = lookup.get("layer", identifier, Layer, LAYERS)
    return layer


deserialize = get
