"""`nn.losses`: what training makes small, under Keras's names and with its defaults.

A loss is named by its class, its function or its short form: `MeanSquaredError`, `mean_squared_error`, `mse`.
"""

from __future__ import annotations

from typing import Any

from workers.nn.lookup import get as _get
from workers.nn.lookup import serialize
from workers.nn.losses.base import EPSILON, Loss, floating, targets
from workers.nn.losses.crossentropy import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    KLDivergence,
    SparseCategoricalCrossentropy,
)
from workers.nn.losses.focal import BinaryFocalCrossentropy, CategoricalFocalCrossentropy
from workers.nn.losses.function import FunctionLoss, as_function
from workers.nn.losses.margin import CategoricalHinge, Hinge, SquaredHinge
from workers.nn.losses.overlap import Dice, Tversky
from workers.nn.losses.regression import (
    CosineSimilarity,
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
)

_CLASSES: tuple[type[Any], ...] = (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalHinge,
    CosineSimilarity,
    Dice,
    Hinge,
    Huber,
    KLDivergence,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    SparseCategoricalCrossentropy,
    SquaredHinge,
    Tversky,
)

binary_crossentropy = as_function(BinaryCrossentropy, "binary_crossentropy")
binary_focal_crossentropy = as_function(BinaryFocalCrossentropy, "binary_focal_crossentropy")
categorical_crossentropy = as_function(CategoricalCrossentropy, "categorical_crossentropy")
categorical_focal_crossentropy = as_function(CategoricalFocalCrossentropy, "categorical_focal_crossentropy")
categorical_hinge = as_function(CategoricalHinge, "categorical_hinge")
cosine_similarity = as_function(CosineSimilarity, "cosine_similarity")
dice = as_function(Dice, "dice")
hinge = as_function(Hinge, "hinge")
huber = as_function(Huber, "huber")
kl_divergence = kld = kullback_leibler_divergence = as_function(KLDivergence, "kl_divergence")
log_cosh = logcosh = as_function(LogCosh, "log_cosh")
mean_absolute_error = mae = as_function(MeanAbsoluteError, "mean_absolute_error")
mean_absolute_percentage_error = mape = as_function(
    MeanAbsolutePercentageError, "mean_absolute_percentage_error"
)
mean_squared_error = mse = as_function(MeanSquaredError, "mean_squared_error")
mean_squared_logarithmic_error = msle = as_function(
    MeanSquaredLogarithmicError, "mean_squared_logarithmic_error"
)
poisson = as_function(Poisson, "poisson")
sparse_categorical_crossentropy = as_function(
    SparseCategoricalCrossentropy, "sparse_categorical_crossentropy"
)
squared_hinge = as_function(SquaredHinge, "squared_hinge")
tversky = as_function(Tversky, "tversky")

_NAMES: dict[str, type[Any]] = {
    **{cls.__name__: cls for cls in _CLASSES},
    **{cls().name: cls for cls in _CLASSES},
    "bce": BinaryCrossentropy,
    "huber": Huber,
    "kld": KLDivergence,
    "kullback_leibler_divergence": KLDivergence,
    "logcosh": LogCosh,
    "mae": MeanAbsoluteError,
    "mape": MeanAbsolutePercentageError,
    "mse": MeanSquaredError,
    "msle": MeanSquaredLogarithmicError,
}
_KNOWN: dict[str, type[Any]] = {
    **_NAMES,
    **{name.upper(): _NAMES[name] for name in ("bce", "kld", "mae", "mape", "mse", "msle")},
    "FunctionLoss": FunctionLoss,
}


def get(identifier: object) -> Loss:
    """The loss of that name, config, class or function of two tensors, or itself."""
    found: Loss = _get("loss", identifier, Loss, _KNOWN, FunctionLoss)
    return found


def deserialize(config: object) -> Loss:
    """The loss that `serialize` told of."""
    return get(config)


__all__ = [
    "EPSILON",
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalHinge",
    "CosineSimilarity",
    "Dice",
    "FunctionLoss",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "Loss",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "Tversky",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_hinge",
    "cosine_similarity",
    "deserialize",
    "dice",
    "floating",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "kld",
    "kullback_leibler_divergence",
    "log_cosh",
    "logcosh",
    "mae",
    "mape",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "mse",
    "msle",
    "poisson",
    "serialize",
    "sparse_categorical_crossentropy",
    "squared_hinge",
    "targets",
    "tversky",
]
