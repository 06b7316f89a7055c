"""`nn.utils`: small helpers under Keras's names."""

from __future__ import annotations

import random as _python_random
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import random

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike


def set_random_seed(seed: int) -> None:
    """In place. Make what is drawn from now on a function of `seed`: Python's, NumPy's and our own
    numbers."""
    _python_random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 what user code draws from, not we
    random.set_seed(seed)


def to_categorical(x: ArrayLike, num_classes: int | None = None, dtype: DTypeLike = "float32") -> Any:
    """Class numbers as rows with a 1 in the place of the class: shape (..., num_classes)."""
    labels = np.asarray(x)
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    count = int(labels.max(initial=-1)) + 1 if num_classes is None else num_classes
    if labels.size and (labels.min() < 0 or labels.max() >= count):
        raise ConfigurationError(
            f"to_categorical: labels from {labels.min()} to {labels.max()} of {count} classes"
        )
    return np.eye(count, dtype=dtype)[labels.astype(np.int64)]
