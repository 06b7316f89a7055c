"""Sorting, and sums and products that run along an axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, as_operand, axis_of, deliver, register
from workers.nn.ops.elementwise import cast
from workers.nn.ops.shapes import reshape
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


class _Along(Op):
    """Base: the attribute "axis" is worked along."""

    attributes: ClassVar = {"axis": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        axis_of(attrs["axis"], len(inputs[0].shape))
        return inputs[0]

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._axis = axis_of(site.attrs["axis"], len(site.inputs[0].shape))
        self._y = site.empty()
        self._dx = site.like(0) if site.needs[0] else self._y
        self._kept = self._y  # what `backward` needs of the last forward; any array until then


@register
class Sort(_Along):
    """In ascending order; equal elements stay in theirs."""

    name = "sort"

    def forward(self, run: Run, *inputs: Array) -> Array:
        np.copyto(self._y, inputs[0])
        if self.site.needs[0]:
            self._kept = np.argsort(inputs[0], axis=self._axis, kind="stable")
        self._y.sort(axis=self._axis, kind="stable")
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        np.put_along_axis(dx, self._kept, dy, axis=self._axis)
        return [dx]


@register
class Argsort(_Along):
    """The places of the elements in ascending order, as int32; equal ones stay in theirs."""

    name = "argsort"
    differentiable = False

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        axis_of(attrs["axis"], len(inputs[0].shape))
        return Spec(inputs[0].shape, "int32")

    def forward(self, run: Run, *inputs: Array) -> Array:
        return deliver(np.argsort(inputs[0], axis=self._axis, kind="stable"), self._y)


@register
class TopK(Op):
    """The attribute "k" largest elements of the last axis, the largest first, and their places as int32.

    Of equal ones, the first in x comes first.
    """

    name = "top_k"
    attributes: ClassVar = {"k": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, k = inputs[0], attrs["k"]
        if not x.shape or k < 1 or (x.shape[-1] is not None and k > x.shape[-1]):
            raise ConfigurationError(f"top_k: there are no {k} elements in the last axis of shape {x.shape}")
        shape = (*x.shape[:-1], k)
        return Spec(shape, x.dtype), Spec(shape, "int32")

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._values, self._places = site.empty(0), site.empty(1)
        self._dx = site.like(0) if site.needs[0] else None

    def forward(self, run: Run, *inputs: Array) -> tuple[Array, Array]:
        x = inputs[0]
        # Backwards, so that ascending and stable becomes descending with the first in front.
        last = x.shape[-1] - 1
        order = (
            last - np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1][..., : self.site.attrs["k"]]
        )
        np.copyto(self._places, order, casting="unsafe")
        np.copyto(self._values, np.take_along_axis(x, order, axis=-1))
        return self._values, self._places

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        assert dx is not None
        dx[...] = 0
        if dy[0] is not None:
            np.put_along_axis(dx, self._places.astype(np.intp), dy[0], axis=-1)
        return [dx]


@register
class Cumsum(_Along):
    """The sum of all elements up to each."""

    name = "cumsum"

    def forward(self, run: Run, *inputs: Array) -> Array:
        return np.add.accumulate(inputs[0], axis=self._axis, out=self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        np.add.accumulate(np.flip(dy, self._axis), axis=self._axis, out=np.flip(dx, self._axis))
        return [dx]


@register
class Cumprod(_Along):
    """The product of all elements up to each. Its gradient divides by them: none may be zero."""

    name = "cumprod"

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._kept = inputs[0]
        return np.multiply.accumulate(self._kept, axis=self._axis, out=self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        dy *= self._y
        np.add.accumulate(np.flip(dy, self._axis), axis=self._axis, out=np.flip(dx, self._axis))
        dx /= self._kept
        return [dx]


def _along(name: str, x: Any, axis: int | None) -> Any:
    return apply(name, reshape(x, (-1,)), axis=0) if axis is None else apply(name, x, axis=axis)


def sort(x: Any, axis: int | None = -1) -> Any:
    """x in ascending order along an axis; a flat x where it is None."""
    return _along("sort", x, axis)


def argsort(x: Any, axis: int | None = -1) -> Any:
    """The places of the elements in ascending order, as int32; equal ones stay in theirs."""
    return _along("argsort", x, axis)


def top_k(x: Any, k: int, sorted: bool = True) -> Any:
    """The k largest elements of the last axis, and their places; always sorted, the largest first."""
    return apply("top_k", x, k=k)


def cumsum(x: Any, axis: int | None = None, dtype: Any = None) -> Any:
    """The sum of all elements up to each, along an axis; of a flat x where none is given."""
    return _along("cumsum", _as(x, dtype), axis)


def cumprod(x: Any, axis: int | None = None, dtype: Any = None) -> Any:
    """The product of all elements up to each; its gradient is for elements that are not zero."""
    return _along("cumprod", _as(x, dtype), axis)


def _as(x: Any, dtype: Any) -> Any:
    x = as_operand(x)
    if dtype is None:
        dtype = "int32" if x.spec.dtype == "bool" else x.spec.dtype
    return cast(x, dtype)
