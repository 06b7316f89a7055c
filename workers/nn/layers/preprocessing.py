"""Layers that bring data into a range that suits learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.lookup import check
from workers.nn.ops.base import axes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.nn.numerics import Array

_EPSILON = 1e-7
"""The least standard deviation."""


class Normalization(Layer):
    """(x - mean) / sqrt(variance), for each place along `axis` (None: one mean for all); or the way back.

    Mean and variance are given, or found by `adapt`. Variables, unless they are given: `mean`, `variance`
    and `count`, none of them trainable. Source: Keras 3 `Normalization`.
    """

    supports_masking = True
    mean: Any
    variance: Any

    def __init__(
        self,
        axis: int | Sequence[int] | None = -1,
        mean: Any = None,
        variance: Any = None,
        invert: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(
            (mean is None) == (variance is None),
            "Normalization: give mean and variance together, or none of them and call adapt",
        )
        check(
            np.shape(mean) == np.shape(variance),
            f"Normalization: mean has shape {np.shape(mean)}, and variance {np.shape(variance)}",
        )
        self.axis = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        self._given = (
            None if mean is None else (np.asarray(mean, self.dtype), np.asarray(variance, self.dtype))
        )
        self.invert = bool(invert)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input."""
        kept = axes_of(self.axis, len(input_shape))
        shape = [input_shape[axis] for axis in kept]
        dims = [n for n in shape if n is not None]
        check(
            dims == shape,
            f"Normalization: the length of axis {self.axis} of an input {tuple(input_shape)} must be known",
        )
        self._reduced = tuple(axis for axis in range(len(input_shape)) if axis not in kept)
        self._broadcast = [1 if axis in self._reduced else n for axis, n in enumerate(input_shape)]
        if self._given is not None:
            self.mean, self.variance = (self._spread(given, dims) for given in self._given)
            return
        self.mean = self.add_weight(dims, "zeros", trainable=False, name="mean")
        self.variance = self.add_weight(dims, "ones", trainable=False, name="variance")
        self.count = self.add_weight((), "zeros", trainable=False, name="count")

    def _spread(self, given: Array, dims: Sequence[int]) -> Array:
        """A given mean or variance for each place."""
        check(
            given.ndim <= len(dims)
            and all(n in (1, m) for n, m in zip(given.shape[::-1], dims[::-1], strict=False)),
            f"Normalization: mean and variance of shape {given.shape} do not fit axis {self.axis}: {dims}",
        )
        return np.broadcast_to(given, dims)

    def adapt(self, data: Any) -> None:
        """In place. Take mean and variance from an array of samples, or from batches one after the other.

        They are computed in float64. A batch may be a tuple, whose first part are the samples.
        """
        check(self._given is None, f"{self.name}: mean and variance were given: do not call adapt")
        batches = [data] if isinstance(data, np.ndarray) else data
        count, mean, squares = 0, np.float64(0), np.float64(0)
        for batch in batches:
            x = np.asarray(batch[0] if isinstance(batch, tuple) else batch, np.float64)
            self.build((None, *x.shape[1:]))
            rows = x.size // max(self.mean.size, 1)
            if not rows:
                continue
            of_batch = x.mean(axis=self._reduced)
            off = of_batch - mean
            squares = squares + x.var(axis=self._reduced) * rows + off**2 * count * rows / (count + rows)
            count += rows
            mean = mean + off * (rows / count)
        check(count > 0, f"{self.name}: adapt was given no samples")
        self.mean.assign(mean)
        self.variance.assign(squares / count)

    def call(self, inputs: Any) -> Any:
        """The input in units of its standard deviation, or back from them."""
        mean, variance = (ops.reshape(each, self._broadcast) for each in (self.mean, self.variance))
        deviation = ops.maximum(ops.sqrt(variance), _EPSILON)
        x = ops.cast(inputs, self.dtype)
        return x * deviation + mean if self.invert else (x - mean) / deviation

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        mean, variance = (None, None) if self._given is None else (given.tolist() for given in self._given)
        return super().get_config() | {
            "axis": list(self.axis) or None,
            "mean": mean,
            "variance": variance,
            "invert": self.invert,
        }
