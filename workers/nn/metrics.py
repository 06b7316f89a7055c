"""Metrics: sums over samples and the weights to divide them by, never means of means.

Source: Keras 3 `keras.metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import get as _get
from workers.nn.losses import Loss, SparseCategoricalCrossentropy, class_labels, per_sample, targets

if TYPE_CHECKING:
    from workers.nn.numerics import Array


class Metric:
    """Base: a mean over samples of what a subclass's `values` gives.

    Training uses `sums` alone; `update_state`, `result` and `reset_state` keep a running mean for the caller.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset_state()

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """One value per sample."""
        raise NotImplementedError

    def sums(self, y_true: Array, y_pred: Array, sample_weight: Array | None = None) -> tuple[float, float]:
        """The weighted sum of the values, and the sum of the weights."""
        values = self.values(y_true, y_pred)
        if sample_weight is None:
            return float(values.sum(dtype=np.float64)), float(values.size)
        weight = np.broadcast_to(per_sample(sample_weight, values), values.shape)
        return float((values * weight).sum(dtype=np.float64)), float(weight.sum(dtype=np.float64))

    def update_state(self, y_true: Array, y_pred: Array, sample_weight: Array | None = None) -> None:
        """In place. Take these samples into the running mean."""
        total, weight = self.sums(np.asarray(y_true), np.asarray(y_pred), sample_weight)
        self._total += total
        self._weight += weight

    def result(self) -> float:
        """The running mean; 0 before the first sample."""
        return self._total / self._weight if self._weight else 0.0

    def reset_state(self) -> None:
        """In place. Forget all samples."""
        self._total = 0.0
        self._weight = 0.0

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": self.name}


class SparseCategoricalAccuracy(Metric):
    """How often the largest prediction is that of the true class; labels are class numbers."""

    def __init__(self, name: str = "sparse_categorical_accuracy") -> None:
        super().__init__(name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """1 where right, else 0."""
        right: Array = y_pred.argmax(axis=-1) == class_labels(y_true, y_pred)
        return right.astype(np.float32)


class MeanSquaredError(Metric):
    """The mean over the last axis of (y_true - y_pred) squared."""

    def __init__(self, name: str = "mean_squared_error") -> None:
        super().__init__(name)

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """One value per sample."""
        return np.asarray(np.square(y_pred - targets(y_true, y_pred)).mean(axis=-1))


_KNOWN: dict[str, type[SparseCategoricalAccuracy | MeanSquaredError]] = {
    "sparse_categorical_accuracy": SparseCategoricalAccuracy,
    "SparseCategoricalAccuracy": SparseCategoricalAccuracy,
    "mse": MeanSquaredError,
    "mean_squared_error": MeanSquaredError,
    "MeanSquaredError": MeanSquaredError,
}


def get(identifier: object, loss: Loss) -> Metric:
    """The metric of that name, config, or itself; "accuracy" is the accuracy that goes with the loss."""
    if identifier in ("accuracy", "acc"):
        if isinstance(loss, SparseCategoricalCrossentropy):
            return SparseCategoricalAccuracy(name=str(identifier))
        raise ConfigurationError(
            f"metric {identifier!r} needs a SparseCategoricalCrossentropy loss, and this one is "
            f"{type(loss).__name__}: name another metric, such as 'mse'"
        )
    if isinstance(identifier, str) and identifier in _KNOWN:
        cls = _KNOWN[identifier]
        return cls() if identifier == cls.__name__ else cls(name=identifier)
    return _get("metric", identifier, Metric, {"accuracy": SparseCategoricalAccuracy, **_KNOWN})
