"""Convolutions. Arrays are channels-last: (samples, sizes, channels)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from workers.nn import activations, ops
from workers.nn.layers.parameters import WithParameters
from workers.nn.lookup import check, is_count, serialize
from workers.nn.ops.windows import check_channels_last, per_axis

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Convolution(WithParameters):
    """What all convolutions have: windows, a bias and an activation."""

    rank: ClassVar[int]
    """The number of spatial axes."""
    paddings: ClassVar[tuple[str, ...]] = ("valid", "same")

    def __init__(
        self,
        windows: tuple[Any, Any, Any, Any, Any],
        activation: Any,
        use_bias: bool,
        bias: tuple[Any, Any, Any],
        activity_regularizer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        kernel_size, strides, padding, data_format, dilation_rate = windows
        what, rank = type(self).__name__, self.rank
        check_channels_last(what, data_format)
        self.kernel_size = per_axis(kernel_size, rank, f"{what}: kernel_size")
        self.strides = per_axis(strides, rank, f"{what}: strides")
        self.dilation_rate = per_axis(dilation_rate, rank, f"{what}: dilation_rate")
        self.padding = str(padding).lower()
        check(
            self.padding in self.paddings,
            f"{what}: padding must be one of {', '.join(self.paddings)}, not {padding!r}",
        )
        self.activation = activations.get(activation)
        self.use_bias = bool(use_bias)
        self.keep("bias", *bias)

    def channels(self, input_shape: Sequence[int | None]) -> int:
        """The channels of an input. ConfigurationError if it has the wrong number of axes, or not all but the
        first are known."""
        sizes = [n for n in input_shape[1:] if n is not None]
        check(
            len(input_shape) == self.rank + 2 and len(sizes) == self.rank + 1,
            f"{type(self).__name__} takes an input of {self.rank + 2} axes, all but the first known, and not "
            f"of shape {tuple(input_shape)}",
        )
        return sizes[-1]

    def make_bias(self, filters: int) -> None:
        """In place. Make the bias, where there is one."""
        self.bias = self.make("bias", (filters,)) if self.use_bias else None

    def check_steps(self) -> None:
        """ConfigurationError for strides together with dilation, as in Keras."""
        check(
            max(self.strides) == 1 or max(self.dilation_rate) == 1,
            f"{type(self).__name__}: strides {self.strides} do not go with dilation_rate "
            f"{self.dilation_rate}: one of them must be 1",
        )

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "kernel_size": list(self.kernel_size),
            "strides": list(self.strides),
            "padding": self.padding,
            "data_format": "channels_last",
            "dilation_rate": list(self.dilation_rate),
            "activation": activations.serialize(self.activation),
            "use_bias": self.use_bias,
            **self.kept("bias"),
            "activity_regularizer": serialize(self.activity_regularizer),
        }

    def _windows(self) -> dict[str, Any]:
        return {"strides": self.strides, "padding": self.padding, "dilation_rate": self.dilation_rate}

    def _check_counts(self, **counts: Any) -> None:
        for name, count in counts.items():
            check(is_count(count), f"{type(self).__name__}: {name} must be a positive integer, not {count!r}")


class _Conv(_Convolution):
    """activation(convolution + bias).

    Variables: `kernel` (*kernel_size, channels / groups, filters) and `bias` (filters,).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
        groups: int = 1,
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
        bias = (bias_initializer, bias_regularizer, bias_constraint)
        windows = (kernel_size, strides, padding, data_format, dilation_rate)
        super().__init__(windows, activation, use_bias, bias, activity_regularizer, **kwargs)
        self._check_counts(filters=filters, groups=groups)
        self.check_steps()
        check(
            filters % groups == 0,
            f"{type(self).__name__}: {filters} filters cannot be shared out to {groups} groups",
        )
        self.filters = filters
        self.groups = groups
        self.keep("kernel", kernel_initializer, kernel_regularizer, kernel_constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input."""
        channels = self.channels(input_shape)
        check(
            channels % self.groups == 0,
            f"{type(self).__name__}: {channels} channels cannot be shared out to {self.groups} groups",
        )
        self.kernel = self.make("kernel", (*self.kernel_size, channels // self.groups, self.filters))
        self.make_bias(self.filters)

    def call(self, inputs: Any) -> Any:
        """The output, of shape (samples, sizes, filters)."""
        return ops.conv(inputs, self.kernel, bias=self.bias, activation=self.activation, **self._windows())

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        own = {"filters": self.filters, "groups": self.groups}
        return super().get_config() | own | self.kept("kernel")


class Conv1D(_Conv):
    """Convolution along time: (samples, steps, channels). `padding` "causal" looks only back."""

    rank = 1
    paddings = ("valid", "same", "causal")


class Conv2D(_Conv):
    """Convolution of images: (samples, height, width, channels)."""

    rank = 2


class Conv3D(_Conv):
    """Convolution of volumes: (samples, three sizes, channels)."""

    rank = 3


class _ConvTranspose(_Convolution):
    """activation(what a convolution does to gradients + bias).

    Variables: `kernel` (*kernel_size, filters, channels) and `bias` (filters,).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        output_padding: Any = None,
        data_format: str | None = None,
        dilation_rate: Any = 1,
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
        bias = (bias_initializer, bias_regularizer, bias_constraint)
        windows = (kernel_size, strides, padding, data_format, dilation_rate)
        super().__init__(windows, activation, use_bias, bias, activity_regularizer, **kwargs)
        self._check_counts(filters=filters)
        self.check_steps()
        self.filters = filters
        if isinstance(output_padding, int):
            output_padding = (output_padding,) * self.rank
        self.output_padding = None if output_padding is None else tuple(output_padding)
        given = (0,) * self.rank if self.output_padding is None else self.output_padding
        check(
            len(given) == self.rank and all(n in range(s) for n, s in zip(given, self.strides, strict=True)),
            f"{type(self).__name__}: output_padding must be {self.rank} numbers from 0 to below strides "
            f"{self.strides}, not {output_padding!r}",
        )
        self.keep("kernel", kernel_initializer, kernel_regularizer, kernel_constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input."""
        self.kernel = self.make("kernel", (*self.kernel_size, self.filters, self.channels(input_shape)))
        self.make_bias(self.filters)

    def call(self, inputs: Any) -> Any:
        """The output, of shape (samples, sizes, filters)."""
        return ops.conv_transpose(
            inputs,
            self.kernel,
            output_padding=self.output_padding,
            bias=self.bias,
            activation=self.activation,
            **self._windows(),
        )

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        padding = None if self.output_padding is None else list(self.output_padding)
        own = {"filters": self.filters, "output_padding": padding}
        return super().get_config() | own | self.kept("kernel")


class Conv1DTranspose(_ConvTranspose):
    """Transposed convolution along time: (samples, steps, channels)."""

    rank = 1


class Conv2DTranspose(_ConvTranspose):
    """Transposed convolution of images: (samples, height, width, channels)."""

    rank = 2


class _DepthwiseConv(_Convolution):
    """activation(convolution of each channel by itself + bias).

    Variables: `kernel` (*kernel_size, channels, depth_multiplier) and `bias` (channels * depth_multiplier,).
    """

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        bias = (bias_initializer, bias_regularizer, bias_constraint)
        windows = (kernel_size, strides, padding, data_format, dilation_rate)
        super().__init__(windows, activation, use_bias, bias, activity_regularizer, **kwargs)
        self._check_counts(depth_multiplier=depth_multiplier)
        self.depth_multiplier = depth_multiplier
        self.keep("depthwise", depthwise_initializer, depthwise_regularizer, depthwise_constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input."""
        channels = self.channels(input_shape)
        self.kernel = self.make("depthwise", (*self.kernel_size, channels, self.depth_multiplier), "kernel")
        self.make_bias(channels * self.depth_multiplier)

    def call(self, inputs: Any) -> Any:
        """The output, of shape (samples, sizes, channels * depth_multiplier)."""
        return ops.depthwise_conv(
            inputs, self.kernel, bias=self.bias, activation=self.activation, **self._windows()
        )

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"depth_multiplier": self.depth_multiplier} | self.kept("depthwise")


class DepthwiseConv1D(_DepthwiseConv):
    """Depthwise convolution along time: (samples, steps, channels)."""

    rank = 1


class DepthwiseConv2D(_DepthwiseConv):
    """Depthwise convolution of images: (samples, height, width, channels)."""

    rank = 2


class _SeparableConv(_Convolution):
    """activation(a convolution of each channel by itself, then one of 1 x 1 over all channels + bias).

    Variables: `depthwise_kernel` (*kernel_size, channels, depth_multiplier), `pointwise_kernel` (1, ...,
    channels * depth_multiplier, filters) and `bias` (filters,).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        pointwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        pointwise_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        bias = (bias_initializer, bias_regularizer, bias_constraint)
        windows = (kernel_size, strides, padding, data_format, dilation_rate)
        super().__init__(windows, activation, use_bias, bias, activity_regularizer, **kwargs)
        self._check_counts(filters=filters, depth_multiplier=depth_multiplier)
        self.filters = filters
        self.depth_multiplier = depth_multiplier
        self.keep("depthwise", depthwise_initializer, depthwise_regularizer, depthwise_constraint)
        self.keep("pointwise", pointwise_initializer, pointwise_regularizer, pointwise_constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input."""
        channels, depth = self.channels(input_shape), self.depth_multiplier
        self.depthwise_kernel = self.make(
            "depthwise", (*self.kernel_size, channels, depth), "depthwise_kernel"
        )
        point = (1,) * self.rank
        self.pointwise_kernel = self.make(
            "pointwise", (*point, channels * depth, self.filters), "pointwise_kernel"
        )
        self.make_bias(self.filters)

    def call(self, inputs: Any) -> Any:
        """The output, of shape (samples, sizes, filters)."""
        return ops.separable_conv(
            inputs,
            self.depthwise_kernel,
            self.pointwise_kernel,
            bias=self.bias,
            activation=self.activation,
            **self._windows(),
        )

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        own = {"filters": self.filters, "depth_multiplier": self.depth_multiplier}
        return super().get_config() | own | self.kept("depthwise", "pointwise")


class SeparableConv1D(_SeparableConv):
    """Separable convolution along time: (samples, steps, channels)."""

    rank = 1


class SeparableConv2D(_SeparableConv):
    """Separable convolution of images: (samples, height, width, channels)."""

    rank = 2
