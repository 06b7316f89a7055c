"""Activation functions on their own, where no other operation includes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn import activations
from workers.nn.numerics import aligned_empty
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, as_operand, axis_of, deliver, floating, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from workers.nn.numerics import Array
    from workers.nn.tensor import Spec


_PIECE = 1 << 14
"""Elements that a function of elements handles at a time: what it allocates stays small, and in the cache."""


class Fused:
    """An activation within an operation, computed in place in the operation's contiguous output `y`.

    It keeps what the derivative follows from: y, or what y was before, in a workspace of its own.
    """

    def __init__(self, site: Site, y: Array, name: str, arguments: Mapping[str, Any] | None = None) -> None:
        self._activation = activations.fused(name, arguments)
        self._y = y
        self._reused = site.reused
        keeps_z = self._activation.needs_input and any(site.needs)
        self._kept = aligned_empty(y.shape, y.dtype) if keeps_z else y

    def forward(self) -> None:
        """In place. Turn what the output holds into the activation of it."""
        if self._kept is not self._y:
            np.copyto(self._kept, self._y)
        for (piece,) in self._pieces(self._y):
            self._activation.forward(piece)

    def backward(self, dy: Array) -> None:
        """In place. Turn the gradient of the output into that of what it held before."""
        if self._activation is not activations.linear:
            # Of an operation that is not reused, the output is a user's, and `backward` may come again.
            for kept, piece in self._pieces(self._kept, dy):
                self._activation.backward(kept if self._reused else kept.copy(), piece)

    def _pieces(self, *arrays: Array) -> Iterator[tuple[Array, ...]]:
        """The same pieces of all arrays; only one of functions that look at whole rows."""
        if self._activation.of_axis or not all(array.flags.c_contiguous for array in arrays):
            yield arrays
            return
        flat = [array.reshape(-1) for array in arrays]
        for low in range(0, len(flat[0]), _PIECE):
            yield tuple(each[low : low + _PIECE] for each in flat)


@register
class Activation(Op):
    """A function of `workers.nn.activations`: attributes "activation", its name, and "arguments"."""

    name = "activation"
    attributes: ClassVar = {"activation": kinds.text, "arguments": kinds.arguments}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        arguments = attrs["arguments"]
        if activations.fused(attrs["activation"], arguments).of_axis:
            axis_of(arguments.get("axis", -1), len(inputs[0].shape))
        return inputs[0]

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._activation = Fused(site, self._y, site.attrs["activation"], site.attrs["arguments"])

    def forward(self, run: Run, *inputs: Array) -> Array:
        np.copyto(self._y, inputs[0])
        self._activation.forward()
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = deliver(dy, into[0])
        self._activation.backward(dx)
        return [dx]


def _activate(name: str, x: Any, **arguments: Any) -> Any:
    return apply("activation", floating(x), activation=name, arguments=arguments)


def relu(x: Any) -> Any:
    """max(x, 0)"""
    return _activate("relu", x)


def relu6(x: Any) -> Any:
    """max(x, 0), and at most 6"""
    return _activate("relu6", x)


def leaky_relu(x: Any, negative_slope: float = 0.2) -> Any:
    """x above 0, and below it `negative_slope` * x"""
    return _activate("leaky_relu", x, negative_slope=negative_slope)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x above 0, and below it alpha * (exp(x) - 1)"""
    return _activate("elu", x, alpha=alpha)


def selu(x: Any) -> Any:
    """`elu` with the constants of self-normalising networks (arXiv:1706.02515)"""
    return _activate("selu", x)


def celu(x: Any, alpha: float = 1.0) -> Any:
    """x above 0, and below it alpha * (exp(x / alpha) - 1)"""
    return _activate("celu", x, alpha=alpha)


def gelu(x: Any, approximate: bool = True) -> Any:
    """x times the normal distribution's share below x; by tanh if `approximate`"""
    return _activate("gelu", x, approximate=approximate)


def silu(x: Any) -> Any:
    """x * sigmoid(x)"""
    return _activate("silu", x)


def hard_silu(x: Any) -> Any:
    """x * hard_sigmoid(x)"""
    return _activate("hard_silu", x)


def mish(x: Any) -> Any:
    """x * tanh(softplus(x))"""
    return _activate("mish", x)


def softplus(x: Any) -> Any:
    """log(1 + exp(x))"""
    return _activate("softplus", x)


def squareplus(x: Any, b: float = 4) -> Any:
    """(x + sqrt(x * x + b)) / 2"""
    return _activate("squareplus", x, b=b)


def sparse_plus(x: Any) -> Any:
    """0 below -1, x above 1, and (x + 1) ** 2 / 4 between"""
    return _activate("sparse_plus", x)


def softsign(x: Any) -> Any:
    """x / (1 + abs(x))"""
    return _activate("softsign", x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))"""
    return _activate("sigmoid", x)


def log_sigmoid(x: Any) -> Any:
    """log(sigmoid(x))"""
    return _activate("log_sigmoid", x)


def hard_sigmoid(x: Any) -> Any:
    """x / 6 + 1/2, from 0 to 1"""
    return _activate("hard_sigmoid", x)


def sparse_sigmoid(x: Any) -> Any:
    """(x + 1) / 2, from 0 to 1"""
    return _activate("sparse_sigmoid", x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _activate("tanh", x)


def hard_tanh(x: Any) -> Any:
    """x, from -1 to 1"""
    return _activate("hard_tanh", x)


def tanh_shrink(x: Any) -> Any:
    """x - tanh(x)"""
    return _activate("tanh_shrink", x)


def hard_shrink(x: Any, threshold: float = 0.5) -> Any:
    """x where abs(x) is above the threshold, else 0"""
    return _activate("hard_shrink", x, threshold=threshold)


def soft_shrink(x: Any, threshold: float = 0.5) -> Any:
    """x moved towards 0 by the threshold, and 0 within it"""
    return _activate("soft_shrink", x, threshold=threshold)


def threshold(x: Any, threshold: float, default_value: float) -> Any:
    """x above the threshold, else the default value"""
    return _activate("threshold", x, threshold=threshold, default_value=default_value)


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x), divided by its sum along an axis"""
    return _activate("softmax", x, axis=axis)


def sparsemax(x: Any, axis: int = -1) -> Any:
    """The nearest point of the simplex: like softmax, with zeros (Martins and Astudillo, ICML 2016)"""
    return _activate("sparsemax", x, axis=axis)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """log(softmax(x)), without overflow"""
    return _activate("log_softmax", x, axis=axis)


def glu(x: Any, axis: int = -1) -> Any:
    """The first half of x along an axis times the sigmoid of the second."""
    return activations.glu(as_operand(x), axis)


swish, hard_swish = silu, hard_silu
