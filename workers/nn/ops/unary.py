"""Functions of each element: a table of ufuncs and their derivatives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn.erf import erf as _erf
from workers.nn.ops.base import apply, as_operand, floating, register
from workers.nn.ops.elementwise import Unary
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workers.nn.numerics import Array

    Derivative = Callable[[Array, Array, Array, Array], object]


def _table(op: str, function: Callable[..., Any], derivative: Derivative | None = None) -> None:
    """Register an operation of a ufunc; `derivative(x, y, dy, dx)` as `Unary.derive`."""

    class Simple(Unary):
        name: ClassVar[str] = op
        differentiable: ClassVar[bool] = derivative is not None

        def compute(self, x: Array, y: Array) -> None:
            function(x, out=y)

        def derive(self, x: Array, y: Array, dy: Array, dx: Array) -> None:
            assert derivative is not None
            derivative(x, y, dy, dx)

    Simple.__name__ = Simple.__qualname__ = op.title()
    register(Simple)


def _predicate(op: str, function: Callable[..., Any]) -> None:
    """Register an operation of a ufunc that gives bools."""

    class Predicate(Unary):
        name: ClassVar[str] = op
        differentiable: ClassVar[bool] = False

        @classmethod
        def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
            return Spec(inputs[0].shape, "bool")

        def compute(self, x: Array, y: Array) -> None:
            function(x, out=y)

    Predicate.__name__ = Predicate.__qualname__ = op.title()
    register(Predicate)


def _negative(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.negative(dy, out=dx)


def _absolute(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.sign(x, out=dx)
    dx *= dy


def _square(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.multiply(x, 2, out=dx)
    dx *= dy


def _sqrt(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.divide(dy, y, out=dx)
    dx *= 0.5


def _rsqrt(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.divide(y, x, out=dx)
    dx *= -0.5
    dx *= dy


def _reciprocal(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.square(y, out=dx)
    np.negative(dx, out=dx)
    dx *= dy


def _exp(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.multiply(dy, y, out=dx)


def _expm1(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.add(y, 1, out=dx)
    dx *= dy


def _log(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.divide(dy, x, out=dx)


def _log1p(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.add(x, 1, out=dx)
    np.divide(dy, dx, out=dx)


def _sin(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.cos(x, out=dx)
    dx *= dy


def _cos(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.sin(x, out=dx)
    np.negative(dx, out=dx)
    dx *= dy


def _tan(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.square(y, out=dx)
    dx += 1
    dx *= dy


def _arctan(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.square(x, out=dx)
    dx += 1
    np.divide(dy, dx, out=dx)


def _derive_erf(x: Array, y: Array, dy: Array, dx: Array) -> None:
    np.square(x, out=dx)
    np.negative(dx, out=dx)
    np.exp(dx, out=dx)
    dx *= 2 / math.sqrt(math.pi)
    dx *= dy


def _rsqrt_of(x: Array, out: Array) -> None:
    np.sqrt(x, out=out)
    np.reciprocal(out, out=out)


_table("negative", np.negative, _negative)
_table("absolute", np.absolute, _absolute)
_table("square", np.square, _square)
_table("sqrt", np.sqrt, _sqrt)
_table("rsqrt", _rsqrt_of, _rsqrt)
_table("reciprocal", np.reciprocal, _reciprocal)
_table("exp", np.exp, _exp)
_table("expm1", np.expm1, _expm1)
_table("log", np.log, _log)
_table("log1p", np.log1p, _log1p)
_table("sin", np.sin, _sin)
_table("cos", np.cos, _cos)
_table("tan", np.tan, _tan)
_table("arctan", np.arctan, _arctan)
_table("erf", _erf, _derive_erf)
_table("sign", np.sign)
_table("floor", np.floor)
_table("ceil", np.ceil)
_table("round", np.rint)
_predicate("isnan", np.isnan)
_predicate("isinf", np.isinf)
_predicate("isfinite", np.isfinite)
_predicate("logical_not", np.logical_not)


def negative(x: Any) -> Any:
    """-x"""
    return apply("negative", x)


def absolute(x: Any) -> Any:
    """x without its sign."""
    x = as_operand(x)
    return x if x.spec.dtype == "bool" else apply("absolute", x)


abs = absolute


def sign(x: Any) -> Any:
    """-1, 0 or 1. It has no gradient."""
    return apply("sign", x)


def square(x: Any) -> Any:
    """x * x"""
    return apply("square", x)


def sqrt(x: Any) -> Any:
    """The square root."""
    return apply("sqrt", floating(x))


def rsqrt(x: Any) -> Any:
    """1 / sqrt(x)"""
    return apply("rsqrt", floating(x))


def reciprocal(x: Any) -> Any:
    """1 / x"""
    return apply("reciprocal", floating(x))


def exp(x: Any) -> Any:
    """e to the power of x."""
    return apply("exp", floating(x))


def expm1(x: Any) -> Any:
    """exp(x) - 1, exact for small x."""
    return apply("expm1", floating(x))


def log(x: Any) -> Any:
    """The natural logarithm."""
    return apply("log", floating(x))


def log1p(x: Any) -> Any:
    """log(1 + x), exact for small x."""
    return apply("log1p", floating(x))


def sin(x: Any) -> Any:
    """The sine."""
    return apply("sin", floating(x))


def cos(x: Any) -> Any:
    """The cosine."""
    return apply("cos", floating(x))


def tan(x: Any) -> Any:
    """The tangent."""
    return apply("tan", floating(x))


def arctan(x: Any) -> Any:
    """The angle whose tangent is x."""
    return apply("arctan", floating(x))


def erf(x: Any) -> Any:
    """The error function: 2 / sqrt(pi) times the integral of exp(-t * t) from 0 to x."""
    return apply("erf", floating(x))


def floor(x: Any) -> Any:
    """The next integer below. It has no gradient."""
    return apply("floor", floating(x))


def ceil(x: Any) -> Any:
    """The next integer above. It has no gradient."""
    return apply("ceil", floating(x))


def round(x: Any, decimals: int = 0) -> Any:
    """The nearest number of so many decimals; a half goes to the even one. It has no gradient."""
    scaled = floating(x)
    return apply("round", scaled * 10.0**decimals) / 10.0**decimals if decimals else apply("round", scaled)


def isnan(x: Any) -> Any:
    """Whether x is not a number."""
    return apply("isnan", floating(x))


def isinf(x: Any) -> Any:
    """Whether x is infinite."""
    return apply("isinf", floating(x))


def isfinite(x: Any) -> Any:
    """Whether x is neither infinite nor not a number."""
    return apply("isfinite", floating(x))


def logical_not(x: Any) -> Any:
    """Whether x is zero."""
    return apply("logical_not", x)
