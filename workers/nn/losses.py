"""Losses: one value per sample, and the gradient of their sum.

Source: Keras 3 `keras.losses`. Predictions have shape (samples, ..., last axis); a loss gives one value for
each place of all axes but the last. Training adds values and weights separately and divides at the end, so
that short microbatches are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import get as _get

if TYPE_CHECKING:
    from workers.nn.numerics import Array

EPSILON = 1e-7
"""Keras's fuzz factor: how near a probability may come to 0 and 1."""


class Loss:
    """Base: a subclass gives `values`."""

    name: str

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives by `y_pred`."""
        raise NotImplementedError

    def sums(
        self, y_true: Array, y_pred: Array, sample_weight: Array | None = None, grad: Array | None = None
    ) -> tuple[float, float]:
        """The sum of the values and what to divide it by; `grad` becomes the gradient of the sum.

        Sample weights scale the values but not the divisor, as Keras's "sum_over_batch_size" has it.
        """
        values = self.values(y_true, y_pred, grad)
        if sample_weight is not None:
            weight = per_sample(sample_weight, values)
            values = values * weight
            if grad is not None:
                grad *= weight[..., None]
        return float(values.sum(dtype=np.float64)), float(values.size)

    def __call__(self, y_true: Array, y_pred: Array, sample_weight: Array | None = None) -> float:
        """The mean over the samples."""
        total, weight = self.sums(np.asarray(y_true), np.asarray(y_pred), sample_weight)
        return total / weight

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": self.name}


class SparseCategoricalCrossentropy(Loss):
    """-log of the probability given to the true class; labels are class numbers.

    With `from_logits` predictions are logits: logsumexp(z) - z[label]. Without, they are probabilities:
    clipped to 1e-7 from 0 and 1 and normalised.
    """

    def __init__(self, from_logits: bool = False, name: str = "sparse_categorical_crossentropy") -> None:
        self.from_logits = from_logits
        self.name = name

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives by `y_pred`."""
        labels = class_labels(y_true, y_pred).reshape(-1)
        z = y_pred.reshape(-1, y_pred.shape[-1])
        work = np.empty_like(z) if grad is None else grad.reshape(z.shape)
        if self.from_logits:
            np.subtract(z, z.max(axis=-1, keepdims=True), out=work)
        else:
            clipped = np.clip(z, EPSILON, 1 - EPSILON)
            np.log(clipped, out=work)
        rows = np.arange(len(z))
        picked = work[rows, labels]
        np.exp(work, out=work)
        total = work.sum(axis=-1, keepdims=True)
        values = np.log(total[:, 0])
        values -= picked
        if grad is not None:
            work /= total
            work[rows, labels] -= 1
            if not self.from_logits:
                work /= clipped
                work *= clipped == z  # clipping has no slope
        result: Array = values.reshape(y_pred.shape[:-1])
        return result

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"from_logits": self.from_logits, "name": self.name}


class MeanSquaredError(Loss):
    """The mean over the last axis of (y_true - y_pred) squared."""

    def __init__(self, name: str = "mean_squared_error") -> None:
        self.name = name

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives by `y_pred`."""
        difference = np.subtract(y_pred, targets(y_true, y_pred), out=grad)
        values = np.square(difference).mean(axis=-1)
        if grad is not None:
            grad *= 2 / y_pred.shape[-1]
        return np.asarray(values)


def class_labels(y_true: Array, y_pred: Array) -> Array:
    """The labels as integers of shape `y_pred.shape[:-1]`; ConfigurationError if they cannot be such."""
    labels = y_true
    if labels.ndim == y_pred.ndim and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.shape != y_pred.shape[:-1]:
        raise ConfigurationError(
            f"labels of shape {y_true.shape} do not fit predictions of shape {y_pred.shape}: give one class "
            f"number for each place of {y_pred.shape[:-1]}"
        )
    if labels.dtype.kind not in "iu":
        labels = labels.astype(np.int64)
    # An index below 0 would silently count from the end. Both checks together cost 3 us of 600.
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= y_pred.shape[-1]:
        bad = labels[(labels < 0) | (labels >= y_pred.shape[-1])][0]
        raise ConfigurationError(
            f"label {bad} is out of range: the model's last layer gives {y_pred.shape[-1]} classes, "
            f"so labels must be 0 to {y_pred.shape[-1] - 1}"
        )
    return labels


def targets(y_true: Array, y_pred: Array) -> Array:
    """The targets in the predictions' dtype and shape; shape (n,) stands for (n, 1)."""
    if y_true.shape != y_pred.shape:
        if (*y_true.shape, 1) != y_pred.shape:
            raise ConfigurationError(
                f"targets of shape {y_true.shape} do not fit predictions of shape {y_pred.shape}"
            )
        y_true = y_true[..., None]
    return y_true.astype(y_pred.dtype, copy=False)


def per_sample(sample_weight: Array, values: Array) -> Array:
    """Sample weights in the values' dtype, broadcastable to their shape from the left."""
    weight = np.asarray(sample_weight, values.dtype)
    if weight.shape != values.shape[: weight.ndim]:
        raise ConfigurationError(
            f"sample weights of shape {weight.shape} do not fit {values.shape}: give one a sample"
        )
    return weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))


_KNOWN: dict[str, type[Loss]] = {
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "SparseCategoricalCrossentropy": SparseCategoricalCrossentropy,
    "mse": MeanSquaredError,
    "mean_squared_error": MeanSquaredError,
    "MeanSquaredError": MeanSquaredError,
}


def get(identifier: object) -> Loss:
    """The loss of that name, config, or itself."""
    return _get("loss", identifier, Loss, _KNOWN)
