"""Hinge losses: what is right by a margin costs nothing.

Source: Keras 3 `keras.losses`, whose names, defaults and values these have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workers.nn.losses.base import Loss, targets
from workers.nn.losses.regression import Elementwise

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from workers.nn.numerics import Array


class Hinge(Elementwise):
    """The mean over the last axis of max(1 - y_true y_pred, 0); labels are -1 and 1, or 0 and 1."""

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "hinge",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        y = signs(y)
        lack = 1 - y * p
        if slope is not None:
            np.greater_equal(lack, 0, out=slope)
            slope *= y
            np.negative(slope, out=slope)
        return np.asarray(np.maximum(lack, 0, out=lack))


class SquaredHinge(Elementwise):
    """The mean over the last axis of max(1 - y_true y_pred, 0) squared; labels as those of `Hinge`."""

    slope_scale = -2.0

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "squared_hinge",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        y = signs(y)
        lack = 1 - y * p
        np.maximum(lack, 0, out=lack)
        if slope is not None:
            np.multiply(lack, y, out=slope)
        return np.asarray(np.square(lack, out=lack))


class CategoricalHinge(Loss):
    """max(largest of (1 - y_true) y_pred - sum of y_true y_pred + 1, 0); labels are one-hot."""

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_hinge",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives of their sum."""
        y = targets(y_true, y_pred)
        others = (1 - y) * y_pred
        largest = others.max(axis=-1, keepdims=True)
        lack = largest - (y * y_pred).sum(axis=-1, keepdims=True) + 1
        if grad is not None:
            np.equal(others, largest, out=grad)
            grad /= grad.sum(axis=-1, keepdims=True)  # of equally large ones each has its part
            grad *= 1 - y
            grad -= y
            grad *= lack >= 0
        return np.asarray(np.maximum(lack, 0)[..., 0])


def signs(y: Array) -> Array:
    """Labels as -1 and 1; if all are 0 or 1 these are meant, and else they stay as they are."""
    return 2 * y - 1 if ((y == 0) | (y == 1)).all() else y
