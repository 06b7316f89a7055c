"""Intersection over union of classes, for segmentation.

Source: Keras 3 `keras.metrics`, whose names, defaults and values these have, except that weights need not be
whole numbers. Places whose label or prediction is no class do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.lookup import check, is_count
from workers.nn.losses.reduction import per_sample
from workers.nn.metrics.base import Metric, combined
from workers.reports import Report, padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from workers.nn.numerics import Array


class IoU(Metric):
    """The mean over `target_class_ids` of overlap / union of what is and what is predicted so.

    `sparse_y_true` and `sparse_y_pred` say that these are class numbers, and not scores along `axis`.
    """

    def __init__(
        self,
        num_classes: int,
        target_class_ids: Sequence[int],
        name: str | None = None,
        dtype: DTypeLike | None = None,
        ignore_class: int | None = None,
        sparse_y_true: bool = True,
        sparse_y_pred: bool = True,
        axis: int = -1,
    ) -> None:
        super().__init__(dtype, name)
        check(
            is_count(num_classes), f"metric {self.name!r}: num_classes must be positive, not {num_classes!r}"
        )
        self.num_classes = num_classes
        self.target_class_ids = [int(each) for each in target_class_ids]
        check(
            all(0 <= each < num_classes for each in self.target_class_ids),
            f"metric {self.name!r}: target_class_ids {self.target_class_ids} must be 0 to {num_classes - 1}",
        )
        self.ignore_class = ignore_class
        self.sparse_y_true = sparse_y_true
        self.sparse_y_pred = sparse_y_pred
        self.axis = axis

    @property
    def rows(self) -> int:
        """The number of rows of `sums`."""
        return -(-self.num_classes * self.num_classes // 2)

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """What these samples add to the confusion matrix."""
        if not self.sparse_y_true:
            y_true = y_true.argmax(axis=self.axis)
        if not self.sparse_y_pred:
            y_pred = y_pred.argmax(axis=self.axis)
        check(
            y_true.size == y_pred.size,
            f"metric {self.name!r}: labels of shape {y_true.shape} do not fit predictions of {y_pred.shape}",
        )
        n = self.num_classes
        weight = combined(sample_weight, mask)
        weight = np.broadcast_to(
            1.0 if weight is None else per_sample(weight, y_true.shape), y_true.shape
        ).ravel()
        true, predicted = y_true.ravel().astype(np.int64), y_pred.ravel().astype(np.int64)
        counts = (true >= 0) & (true < n) & (predicted >= 0) & (predicted < n)
        if self.ignore_class is not None:
            counts &= true != self.ignore_class
        return padded(np.bincount((true * n + predicted)[counts], weight[counts], n * n))

    def report(self) -> Report:
        """What the rows mean."""
        return {
            "name": self.name,
            "kind": "iou",
            "rows": self.rows,
            "num_classes": self.num_classes,
            "target_class_ids": self.target_class_ids,
        }

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "target_class_ids": self.target_class_ids,
            "ignore_class": self.ignore_class,
            "sparse_y_true": self.sparse_y_true,
            "sparse_y_pred": self.sparse_y_pred,
            "axis": self.axis,
        }

    def _config_without(self, *names: str) -> dict[str, Any]:
        """The settings but those that a class has fixed."""
        return {key: value for key, value in IoU.get_config(self).items() if key not in names}


class MeanIoU(IoU):
    """`IoU` of all classes."""

    def __init__(
        self,
        num_classes: int,
        name: str | None = None,
        dtype: DTypeLike | None = None,
        ignore_class: int | None = None,
        sparse_y_true: bool = True,
        sparse_y_pred: bool = True,
        axis: int = -1,
    ) -> None:
        every = range(num_classes)
        super().__init__(num_classes, every, name, dtype, ignore_class, sparse_y_true, sparse_y_pred, axis)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return self._config_without("target_class_ids")


class BinaryIoU(IoU):
    """`IoU` of two classes; a prediction of at least `threshold` is of class 1."""

    def __init__(
        self,
        target_class_ids: Sequence[int] = (0, 1),
        threshold: float = 0.5,
        name: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(2, target_class_ids, name, dtype)
        self.threshold = threshold

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """What these samples add to the confusion matrix."""
        return super().sums(y_true, y_pred >= self.threshold, sample_weight, mask)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        fixed = ("num_classes", "ignore_class", "sparse_y_true", "sparse_y_pred", "axis")
        return {**self._config_without(*fixed), "threshold": self.threshold}


class OneHotIoU(IoU):
    """`IoU` of one-hot labels and, unless `sparse_y_pred`, scores."""

    def __init__(
        self,
        num_classes: int,
        target_class_ids: Sequence[int],
        name: str | None = None,
        dtype: DTypeLike | None = None,
        ignore_class: int | None = None,
        sparse_y_pred: bool = False,
        axis: int = -1,
    ) -> None:
        super().__init__(num_classes, target_class_ids, name, dtype, ignore_class, False, sparse_y_pred, axis)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return self._config_without("sparse_y_true")


class OneHotMeanIoU(IoU):
    """`OneHotIoU` of all classes."""

    def __init__(
        self,
        num_classes: int,
        name: str | None = None,
        dtype: DTypeLike | None = None,
        ignore_class: int | None = None,
        sparse_y_pred: bool = False,
        axis: int = -1,
    ) -> None:
        every = range(num_classes)
        super().__init__(num_classes, every, name, dtype, ignore_class, False, sparse_y_pred, axis)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return self._config_without("sparse_y_true", "target_class_ids")
