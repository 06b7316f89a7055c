"""Optimizers: named slots, and one elementwise update from old buffers to new ones."""

from __future__ import annotations

from typing import Any

from workers.nn import lookup
from workers.nn.lookup import snake_case
from workers.nn.optimizers import schedules
from workers.nn.optimizers.adagrad import Adadelta, Adagrad, RMSprop
from workers.nn.optimizers.adam import Adam, Adamax, AdamW, Lamb, Nadam
from workers.nn.optimizers.base import Optimizer
from workers.nn.optimizers.ftrl import Ftrl
from workers.nn.optimizers.rules import ModelOptimizer, for_model
from workers.nn.optimizers.sgd import SGD, Lion

_CLASSES: tuple[type[Optimizer], ...] = (
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Adamax,
    Ftrl,
    Lamb,
    Lion,
    Nadam,
    RMSprop,
    SGD,
)
_KNOWN: dict[str, type[Optimizer]] = {
    name: cls for cls in _CLASSES for name in (cls.__name__.lower(), snake_case(cls.__name__), cls.__name__)
}


def get(identifier: object) -> Optimizer:
    """The optimizer of that name, config, or itself."""
    found: Optimizer = lookup.get("optimizer", identifier, Optimizer, _KNOWN)
    return found


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's class and settings as JSON values."""
    return dict(lookup.serialize(optimizer))


def deserialize(config: Any) -> Optimizer:
    """The optimizer that `serialize` wrote, without its state."""
    return get(config)


__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lamb",
    "Lion",
    "ModelOptimizer",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "deserialize",
    "for_model",
    "get",
    "schedules",
    "serialize",
]
