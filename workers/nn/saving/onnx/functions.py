"""Activations as ONNX nodes: the formulas of `workers.nn.activation_functions`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workers.nn import activations
from workers.nn.saving.onnx.writer import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workers.nn.saving.onnx.writer import Writer

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


def activate(w: Writer, name: str, arguments: Mapping[str, Any], z: str, dtype: str) -> str:
    """In place. The activation of z, a value of this dtype. Refused for `sparsemax`."""
    if name not in _FUNCTIONS:
        raise Refused(f"the activation {name!r} has no counterpart in ONNX")
    # `bound` has checked the arguments when the graph was made.
    values = {**activations.FUSED[name].arguments, **arguments}
    return _FUNCTIONS[name](_Formula(w, dtype), z, **values)


class _Formula:
    """A writer whose numbers are of one dtype."""

    def __init__(self, writer: Writer, dtype: str) -> None:
        self.writer = writer
        self.dtype = dtype

    def __call__(self, op: str, *operands: str | float, **attrs: Any) -> str:
        return self.writer(op, *operands, dtype=self.dtype, **attrs)


def _rectifier(f: _Formula, z: str, negative_slope: float, max_value: float | None, threshold: float) -> str:
    above = z if max_value is None else f("Min", z, max_value)
    below = f("Mul", f("Sub", z, threshold), negative_slope)
    return f("Where", f("Less", z, threshold), below, above)


def _elu(f: _Formula, z: str, alpha: float) -> str:
    below = f("Mul", f("Sub", f("Exp", f("Min", z, 0)), 1), alpha)
    return f("Add", f("Max", z, 0), below)


def _celu(f: _Formula, z: str, alpha: float) -> str:
    below = f("Sub", f("Exp", f("Div", f("Min", z, 0), alpha)), 1)
    return f("Add", f("Max", z, 0), f("Mul", below, alpha))


def _softplus(f: _Formula, z: str) -> str:
    # log(1 + exp(z)) overflows where z is large.
    beyond = f("Log", f("Add", f("Exp", f("Neg", f("Abs", z))), 1))
    return f("Add", f("Max", z, 0), beyond)


def _squareplus(f: _Formula, z: str, b: float) -> str:
    return f("Mul", f("Add", z, f("Sqrt", f("Add", f("Mul", z, z), b))), 0.5)


def _sparse_plus(f: _Formula, z: str) -> str:
    middle = f("Mul", f("Add", _clip(f, z, -1, 1), 1), 0.5)
    return f("Sub", f("Add", f("Max", z, 1), f("Mul", middle, middle)), 1)


def _clip(f: _Formula, z: str, low: float, high: float) -> str:
    return f("Clip", z, low, high)


def _hard_sigmoid(f: _Formula, z: str) -> str:
    return _clip(f, f("Div", f("Add", z, 3), 6), 0, 1)


def _hard_shrink(f: _Formula, z: str, threshold: float) -> str:
    return f("Where", f("Greater", f("Abs", z), threshold), z, f("Mul", z, 0))


def _soft_shrink(f: _Formula, z: str, threshold: float) -> str:
    return f("Sub", z, _clip(f, z, -threshold, threshold))


def _threshold(f: _Formula, z: str, threshold: float, default_value: float) -> str:
    return f("Where", f("LessOrEqual", z, threshold), default_value, z)


def _gelu(f: _Formula, z: str, approximate: bool) -> str:
    if approximate:
        cubic = f("Mul", f("Add", f("Mul", f("Mul", z, z), 0.044715), 1), z)
        share = f("Tanh", f("Mul", cubic, math.sqrt(2 / math.pi)))
    else:
        share = f("Erf", f("Mul", z, math.sqrt(0.5)))
    return f("Mul", z, f("Mul", f("Add", share, 1), 0.5))


def _log_sigmoid(f: _Formula, z: str) -> str:
    return f("Neg", _softplus(f, f("Neg", z)))


_FUNCTIONS: dict[str, Callable[..., str]] = {
    "linear": lambda f, z: z,
    "relu": lambda f, z: f("Relu", z),
    "rectifier": _rectifier,
    "relu6": lambda f, z: _clip(f, z, 0, 6),
    "leaky_relu": lambda f, z, negative_slope: f("LeakyRelu", z, alpha=float(negative_slope)),
    "elu": _elu,
    "selu": lambda f, z: f("Mul", _elu(f, z, _SELU_ALPHA), _SELU_SCALE),
    "celu": _celu,
    "gelu": _gelu,
    "silu": lambda f, z: f("Mul", z, f("Sigmoid", z)),
    "hard_silu": lambda f, z: f("Mul", z, _hard_sigmoid(f, z)),
    "mish": lambda f, z: f("Mul", z, f("Tanh", _softplus(f, z))),
    "softplus": _softplus,
    "squareplus": _squareplus,
    "sparse_plus": _sparse_plus,
    "softsign": lambda f, z: f("Div", z, f("Add", f("Abs", z), 1)),
    "sigmoid": lambda f, z: f("Sigmoid", z),
    "log_sigmoid": _log_sigmoid,
    "hard_sigmoid": _hard_sigmoid,
    "sparse_sigmoid": lambda f, z: _clip(f, f("Mul", f("Add", z, 1), 0.5), 0, 1),
    "tanh": lambda f, z: f("Tanh", z),
    "hard_tanh": lambda f, z: _clip(f, z, -1, 1),
    "tanh_shrink": lambda f, z: f("Sub", z, f("Tanh", z)),
    "hard_shrink": _hard_shrink,
    "soft_shrink": _soft_shrink,
    "threshold": _threshold,
    "exponential": lambda f, z: f("Exp", z),
    "softmax": lambda f, z, axis: f("Softmax", z, axis=axis),
    "log_softmax": lambda f, z, axis: f("LogSoftmax", z, axis=axis),
}
