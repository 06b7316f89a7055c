"""Layers that everything is made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workers.nn import activations, initializers, ops, regularizers
from workers.nn import constraints as _constraints
from workers.nn.layers.base import Layer
from workers.nn.lookup import check, is_count, serialize

if TYPE_CHECKING:
    from collections.abc import Sequence


class Dense(Layer):
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
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = _constraints.get(kernel_constraint)
        self.bias_constraint = _constraints.get(bias_constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input; None is the number of samples."""
        features = input_shape[-1] if len(input_shape) > 1 else None
        check(
            features is not None,
            f"Dense({self.units}) needs a known number of features, and its input has shape "
            f"{tuple(input_shape)}",
        )
        self.kernel = self.add_weight(
            (features or 0, self.units),
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name="kernel",
        )
        if self.use_bias:
            self.bias = self.add_weight(
                (self.units,),
                self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                name="bias",
            )

    def call(self, inputs: Any) -> Any:
        """The output, of shape (..., units)."""
        return ops.dense(inputs, self.kernel, self.bias if self.use_bias else None, self.activation)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "units": self.units,
            "activation": activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": serialize(self.kernel_initializer),
            "bias_initializer": serialize(self.bias_initializer),
            "kernel_regularizer": serialize(self.kernel_regularizer),
            "bias_regularizer": serialize(self.bias_regularizer),
            "activity_regularizer": serialize(self.activity_regularizer),
            "kernel_constraint": serialize(self.kernel_constraint),
            "bias_constraint": serialize(self.bias_constraint),
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
