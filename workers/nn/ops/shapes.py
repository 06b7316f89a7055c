"""Operations that give the same elements another shape or order of axes."""

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
    as_operand,
    axes_attr,
    axes_of,
    axis_of,
    broadcast,
    deliver,
    register,
    unbroadcast,
)
from workers.nn.tensor import Dims, Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


class Reshaped(Op):
    """Base: the elements stay in their order, so the output is a view."""

    def forward(self, run: Run, *inputs: Array) -> Array:
        return inputs[0].reshape(self.site.outputs[0].dims)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        return [deliver(dy.reshape(self.site.inputs[0].dims), into[0])]


@register
class Reshape(Reshaped):
    """Attribute "shape": one number may be -1, for what is left; null stands for what the operand has at that
    axis."""

    name = "reshape"
    attributes: ClassVar = {"shape": kinds.dims}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return Spec(_reshaped(inputs[0].shape, attrs["shape"]), inputs[0].dtype)


@register
class ExpandDims(Reshaped):
    """New axes of length 1. Attribute "axis": their numbers in the result."""

    name = "expand_dims"
    attributes: ClassVar = {"axis": kinds.either(kinds.whole, kinds.wholes)}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        axes, old = attrs["axis"], inputs[0].shape
        ndim = len(old) + (1 if isinstance(axes, int) else len(axes))
        new, rest = axes_of(axes, ndim), iter(old)
        return Spec(tuple(1 if i in new else next(rest) for i in range(ndim)), inputs[0].dtype)


@register
class Squeeze(Reshaped):
    """Without axes of length 1. Attribute "axis": their numbers; null for all."""

    name = "squeeze"
    attributes: ClassVar = {"axis": kinds.axes}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        old = inputs[0].shape
        if attrs["axis"] is None:
            return Spec(tuple(n for n in old if n != 1), inputs[0].dtype)
        axes = axes_of(attrs["axis"], len(old))
        if not {old[i] for i in axes} <= {1}:
            raise ConfigurationError(f"squeeze: axes {axes} of shape {old} are not all of length 1")
        return Spec(tuple(n for i, n in enumerate(old) if i not in axes), inputs[0].dtype)


@register
class Transpose(Op):
    """Axes in another order: attribute "axes". A copy, so that what follows works on contiguous memory."""

    name = "transpose"
    attributes: ClassVar = {"axes": kinds.wholes}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, axes = inputs[0], attrs["axes"]
        if len(axes_of(axes, len(x.shape))) != len(x.shape):
            raise ConfigurationError(f"transpose: {axes} are not all axes of shape {x.shape}")
        return Spec(tuple(x.shape[i] for i in axes), x.dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        ndim = len(site.inputs[0].shape)
        self._axes = [axis_of(i, ndim) for i in site.attrs["axes"]]
        self._back = [self._axes.index(i) for i in range(ndim)]
        self._y = site.empty()
        self._dx = site.like(0) if site.needs[0] else self._y

    def forward(self, run: Run, *inputs: Array) -> Array:
        np.copyto(self._y, inputs[0].transpose(self._axes))
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        return [deliver(dy.transpose(self._back), self._dx if into[0] is None else into[0])]


@register
class BroadcastTo(Op):
    """Repeated along axes of length 1 to the attribute "shape"; null stands for what the operand has."""

    name = "broadcast_to"
    attributes: ClassVar = {"shape": kinds.dims}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        old, shape = inputs[0].shape, attrs["shape"]
        extra = len(shape) - len(old)
        if extra < 0 or None in shape[:extra]:
            raise ConfigurationError(f"broadcast_to: {old} does not fit into {tuple(shape)}")
        new = tuple(old[i - extra] if n is None else n for i, n in enumerate(shape))
        if broadcast(old, new) != new:
            raise ConfigurationError(f"broadcast_to: {old} does not fit into {new}")
        return Spec(new, inputs[0].dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()

    def forward(self, run: Run, *inputs: Array) -> Array:
        np.copyto(self._y, inputs[0])
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        return [unbroadcast(dy, self.site.inputs[0].shape, into[0])]


def _reshaped(old: Dims, attr: Sequence[int | None]) -> Dims:
    """The new shape. Where the operand has a length that is not known, that is the result's at null or -1."""
    if sum(n == -1 for n in attr) > 1:
        raise ConfigurationError(f"reshape: {tuple(attr)} has more than one -1")
    if any(n is not None and n < -1 for n in attr) or None in attr[len(old) :]:
        raise ConfigurationError(f"reshape: {tuple(attr)} is no shape for {old}")
    new = [old[i] if n is None else n for i, n in enumerate(attr)]
    size = math.prod(n for n in old if n is not None)
    known = math.prod(n for n in new if n not in (None, -1))
    unknown = old.count(None) - new.count(None)  # what -1 has to take
    if unknown and -1 not in new:
        raise ConfigurationError(f"reshape: {old} to {tuple(attr)}: give -1 for the number of samples")
    if -1 not in new:
        if size != known:
            raise ConfigurationError(f"reshape: {old} does not fit into {tuple(attr)}")
        return tuple(new)
    if unknown:
        fits = known and (size % known == 0 or known % max(size, 1) == 0)
    else:
        fits = known and size % known == 0
    if not fits:
        raise ConfigurationError(f"reshape: {old} does not fit into {tuple(attr)}")
    return tuple((None if unknown else size // known) if n == -1 else n for n in new)


def reshape(x: Any, newshape: Any) -> Any:
    """x in another shape, of which one dimension may be -1.

    None is the number of samples: beside a -1, what x has at that axis; else the same as -1.
    """
    shape = [newshape] if isinstance(newshape, int) else list(newshape)
    left = -1 not in shape
    return apply("reshape", x, shape=[(-1 if left else None) if n is None else int(n) for n in shape])


def expand_dims(x: Any, axis: Any) -> Any:
    """x with a new axis of length 1, or several, at these places of the result."""
    return apply("expand_dims", x, axis=axes_attr(axis))


def squeeze(x: Any, axis: Any = None) -> Any:
    """x without these axes, which have length 1; without all such where none is given."""
    return apply("squeeze", x, axis=axes_attr(axis))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Any:
    """x with its axes in this order; reversed where none is given."""
    x = as_operand(x)
    ndim = len(x.spec.shape)
    order = list(reversed(range(ndim))) if axes is None else [axis_of(int(i), ndim) for i in axes]
    return x if order == list(range(ndim)) else apply("transpose", x, axes=order)


def moveaxis(x: Any, source: Any, destination: Any) -> Any:
    """x with some axes moved to other places; the others keep their order."""
    x = as_operand(x)
    ndim = len(x.spec.shape)
    pairs = [
        [axis_of(each, ndim) for each in ((axes,) if isinstance(axes, int) else axes)]
        for axes in (source, destination)
    ]
    if len(set(pairs[0])) != len(pairs[0]) or len(set(pairs[1])) != len(pairs[1]):
        raise ConfigurationError(f"moveaxis: an axis stands twice in {source!r} or {destination!r}")
    if len(pairs[0]) != len(pairs[1]):
        raise ConfigurationError(f"moveaxis: {source!r} and {destination!r} are not equally many")
    order = [i for i in range(ndim) if i not in pairs[0]]
    for to, at in sorted(zip(pairs[1], pairs[0], strict=True)):
        order.insert(to, at)
    return transpose(x, order)


def swapaxes(x: Any, axis1: int, axis2: int) -> Any:
    """x with two axes in each other's place."""
    x = as_operand(x)
    order = list(range(len(x.spec.shape)))
    i, j = axis_of(axis1, len(order)), axis_of(axis2, len(order))
    order[i], order[j] = order[j], order[i]
    return transpose(x, order)


def broadcast_to(x: Any, shape: Any) -> Any:
    """x repeated along axes of length 1 to this shape; None stands for what x has at that axis."""
    return apply("broadcast_to", x, shape=[None if n is None else int(n) for n in shape])
