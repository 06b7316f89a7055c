"""Activation functions, computed in place, with their derivatives from the output alone.

Source: Keras 3 `keras.activations`. Only functions whose derivative follows from the output stand here: the
input is overwritten, so that a layer needs one workspace and one pass over it stays in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from workers.nn.numerics import Array


@dataclass(frozen=True, slots=True)
class Activation:
    """A function and its derivative on workspaces.

    `forward(z)` turns z into y in place. `backward(y, dy)` turns dy into dz in place; it may overwrite y.
    """

    name: str
    forward: Callable[[Array], None]
    backward: Callable[[Array, Array], None]

    def __call__(self, x: ArrayLike) -> Array:
        """The function's value, in a new array, at least float32."""
        y = np.array(x)
        y = y.astype(np.result_type(y.dtype, np.float32) if y.dtype.kind == "f" else np.float32, copy=False)
        self.forward(y)
        return y


def _linear(z: Array) -> None:
    pass


def _linear_backward(y: Array, dy: Array) -> None:
    pass


def _relu(z: Array) -> None:
    np.maximum(z, 0, out=z)


def _relu_backward(y: Array, dy: Array) -> None:
    # Into y as 0.0 and 1.0: a bool mask costs an allocation and a slower mixed product (7.0 against 5.2 us).
    np.greater(y, 0, out=y)
    dy *= y


_LEAKY_SLOPE = 0.2


def _leaky_relu(z: Array) -> None:
    np.maximum(z, z * _LEAKY_SLOPE, out=z)


def _leaky_relu_backward(y: Array, dy: Array) -> None:
    np.greater(y, 0, out=y)
    np.maximum(y, _LEAKY_SLOPE, out=y)
    dy *= y


def _elu(z: Array) -> None:
    below = np.expm1(np.minimum(z, 0))
    np.maximum(z, 0, out=z)
    z += below


def _elu_backward(y: Array, dy: Array) -> None:
    np.minimum(y, 0, out=y)
    y += 1
    dy *= y


def _softplus(z: Array) -> None:
    np.logaddexp(z, 0, out=z)


def _softplus_backward(y: Array, dy: Array) -> None:
    np.negative(y, out=y)
    np.expm1(y, out=y)
    np.negative(y, out=y)
    dy *= y


def _sigmoid(z: Array) -> None:
    np.maximum(z, -87, out=z)  # exp(87) is the last before float32 overflows
    np.negative(z, out=z)
    np.exp(z, out=z)
    z += 1
    np.reciprocal(z, out=z)


def _sigmoid_backward(y: Array, dy: Array) -> None:
    dy *= y
    np.subtract(1, y, out=y)
    dy *= y


def _tanh(z: Array) -> None:
    np.tanh(z, out=z)


def _tanh_backward(y: Array, dy: Array) -> None:
    y *= y
    np.subtract(1, y, out=y)
    dy *= y


def _softmax(z: Array) -> None:
    z -= z.max(axis=-1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=-1, keepdims=True)


def _softmax_backward(y: Array, dy: Array) -> None:
    dy -= (dy * y).sum(axis=-1, keepdims=True)
    dy *= y


linear = Activation("linear", _linear, _linear_backward)
relu = Activation("relu", _relu, _relu_backward)
leaky_relu = Activation("leaky_relu", _leaky_relu, _leaky_relu_backward)
elu = Activation("elu", _elu, _elu_backward)
softplus = Activation("softplus", _softplus, _softplus_backward)
sigmoid = Activation("sigmoid", _sigmoid, _sigmoid_backward)
tanh = Activation("tanh", _tanh, _tanh_backward)
softmax = Activation("softmax", _softmax, _softmax_backward)

_KNOWN = {a.name: a for a in (linear, relu, leaky_relu, elu, softplus, sigmoid, tanh, softmax)}


def get(identifier: str | Activation | None) -> Activation:
    """The activation of that name; None stands for "linear"."""
    if identifier is None:
        return linear
    if isinstance(identifier, Activation):
        return identifier
    if isinstance(identifier, str) and identifier in _KNOWN:
        return _KNOWN[identifier]
    raise ConfigurationError(f"unknown activation {identifier!r}: use one of {', '.join(_KNOWN)}")
