"""Losses of overlap, for segmentation. Along `axis`, or of the whole batch as one where it is None.

Source: Keras 3 `keras.losses`, whose names, defaults and values these have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn.losses.base import EPSILON, Loss, targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from workers.nn.numerics import Array
    from workers.nn.tensor import Dims


class Tversky(Loss):
    """1 - I / (I + alpha A + beta B): I the overlap, A what only y_true has, B what only y_pred has.

    Source: Salehi et al., 2017, arXiv:1706.05721; alpha and beta as Keras has them, which are the paper's
    beta and alpha. In training with `axis` None, the value of a batch is the mean of its microbatches' by
    rows.
    """

    _least: ClassVar[float] = EPSILON
    """What is added to the divisor, so that it is never 0."""

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str = "tversky",
        axis: int | Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.alpha = alpha
        self.beta = beta
        self.axis = axis if axis is None or isinstance(axis, int) else tuple(axis)

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives of their sum."""
        y = targets(y_true, y_pred)
        overlap = (y * y_pred).sum(axis=self.axis, keepdims=True)
        missed = y.sum(axis=self.axis, keepdims=True) - overlap
        wrong = y_pred.sum(axis=self.axis, keepdims=True) - overlap
        whole = overlap + self.alpha * missed + self.beta * wrong + self._least
        ratio = overlap / whole
        if grad is not None:
            np.multiply(y, 1 - self.alpha - self.beta, out=grad)  # of `whole`
            grad += self.beta
            grad *= ratio
            grad -= y
            grad /= whole
        return np.asarray(1 - ratio.squeeze(self.axis))

    def value_shape(self, y_pred: Dims) -> Dims:
        """The shape of the values for predictions of this one."""
        gone = {axis % len(y_pred) for axis in self._axes(len(y_pred))}
        return tuple(n for i, n in enumerate(y_pred) if i not in gone)

    def over_predictions(self, factors: Array, ndim: int) -> Array:
        """Factors of the values, as such of predictions with `ndim` axes."""
        return np.expand_dims(factors, self._axes(ndim))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        axis = list(self.axis) if isinstance(self.axis, tuple) else self.axis
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta, "axis": axis}

    def _axes(self, ndim: int) -> tuple[int, ...]:
        if self.axis is None:
            return tuple(range(ndim))
        return (self.axis,) if isinstance(self.axis, int) else self.axis


class Dice(Tversky):
    """1 - 2 I / (sum of y_true + sum of y_pred), I the overlap: `Tversky` with both factors 0.5."""

    _least = EPSILON / 2  # of half the divisor

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "dice",
        axis: int | Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(0.5, 0.5, reduction, name, axis, dtype)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        config = super().get_config()
        return {key: config[key] for key in ("name", "reduction", "axis")}
