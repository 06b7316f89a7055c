"""From one value per place to one number: sums and divisors that microbatches can add up.

Source: Keras 3 `keras.losses.Loss`, whose reductions these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from workers.nn.numerics import Array, Shape

REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None)
"""What `reduction=` may be. "mean" is "sum_over_batch_size", and None is "none"."""


def checked(reduction: str | None) -> str:
    """The reduction under the name that is used here; ConfigurationError if there is none such."""
    if reduction not in REDUCTIONS:
        raise ConfigurationError(
            f"unknown reduction {reduction!r}: use one of {', '.join(map(repr, REDUCTIONS))}"
        )
    return "none" if reduction is None else "sum_over_batch_size" if reduction == "mean" else reduction


def factors_of(
    shape: Shape, dtype: np.dtype[np.generic], sample_weight: ArrayLike | None, mask: ArrayLike | None
) -> Array | None:
    """What to multiply values of this shape by, broadcastable to it from the left; None stands for 1.

    A mask is a weight of 0 or 1.
    """
    found: Array | None = None
    for given in (sample_weight, mask):
        if given is not None:
            one = per_sample(np.asarray(given, dtype), shape)
            found = one if found is None else found * one
    return found


def divisor_of(
    shape: Shape, reduction: str, factors: Array | None, mask: ArrayLike | None, share: float
) -> float:
    """What the sum of all values is divided by.

    "sum_over_batch_size": the number of values, of which only those of the mask count; weights do not.
    "mean_with_sample_weight": the sum of the weights. "sum": `share`, the part of the batch's rows that
    are here, so that those of all microbatches are 1.
    """
    if reduction == "sum":
        return share
    if reduction == "mean_with_sample_weight" and factors is not None:
        return total(np.broadcast_to(factors, shape))
    if mask is not None:
        return total(np.broadcast_to(per_sample(np.asarray(mask, np.float64), shape), shape))
    return float(np.prod(shape))


def per_sample(weight: Array, shape: Shape) -> Array:
    """Weights for values of this shape, broadcastable to it from the left; (n, 1) stands for (n,)."""
    if weight.ndim == len(shape) + 1 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    fits = all(n in (1, m) for n, m in zip(weight.shape, shape, strict=False))
    if weight.ndim > len(shape) or not fits:
        raise ConfigurationError(
            f"sample weights of shape {weight.shape} do not fit {shape}: give one a sample"
        )
    return weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim))


def total(values: Array) -> float:
    """The sum of all elements, added in float64."""
    return float(values.sum(dtype=np.float64))
