"""What elementwise operations share, and those that change no value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, as_operand, broadcast, deliver, register, same_dtype
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


class Unary(Op):
    """A function of each element. A subclass computes into workspaces that it is given."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._x = self._y  # of the last forward; any array until then
        self._dx = site.like(0) if site.needs[0] else self._y

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return inputs[0]

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._x = inputs[0]
        self.compute(self._x, self._y)
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        self.derive(self._x, self._y, dy, dx)
        return [dx]

    def compute(self, x: Array, y: Array) -> None:
        """Write the function's values into `y`."""
        raise NotImplementedError

    def derive(self, x: Array, y: Array, dy: Array, dx: Array) -> None:
        """Write dy times the derivative into `dx`, which overlaps none of the others: they stay."""
        raise NotImplementedError


class Binary(Op):
    """A function of two elements, broadcast. A subclass computes into workspaces that it is given."""

    arity = (2, 2)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._a = self._b = self._y

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        a, b = inputs
        return Spec(broadcast(a.shape, b.shape), same_dtype(a, b))

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._a, self._b = inputs
        self.compute(self._a, self._b, self._y)
        return self._y

    def compute(self, a: Array, b: Array, y: Array) -> None:
        """Write the function's values into `y`."""
        raise NotImplementedError


@register
class Cast(Op):
    """x as another dtype, the attribute "dtype"."""

    name = "cast"
    attributes: ClassVar = {"dtype": kinds.dtype}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return Spec(inputs[0].shape, np.dtype(attrs["dtype"]).name)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._dx = site.like(0) if site.needs[0] else self._y

    def forward(self, run: Run, *inputs: Array) -> Array:
        np.copyto(self._y, inputs[0], casting="unsafe")
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        if not self.site.needs[0]:
            return [None]
        dx = self._dx if into[0] is None else into[0]
        np.copyto(dx, dy, casting="unsafe")
        return [dx]


@register
class Identity(Op):
    """x itself."""

    name = "identity"

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return inputs[0]

    def forward(self, run: Run, *inputs: Array) -> Array:
        return inputs[0]

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        return [deliver(dy, into[0])]


@register
class StopGradient(Op):
    """x itself, as a constant: no gradient comes through."""

    name = "stop_gradient"
    differentiable = False

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return inputs[0]

    def forward(self, run: Run, *inputs: Array) -> Array:
        return inputs[0]


def cast(x: Any, dtype: Any) -> Any:
    """x as another dtype."""
    x, name = as_operand(x), np.dtype(dtype).name
    return x if x.spec.dtype == name else apply("cast", x, dtype=name)


def stop_gradient(x: Any) -> Any:
    """x as a constant: no gradient comes through."""
    return apply("stop_gradient", x)
