"""The area under the curve of a decision, over all thresholds.

Source: Keras 3 `keras.metrics.AUC`, whose defaults and values this has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import check
from workers.nn.losses.base import EPSILON, floating, targets
from workers.nn.metrics.base import combined
from workers.nn.metrics.confusion import Confusion, checked_thresholds, confusion, even_thresholds, placed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from workers.nn.numerics import Array
    from workers.nn.tensor import Dims
    from workers.reports import Report


class AUC(Confusion):
    """The area under the ROC curve (true over false positives) or, with `curve="PR"`, precision over recall.

    The sum is over `num_thresholds`, or over `thresholds` with 0 and 1 added. With `multi_label` each
    label, which is a column of the predictions, has its own area, and the result is their mean, weighed by
    `label_weights`; without, these weigh the predictions.
    """

    def __init__(
        self,
        num_thresholds: int = 200,
        curve: str = "ROC",
        summation_method: str = "interpolation",
        name: str | None = None,
        dtype: DTypeLike | None = None,
        thresholds: Sequence[float] | None = None,
        multi_label: bool = False,
        num_labels: int | None = None,
        label_weights: Sequence[float] | None = None,
        from_logits: bool = False,
    ) -> None:
        check(str(curve).upper() in ("ROC", "PR"), f"AUC: curve must be 'ROC' or 'PR', not {curve!r}")
        check(
            str(summation_method).lower() in ("interpolation", "minoring", "majoring"),
            "AUC: summation_method must be 'interpolation', 'minoring' or 'majoring', not "
            f"{summation_method!r}",
        )
        check(multi_label or not num_labels, "AUC: num_labels is for multi_label=True")
        self.init_thresholds = None if thresholds is None else sorted(thresholds)
        if self.init_thresholds is not None:
            inner = checked_thresholds(self.init_thresholds, 0.5)
        else:
            check(num_thresholds > 1, f"AUC: num_thresholds must be above 1, not {num_thresholds!r}")
            inner = even_thresholds(num_thresholds)[1:-1]
        # The outermost are beyond all predictions: one has everything above it, the other nothing.
        super().__init__([-EPSILON, *inner, 1 + EPSILON], name, dtype)
        self.curve = str(curve).upper()
        self.summation_method = str(summation_method).lower()
        self.multi_label = multi_label
        self.num_labels = num_labels
        self.label_weights = None if label_weights is None else [float(w) for w in label_weights]
        self.from_logits = from_logits

    def build(self, y_pred: Dims) -> None:
        """In place. Find the number of labels."""
        if not self.multi_label:
            return
        if len(y_pred) != 2 or (self.num_labels or y_pred[1]) != y_pred[1]:
            raise ConfigurationError(
                f"metric {self.name!r}: multi_label wants predictions of shape (samples, "
                f"{self.num_labels or 'labels'}), not {y_pred}"
            )
        self.num_labels = y_pred[1]

    @property
    def rows(self) -> int:
        """The number of rows of `sums`."""
        return super().rows * (self._labels or 1)

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """What these samples add."""
        y_pred = floating(y_pred)
        if self.from_logits:
            y_pred = 1 / (1 + np.exp(-y_pred))
        given = combined(sample_weight, mask)
        weight = np.broadcast_to(1.0 if given is None else placed(given, y_pred), y_pred.shape)
        labels = self._labels
        if labels is None:
            if self.label_weights is not None:
                weight = weight * np.asarray(self.label_weights)
            return super().sums(y_true, y_pred, weight)
        y_true = targets(y_true, y_pred)
        found = [confusion(y_true[:, i], y_pred[:, i], weight[:, i], self._levels) for i in range(labels)]
        return np.stack(found, axis=1).reshape(-1, 2)

    def report(self) -> Report:
        """What the rows mean. With `multi_label`: of each threshold those of all labels."""
        return {
            "name": self.name,
            "kind": "auc",
            "rows": self.rows,
            "curve": self.curve,
            "summation_method": self.summation_method,
            "labels": self._labels,
            "label_weights": self.label_weights,
        }

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "num_thresholds": len(self.thresholds),
            "curve": self.curve,
            "summation_method": self.summation_method,
            "thresholds": self.init_thresholds,
            "multi_label": self.multi_label,
            "num_labels": self.num_labels,
            "label_weights": self.label_weights,
            "from_logits": self.from_logits,
        }

    @property
    def _labels(self) -> int | None:
        """How many labels have an area each; None for one area of all."""
        if not self.multi_label:
            return None
        if self.num_labels is None:
            raise ConfigurationError(f"metric {self.name!r} has seen no predictions: give num_labels")
        return self.num_labels
