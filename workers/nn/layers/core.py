"""Layers that everything is made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workers.nn import activations, ops
from workers.nn.layers.base import Layer
from workers.nn.layers.parameters import WithParameters
from workers.nn.lookup import check, is_count, serialize

if TYPE_CHECKING:
    from collections.abc import Sequence


class Dense(WithParameters):
    """activation(x @ kernel + bias) over the last axis.

    Variables: `kernel` (features, units) and `bias` (units,).
    """

    supports_masking = True

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        check(is_count(units), f"Dense: units must be a positive integer, not {units!r}")
        self.units = units
        self.activation = activations.get(activation)
        self.use_bias = bool(use_bias)
        self.keep("kernel", kernel_initializer, kernel_regularizer, kernel_constraint)
        self.keep("bias", bias_initializer, bias_regularizer, bias_constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input; None is the number of samples."""
        features = input_shape[-1] if len(input_shape) > 1 else None
        check(
            features is not None,
            f"Dense({self.units}) needs a known number of features, and its input has shape "
            f"{tuple(input_shape)}",
        )
        self.kernel = self.make("kernel", (features or 0, self.units))
        self.bias = self.make("bias", (self.units,)) if self.use_bias else None

    def call(self, inputs: Any) -> Any:
        """The output, of shape (..., units)."""
        return ops.dense(inputs, self.kernel, self.bias, self.activation)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "units": self.units,
            "activation": activations.serialize(self.activation),
            "use_bias": self.use_bias,
            **self.kept("kernel", "bias"),
            "activity_regularizer": serialize(self.activity_regularizer),
        }


class Activation(Layer):
    """A function of the input, by name or as a function of a tensor."""

    supports_masking = True

    def __init__(self, activation: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = activations.get(activation)

    def call(self, inputs: Any) -> Any:
        """The function's values."""
        return self.activation(inputs)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"activation": activations.serialize(self.activation)}


class Flatten(Layer):
    """All axes of a sample become one, row-major."""

    def __init__(self, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(
            data_format in (None, "channels_last"),
            f"Flatten: data_format {data_format!r} is not supported: use 'channels_last'",
        )

    def call(self, inputs: Any) -> Any:
        """The input, of shape (samples, features)."""
        return ops.reshape(inputs, (-1, math.prod(inputs.shape[1:])))


class Dropout(Layer):
    """In training, a share `rate` of the inputs becomes zero and the rest grows by 1 / (1 - rate).

    An input is kept where u < 1 - rate, u uniform in [0, 1) from the layer's own stream. Rate 0 draws
    nothing; rate 1 gives zeros. `noise_shape`: where it is 1, that axis shares one draw.
    """

    supports_masking = True

    def __init__(
        self,
        rate: float,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        check(number and 0 <= rate <= 1, f"Dropout: rate must be a number from 0 to 1, not {rate!r}")
        self.rate = float(rate)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.seed = seed

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The input, with some of it dropped in training."""
        if not training or not self.rate:
            return inputs
        return ops.dropout(inputs, self.rate, self.noise_shape)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        noise_shape = None if self.noise_shape is None else list(self.noise_shape)
        return super().get_config() | {"rate": self.rate, "noise_shape": noise_shape, "seed": self.seed}


class Rescaling(Layer):
    """x * scale + offset, such as pixels / 255."""

    supports_masking = True

    def __init__(self, scale: float, offset: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale
        self.offset = offset

    def call(self, inputs: Any) -> Any:
        """The rescaled input."""
        scaled = ops.cast(inputs, self.dtype) * self.scale
        return scaled + self.offset if self.offset else scaled

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"scale": self.scale, "offset": self.offset}
