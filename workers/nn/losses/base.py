"""What a loss is: one value per sample, the gradient of their sum, and how they become one number.

Source: Keras 3 `keras.losses`. Predictions have shape (samples, ..., last axis); a loss gives one value for
each place of all axes but the last. Training adds values and divisors separately and divides at the end, so
that short microbatches are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import serialize, snake_case
from workers.nn.losses.reduction import checked, divisor_of, factors_of, total
from workers.nn.losses.traced import Traced
from workers.nn.tensor import FLOATX

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from workers.nn.numerics import Array, Shape
    from workers.nn.tensor import Dims

EPSILON = 1e-7
"""Keras's fuzz factor: how near a probability may come to 0 and 1."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """Values times their weights."""

    values: Array
    shape: Shape
    """The shape that the values would have without weights: (samples,) of one value for all of them."""
    factors: Array | None
    """What they were multiplied by, broadcastable to `shape`."""
    mask: Array | None
    """Which of them count, of what was given and what the labels say."""
    is_one: bool
    """The loss gives one value for all samples."""


class Loss:
    """Base of the losses.

    A loss of one's own is a subclass with `call(y_true, y_pred)`, written with `nn.ops` on tensors, that
    gives one value per sample. Those here give `values` on arrays instead.
    """

    def __init__(
        self,
        name: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: DTypeLike | None = None,
    ) -> None:
        self.name = name or snake_case(type(self).__name__)
        self.reduction = checked(reduction)
        self.dtype = None if dtype is None else np.dtype(dtype).name
        self._traced = Traced(self.call, self.name)

    # -- what a loss gives --------------------------------------------------------------------------------

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One value per sample, as a tensor; `y_true` and `y_pred` are tensors too."""
        raise ConfigurationError(f"{type(self).__name__} has no call(y_true, y_pred): a loss must give one")

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives of their sum."""
        return self._traced.values(y_true, y_pred, grad)

    def valid(self, y_true: Array, y_pred: Array) -> Array | None:
        """Which of the values count, by the labels alone; None for all."""
        return None

    def value_shape(self, y_pred: Dims) -> Dims:
        """The shape of the values for predictions of this one."""
        return y_pred[:-1]

    def over_predictions(self, factors: Array, ndim: int) -> Array:
        """Factors of the values, as such of predictions with `ndim` axes."""
        return factors.reshape(factors.shape + (1,) * (ndim - factors.ndim))

    # -- what training and users ask ----------------------------------------------------------------------

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        grad: Array | None = None,
        *,
        mask: ArrayLike | None = None,
        share: float = 1.0,
    ) -> tuple[float, float]:
        """The sum of the weighted values and what to divide it by; `grad` becomes the gradient of the sum.

        Sums and divisors of all microbatches are added, and then divided. `share` is the rows here as a
        part of those of the batch; reduction "sum" needs it. Places where `mask` is 0 do not count. A loss
        that gives one value for all of its samples (`Dice`) counts as that value for each. Raises
        ConfigurationError for reduction "none", which gives no number to train on.
        """
        if self.reduction == "none":
            raise ConfigurationError(
                f"loss {self.name!r} has reduction 'none', which gives no number to train on: use "
                "'sum_over_batch_size', 'sum' or 'mean_with_sample_weight'"
            )
        if not len(y_pred):
            return 0.0, 0.0
        found = self.weighted(y_true, y_pred, sample_weight, mask, grad)
        divisor = divisor_of(found.shape, self.reduction, found.factors, found.mask, share)
        scale = 1.0
        if found.is_one and found.factors is None:
            # The sum of one value is itself, and of those of several microbatches their mean.
            scale = share if self.reduction == "sum" else float(len(y_pred))
            if grad is not None:
                grad *= scale
        return total(found.values) * scale, divisor

    def weighted(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None,
        mask: ArrayLike | None,
        grad: Array | None = None,
    ) -> Weighted:
        """The values times their weights; `grad` becomes the gradient of their sum."""
        values = self.values(y_true, y_pred, grad)
        is_one = values.ndim == 0
        shape = y_pred.shape[:1] if is_one else values.shape
        both = self.valid(y_true, y_pred)
        if mask is not None:
            both = np.asarray(mask) if both is None else both & np.asarray(mask, bool)
        factors = factors_of(shape, values.dtype, sample_weight, both)
        if factors is not None:
            values = values * factors
            if grad is not None:
                grad *= total(factors) if is_one else self.over_predictions(factors, y_pred.ndim)
        return Weighted(values, shape, factors, both, is_one)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The values, reduced: a float, or an array with reduction "none"; of tensors a tensor.

        A mask that a layer gave to `y_pred` counts.
        """
        if any(hasattr(each, "spec") for each in (y_true, y_pred, sample_weight)):
            return self._of_tensors(y_true, y_pred, sample_weight, getattr(y_pred, "mask", None))
        predictions = floating(np.asarray(y_pred), self.dtype)
        if self.reduction == "none":
            return self.weighted(np.asarray(y_true), predictions, sample_weight, None).values
        value, divisor = self.sums(np.asarray(y_true), predictions, sample_weight)
        return value / divisor if divisor else 0.0

    def _of_tensors(self, y_true: Any, y_pred: Any, sample_weight: Any, mask: Any) -> Any:
        from workers.nn.ops.base import apply, as_dtype

        y_pred = as_dtype(y_pred, self.dtype or FLOATX) if not _is_floating(y_pred) or self.dtype else y_pred
        more = [each for each in (sample_weight, mask) if each is not None]
        attrs = {"weighted": sample_weight is not None, "masked": mask is not None}
        if type(self).call is Loss.call:
            return apply("loss", y_true, y_pred, *more, loss=serialize(self), **attrs)
        values = self.call(as_dtype(y_true, y_pred.spec.dtype), y_pred)
        return apply("loss_reduction", values, *more, reduction=self.reduction, **attrs)

    # -- settings -----------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": self.name, "reduction": self.reduction}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A loss of these settings."""
        return cls(**config)


def floating(y_pred: Array, dtype: DTypeLike | None = None) -> Array:
    """Predictions as floats: in this dtype, or else their own, or else float32."""
    if dtype is None and y_pred.dtype.kind == "f":
        return y_pred
    return y_pred.astype(dtype or FLOATX, copy=False)


def targets(y_true: Array, y_pred: Array) -> Array:
    """The targets in the predictions' dtype and shape; (n,) stands for (n, 1), and (n, 1) for (n,)."""
    if y_true.shape != y_pred.shape:
        if (*y_true.shape, 1) != y_pred.shape and y_true.shape != (*y_pred.shape, 1):
            raise ConfigurationError(
                f"targets of shape {y_true.shape} do not fit predictions of shape {y_pred.shape}"
            )
        y_true = y_true.reshape(y_pred.shape)
    return y_true.astype(y_pred.dtype, copy=False)


def _is_floating(y_pred: Any) -> bool:
    return hasattr(y_pred, "spec") and np.dtype(y_pred.spec.dtype).kind == "f"
