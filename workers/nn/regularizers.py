"""Regularizers: what is added to the loss for large weights. Source: Keras 3 `keras.regularizers`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import check
from workers.nn.lookup import get as _get

if TYPE_CHECKING:
    from collections.abc import Callable

_SMALLEST_NORM = 1e-12
"""What a row is divided by at least."""


class Regularizer:
    """Base: `regularizer(tensor)` gives a scalar tensor."""

    def __call__(self, x: Any) -> Any:
        """The penalty of these values."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return dict(vars(self))


class L1(Regularizer):
    """l1 * sum(|x|)"""

    def __init__(self, l1: float = 0.01) -> None:
        self.l1 = _factor("L1", "l1", l1)

    def __call__(self, x: Any) -> Any:
        """The penalty of these values."""
        from workers.nn import ops

        return ops.multiply(self.l1, ops.sum(ops.absolute(x)))


class L2(Regularizer):
    """l2 * sum(x**2)"""

    def __init__(self, l2: float = 0.01) -> None:
        self.l2 = _factor("L2", "l2", l2)

    def __call__(self, x: Any) -> Any:
        """The penalty of these values."""
        from workers.nn import ops

        return ops.multiply(self.l2, ops.sum(ops.square(x)))


class L1L2(Regularizer):
    """l1 * sum(|x|) + l2 * sum(x**2)"""

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self.l1 = _factor("L1L2", "l1", l1 or 0.0)
        self.l2 = _factor("L1L2", "l2", l2 or 0.0)

    def __call__(self, x: Any) -> Any:
        """The penalty of these values."""
        from workers.nn import ops

        return ops.add(L1(self.l1)(x), L2(self.l2)(x))


class OrthogonalRegularizer(Regularizer):
    """`factor` times the mean of |cos| of the angles between the rows, or columns, of a matrix."""

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        check(mode in ("rows", "columns"), f"OrthogonalRegularizer: mode {mode!r} is not 'rows' or 'columns'")
        self.factor = _factor("OrthogonalRegularizer", "factor", factor)
        self.mode = mode

    def __call__(self, x: Any) -> Any:
        """The penalty of a matrix; ConfigurationError for another number of axes."""
        from workers.nn import ops

        if len(x.shape) != 2:
            raise ConfigurationError(f"OrthogonalRegularizer: it is for matrices, not for shape {x.shape}")
        axis = 1 if self.mode == "rows" else 0
        size = x.shape[1 - axis]
        squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
        unit = ops.divide(x, ops.maximum(ops.sqrt(squares), _SMALLEST_NORM))
        turned = ops.transpose(unit)
        product = ops.matmul(unit, turned) if self.mode == "rows" else ops.matmul(turned, unit)
        others = ops.multiply(product, 1 - np.eye(size, dtype=np.float32))
        return ops.multiply(self.factor / (size * (size - 1)), ops.sum(ops.absolute(others)))


def _factor(who: str, name: str, value: float) -> float:
    check(
        isinstance(value, int | float) and math.isfinite(value) and value >= 0,
        f"{who}: {name} must be a number from 0 up, not {value!r}",
    )
    return float(value)


_KNOWN: dict[str, type[Regularizer]] = {
    "l1": L1,
    "l2": L2,
    "l1_l2": L1L2,
    "l1l2": L1L2,
    "orthogonal_regularizer": OrthogonalRegularizer,
}
_KNOWN |= {cls.__name__: cls for cls in _KNOWN.values()}


def get(identifier: object) -> Callable[[Any], Any] | None:
    """The regularizer of that name, config, or itself, which may be any function; None stays."""
    if identifier is None or (callable(identifier) and not isinstance(identifier, type)):
        return identifier
    found: Callable[[Any], Any] = _get(
        "regularizer", identifier, Regularizer, _KNOWN, lambda function: function
    )
    return found
