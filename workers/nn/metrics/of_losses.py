"""Metrics that are means of what losses give for each sample.

Source: Keras 3 `keras.metrics`, whose names, defaults and values these have. Predictions of shape (n,)
stand for (n, 1), so that every sample counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn import losses
from workers.nn.losses.base import Loss, floating
from workers.nn.metrics.base import Metric, combined

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from workers.nn.numerics import Array
    from workers.reports import Report


class LossMetric(Metric):
    """Base: the mean of a loss."""

    default_name: ClassVar[str]
    loss: ClassVar[type[Any]]

    def __init__(self, name: str | None = None, dtype: DTypeLike | None = None, **settings: Any) -> None:
        super().__init__(dtype, name or self.default_name)
        self.settings = settings
        self._loss: Loss = self.loss(**settings)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """One value per sample."""
        return self._loss.values(*_columns(y_true, y_pred))

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """What these samples add; places whose label is ignored have no weight."""
        valid = self._loss.valid(*_columns(y_true, y_pred))
        return super().sums(y_true, y_pred, sample_weight, mask if valid is None else combined(mask, valid))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), **self.settings}


class MeanSquaredError(LossMetric):
    """The mean of (y_true - y_pred) squared."""

    default_name = "mean_squared_error"
    loss = losses.MeanSquaredError


class RootMeanSquaredError(MeanSquaredError):
    """The square root of the mean of (y_true - y_pred) squared."""

    default_name = "root_mean_squared_error"

    def report(self) -> Report:
        """What the row means."""
        return {**super().report(), "kind": "sqrt_mean"}


class MeanAbsoluteError(LossMetric):
    """The mean of |y_true - y_pred|."""

    default_name = "mean_absolute_error"
    loss = losses.MeanAbsoluteError


class MeanAbsolutePercentageError(LossMetric):
    """100 times the mean of |y_true - y_pred| / |y_true|."""

    default_name = "mean_absolute_percentage_error"
    loss = losses.MeanAbsolutePercentageError


class MeanSquaredLogarithmicError(LossMetric):
    """The mean of (log(y_true + 1) - log(y_pred + 1)) squared."""

    default_name = "mean_squared_logarithmic_error"
    loss = losses.MeanSquaredLogarithmicError


class LogCoshError(LossMetric):
    """The mean of log(cosh(y_pred - y_true))."""

    default_name = "logcosh"
    loss = losses.LogCosh


class CosineSimilarity(LossMetric):
    """The mean of the cosine of the angle between y_true and y_pred: 1 where they point alike."""

    default_name = "cosine_similarity"
    loss = losses.CosineSimilarity

    def __init__(self, name: str | None = None, dtype: DTypeLike | None = None, axis: int = -1) -> None:
        super().__init__(name, dtype, axis=axis)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """One value per sample."""
        return -super().values(y_true, y_pred)  # the loss is small where they point alike


class Poisson(LossMetric):
    """The mean of y_pred - y_true log(y_pred)."""

    default_name = "poisson"
    loss = losses.Poisson


class KLDivergence(LossMetric):
    """The mean of the sum of y_true log(y_true / y_pred)."""

    default_name = "kl_divergence"
    loss = losses.KLDivergence


class BinaryCrossentropy(LossMetric):
    """The mean of the binary cross-entropy."""

    default_name = "binary_crossentropy"
    loss = losses.BinaryCrossentropy

    def __init__(
        self,
        name: str | None = None,
        dtype: DTypeLike | None = None,
        from_logits: bool = False,
        label_smoothing: float = 0,
    ) -> None:
        super().__init__(name, dtype, from_logits=from_logits, label_smoothing=label_smoothing)


class CategoricalCrossentropy(LossMetric):
    """The mean of the cross-entropy; labels are one-hot."""

    default_name = "categorical_crossentropy"
    loss = losses.CategoricalCrossentropy

    def __init__(
        self,
        name: str | None = None,
        dtype: DTypeLike | None = None,
        from_logits: bool = False,
        label_smoothing: float = 0,
        axis: int = -1,
    ) -> None:
        super().__init__(name, dtype, from_logits=from_logits, label_smoothing=label_smoothing, axis=axis)


class SparseCategoricalCrossentropy(LossMetric):
    """The mean of the cross-entropy; labels are class numbers, and `ignore_class` has no weight."""

    default_name = "sparse_categorical_crossentropy"
    loss = losses.SparseCategoricalCrossentropy

    def __init__(
        self,
        name: str | None = None,
        dtype: DTypeLike | None = None,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
    ) -> None:
        super().__init__(name, dtype, from_logits=from_logits, ignore_class=ignore_class, axis=axis)


class Hinge(LossMetric):
    """The mean of max(1 - y_true y_pred, 0)."""

    default_name = "hinge"
    loss = losses.Hinge


class SquaredHinge(LossMetric):
    """The mean of max(1 - y_true y_pred, 0) squared."""

    default_name = "squared_hinge"
    loss = losses.SquaredHinge


class CategoricalHinge(LossMetric):
    """The mean of the categorical hinge loss; labels are one-hot."""

    default_name = "categorical_hinge"
    loss = losses.CategoricalHinge


def _columns(y_true: Array, y_pred: Array) -> tuple[Array, Array]:
    """Labels and predictions, these as floats, with an axis that a loss can take the mean along."""
    y_pred = floating(y_pred)
    if y_pred.ndim == 1:
        y_pred = np.expand_dims(y_pred, -1)
    return y_true, y_pred
