"""`nn.metrics`: what is told of training beside the loss, under Keras's names and with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError
from workers.nn import losses
from workers.nn.lookup import get as _get
from workers.nn.lookup import serialize, snake_case
from workers.nn.losses import Loss
from workers.nn.metrics.accuracy import (
    Accuracy,
    AccuracyByShape,
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
)
from workers.nn.metrics.auc import AUC
from workers.nn.metrics.base import Mean, MeanMetricWrapper, Metric, Sum
from workers.nn.metrics.confusion import (
    FalseNegatives,
    FalsePositives,
    Precision,
    PrecisionAtRecall,
    Recall,
    RecallAtPrecision,
    SensitivityAtSpecificity,
    SpecificityAtSensitivity,
    TrueNegatives,
    TruePositives,
)
from workers.nn.metrics.iou import BinaryIoU, IoU, MeanIoU, OneHotIoU, OneHotMeanIoU
from workers.nn.metrics.of_losses import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    CategoricalHinge,
    CosineSimilarity,
    Hinge,
    KLDivergence,
    LogCoshError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    RootMeanSquaredError,
    SparseCategoricalCrossentropy,
    SquaredHinge,
)
from workers.nn.metrics.scores import F1Score, FBetaScore, R2Score

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.nn.numerics import Array
    from workers.nn.tensor import Tensor

_CLASSES: tuple[type[Any], ...] = (
    AUC,
    Accuracy,
    AccuracyByShape,
    BinaryAccuracy,
    BinaryCrossentropy,
    BinaryIoU,
    CategoricalAccuracy,
    CategoricalCrossentropy,
    CategoricalHinge,
    CosineSimilarity,
    F1Score,
    FBetaScore,
    FalseNegatives,
    FalsePositives,
    Hinge,
    IoU,
    KLDivergence,
    LogCoshError,
    Mean,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanIoU,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    OneHotIoU,
    OneHotMeanIoU,
    Poisson,
    Precision,
    PrecisionAtRecall,
    R2Score,
    Recall,
    RecallAtPrecision,
    RootMeanSquaredError,
    SensitivityAtSpecificity,
    SparseCategoricalAccuracy,
    SparseCategoricalCrossentropy,
    SparseTopKCategoricalAccuracy,
    SpecificityAtSensitivity,
    SquaredHinge,
    Sum,
    TopKCategoricalAccuracy,
    TrueNegatives,
    TruePositives,
)
_SHORT: dict[str, type[Any]] = {
    "bce": BinaryCrossentropy,
    "mae": MeanAbsoluteError,
    "mape": MeanAbsolutePercentageError,
    "mse": MeanSquaredError,
    "msle": MeanSquaredLogarithmicError,
}
_KNOWN: dict[str, type[Any]] = {
    **{cls.__name__: cls for cls in _CLASSES},
    **{snake_case(cls.__name__): cls for cls in _CLASSES},
    **_SHORT,
    **{name.upper(): cls for name, cls in _SHORT.items()},
    "accuracy": AccuracyByShape,
    "acc": AccuracyByShape,
}


def get(identifier: object, loss: Loss | None = None) -> Metric:
    """The metric of that name, config, class, loss or function of two tensors, or itself.

    A name that is given is that of the metric too, as in Keras. "accuracy" is the one that fits the shapes.
    """
    if isinstance(identifier, str) and identifier in _KNOWN:
        try:
            found: Metric = _KNOWN[identifier](name=identifier)
        except TypeError as exc:
            raise ConfigurationError(f"metric {identifier!r} needs settings: use an instance") from exc
        return found
    if isinstance(identifier, Mapping) and identifier.get("module") == "keras.losses":
        identifier = losses.get(identifier)
    if isinstance(identifier, Loss):
        return MeanMetricWrapper(_values_of(identifier), identifier.name)
    given: Metric = _get("metric", identifier, Metric, _KNOWN, MeanMetricWrapper)
    return given


def deserialize(config: object) -> Metric:
    """The metric that `serialize` told of."""
    return get(config)


def _values_of(loss: Loss) -> Callable[[Tensor, Tensor], Array]:
    def values(y_true: Tensor, y_pred: Tensor) -> Array:
        return loss.values(y_true.array, y_pred.array)

    return values


__all__ = [
    "AUC",
    "Accuracy",
    "AccuracyByShape",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "BinaryIoU",
    "CategoricalAccuracy",
    "CategoricalCrossentropy",
    "CategoricalHinge",
    "CosineSimilarity",
    "F1Score",
    "FBetaScore",
    "FalseNegatives",
    "FalsePositives",
    "Hinge",
    "IoU",
    "KLDivergence",
    "LogCoshError",
    "Mean",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanIoU",
    "MeanMetricWrapper",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Metric",
    "OneHotIoU",
    "OneHotMeanIoU",
    "Poisson",
    "Precision",
    "PrecisionAtRecall",
    "R2Score",
    "Recall",
    "RecallAtPrecision",
    "RootMeanSquaredError",
    "SensitivityAtSpecificity",
    "SparseCategoricalAccuracy",
    "SparseCategoricalCrossentropy",
    "SparseTopKCategoricalAccuracy",
    "SpecificityAtSensitivity",
    "SquaredHinge",
    "Sum",
    "TopKCategoricalAccuracy",
    "TrueNegatives",
    "TruePositives",
    "deserialize",
    "get",
    "serialize",
]
