"""Losses of numbers: means over the last axis of a function of each prediction and its target.

Source: Keras 3 `keras.losses`, whose names, defaults and values these have.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn.lookup import check
from workers.nn.losses.base import EPSILON, Loss, targets

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from workers.nn.numerics import Array
    from workers.nn.tensor import Dims


class Elementwise(Loss):
    """Base: the mean along `axis` of what `elements` gives for each prediction and its target."""

    axis: int = -1
    slope_scale: ClassVar[float] = 1.0
    """What the slopes that `elements` gives are still to be multiplied by, which costs nothing here."""

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives of their sum."""
        found = self.elements(targets(y_true, y_pred), y_pred, grad)
        if grad is not None:
            grad *= self.slope_scale / y_pred.shape[self.axis]
        return np.asarray(found.mean(axis=self.axis))

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction, in a new array; where given, `slope` gets its derivative."""
        raise NotImplementedError

    def value_shape(self, y_pred: Dims) -> Dims:
        """The shape of the values for predictions of this one."""
        axis = self.axis % len(y_pred)
        return y_pred[:axis] + y_pred[axis + 1 :]

    def over_predictions(self, factors: Array, ndim: int) -> Array:
        """Factors of the values, as such of predictions with `ndim` axes."""
        return np.expand_dims(factors, self.axis)


class MeanSquaredError(Elementwise):
    """The mean over the last axis of (y_true - y_pred) squared."""

    slope_scale = 2.0

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mean_squared_error",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        return np.asarray(np.square(np.subtract(p, y, out=slope)))


class MeanAbsoluteError(Elementwise):
    """The mean over the last axis of |y_true - y_pred|."""

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mean_absolute_error",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        difference = np.subtract(p, y)
        if slope is not None:
            np.sign(difference, out=slope)
        return np.asarray(np.abs(difference, out=difference))


class MeanAbsolutePercentageError(Elementwise):
    """100 times the mean over the last axis of |y_true - y_pred| / |y_true|, the divisor at least 1e-7."""

    slope_scale = 100.0

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mean_absolute_percentage_error",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        size = np.maximum(np.abs(y), EPSILON)
        difference = np.subtract(p, y)
        if slope is not None:
            np.sign(difference, out=slope)
            slope /= size
        np.abs(difference, out=difference)
        difference /= size
        difference *= 100
        return np.asarray(difference)


class MeanSquaredLogarithmicError(Elementwise):
    """The mean over the last axis of (log(y_true + 1) - log(y_pred + 1)) squared, both at least 1e-7."""

    slope_scale = 2.0

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mean_squared_logarithmic_error",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        above = np.maximum(p, EPSILON)
        above += 1
        difference = np.log(above)
        difference -= np.log(np.maximum(y, EPSILON) + 1)
        if slope is not None:
            np.divide(difference, above, out=slope)
            slope *= p >= EPSILON
        return np.asarray(np.square(difference, out=difference))


class Huber(Elementwise):
    """The mean over the last axis of e^2 / 2 for errors e up to `delta`, delta |e| - delta^2 / 2 beyond."""

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "huber_loss",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        check(delta > 0, f"Huber: delta must be above 0, not {delta!r}")
        self.delta = delta

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        error = np.subtract(p, y)
        bounded = np.clip(error, -self.delta, self.delta, out=slope)
        return np.asarray(bounded * (error - bounded / 2))  # one formula for both parts

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "delta": self.delta}


class LogCosh(Elementwise):
    """The mean over the last axis of log(cosh(y_pred - y_true))."""

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "log_cosh",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        error = np.subtract(p, y)
        if slope is not None:
            np.tanh(error, out=slope)
        np.abs(error, out=error)  # log cosh is even, and exp of what is not above 0 cannot overflow
        error += np.log1p(np.exp(-2 * error))
        error -= math.log(2)
        return np.asarray(error)


class Poisson(Elementwise):
    """The mean over the last axis of y_pred - y_true log(y_pred + 1e-7)."""

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "poisson",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        above = p + p.dtype.type(EPSILON)
        if slope is not None:
            np.divide(y, above, out=slope)
            np.subtract(1, slope, out=slope)
        return np.asarray(p - y * np.log(above))


class CosineSimilarity(Elementwise):
    """Minus the cosine of the angle between y_true and y_pred along `axis`: -1 where they point alike."""

    def __init__(
        self,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "cosine_similarity",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.axis = axis

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives of their sum."""
        direction, _ = self._normalised(targets(y_true, y_pred))
        predicted, length = self._normalised(y_pred)
        cosine = (direction * predicted).sum(axis=self.axis, keepdims=True)
        if grad is not None:
            # Below 1e-7 a vector is divided by that, not by its length: no part of the slope is taken away.
            np.multiply(predicted, cosine * (length >= EPSILON), out=grad)
            grad -= direction
            grad /= np.maximum(length, EPSILON)
        return np.asarray(-cosine.squeeze(self.axis))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "axis": self.axis}

    def _normalised(self, x: Array) -> tuple[Array, Array]:
        """Vectors of length 1, or of less where theirs is below 1e-7; and their lengths."""
        length = np.sqrt(np.square(x).sum(axis=self.axis, keepdims=True))
        return x / np.maximum(length, EPSILON), length
