"""Scores whose parts are kept for each class or output: F and R2.

Source: Keras 3 `keras.metrics`, whose names, defaults and values these have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import check
from workers.nn.losses.base import floating, targets
from workers.nn.losses.reduction import per_sample
from workers.nn.metrics.base import Metric, combined
from workers.reports import paired

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from workers.nn.numerics import Array
    from workers.nn.tensor import Dims
    from workers.reports import Report


class ByColumn(Metric):
    """Base: predictions are (samples, columns), and each column has sums of its own."""

    def __init__(self, name: str | None, dtype: DTypeLike | None) -> None:
        super().__init__(dtype, name)
        self._columns: int | None = None

    def build(self, y_pred: Dims) -> None:
        """In place. Find the number of columns."""
        if len(y_pred) != 2 or y_pred[1] is None:
            raise ConfigurationError(
                f"metric {self.name!r} wants predictions of shape (samples, columns), not {y_pred}"
            )
        self._columns = y_pred[1]

    @property
    def columns(self) -> int:
        """The number of columns; ConfigurationError before `build`."""
        if self._columns is None:
            raise ConfigurationError(f"metric {self.name!r} has seen no predictions")
        return self._columns

    def _given(
        self, y_true: Array, y_pred: Array, sample_weight: ArrayLike | None, mask: ArrayLike | None
    ) -> tuple[Array, Array, Array]:
        """Labels and predictions as floats, and a weight for each."""
        self.build(y_pred.shape)
        y_pred = floating(y_pred)
        weight = combined(sample_weight, mask)
        placed = np.float64(1) if weight is None else per_sample(weight, y_pred.shape)
        return targets(y_true, y_pred), y_pred, np.broadcast_to(placed, y_pred.shape)


class FBetaScore(ByColumn):
    """(1 + beta^2) precision recall / (beta^2 precision + recall) of each class, or their `average`.

    `average`: None for a score of each class, "micro" for that of all together, "macro" for the mean,
    "weighted" for the mean by how often a class is true. Without a `threshold` the largest prediction is a
    yes.
    """

    def __init__(
        self,
        average: str | None = None,
        beta: float = 1.0,
        threshold: float | None = None,
        name: str | None = "fbeta_score",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, dtype)
        check(
            average in (None, "micro", "macro", "weighted"),
            f"metric {self.name!r}: average must be None, 'micro', 'macro' or 'weighted', not {average!r}",
        )
        check(beta > 0, f"metric {self.name!r}: beta must be above 0, not {beta!r}")
        check(
            threshold is None or 0 < threshold <= 1,
            f"metric {self.name!r}: threshold must be above 0 and at most 1, not {threshold!r}",
        )
        self.average = average
        self.beta = beta
        self.threshold = threshold

    @property
    def rows(self) -> int:
        """The number of rows of `sums`."""
        return 2 if self.average == "micro" else 2 * self.columns

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """What these samples add."""
        y, p, weight = self._given(y_true, y_pred, sample_weight, mask)
        if self.threshold is None:
            yes = (p >= p.max(axis=-1, keepdims=True)) & (np.abs(p) > 1e-9)
        else:
            yes = p > self.threshold
        axis = None if self.average == "micro" else 0
        parts = [
            np.sum(part * weight, axis=axis, dtype=np.float64)
            for part in (yes * y, yes * (1 - y), (1 - yes) * y, y)
        ]
        return paired(parts)

    def report(self) -> Report:
        """What the rows mean."""
        return {
            "name": self.name,
            "kind": "fbeta",
            "rows": self.rows,
            "beta": self.beta,
            "average": self.average,
        }

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "average": self.average,
            "beta": self.beta,
            "threshold": self.threshold,
        }


class F1Score(FBetaScore):
    """`FBetaScore` with beta 1: the harmonic mean of precision and recall."""

    def __init__(
        self,
        average: str | None = None,
        threshold: float | None = None,
        name: str | None = "f1_score",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(average, 1.0, threshold, name, dtype)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        config = super().get_config()
        del config["beta"]
        return config


class R2Score(ByColumn):
    """1 - squared error / variance of y_true, of each output or as `class_aggregation` says.

    `class_aggregation`: None, "uniform_average" or "variance_weighted_average". `num_regressors` above 0
    gives the adjusted score, if there are enough samples.
    """

    def __init__(
        self,
        class_aggregation: str | None = "uniform_average",
        num_regressors: int = 0,
        name: str | None = "r2_score",
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(name, dtype)
        check(
            class_aggregation in (None, "uniform_average", "variance_weighted_average"),
            f"metric {self.name!r}: class_aggregation must be None, 'uniform_average' or "
            f"'variance_weighted_average', not {class_aggregation!r}",
        )
        check(num_regressors >= 0, f"metric {self.name!r}: num_regressors must not be below 0")
        self.class_aggregation = class_aggregation
        self.num_regressors = num_regressors

    @property
    def rows(self) -> int:
        """The number of rows of `sums`."""
        return 2 * self.columns + 1

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """What these samples add."""
        y, p, weight = self._given(y_true, y_pred, sample_weight, mask)
        y, p = y.astype(np.float64), p.astype(np.float64)
        parts = [(part * weight).sum(axis=0) for part in (y, y * y, np.square(y - p), np.ones_like(y))]
        samples = np.count_nonzero((weight != 0).any(axis=-1))
        return np.concatenate([paired(parts), [[samples, 0.0]]])

    def report(self) -> Report:
        """What the rows mean."""
        return {
            "name": self.name,
            "kind": "r2",
            "rows": self.rows,
            "class_aggregation": self.class_aggregation,
            "num_regressors": self.num_regressors,
        }

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "class_aggregation": self.class_aggregation,
            "num_regressors": self.num_regressors,
        }
