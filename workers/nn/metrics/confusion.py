"""Metrics of right and wrong decisions at thresholds: a prediction above one is a yes.

Source: Keras 3 `keras.metrics`, whose names, defaults and values these have. Predictions are compared in
float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import check, is_count
from workers.nn.losses.base import floating, targets
from workers.nn.losses.reduction import per_sample
from workers.nn.metrics.base import Metric, combined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from workers.nn.numerics import Array
    from workers.reports import Report

_EVERYTHING = -1e10
"""The threshold with `top_k`, where what is not among them becomes this."""


class Confusion(Metric):
    """Base: true and false positives and negatives at each threshold, as two rows for each of them.

    Rows: (true, false positives) at each threshold, then (false, true negatives).
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        name: str | None,
        dtype: DTypeLike | None,
        top_k: int | None = None,
        class_id: int | None = None,
    ) -> None:
        super().__init__(dtype, name)
        check(
            top_k is None or is_count(top_k), f"metric {self.name!r}: top_k must be positive, not {top_k!r}"
        )
        self.thresholds = list(thresholds)
        self.top_k = top_k
        self.class_id = class_id
        self._levels = np.array(thresholds, np.float32)

    @property
    def rows(self) -> int:
        """The number of rows of `sums`."""
        return 2 * len(self.thresholds)

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """What these samples add."""
        y_true, y_pred = targets(y_true, floating(y_pred)), floating(y_pred)
        weight = combined(sample_weight, mask)
        weight = (
            np.ones(y_pred.shape) if weight is None else np.broadcast_to(placed(weight, y_pred), y_pred.shape)
        )
        if self.top_k is not None:
            y_pred = kept(y_pred, self.top_k)
        if self.class_id is not None:
            if y_pred.ndim < 2 or not 0 <= self.class_id < y_pred.shape[-1]:
                raise ConfigurationError(
                    f"metric {self.name!r}: there is no class {self.class_id} in predictions of shape "
                    f"{y_pred.shape}"
                )
            y_true, y_pred, weight = (each[..., self.class_id] for each in (y_true, y_pred, weight))
        return confusion(y_true.ravel(), y_pred.ravel(), weight.ravel(), self._levels)


class CellCount(Confusion):
    """Base: how many decisions are of one kind."""

    cell: ClassVar[str]

    def __init__(
        self,
        thresholds: float | Sequence[float] | None = None,
        name: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(checked_thresholds(thresholds, 0.5), name, dtype)
        self.init_thresholds = thresholds

    def report(self) -> Report:
        """What the rows mean."""
        return {"name": self.name, "kind": "count", "rows": self.rows, "cell": self.cell}

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "thresholds": self.init_thresholds}


class TruePositives(CellCount):
    """The number of yes that are right."""

    cell = "tp"


class TrueNegatives(CellCount):
    """The number of no that are right."""

    cell = "tn"


class FalsePositives(CellCount):
    """The number of yes that are wrong."""

    cell = "fp"


class FalseNegatives(CellCount):
    """The number of no that are wrong."""

    cell = "fn"


class Rate(Confusion):
    """Base: a part of the decisions that are right.

    With `top_k` a class is a yes if it is among the k of the largest predictions; with `class_id` only that
    class is looked at.
    """

    rate: ClassVar[str]

    def __init__(
        self,
        thresholds: float | Sequence[float] | None = None,
        top_k: int | None = None,
        class_id: int | None = None,
        name: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        given = checked_thresholds(thresholds, 0.5 if top_k is None else _EVERYTHING)
        super().__init__(given, name, dtype, top_k, class_id)
        self.init_thresholds = thresholds

    def report(self) -> Report:
        """What the rows mean."""
        return {"name": self.name, "kind": "ratio", "rows": self.rows, "rate": self.rate}

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "thresholds": self.init_thresholds,
            "top_k": self.top_k,
            "class_id": self.class_id,
        }


class Precision(Rate):
    """The part of the yes that is right."""

    rate = "precision"


class Recall(Rate):
    """The part of the true that got a yes."""

    rate = "recall"


class RateAt(Confusion):
    """Base: the best of one rate at the thresholds where another one is at least a given value."""

    rate: ClassVar[str]
    constrained: ClassVar[str]

    def __init__(
        self,
        value: float,
        num_thresholds: int,
        class_id: int | None,
        name: str | None,
        dtype: DTypeLike | None,
    ) -> None:
        check(is_count(num_thresholds), f"num_thresholds must be a positive integer, not {num_thresholds!r}")
        super().__init__(even_thresholds(num_thresholds), name, dtype, class_id=class_id)
        check(0 <= value <= 1, f"metric {self.name!r}: a rate is between 0 and 1, not {value!r}")
        self.value = value
        self.num_thresholds = num_thresholds

    def report(self) -> Report:
        """What the rows mean."""
        return {
            "name": self.name,
            "kind": "best_at",
            "rows": self.rows,
            "rate": self.rate,
            "constrained": self.constrained,
            "value": self.value,
        }

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "num_thresholds": self.num_thresholds,
            "class_id": self.class_id,
        }


class SensitivityAtSpecificity(RateAt):
    """The best recall where the part of the false that got a no is at least `specificity`."""

    rate, constrained = "recall", "specificity"

    def __init__(
        self,
        specificity: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(specificity, num_thresholds, class_id, name, dtype)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "specificity": self.value}


class SpecificityAtSensitivity(RateAt):
    """The largest part of the false that got a no where the recall is at least `sensitivity`."""

    rate, constrained = "specificity", "recall"

    def __init__(
        self,
        sensitivity: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(sensitivity, num_thresholds, class_id, name, dtype)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "sensitivity": self.value}


class PrecisionAtRecall(RateAt):
    """The best precision where the recall is at least `recall`."""

    rate, constrained = "precision", "recall"

    def __init__(
        self,
        recall: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(recall, num_thresholds, class_id, name, dtype)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "recall": self.value}


class RecallAtPrecision(RateAt):
    """The best recall where the precision is at least `precision`."""

    rate, constrained = "recall", "precision"

    def __init__(
        self,
        precision: float,
        num_thresholds: int = 200,
        class_id: int | None = None,
        name: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(precision, num_thresholds, class_id, name, dtype)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().get_config(), "precision": self.value}


def confusion(y_true: Array, y_pred: Array, weight: Array, levels: Array) -> Array:
    """The confusion of flat predictions at each threshold: rows as those of `Confusion`.

    A label other than 0 is true. Every prediction is sorted in among the thresholds once.
    """
    order = np.argsort(levels, kind="stable")
    passed = np.searchsorted(levels[order], y_pred.astype(np.float32, copy=False), side="left")
    yes = np.empty((len(levels), 2))
    wholes = []
    for i, chosen in enumerate((y_true != 0, y_true == 0)):
        counts = np.bincount(passed[chosen], weight[chosen], len(levels) + 1)
        yes[order, i] = counts[::-1].cumsum()[-2::-1]
        wholes.append(counts.sum())
    return np.concatenate([yes, np.array(wholes) - yes])


def kept(y_pred: Array, k: int) -> Array:
    """Predictions of which only the k largest along the last axis are left; of equal ones the first."""
    first = np.argsort(-y_pred, axis=-1, kind="stable")[..., :k]
    found = np.full_like(y_pred, _EVERYTHING * 2)
    np.put_along_axis(found, first, np.take_along_axis(y_pred, first, axis=-1), axis=-1)
    return found


def checked_thresholds(given: float | Sequence[float] | None, default: float) -> list[float]:
    """The thresholds as a list; ConfigurationError if one is not between 0 and 1."""
    if given is None:
        return [default]
    thresholds = [given] if isinstance(given, int | float) else list(given)
    check(
        bool(thresholds) and all(0 <= t <= 1 for t in thresholds),
        f"thresholds must be between 0 and 1, not {given!r}",
    )
    return thresholds


def even_thresholds(count: int) -> list[float]:
    """As many thresholds from 0 to 1; one is 0.5."""
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]


def placed(weight: Array, y_pred: Array) -> Array:
    """Weights of samples or places, or one for each prediction, broadcastable to these."""
    if weight.ndim == y_pred.ndim - 1 and weight.shape == y_pred.shape[:-1]:
        return weight[..., None]
    return per_sample(weight, y_pred.shape)
