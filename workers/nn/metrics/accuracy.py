"""Metrics of how often a prediction is right.

Source: Keras 3 `keras.metrics`, whose names, defaults and values these have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.lookup import check, is_count
from workers.nn.losses.base import targets
from workers.nn.losses.crossentropy import labels_of
from workers.nn.metrics.base import Metric

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from workers.nn.numerics import Array


class Accuracy(Metric):
    """How often y_pred equals y_true."""

    def __init__(self, name: str | None = "accuracy", dtype: DTypeLike | None = None) -> None:
        super().__init__(dtype, name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """1 where equal, else 0."""
        return _ones(targets(y_true, y_pred) == y_pred)


class BinaryAccuracy(Metric):
    """How often "y_pred is above `threshold`" equals y_true."""

    def __init__(
        self, name: str | None = "binary_accuracy", dtype: DTypeLike | None = None, threshold: float = 0.5
    ) -> None:
        super().__init__(dtype, name)
        check(0 < threshold < 1, f"BinaryAccuracy: threshold must be between 0 and 1, not {threshold!r}")
        self.threshold = threshold

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """1 where right, else 0."""
        return _ones(targets(y_true, y_pred) == (y_pred > self.threshold))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "threshold": self.threshold}


class CategoricalAccuracy(Metric):
    """How often the largest prediction is that of the true class; labels are one-hot."""

    def __init__(self, name: str | None = "categorical_accuracy", dtype: DTypeLike | None = None) -> None:
        super().__init__(dtype, name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """1 where right, else 0."""
        return _ones(targets(y_true, y_pred).argmax(axis=-1) == y_pred.argmax(axis=-1))


class SparseCategoricalAccuracy(Metric):
    """How often the largest prediction is that of the true class; labels are class numbers."""

    def __init__(
        self, name: str | None = "sparse_categorical_accuracy", dtype: DTypeLike | None = None
    ) -> None:
        super().__init__(dtype, name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """1 where right, else 0."""
        return _ones(y_pred.argmax(axis=-1) == labels_of(y_true, y_pred.shape[:-1]))


class SparseTopKCategoricalAccuracy(Metric):
    """How often the true class is among the `k` of the largest predictions; labels are class numbers.

    Of equal predictions at the edge all are among them. With `from_sorted_ids` predictions are class numbers
    themselves, the likeliest first.
    """

    def __init__(
        self,
        k: int = 5,
        name: str | None = "sparse_top_k_categorical_accuracy",
        dtype: DTypeLike | None = None,
        from_sorted_ids: bool = False,
    ) -> None:
        super().__init__(dtype, name)
        check(is_count(k), f"metric {self.name!r}: k must be a positive integer, not {k!r}")
        self.k = k
        self.from_sorted_ids = from_sorted_ids

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """1 where right, else 0."""
        labels = labels_of(y_true, y_pred.shape[:-1])
        if self.from_sorted_ids:
            return _ones((y_pred[..., : self.k] == labels[..., None]).any(axis=-1))
        return in_top_k(labels.astype(np.int64), y_pred, self.k)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "k": self.k, "from_sorted_ids": self.from_sorted_ids}


class TopKCategoricalAccuracy(Metric):
    """How often the true class is among the `k` of the largest predictions; labels are one-hot."""

    def __init__(
        self, k: int = 5, name: str | None = "top_k_categorical_accuracy", dtype: DTypeLike | None = None
    ) -> None:
        super().__init__(dtype, name)
        check(is_count(k), f"metric {self.name!r}: k must be a positive integer, not {k!r}")
        self.k = k

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """1 where right, else 0."""
        return in_top_k(targets(y_true, y_pred).argmax(axis=-1), y_pred, self.k)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "k": self.k}


class AccuracyByShape(Metric):
    """What "accuracy" means: binary, sparse or categorical accuracy, as the shapes have it.

    One prediction a place is binary; labels of fewer axes, or with one number where there are several
    predictions, are class numbers; others are one-hot.
    """

    def __init__(self, name: str | None = "accuracy", dtype: DTypeLike | None = None) -> None:
        super().__init__(dtype, name)
        self._binary, self._sparse = BinaryAccuracy(), SparseCategoricalAccuracy()
        self._categorical = CategoricalAccuracy()

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """1 where right, else 0."""
        if y_pred.ndim < 2 or y_pred.shape[-1] == 1:
            return self._binary.values(y_true, y_pred)
        if y_true.ndim < y_pred.ndim or y_true.shape[-1] == 1:
            return self._sparse.values(y_true, y_pred)
        return self._categorical.values(y_true, y_pred)


def in_top_k(labels: Array, y_pred: Array, k: int) -> Array:
    """1 where fewer than `k` predictions are larger than that of the label, else 0; 0 of no label."""
    known = (labels >= 0) & (labels < y_pred.shape[-1])
    own = np.take_along_axis(y_pred, np.where(known, labels, 0)[..., None], axis=-1)
    return _ones(known & np.isfinite(own[..., 0]) & ((y_pred > own).sum(axis=-1) < k))


def _ones(right: Any) -> Array:
    return np.asarray(right, np.float32)
