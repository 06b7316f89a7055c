"""Convolutions over any number of spatial axes, with bias and activation in the same workspace.

Arrays are channels-last: x (N, S*, C). Attributes: "strides", "dilation" (a list with an entry for each
spatial axis), "padding", and "activation", the name of one that `activations.fused` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn import activations
from workers.nn.lookup import check
from workers.nn.ops import attributes as kinds
from workers.nn.ops.activation import Fused
from workers.nn.ops.base import Op, Run, Site, apply, register, same_dtype, together
from workers.nn.ops.channels import ChannelSums, ChannelVector
from workers.nn.ops.sliding import SlidingProduct
from workers.nn.ops.windows import Windows, check_channels_last, per_axis, spatial
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array
    from workers.nn.ops.attributes import Kind


class _Biased(Op):
    """activation(x and kernel together + bias). A subclass gives `product` and its gradients."""

    arity = (2, 3)
    attributes: ClassVar[Mapping[str, Kind]] = {
        "strides": kinds.counts,
        "dilation": kinds.counts,
        "padding": kinds.text,
        "activation": kinds.text,
    }

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._activation = Fused(site, self._y, site.attrs["activation"])
        shape, dtype = self._y.shape, site.outputs[0].dtype
        self._bias = ChannelVector(shape, dtype)
        self._sums = ChannelSums(shape, dtype)
        self._dx = site.like(0) if site.needs[0] else None
        self._dkernel = site.like(1) if site.needs[1] else None
        self._x = self._kernel = self._y  # of the last forward; any array until then

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._x, self._kernel = np.ascontiguousarray(inputs[0]), inputs[1]
        self.product(self._x, self._kernel, self._y)
        if len(inputs) > 2:
            rows = self._bias.rows(self._y)
            rows += self._bias.of(inputs[2])
        self._activation.forward()
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        site = self.site
        dz = np.ascontiguousarray(dy)
        self._activation.backward(dz)
        gradients: list[Array | None] = [None] * len(site.inputs)
        if len(gradients) > 2 and site.needs[2]:
            gradients[2] = self._sums.of(dz, into[2])
        for i, own in enumerate((self._dx, self._dkernel)):
            gradients[i] = own if own is None or into[i] is None else into[i]
        self.derive(self._x, self._kernel, dz, gradients[0], gradients[1])
        return gradients

    def product(self, x: Array, kernel: Array, y: Array) -> None:
        """Write x and the kernel together into `y`."""
        raise NotImplementedError

    def derive(self, x: Array, kernel: Array, dy: Array, dx: Array | None, dkernel: Array | None) -> None:
        """Write the gradients that are wanted of the last product; dy may be overwritten."""
        raise NotImplementedError


def _check(attrs: Mapping[str, Any], inputs: Sequence[Spec], fits: bool, filters: int) -> None:
    """ConfigurationError unless the kernel `fits`, the bias does, and the activation is known."""
    x, kernel, *rest = inputs
    check(
        fits and len(kernel.shape) == len(x.shape) and min(kernel.dims) > 0,
        f"an input of shape {x.shape} does not fit a kernel of shape {kernel.shape}",
    )
    for bias in rest:
        check(bias.shape == (filters,), f"a bias of shape {bias.shape} does not fit {filters} filters")
    activations.fused(attrs["activation"])


def _windows(attrs: Mapping[str, Any], size: Sequence[int], kernel: Spec, tail: int = 2) -> Windows:
    return Windows.over(size, kernel.dims[:-tail], attrs["strides"], attrs["padding"], attrs["dilation"])


@register
class Convolution(_Biased):
    """Operands: x (N, S*, C), kernel (K*, C / groups, F) and, if it has one, bias (F,); gives (N, O*, F)."""

    name = "conv"

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, kernel = inputs[:2]
        size = spatial("a convolution", x, len(attrs["strides"]))
        channels, per_group, filters = x.shape[-1] or 0, *kernel.dims[-2:]
        groups = channels // max(per_group, 1)
        _check(
            attrs, inputs, groups > 0 and groups * per_group == channels and filters % groups == 0, filters
        )
        return Spec((x.shape[0], *_windows(attrs, size, kernel).count, filters), same_dtype(*inputs))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x, kernel = site.inputs[:2]
        windows = _windows(site.attrs, x.dims[1:-1], kernel)
        self._sliding = SlidingProduct(windows, x.dims, kernel.dims, x.dtype)

    def product(self, x: Array, kernel: Array, y: Array) -> None:
        self._sliding.product(x, kernel, y)

    def derive(self, x: Array, kernel: Array, dy: Array, dx: Array | None, dkernel: Array | None) -> None:
        if dkernel is not None:  # first: the windows of x lie there still
            self._sliding.kernel_gradient(x, dy, dkernel, after_product=True)
        if dx is not None:
            self._sliding.spread(dy, kernel, dx)


@register
class ConvolutionTranspose(_Biased):
    """What `Convolution` does to gradients: x (N, S*, C), kernel (K*, F, C), bias (F,); gives (N, O*, F).

    Attribute "output_padding": null, or how many places are added behind, for each spatial axis.
    """

    name = "conv_transpose"
    attributes: ClassVar = {**_Biased.attributes, "output_padding": kinds.optional(kinds.wholes)}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, kernel = inputs[:2]
        size = spatial("a transposed convolution", x, len(attrs["strides"]))
        filters = kernel.dims[-2]
        _check(attrs, inputs, kernel.shape[-1] == x.shape[-1], filters)
        found = _transposed_size(attrs, size, kernel)
        count = _windows(attrs, found, kernel).count
        check(
            count == size,
            f"output_padding {attrs['output_padding']} does not go with strides {attrs['strides']} and a "
            f"kernel of {kernel.shape[:-2]}",
        )
        return Spec((x.shape[0], *found, filters), same_dtype(*inputs))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        y, kernel = site.outputs[0], site.inputs[1]
        windows = _windows(site.attrs, y.dims[1:-1], kernel)
        self._sliding = SlidingProduct(windows, y.dims, kernel.dims, y.dtype)

    def product(self, x: Array, kernel: Array, y: Array) -> None:
        self._sliding.spread(x, kernel, y)

    def derive(self, x: Array, kernel: Array, dy: Array, dx: Array | None, dkernel: Array | None) -> None:
        if dx is not None:
            self._sliding.product(dy, kernel, dx)
        if dkernel is not None:
            self._sliding.kernel_gradient(dy, x, dkernel, after_product=dx is not None)


def _transposed_size(attrs: Mapping[str, Any], size: Sequence[int], kernel: Spec) -> tuple[int, ...]:
    """As Keras: without output_padding n * stride, and with "valid" as far as the last window reaches."""
    found = []
    for i, n in enumerate(size):
        stride, reach = attrs["strides"][i], (kernel.dims[i] - 1) * attrs["dilation"][i] + 1
        same, more = attrs["padding"] == "same", attrs["output_padding"]
        if more is None:
            found.append(n * stride if same else n * stride + max(reach - stride, 0))
        else:
            found.append((n - 1) * stride + reach - (reach // 2 * 2 if same else 0) + more[i])
    return tuple(found)


@register
class DepthwiseConvolution(_Biased):
    """Each channel by itself: x (N, S*, C), kernel (K*, C, D), bias (C * D,); gives (N, O*, C * D)."""

    name = "depthwise_conv"

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, kernel = inputs[:2]
        size = spatial("a depthwise convolution", x, len(attrs["strides"]))
        filters = kernel.dims[-2] * kernel.dims[-1]
        _check(attrs, inputs, kernel.shape[-2] == x.shape[-1], filters)
        return Spec((x.shape[0], *_windows(attrs, size, kernel).count, filters), same_dtype(*inputs))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x, kernel = site.inputs[:2]
        windows = _windows(site.attrs, x.dims[1:-1], kernel)
        self._taps = list(windows.taps())
        self._is_padded = windows.is_padded
        shape = (x.dims[0], *windows.count, *kernel.dims[-2:])
        self._part = site.workspace(shape, x.dtype)  # N, O*, C, D
        self._row = site.workspace(shape[-3:], x.dtype)  # a kernel's C, D, repeated along the last axis
        self._summed = site.workspace(shape[:-1], x.dtype)

    def product(self, x: Array, kernel: Array, y: Array) -> None:
        y_NOCD = y.reshape(self._part.shape)
        y[...] = 0
        for tap in self._taps:
            part = self._part[tap.windows]
            np.multiply(x[tap.elements][..., None], self._repeated(kernel, tap), out=part)
            y_NOCD[tap.windows] += part

    def derive(self, x: Array, kernel: Array, dy: Array, dx: Array | None, dkernel: Array | None) -> None:
        dy_NOCD = dy.reshape(self._part.shape)
        for wanted in (dx, dkernel):
            if wanted is not None:
                wanted[...] = 0
        for tap in self._taps:
            part, dy_tap = self._part[tap.windows], dy_NOCD[tap.windows]
            if dx is not None:
                np.multiply(dy_tap, self._repeated(kernel, tap), out=part)
                if part.shape[-1] == 1:
                    dx[tap.elements] += part[..., 0]
                else:
                    dx[tap.elements] += np.add.reduce(part, axis=-1, out=self._summed[tap.windows])
            if dkernel is not None:
                if self._is_padded:
                    self._part[...] = 0
                np.multiply(x[tap.elements][..., None], dy_tap, out=part)
                self._sums.of(self._part, dkernel[tap.index].reshape(-1))

    def _repeated(self, kernel: Array, tap: Any) -> Array:
        np.copyto(self._row, kernel[tap.index])
        row: Array = self._row[tap.windows[-1]]
        return row


def conv(
    inputs: Any,
    kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
    *,
    bias: Any = None,
    activation: Any = None,
) -> Any:
    """activation(convolution + bias) over 1, 2 or 3 spatial axes; "causal" padding is taken too.

    `inputs` (N, S*, C), `kernel` (K*, C / groups, F), `bias` (F,).
    """
    attrs = _attrs(inputs, strides, padding, data_format, dilation_rate)
    return _apply("conv", attrs, [inputs, kernel], bias, activation)


def conv_transpose(
    inputs: Any,
    kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    output_padding: Any = None,
    data_format: str | None = None,
    dilation_rate: Any = 1,
    *,
    bias: Any = None,
    activation: Any = None,
) -> Any:
    """activation(transposed convolution + bias); `kernel` (K*, F, C)."""
    attrs = _attrs(inputs, strides, padding, data_format, dilation_rate)
    check(padding != "causal", "a transposed convolution has no causal padding")
    if isinstance(output_padding, int):
        output_padding = [output_padding] * len(attrs["strides"])
    attrs["output_padding"] = None if output_padding is None else list(output_padding)
    return _apply("conv_transpose", attrs, [inputs, kernel], bias, activation)


def depthwise_conv(
    inputs: Any,
    kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
    *,
    bias: Any = None,
    activation: Any = None,
) -> Any:
    """activation(convolution of each channel by itself + bias); `kernel` (K*, C, filters of a channel)."""
    attrs = _attrs(inputs, strides, padding, data_format, dilation_rate)
    return _apply("depthwise_conv", attrs, [inputs, kernel], bias, activation)


def separable_conv(
    inputs: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
    *,
    bias: Any = None,
    activation: Any = None,
) -> Any:
    """A depthwise convolution, and then one of 1 x 1 with bias and activation."""
    x = depthwise_conv(inputs, depthwise_kernel, strides, padding, data_format, dilation_rate)
    return conv(x, pointwise_kernel, bias=bias, activation=activation)


def _attrs(
    inputs: Any, strides: Any, padding: str, data_format: str | None, dilation_rate: Any
) -> dict[str, Any]:
    check_channels_last("convolution", data_format)
    rank = np.ndim(inputs) - 2 if not hasattr(inputs, "spec") else len(inputs.spec.shape) - 2
    check(rank >= 1, "a convolution takes an input of 3 axes or more: (samples, sizes, channels)")
    return {
        "strides": list(per_axis(strides, rank, "convolution: strides")),
        "padding": padding,
        "dilation": list(per_axis(dilation_rate, rank, "convolution: dilation_rate")),
    }


def _apply(name: str, attrs: dict[str, Any], operands: list[Any], bias: Any, activation: Any) -> Any:
    chosen = activations.get(activation)
    fused = activations.fused_name(chosen)
    values = together(*operands, *([] if bias is None else [bias]))
    y = apply(name, *values, **attrs, activation=fused or "linear")
    return y if fused else chosen(y)
