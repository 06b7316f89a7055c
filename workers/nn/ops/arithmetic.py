"""Arithmetic of two operands, broadcast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.ops.base import Site, apply, floating, register, together, unbroadcast
from workers.nn.ops.elementwise import Binary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.nn.numerics import Array


class _Sum(Binary):
    """Base: the gradient of both operands is that of the result, but for the sign."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._db = site.empty() if all(site.needs) else None

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        (a, b), (needs_a, needs_b) = self.site.inputs, self.site.needs
        db = (
            unbroadcast(self.second(dy, dy if self._db is None else self._db), b.shape, into[1])
            if needs_b
            else None
        )
        return [unbroadcast(dy, a.shape, into[0]) if needs_a else None, db]

    def second(self, dy: Array, out: Array) -> Array:
        """The gradient of the second operand before `unbroadcast`, into `out`, which may be `dy`."""
        raise NotImplementedError


@register
class Add(_Sum):
    """a + b"""

    name = "add"

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.add(a, b, out=y)

    def second(self, dy: Array, out: Array) -> Array:
        if self.site.inputs[1].shape != dy.shape:
            return dy  # it will be summed into an array of its own
        if out is not dy:
            np.copyto(out, dy)
        return out


@register
class Subtract(_Sum):
    """a - b"""

    name = "subtract"

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.subtract(a, b, out=y)

    def second(self, dy: Array, out: Array) -> Array:
        return np.negative(dy, out=out)


@register
class Multiply(Binary):
    """a * b"""

    name = "multiply"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._da = site.empty() if all(site.needs) else None

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.multiply(a, b, out=y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        (a, b), (needs_a, needs_b) = self.site.inputs, self.site.needs
        da = db = None
        if needs_a:
            da = unbroadcast(np.multiply(dy, self._b, out=self._da if needs_b else dy), a.shape, into[0])
        if needs_b:
            db = unbroadcast(np.multiply(dy, self._a, out=dy), b.shape, into[1])
        return [da, db]


@register
class Divide(Binary):
    """a / b"""

    name = "divide"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._da = site.empty() if all(site.needs) else None

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.divide(a, b, out=y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        (a, b), (needs_a, needs_b) = self.site.inputs, self.site.needs
        da = db = None
        np.divide(dy, self._b, out=dy)
        if needs_a:
            da = dy if self._da is None else self._da
            if da is not dy:
                np.copyto(da, dy)
            da = unbroadcast(da, a.shape, into[0])
        if needs_b:
            np.multiply(dy, self._y, out=dy)
            db = unbroadcast(np.negative(dy, out=dy), b.shape, into[1])
        return [da, db]


class _Choice(Binary):
    """Base: the larger or smaller of two; of equal ones the first gets the gradient, as in TensorFlow."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._first = site.workspace(site.outputs[0].shape, "bool")
        self._da = site.empty() if all(site.needs) else None

    def chosen(self) -> None:
        """In place. Write into `_first` where the first operand is the result."""
        raise NotImplementedError

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        (a, b), (needs_a, needs_b) = self.site.inputs, self.site.needs
        self.chosen()
        da = db = None
        if needs_a:
            da = unbroadcast(np.multiply(dy, self._first, out=self._da if needs_b else dy), a.shape, into[0])
        if needs_b:
            np.logical_not(self._first, out=self._first)
            db = unbroadcast(np.multiply(dy, self._first, out=dy), b.shape, into[1])
        return [da, db]


@register
class Maximum(_Choice):
    """The larger of a and b."""

    name = "maximum"

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.maximum(a, b, out=y)

    def chosen(self) -> None:
        np.greater_equal(self._a, self._b, out=self._first)


@register
class Minimum(_Choice):
    """The smaller of a and b."""

    name = "minimum"

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.minimum(a, b, out=y)

    def chosen(self) -> None:
        np.less_equal(self._a, self._b, out=self._first)


@register
class Power(Binary):
    """a to the power of b. The gradient by b counts a <= 0 as constant, as in TensorFlow."""

    name = "power"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._factor = site.empty() if any(site.needs) else self._y
        self._da = site.empty() if all(site.needs) else None

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.power(a, b, out=y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        (a, b), (needs_a, needs_b) = self.site.inputs, self.site.needs
        factor, da, db = self._factor, None, None
        if needs_a:
            np.power(self._a, self._b - 1, out=factor)
            np.multiply(factor, self._b, out=factor)
            np.copyto(factor, 0, where=self._b == 0)  # 0 ** -1 is infinite
            da = unbroadcast(np.multiply(dy, factor, out=self._da if needs_b else dy), a.shape, into[0])
        if needs_b:
            factor[...] = 1
            np.copyto(factor, self._a, where=self._a > 0)
            np.log(factor, out=factor)
            factor *= self._y
            db = unbroadcast(np.multiply(dy, factor, out=dy), b.shape, into[1])
        return [da, db]


@register
class Mod(Binary):
    """The rest of a / b, with the sign of b."""

    name = "mod"

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.mod(a, b, out=y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        (a, b), (needs_a, needs_b) = self.site.inputs, self.site.needs
        db = None
        if needs_b:
            quotient = np.floor_divide(self._a, self._b)
            np.negative(quotient, out=quotient)
            db = unbroadcast(np.multiply(dy, quotient, out=quotient), b.shape, into[1])
        return [unbroadcast(dy, a.shape, into[0]) if needs_a else None, db]


@register
class FloorDivide(Binary):
    """a / b, rounded down."""

    name = "floor_divide"
    differentiable = False

    def compute(self, a: Array, b: Array, y: Array) -> None:
        np.floor_divide(a, b, out=y)


def add(x1: Any, x2: Any) -> Any:
    """x1 + x2"""
    return apply("add", *together(x1, x2))


def subtract(x1: Any, x2: Any) -> Any:
    """x1 - x2"""
    return apply("subtract", *together(x1, x2))


def multiply(x1: Any, x2: Any) -> Any:
    """x1 * x2"""
    return apply("multiply", *together(x1, x2))


def divide(x1: Any, x2: Any) -> Any:
    """x1 / x2; integers give floats."""
    return apply("divide", *map(floating, together(x1, x2)))


true_divide = divide


def floor_divide(x1: Any, x2: Any) -> Any:
    """x1 / x2, rounded down."""
    return apply("floor_divide", *together(x1, x2))


def mod(x1: Any, x2: Any) -> Any:
    """The rest of x1 / x2, with the sign of x2."""
    return apply("mod", *together(x1, x2))


def power(x1: Any, x2: Any) -> Any:
    """x1 to the power of x2."""
    a, b = together(x1, x2)
    simple = _POWERS.get(x2) if isinstance(x2, int | float) else None
    if simple is not None and (simple == "square" or a.spec.dtype.startswith("float")):
        return apply(simple, a)
    return apply("power", a, b)


_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
"""Powers that have an operation of their own, many times as fast."""


def maximum(x1: Any, x2: Any) -> Any:
    """The larger of x1 and x2."""
    return apply("maximum", *together(x1, x2))


def minimum(x1: Any, x2: Any) -> Any:
    """The smaller of x1 and x2."""
    return apply("minimum", *together(x1, x2))
