"""Losses of probabilities.

Source: Keras 3 `keras.losses`, whose names, defaults and values (of the TensorFlow backend) these have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import check
from workers.nn.losses.base import EPSILON, Loss, targets
from workers.nn.losses.regression import Elementwise

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from workers.nn.numerics import Array
    from workers.nn.tensor import Dims


class BinaryCrossentropy(Elementwise):
    """The mean along `axis` of -y log(p) - (1 - y) log(1 - p).

    With `from_logits` predictions are logits z: max(z, 0) - z y + log(1 + exp(-|z|)). Without, they are
    probabilities, clipped to 1e-7 from 0 and 1. Label smoothing s makes of y: y (1 - s) + s / 2.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_crossentropy",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits = from_logits
        self.label_smoothing = checked_smoothing(label_smoothing)
        self.axis = axis

    def elements(self, y: Array, p: Array, slope: Array | None) -> Array:
        """A value for each prediction."""
        if self.label_smoothing:
            y = y * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        if not self.from_logits:
            return binary_crossentropy(y, p, slope)
        small = np.exp(-np.abs(p))
        if slope is not None:
            np.divide(np.where(p >= 0, 1, small), 1 + small, out=slope)
            slope -= y
        return np.asarray(np.maximum(p, 0) - p * y + np.log1p(small))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
            "axis": self.axis,
        }


class OverClasses(Loss):
    """Base: losses of a distribution over classes, which lie along `axis`. A subclass gives `of_classes`."""

    dense_labels: ClassVar[bool] = True
    """Labels have the classes' axis too, as one-hot ones do."""

    def __init__(self, axis: int, name: str, reduction: str | None, dtype: DTypeLike | None) -> None:
        super().__init__(name, reduction, dtype)
        check(type(axis) is int, f"{type(self).__name__}: axis must be an integer, not {axis!r}")
        self.axis = axis

    def of_classes(self, y_true: Array, y_pred: Array, grad: Array | None) -> Array:
        """As `values`, with the classes along the last axis."""
        raise NotImplementedError

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives of their sum."""
        axis = self.axis
        if axis in (-1, y_pred.ndim - 1):
            return self.of_classes(y_true, y_pred, grad)
        if self.dense_labels:
            y_true = np.moveaxis(y_true, axis, -1)
        moved = np.ascontiguousarray(np.moveaxis(y_pred, axis, -1))
        work = None if grad is None else np.empty_like(moved)
        found = self.of_classes(y_true, moved, work)
        if grad is not None and work is not None:
            grad[...] = np.moveaxis(work, -1, axis)
        return found

    def value_shape(self, y_pred: Dims) -> Dims:
        """The shape of the values for predictions of this one."""
        axis = self.axis % len(y_pred)
        return y_pred[:axis] + y_pred[axis + 1 :]

    def over_predictions(self, factors: Array, ndim: int) -> Array:
        """Factors of the values, as such of predictions with `ndim` axes."""
        return np.expand_dims(factors, self.axis)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "axis": self.axis}


class CategoricalCrossentropy(OverClasses):
    """-sum of y_true log(y_pred) along `axis`; labels are one-hot or probabilities.

    With `from_logits` predictions are logits. Without, they are probabilities: normalised, then clipped to
    1e-7 from 0 and 1. Label smoothing s makes of y: y (1 - s) + s / classes.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_crossentropy",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(axis, name, reduction, dtype)
        self.from_logits = from_logits
        self.label_smoothing = checked_smoothing(label_smoothing)

    def of_classes(self, y_true: Array, y_pred: Array, grad: Array | None) -> Array:
        """As `values`, with the classes along the last axis."""
        y = smoothed(targets(y_true, y_pred), self.label_smoothing)
        if self.from_logits:
            work = np.subtract(y_pred, y_pred.max(axis=-1, keepdims=True), out=grad)
            picked = (y * work).sum(axis=-1)
            np.exp(work, out=work)
            total = work.sum(axis=-1, keepdims=True)
            mass = y.sum(axis=-1, keepdims=True)
            if grad is not None:
                grad *= mass / total
                grad -= y
            return np.asarray(mass[..., 0] * np.log(total[..., 0]) - picked)
        total = y_pred.sum(axis=-1, keepdims=True)
        shares = y_pred / total
        clipped = np.clip(shares, EPSILON, 1 - EPSILON)
        if grad is not None:
            np.divide(y, clipped, out=grad)
            np.negative(grad, out=grad)
            grad *= clipped == shares  # clipping has no slope
            through_normalising(grad, shares)
            grad /= total
        return np.asarray(-(y * np.log(clipped)).sum(axis=-1))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
        }


class SparseCategoricalCrossentropy(OverClasses):
    """-log of the probability given to the true class; labels are class numbers.

    With `from_logits` predictions are logits: logsumexp(z) - z[label]. Without, they are probabilities:
    clipped to 1e-7 from 0 and 1, then normalised. Places with the label `ignore_class` do not count.
    """

    dense_labels = False

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str = "sparse_categorical_crossentropy",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(axis, name, reduction, dtype)
        self.from_logits = from_logits
        self.ignore_class = ignore_class

    def of_classes(self, y_true: Array, y_pred: Array, grad: Array | None) -> Array:
        """As `values`, with the classes along the last axis."""
        shape = y_pred.shape[:-1]
        labels = labels_of(y_true, shape)
        counts = None
        if self.ignore_class is not None:
            counts = labels != self.ignore_class
            labels = np.where(counts, labels, 0)
        labels = class_numbers(labels, y_pred.shape[-1]).reshape(-1)
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
        found = np.log(total[:, 0])
        found -= picked
        if grad is not None:
            work /= total
            work[rows, labels] -= 1
            if not self.from_logits:
                work /= clipped
                work *= clipped == z  # clipping has no slope
        result: Array = found.reshape(shape)
        if counts is not None:
            result[~counts] = 0
            if grad is not None:
                grad[~counts] = 0
        return result

    def valid(self, y_true: Array, y_pred: Array) -> Array | None:
        """Which of the values count: those whose label is not `ignore_class`."""
        if self.ignore_class is None:
            return None
        counts: Array = labels_of(y_true, self.value_shape(y_pred.shape)) != self.ignore_class
        return counts

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "ignore_class": self.ignore_class,
        }


class KLDivergence(Loss):
    """The sum over the last axis of y_true log(y_true / y_pred), both clipped to between 1e-7 and 1."""

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "kl_divergence",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, reduction, dtype)

    def values(self, y_true: Array, y_pred: Array, grad: Array | None = None) -> Array:
        """One value per sample; where given, the contiguous `grad` gets the derivatives of their sum."""
        y = np.clip(targets(y_true, y_pred), EPSILON, 1)
        p = np.clip(y_pred, EPSILON, 1)
        ratio = y / p
        if grad is not None:
            np.negative(ratio, out=grad)
            grad *= p == y_pred  # clipping has no slope
        np.log(ratio, out=ratio)
        ratio *= y
        return np.asarray(ratio.sum(axis=-1))


def binary_crossentropy(y: Array, p: Array, slope: Array | None) -> Array:
    """-y log(p) - (1 - y) log(1 - p) of clipped p; where given, `slope` gets the derivative by p."""
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    rest = 1 - clipped
    if slope is not None:
        np.subtract(clipped, y, out=slope)
        slope /= clipped * rest
        slope *= clipped == p  # clipping has no slope
    return np.asarray(-y * np.log(clipped) - (1 - y) * np.log(rest))


def smoothed(y: Array, label_smoothing: float) -> Array:
    """Labels of which a part `label_smoothing` is given to all classes alike."""
    return y * (1 - label_smoothing) + label_smoothing / y.shape[-1] if label_smoothing else y


def through_normalising(slope: Array, shares: Array) -> None:
    """In place. From the slope by x / sum(x), which is `shares`, to that by x, times sum(x)."""
    slope -= (slope * shares).sum(axis=-1, keepdims=True)


def labels_of(y_true: Array, shape: Dims) -> Array:
    """Class numbers, one for each place of `shape`; ConfigurationError if there are not as many."""
    labels = y_true
    if labels.ndim == len(shape) + 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.shape != shape:
        raise ConfigurationError(
            f"labels of shape {y_true.shape} do not fit predictions: give one class number for each place "
            f"of {shape}"
        )
    return labels


def class_numbers(labels: Array, count: int) -> Array:
    """The labels as integers; ConfigurationError if one is not from 0 to `count` - 1."""
    if labels.dtype.kind not in "iu":
        labels = labels.astype(np.int64)
    # An index below 0 would silently count from the end. Both checks together cost 3 us of 600.
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= count:
        bad = labels[(labels < 0) | (labels >= count)][0]
        raise ConfigurationError(
            f"label {bad} is out of range: the model's last layer gives {count} classes, "
            f"so labels must be 0 to {count - 1}"
        )
    return labels


def checked_smoothing(label_smoothing: float) -> float:
    """The label smoothing; ConfigurationError if it is not between 0 and 1."""
    check(0 <= label_smoothing <= 1, f"label_smoothing must be between 0 and 1, not {label_smoothing!r}")
    return label_smoothing
