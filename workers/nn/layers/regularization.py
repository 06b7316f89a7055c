"""Layers that disturb what goes through them in training, or add to the loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.layers.core import Dropout
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Sequence


class _SpatialDropout(Dropout):
    """Dropout of whole features: a feature is dropped at all places of a sample, or at none."""

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        kind = type(self).__name__
        check(
            data_format in (None, "channels_last"),
            f"{kind}: data_format {data_format!r} is not supported: use 'channels_last'",
        )
        super().__init__(rate, seed=seed, **kwargs)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The input, with some features dropped in training."""
        if not training or not self.rate:
            return inputs
        return ops.dropout(inputs, self.rate, (None, *[1] * (inputs.ndim - 2), None))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        config = super().get_config()
        del config["noise_shape"]
        return config


class SpatialDropout1D(_SpatialDropout):
    """Dropout of whole features of sequences (samples, steps, features)."""

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(rate, seed=seed, **kwargs)


class SpatialDropout2D(_SpatialDropout):
    """Dropout of whole features of pictures (samples, rows, columns, features)."""


class GaussianNoise(Layer):
    """In training, normal noise of this standard deviation is added."""

    supports_masking = True

    def __init__(self, stddev: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(stddev >= 0, f"GaussianNoise: stddev must be a number from 0 up, not {stddev!r}")
        self.stddev = stddev
        self.seed = seed

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The input, in training with noise."""
        if not training or not self.stddev:
            return inputs
        return inputs + ops.normal_like(inputs, 0.0, self.stddev)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"stddev": self.stddev, "seed": self.seed}


class _WithRate(Layer):
    """Base of the layers with a rate that they use in training."""

    supports_masking = True

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(0 <= rate < 1, f"{type(self).__name__}: rate must be from 0 to less than 1, not {rate!r}")
        self.rate = float(rate)
        self.seed = seed

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


class GaussianDropout(_WithRate):
    """In training, a factor from a normal distribution of mean 1 and variance rate / (1 - rate)
    (Srivastava et al., JMLR 15, 2014)."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The input, in training times the factors."""
        if not training or not self.rate:
            return inputs
        return inputs * ops.normal_like(inputs, 1.0, math.sqrt(self.rate / (1 - self.rate)))


_SELU_LIMIT = -1.7580993408473766
"""What selu comes near to for small x: -alpha * scale (Klambauer et al., NeurIPS 2017)."""


class AlphaDropout(_WithRate):
    """Dropout that keeps mean and variance of what selu gives (Klambauer et al., NeurIPS 2017).

    `noise_shape`: where it is 1, that axis shares one draw.
    """

    def __init__(
        self,
        rate: float,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, seed, **kwargs)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The input, in training with some of it at selu's lower limit, scaled and moved."""
        if not training or not self.rate:
            return inputs
        rate, limit = self.rate, _SELU_LIMIT
        kept = ops.dropout(ops.ones_like(inputs), rate, self.noise_shape)
        scale = ((1 - rate) * (1 + rate * limit**2)) ** -0.5
        return ops.where(ops.greater(kept, 0), inputs, limit) * scale - scale * limit * rate

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        shape = None if self.noise_shape is None else list(self.noise_shape)
        return super().get_config() | {"noise_shape": shape}


class ActivityRegularization(Layer):
    """The input; its l1 sum of absolute values and l2 sum of squares are added to the loss."""

    supports_masking = True

    def __init__(self, l1: float = 0.0, l2: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.l1 = l1
        self.l2 = l2

    def call(self, inputs: Any) -> Any:
        """The input."""
        if self.l1:
            self.add_loss(self.l1 * ops.sum(ops.absolute(inputs)))
        if self.l2:
            self.add_loss(self.l2 * ops.sum(ops.square(inputs)))
        return inputs

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"l1": self.l1, "l2": self.l2}
