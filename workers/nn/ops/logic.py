"""Comparisons, logic, and choosing by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.ops import attributes as kinds
from workers.nn.ops.arithmetic import maximum, minimum
from workers.nn.ops.base import (
    Op,
    Run,
    Site,
    apply,
    as_dtype,
    as_operand,
    broadcast,
    floating,
    register,
    same_dtype,
    together,
    unbroadcast,
)
from workers.nn.ops.elementwise import Binary, Unary
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from workers.nn.numerics import Array


def _table(op: str, function: Callable[..., Any]) -> None:
    """Register an operation of a ufunc that gives bools."""

    class Comparison(Binary):
        name: ClassVar[str] = op
        differentiable: ClassVar[bool] = False

        @classmethod
        def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
            a, b = inputs
            same_dtype(a, b)
            return Spec(broadcast(a.shape, b.shape), "bool")

        def compute(self, a: Array, b: Array, y: Array) -> None:
            function(a, b, out=y)

    Comparison.__name__ = Comparison.__qualname__ = op.title()
    register(Comparison)


_table("equal", np.equal)
_table("not_equal", np.not_equal)
_table("less", np.less)
_table("less_equal", np.less_equal)
_table("greater", np.greater)
_table("greater_equal", np.greater_equal)
_table("logical_and", np.logical_and)
_table("logical_or", np.logical_or)
_table("logical_xor", np.logical_xor)


@register
class Where(Op):
    """a where the condition, a bool, holds, else b; all three are broadcast."""

    name = "where"
    arity = (3, 3)

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        condition, a, b = inputs
        if condition.dtype != "bool":
            raise ConfigurationError(f"where: the condition is {condition.dtype}: give a bool")
        return Spec(broadcast(condition.shape, a.shape, b.shape), same_dtype(a, b))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._condition = self._y
        self._da = site.empty() if site.needs[1] and site.needs[2] else None

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._condition, a, b = inputs
        np.copyto(self._y, b)
        np.copyto(self._y, a, where=self._condition)
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        (_, a, b), (_, needs_a, needs_b) = self.site.inputs, self.site.needs
        condition, da, db = self._condition, None, None
        if needs_a:
            part = dy
            if self._da is not None:
                part = self._da
                np.copyto(part, dy)
            np.copyto(part, 0, where=~condition)
            da = unbroadcast(part, a.shape, into[1])
        if needs_b:
            np.copyto(dy, 0, where=condition)
            db = unbroadcast(dy, b.shape, into[2])
        return [None, da, db]


@register
class Clip(Unary):
    """x, but at least the attribute "minimum" and at most "maximum"; either may be null."""

    name = "clip"
    attributes: ClassVar = {"minimum": kinds.optional(kinds.number), "maximum": kinds.optional(kinds.number)}

    def compute(self, x: Array, y: Array) -> None:
        low, high = self._bounds(x)
        np.clip(x, low, high, out=y)

    def derive(self, x: Array, y: Array, dy: Array, dx: Array) -> None:
        np.equal(x, y, out=dx)
        dx *= dy

    def _bounds(self, x: Array) -> tuple[Any, Any]:
        bounds = (self.site.attrs["minimum"], self.site.attrs["maximum"])
        low, high = (None if each is None else x.dtype.type(each) for each in bounds)
        return low, high


class _Triangle(Unary):
    """Base: zeros on one side of a diagonal of the last two axes; attribute "k", its number."""

    attributes: ClassVar = {"k": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        if len(inputs[0].shape) < 2:
            raise ConfigurationError(f"{cls.name}: shape {inputs[0].shape} has no two axes")
        return inputs[0]

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        rows, columns = site.inputs[0].dims[-2:]
        self._kept = self.kept(rows, columns, site.attrs["k"])

    def kept(self, rows: int, columns: int, k: int) -> Array:
        """A bool matrix: what is not made zero."""
        raise NotImplementedError

    def compute(self, x: Array, y: Array) -> None:
        y[...] = 0
        np.copyto(y, x, where=self._kept)

    def derive(self, x: Array, y: Array, dy: Array, dx: Array) -> None:
        self.compute(dy, dx)


@register
class Tril(_Triangle):
    """Zeros above the diagonal."""

    name = "tril"

    def kept(self, rows: int, columns: int, k: int) -> Array:
        return np.tri(rows, columns, k, dtype=bool)


@register
class Triu(_Triangle):
    """Zeros below the diagonal."""

    name = "triu"

    def kept(self, rows: int, columns: int, k: int) -> Array:
        return ~np.tri(rows, columns, k - 1, dtype=bool)


def equal(x1: Any, x2: Any) -> Any:
    """x1 == x2"""
    return apply("equal", *together(x1, x2))


def not_equal(x1: Any, x2: Any) -> Any:
    """x1 != x2"""
    return apply("not_equal", *together(x1, x2))


def less(x1: Any, x2: Any) -> Any:
    """x1 < x2"""
    return apply("less", *together(x1, x2))


def less_equal(x1: Any, x2: Any) -> Any:
    """x1 <= x2"""
    return apply("less_equal", *together(x1, x2))


def greater(x1: Any, x2: Any) -> Any:
    """x1 > x2"""
    return apply("greater", *together(x1, x2))


def greater_equal(x1: Any, x2: Any) -> Any:
    """x1 >= x2"""
    return apply("greater_equal", *together(x1, x2))


def _bool(x: Any) -> Any:
    return as_dtype(as_operand(x), "bool")


def logical_and(x1: Any, x2: Any) -> Any:
    """Whether both are not zero."""
    return apply("logical_and", _bool(x1), _bool(x2))


def logical_or(x1: Any, x2: Any) -> Any:
    """Whether one is not zero, or both."""
    return apply("logical_or", _bool(x1), _bool(x2))


def logical_xor(x1: Any, x2: Any) -> Any:
    """Whether one is not zero, and not both."""
    return apply("logical_xor", _bool(x1), _bool(x2))


def where(condition: Any, x1: Any, x2: Any) -> Any:
    """x1 where the condition holds, else x2."""
    return apply("where", _bool(condition), *together(x1, x2))


def clip(x: Any, x_min: Any, x_max: Any) -> Any:
    """x, but at least `x_min` and at most `x_max`: numbers, tensors or None."""
    if all(bound is None or isinstance(bound, int | float) for bound in (x_min, x_max)):
        x = floating(x) if any(isinstance(bound, float) for bound in (x_min, x_max)) else as_operand(x)
        return apply("clip", x, minimum=x_min, maximum=x_max)
    x = x if x_min is None else maximum(x, x_min)
    return x if x_max is None else minimum(x, x_max)


def tril(x: Any, k: int = 0) -> Any:
    """x with zeros above diagonal number k of the last two axes."""
    return apply("tril", x, k=k)


def triu(x: Any, k: int = 0) -> Any:
    """x with zeros below diagonal number k of the last two axes."""
    return apply("triu", x, k=k)
