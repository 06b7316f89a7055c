"""Constraints: what weights are made to hold after each update. Source: Keras 3 `keras.constraints`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.lookup import check
from workers.nn.lookup import get as _get

if TYPE_CHECKING:
    from workers.nn.numerics import Array

Axis = int | Sequence[int]

_EPSILON = 1e-7
"""Keras's, added to norms before something is divided by them."""


class Constraint:
    """Base: `constraint(array)` gives the array that it becomes, and leaves its argument as it is."""

    is_elementwise = False
    """Whether each element is constrained by itself; else updates take whole variables at a time."""

    def __call__(self, w: Array) -> Array:
        """The values that are allowed, next to these."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return dict(vars(self))


class NonNeg(Constraint):
    """No weight below zero."""

    is_elementwise = True

    def __call__(self, w: Array) -> Array:
        """Zeros for what is below."""
        return np.maximum(w, 0)


class MinMaxNorm(Constraint):
    """Norms along `axis` between two bounds, or `rate` of the way towards them."""

    def __init__(
        self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: Axis = 0
    ) -> None:
        check(
            0 <= min_value <= max_value,
            f"MinMaxNorm: min_value must be from 0 to max_value, and {min_value} is not up to {max_value}",
        )
        check(0 <= rate <= 1, f"MinMaxNorm: rate must be from 0 to 1, not {rate}")
        self.min_value = min_value
        self.max_value = max_value
        self.rate = rate
        self.axis = _axis(axis)

    def __call__(self, w: Array) -> Array:
        """The weights, scaled."""
        norms = _norms(w, self.axis)
        desired = self.rate * np.clip(norms, self.min_value, self.max_value) + (1 - self.rate) * norms
        scaled: Array = w * (desired / (_EPSILON + norms))
        return scaled


class MaxNorm(Constraint):
    """Norms along `axis` of at most `max_value`."""

    def __init__(self, max_value: float = 2, axis: Axis = 0) -> None:
        check(max_value >= 0, f"MaxNorm: max_value must be from 0 up, not {max_value}")
        self.max_value = max_value
        self.axis = _axis(axis)

    def __call__(self, w: Array) -> Array:
        """The weights, scaled."""
        return MinMaxNorm(0.0, self.max_value, 1.0, self.axis)(w)


class UnitNorm(Constraint):
    """Norms along `axis` of one."""

    def __init__(self, axis: Axis = 0) -> None:
        self.axis = _axis(axis)

    def __call__(self, w: Array) -> Array:
        """The weights, scaled."""
        scaled: Array = w / (_EPSILON + _norms(w, self.axis))
        return scaled


def _axis(axis: Axis) -> int | list[int]:
    return axis if isinstance(axis, int) else list(axis)


def _norms(w: Array, axis: int | list[int]) -> Array:
    axes = axis if isinstance(axis, int) else tuple(axis)
    norms: Array = np.sqrt(np.sum(np.square(w), axis=axes, keepdims=True))
    return norms


_KNOWN: dict[str, type[Constraint]] = {
    "max_norm": MaxNorm,
    "min_max_norm": MinMaxNorm,
    "non_neg": NonNeg,
    "unit_norm": UnitNorm,
}
_KNOWN |= {cls.__name__: cls for cls in _KNOWN.values()}


def get(identifier: object) -> Callable[[Array], Array] | None:
    """The constraint of that name, config, or itself, which may be any function; None stays."""
    if identifier is None or (callable(identifier) and not isinstance(identifier, type)):
        return identifier
    found: Callable[[Array], Array] = _get(
        "constraint", identifier, Constraint, _KNOWN, lambda function: function
    )
    return found
