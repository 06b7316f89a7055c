"""Reductions along axes. Attributes of all: "axis" (a number, a list or null for all axes) and "keepdims"."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import (
    Op,
    Run,
    Site,
    apply,
    as_dtype,
    as_operand,
    axes_attr,
    axes_of,
    floating,
    register,
)
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


class Reduction(Op):
    """Base: `compute` writes into an output that has kept its axes; `derive` likewise takes one."""

    attributes: ClassVar = {"axis": kinds.axes, "keepdims": kinds.flag}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x = inputs[0]
        axes = axes_of(attrs["axis"], len(x.shape))
        kept = [(i, 1 if i in axes else n) for i, n in enumerate(x.shape)]
        return Spec(tuple(n for i, n in kept if attrs["keepdims"] or i not in axes), cls.result(x.dtype))

    @classmethod
    def result(cls, dtype: str) -> str:
        """The dtype that comes of this one."""
        return dtype

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x = site.inputs[0]
        self._axes = axes_of(site.attrs["axis"], len(x.shape))
        self._kept = tuple(1 if i in self._axes else n for i, n in enumerate(x.dims))
        self._count = math.prod(x.dims[i] for i in self._axes)
        self._y = site.empty()
        self._y_kept = self._y.reshape(self._kept)
        self._dx = site.like(0) if site.needs[0] else self._y
        self._x = self._y

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._x = inputs[0]
        self.compute(self._x, self._y_kept)
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        self.derive(dy.reshape(self._kept), dx)
        return [dx]

    def compute(self, x: Array, y: Array) -> None:
        """Write the result into `y`."""
        raise NotImplementedError

    def derive(self, dy: Array, dx: Array) -> None:
        """Write the operand's gradient into `dx`; `dy` may be overwritten."""
        raise NotImplementedError


@register
class Sum(Reduction):
    """The sum."""

    name = "sum"

    def compute(self, x: Array, y: Array) -> None:
        np.add.reduce(x, axis=self._axes, keepdims=True, out=y)

    def derive(self, dy: Array, dx: Array) -> None:
        np.copyto(dx, dy)


@register
class Mean(Sum):
    """The sum, divided by the number of elements."""

    name = "mean"

    def compute(self, x: Array, y: Array) -> None:
        super().compute(x, y)
        y /= self._count

    def derive(self, dy: Array, dx: Array) -> None:
        np.divide(dy, self._count, out=dx)


class _Extreme(Reduction):
    """The largest or smallest element; equal ones share the gradient, as in TensorFlow."""

    def derive(self, dy: Array, dx: Array) -> None:
        np.equal(self._x, self._y_kept, out=dx)
        dx *= dy / dx.sum(axis=self._axes, keepdims=True)


@register
class Max(_Extreme):
    """The largest element."""

    name = "max"

    def compute(self, x: Array, y: Array) -> None:
        np.maximum.reduce(x, axis=self._axes, keepdims=True, out=y)


@register
class Min(_Extreme):
    """The smallest element."""

    name = "min"

    def compute(self, x: Array, y: Array) -> None:
        np.minimum.reduce(x, axis=self._axes, keepdims=True, out=y)


@register
class Prod(Reduction):
    """The product."""

    name = "prod"

    def compute(self, x: Array, y: Array) -> None:
        np.multiply.reduce(x, axis=self._axes, keepdims=True, out=y)

    def derive(self, dy: Array, dx: Array) -> None:
        # The product of the others: of those before and those behind, as dividing would fail at zeros.
        ndim = self._x.ndim
        order = [i for i in range(ndim) if i not in self._axes] + list(self._axes)
        flat = self._x.transpose(order).reshape(-1, self._count)
        others = np.ones_like(flat)
        np.multiply.accumulate(flat[:, :-1], axis=1, out=others[:, 1:])
        behind = np.multiply.accumulate(flat[:, :0:-1], axis=1)
        others[:, :-1] *= behind[:, ::-1]
        shape = [self._x.shape[i] for i in order]
        np.multiply(others.reshape(shape).transpose(np.argsort(order)), dy, out=dx)


@register
class Var(Reduction):
    """The mean of the squared differences from the mean."""

    name = "var"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._centred = site.like(0)

    def compute(self, x: Array, y: Array) -> None:
        np.add.reduce(x, axis=self._axes, keepdims=True, out=y)
        y /= self._count
        np.subtract(x, y, out=self._centred)
        squares = np.square(self._centred, out=self._dx if self.site.needs[0] else None)
        np.add.reduce(squares, axis=self._axes, keepdims=True, out=y)
        y /= self._count

    def derive(self, dy: Array, dx: Array) -> None:
        np.multiply(self._centred, dy * (2 / self._count), out=dx)


@register
class Logsumexp(Reduction):
    """log(sum(exp(x))), without overflow."""

    name = "logsumexp"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._shifted = site.like(0)

    def compute(self, x: Array, y: Array) -> None:
        largest = np.maximum.reduce(x, axis=self._axes, keepdims=True)
        largest[~np.isfinite(largest)] = 0  # so that of infinities come infinities
        np.subtract(x, largest, out=self._shifted)
        np.exp(self._shifted, out=self._shifted)
        np.add.reduce(self._shifted, axis=self._axes, keepdims=True, out=y)
        np.log(y, out=y)
        y += largest

    def derive(self, dy: Array, dx: Array) -> None:
        np.subtract(self._x, self._y_kept, out=dx)
        np.exp(dx, out=dx)
        dx *= dy


class _ToBool(Reduction):
    differentiable = False

    @classmethod
    def result(cls, dtype: str) -> str:
        return "bool"


@register
class Any_(_ToBool):
    """Whether any element is not zero."""

    name = "any"

    def compute(self, x: Array, y: Array) -> None:
        np.logical_or.reduce(x, axis=self._axes, keepdims=True, out=y)


@register
class All(_ToBool):
    """Whether no element is zero."""

    name = "all"

    def compute(self, x: Array, y: Array) -> None:
        np.logical_and.reduce(x, axis=self._axes, keepdims=True, out=y)


class _Place(Reduction):
    """Where along an axis, or of all elements, an extreme stands; of equal ones, the first."""

    differentiable = False

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        if not isinstance(attrs["axis"], int | None):
            raise ConfigurationError(f"{cls.name}: axis must be one number or None, not {attrs['axis']!r}")
        return super().infer(attrs, *inputs)

    @classmethod
    def result(cls, dtype: str) -> str:
        return "int32"


@register
class Argmax(_Place):
    """The place of the largest element."""

    name = "argmax"

    def compute(self, x: Array, y: Array) -> None:
        y[...] = np.argmax(x, axis=self.site.attrs["axis"], keepdims=True)


@register
class Argmin(_Place):
    """The place of the smallest element."""

    name = "argmin"

    def compute(self, x: Array, y: Array) -> None:
        y[...] = np.argmin(x, axis=self.site.attrs["axis"], keepdims=True)


def _reduce(name: str, x: Any, axis: Any, keepdims: bool) -> Any:
    return apply(name, x, axis=axes_attr(axis), keepdims=bool(keepdims))


def _countable(x: Any) -> Any:
    """The operand, a bool as int32."""
    x = as_operand(x)
    return as_dtype(x, "int32") if x.spec.dtype == "bool" else x


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The sum along the axes; of all elements where no axis is given."""
    return _reduce("sum", _countable(x), axis, keepdims)


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The mean along the axes."""
    return _reduce("mean", floating(x), axis, keepdims)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The largest element along the axes."""
    return _reduce("max", x, axis, keepdims)


def min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The smallest element along the axes."""
    return _reduce("min", x, axis, keepdims)


def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The product along the axes."""
    return _reduce("prod", _countable(x), axis, keepdims)


def var(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The variance along the axes: the mean of the squared differences from the mean."""
    return _reduce("var", floating(x), axis, keepdims)


def std(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The standard deviation along the axes."""
    return apply("sqrt", var(x, axis, keepdims))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) along the axes."""
    return _reduce("logsumexp", floating(x), axis, keepdims)


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """The vector norm along the axes: 2 (the default, also "euclidean" and "fro"), 1, or plus or minus
    infinity."""
    x = floating(x)
    if ord in (None, "euclidean", "fro"):
        ord = 2
    elif len(axes_of(axis, len(x.spec.shape))) != 1:
        raise ConfigurationError(f"norm: ord {ord!r} is of vectors: give one axis, not {axis!r}")
    if ord == 2:
        return apply("sqrt", _reduce("sum", apply("square", x), axis, keepdims))
    reduce = {1: "sum", math.inf: "max", -math.inf: "min"}.get(ord)
    if reduce is None:
        raise ConfigurationError(f"norm: ord {ord!r} is not one of 1, 2, inf, -inf, 'euclidean' and 'fro'")
    return _reduce(reduce, apply("absolute", x), axis, keepdims)


def any(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Whether any element along the axes is not zero."""
    return _reduce("any", x, axis, keepdims)


def all(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Whether no element along the axes is zero."""
    return _reduce("all", x, axis, keepdims)


def argmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Where the largest element stands, as int32; of equal ones, the first."""
    return _reduce("argmax", x, axis, keepdims)


def argmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Where the smallest element stands, as int32; of equal ones, the first."""
    return _reduce("argmin", x, axis, keepdims)
