"""Focal losses: cross-entropies in which what is right already counts less.

Source: Lin et al., 2018, arXiv:1708.02002; names, defaults and values are those of Keras 3 `keras.losses`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.losses.base import EPSILON, targets
from workers.nn.losses.crossentropy import (
    BinaryCrossentropy,
    OverClasses,
    binary_crossentropy,
    checked_smoothing,
    smoothed,
    through_normalising,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from workers.nn.numerics import Array


class BinaryFocalCrossentropy(BinaryCrossentropy):
    """The mean along `axis` of (1 - p_t)^gamma times the binary cross-entropy; p_t is the label's share.

    `apply_class_balancing` weighs class 1 by alpha, and class 0 by 1 - alpha.
    """

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_focal_crossentropy",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(from_logits, label_smoothing, axis, reduction, name, dtype)
        self.apply_class_balancing = apply_class_balancing
        self.alpha = alpha
        self.gamma = gamma

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        if self.label_smoothing:
            y = y * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        if self.from_logits:
            small = np.exp(-np.abs(p))
            p = np.where(p >= 0, 1, small) / (1 + small)
        entropy = binary_crossentropy(y, p, slope)
        missing = y + p - 2 * y * p  # 1 - p_t
        focus = np.power(missing, self.gamma)
        if self.apply_class_balancing:
            focus *= y * self.alpha + (1 - y) * (1 - self.alpha)
        if slope is not None:
            slope *= focus
            slope += self.gamma * focus / np.maximum(missing, np.finfo(p.dtype).tiny) * (1 - 2 * y) * entropy
            if self.from_logits:
                slope *= p * (1 - p)
        return np.asarray(focus * entropy)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "apply_class_balancing": self.apply_class_balancing,
            "alpha": self.alpha,
            "gamma": self.gamma,
        }


class CategoricalFocalCrossentropy(OverClasses):
    """-sum along `axis` of alpha (1 - p)^gamma y_true log(p); labels are one-hot.

    `alpha` is one number, or one for each class.

    With `from_logits` predictions are logits. Without, they are probabilities: normalised, then clipped to
    1e-7 from 0 and 1. Label smoothing is that of `CategoricalCrossentropy`.
    """

    def __init__(
        self,
        alpha: float | Sequence[float] = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_focal_crossentropy",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(axis, name, reduction, dtype)
        self.alpha = alpha
        self.gamma = gamma
        self.from_logits = from_logits
        self.label_smoothing = checked_smoothing(label_smoothing)

    def of_classes(self, y_true: Array, y_pred: Array, grad: Array | None) -> Array:
        """As `values`, with the classes along the last axis."""
        y = smoothed(targets(y_true, y_pred), self.label_smoothing)
        p = np.exp(y_pred - y_pred.max(axis=-1, keepdims=True)) if self.from_logits else y_pred
        total = p.sum(axis=-1, keepdims=True)
        shares = p / total
        clipped = np.clip(shares, EPSILON, 1 - EPSILON)
        entropy = -y * np.log(clipped)
        focus = np.asarray(self.alpha, p.dtype) * np.power(1 - clipped, self.gamma)
        if grad is not None:
            np.divide(y, clipped, out=grad)
            grad += self.gamma / (1 - clipped) * entropy
            grad *= focus
            np.negative(grad, out=grad)
            grad *= clipped == shares  # clipping has no slope
            through_normalising(grad, shares)
            # Of logits, p and then the sum: the slope by log(p) is p / total times that by the share.
            grad *= shares if self.from_logits else 1 / total
        return np.asarray((focus * entropy).sum(axis=-1))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        alpha = self.alpha if isinstance(self.alpha, int | float) else [float(a) for a in self.alpha]
        return {
            **super().get_config(),
            "alpha": alpha,
            "gamma": self.gamma,
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
        }
