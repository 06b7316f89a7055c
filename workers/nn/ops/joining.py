"""Operations that put tensors together, cut them up and repeat them."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import (
    MANY,
    Op,
    Run,
    Site,
    apply,
    as_operand,
    axis_of,
    deliver,
    register,
    same_dtype,
    together,
)
from workers.nn.ops.shapes import expand_dims, reshape
from workers.nn.tensor import Dims, Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


def _part(axis: int, start: int | None, stop: int | None, step: int | None = None) -> tuple[slice, ...]:
    """The index of a part of an axis."""
    return (*(slice(None),) * axis, slice(start, stop, step))


@register
class Concatenate(Op):
    """Tensors one behind the other along the attribute "axis"."""

    name = "concatenate"
    arity = (1, MANY)
    attributes: ClassVar = {"axis": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        axis = axis_of(attrs["axis"], len(inputs[0].shape))
        rest = {tuple(n for i, n in enumerate(each.shape) if i != axis) for each in inputs}
        lengths = [each.shape[axis] for each in inputs if len(each.shape) == len(inputs[0].shape)]
        if len(rest) != 1 or len(lengths) != len(inputs):
            shapes = " and ".join(str(each.shape) for each in inputs)
            raise ConfigurationError(f"concatenate: shapes {shapes} differ in more than axis {axis}")
        shape = list(inputs[0].shape)
        known = [n for n in lengths if n is not None]
        shape[axis] = sum(known) if len(known) == len(lengths) else None
        return Spec(tuple(shape), same_dtype(*inputs))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._axis = axis_of(site.attrs["axis"], len(site.inputs[0].shape))
        ends = accumulate((each.dims[self._axis] for each in site.inputs), initial=0)
        self._parts = [_part(self._axis, start, stop) for start, stop in pairwise(ends)]
        self._y = site.empty()

    def forward(self, run: Run, *inputs: Array) -> Array:
        return np.concatenate(inputs, axis=self._axis, out=self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        # Views of `dy` that do not overlap: each operand has its memory to itself.
        return [
            deliver(dy[part], target) if needed else None
            for part, target, needed in zip(self._parts, into, self.site.needs, strict=True)
        ]


@register
class Stack(Op):
    """Tensors of one shape along a new axis: attribute "axis", its number in the result."""

    name = "stack"
    arity = (1, MANY)
    attributes: ClassVar = {"axis": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        shapes = {each.shape for each in inputs}
        if len(shapes) != 1:
            raise ConfigurationError(f"stack: shapes {' and '.join(map(str, shapes))} are not one")
        shape = list(inputs[0].shape)
        shape.insert(axis_of(attrs["axis"], len(shape) + 1), len(inputs))
        return Spec(tuple(shape), same_dtype(*inputs))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._axis = axis_of(site.attrs["axis"], self._y.ndim)

    def forward(self, run: Run, *inputs: Array) -> Array:
        for part, x in zip(np.moveaxis(self._y, self._axis, 0), inputs, strict=True):
            part[...] = x
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        parts = np.moveaxis(dy, self._axis, 0)
        return [
            deliver(parts[i, ...], into[i]) if needed else None for i, needed in enumerate(self.site.needs)
        ]


class _Cut(Op):
    """Base: the outputs are views of parts of the operand along one axis."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._axis = axis_of(site.attrs["axis"], len(site.inputs[0].shape))
        self._dx = site.like(0) if site.needs[0] else None
        self._parts = self.parts()

    def parts(self) -> list[Any]:
        """The index of each output's part."""
        raise NotImplementedError

    def forward(self, run: Run, *inputs: Array) -> tuple[Array, ...]:
        return tuple(inputs[0][part] for part in self._parts)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        assert dx is not None
        gradients = dy if isinstance(dy, tuple) else (dy,)
        for part, gradient in zip(self._parts, gradients, strict=True):
            dx[part] = 0 if gradient is None else gradient
        return [dx]


@register
class Split(_Cut):
    """Parts of an axis: attributes "axis" and "sections", a number of equal parts or the places to cut at."""

    name = "split"
    attributes: ClassVar = {"axis": kinds.whole, "sections": kinds.either(kinds.whole, kinds.wholes)}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x = inputs[0]
        axis = axis_of(attrs["axis"], len(x.shape))
        ends = _ends(x.shape, axis, attrs["sections"])
        return tuple(
            Spec((*x.shape[:axis], stop - start, *x.shape[axis + 1 :]), x.dtype)
            for start, stop in pairwise(ends)
        )

    def parts(self) -> list[Any]:
        ends = _ends(self.site.inputs[0].shape, self._axis, self.site.attrs["sections"])
        return [_part(self._axis, start, stop) for start, stop in pairwise(ends)]


@register
class Unstack(_Cut):
    """All slices along the attribute "axis", of which there are "num"."""

    name = "unstack"
    attributes: ClassVar = {"axis": kinds.whole, "num": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, num = inputs[0], int(attrs["num"])
        axis = axis_of(attrs["axis"], len(x.shape))
        if not 1 <= num <= MANY or x.shape[axis] != num:
            raise ConfigurationError(f"unstack: axis {axis} of shape {x.shape} does not have {num} slices")
        return (Spec((*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype),) * num

    def parts(self) -> list[Any]:
        leading = (slice(None),) * self._axis
        return [(*leading, i, ...) for i in range(self.site.attrs["num"])]


def _ends(shape: Dims, axis: int, sections: int | Sequence[int]) -> list[int]:
    """Where the parts begin and end."""
    length = shape[axis]
    if length is None:
        raise ConfigurationError(f"split: the length of axis {axis} of shape {shape} is not known")
    if isinstance(sections, int):
        if not 1 <= sections <= MANY or length % sections:
            raise ConfigurationError(f"split: {length} cannot be cut into {sections} equal parts")
        return list(range(0, length + 1, length // sections)) if length else [0] * (sections + 1)
    ends = [0, *sections, length]
    if any(start > stop for start, stop in pairwise(ends)):
        raise ConfigurationError(f"split: {list(sections)} are not places in order within {length}")
    return ends


@register
class Pad(Op):
    """x within a border of one value: attributes "pad_width" (before and behind, for each axis), "value"."""

    name = "pad"
    attributes: ClassVar = {"pad_width": kinds.several(kinds.pair(kinds.whole)), "value": kinds.number}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, widths = inputs[0], attrs["pad_width"]
        if len(widths) != len(x.shape) or any(n < 0 for pair in widths for n in pair):
            raise ConfigurationError(f"pad: widths {widths} do not fit shape {x.shape}")
        dims = zip(x.shape, widths, strict=True)
        return Spec(
            tuple(None if n is None else n + before + behind for n, (before, behind) in dims), x.dtype
        )

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        dims = site.inputs[0].dims
        self._inner = tuple(
            slice(before, before + n) for n, (before, _) in zip(dims, site.attrs["pad_width"], strict=True)
        )
        self._y = site.empty()
        self._y[...] = site.attrs["value"]  # the border stays

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._y[self._inner] = inputs[0]
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        return [deliver(dy[self._inner], into[0])]


class _Moved(Op):
    """Base: the output has the elements, and the shape, of the operand."""

    attributes: ClassVar = {"axis": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        cls.axis(attrs, inputs[0])
        return inputs[0]

    @classmethod
    def axis(cls, attrs: Mapping[str, Any], x: Spec) -> int:
        """The attribute "axis", as a number from 0."""
        return axis_of(attrs["axis"], len(x.shape))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._axis = self.axis(site.attrs, site.inputs[0])
        self._y = site.empty()
        self._dx = site.like(0) if site.needs[0] else self._y


@register
class Flip(_Moved):
    """The attribute "axis" backwards."""

    name = "flip"

    def forward(self, run: Run, *inputs: Array) -> Array:
        return deliver(inputs[0][_part(self._axis, None, None, -1)], self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        return [deliver(dy[_part(self._axis, None, None, -1)], dx)]


@register
class Roll(_Moved):
    """Elements moved on by "shift" along "axis"; those that fall off come in at the other end."""

    name = "roll"
    attributes: ClassVar = {"axis": kinds.whole, "shift": kinds.whole}

    def forward(self, run: Run, *inputs: Array) -> Array:
        return self._roll(inputs[0], self.site.attrs["shift"], self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        return [self._roll(dy, -self.site.attrs["shift"], self._dx if into[0] is None else into[0])]

    def _roll(self, x: Array, shift: int, out: Array) -> Array:
        axis, length = self._axis, x.shape[self._axis]
        shift %= max(length, 1)
        out[_part(axis, shift, None)] = x[_part(axis, None, length - shift)]
        out[_part(axis, None, shift)] = x[_part(axis, length - shift, None)]
        return out


@register
class Repeat(Op):
    """Each element "repeats" times along "axis", one behind the other."""

    name = "repeat"
    attributes: ClassVar = {"axis": kinds.whole, "repeats": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        shape, repeats = list(inputs[0].shape), attrs["repeats"]
        axis = axis_of(attrs["axis"], len(shape))
        if repeats < 0:
            raise ConfigurationError(f"repeat: {repeats} is no number of times")
        n = shape[axis]
        shape[axis] = None if n is None else n * repeats
        return Spec(tuple(shape), inputs[0].dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        dims = site.inputs[0].dims
        self._axis = axis_of(site.attrs["axis"], len(dims)) + 1
        self._y = site.empty()
        # One more axis, over which the operand is broadcast.
        self._apart = (*dims[: self._axis], site.attrs["repeats"], *dims[self._axis :])
        self._dx = site.like(0) if site.needs[0] else self._y

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._y.reshape(self._apart)[...] = np.expand_dims(inputs[0], self._axis)
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        return [np.add.reduce(dy.reshape(self._apart), axis=self._axis, out=dx)]


@register
class Tile(Op):
    """The whole of x "repeats" times along each axis."""

    name = "tile"
    attributes: ClassVar = {"repeats": kinds.wholes}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, repeats = inputs[0], attrs["repeats"]
        if len(repeats) != len(x.shape) or any(n < 0 for n in repeats):
            raise ConfigurationError(f"tile: {repeats} do not fit shape {x.shape}")
        return Spec(
            tuple(None if n is None else n * m for n, m in zip(x.shape, repeats, strict=True)), x.dtype
        )

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        dims = site.inputs[0].dims
        self._y = site.empty()
        pairs = zip(site.attrs["repeats"], dims, strict=True)
        self._apart = tuple(n for pair in pairs for n in pair)
        self._even = tuple(range(0, 2 * len(dims), 2))
        self._dx = site.like(0) if site.needs[0] else self._y

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._y.reshape(self._apart)[...] = np.expand_dims(inputs[0], self._even)
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        return [np.add.reduce(dy.reshape(self._apart), axis=self._even, out=dx)]


def concatenate(xs: Sequence[Any], axis: int = 0) -> Any:
    """Tensors one behind the other along an axis."""
    if not len(xs):
        raise ConfigurationError("concatenate: give at least one tensor")
    return apply("concatenate", *together(*xs), axis=axis)


def stack(x: Sequence[Any], axis: int = 0) -> Any:
    """Tensors of one shape along a new axis."""
    if not len(x):
        raise ConfigurationError("stack: give at least one tensor")
    return apply("stack", *together(*x), axis=axis)


def split(x: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    """Parts of x along an axis: a number of equal ones, or those between these places."""
    sections = indices_or_sections
    if not isinstance(sections, int):
        sections = [int(i) for i in sections]
    found = apply("split", x, sections=sections, axis=axis)
    return list(found) if isinstance(found, tuple) else [found]


def unstack(x: Any, num: int | None = None, axis: int = 0) -> list[Any]:
    """All slices of x along an axis."""
    x = as_operand(x)
    if num is None:
        num = x.spec.shape[axis_of(axis, len(x.spec.shape))]
    found = apply("unstack", x, num=-1 if num is None else num, axis=axis)
    return list(found) if isinstance(found, tuple) else [found]


def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: Any = None) -> Any:
    """x within a border: a width for all, (before, behind) for all axes, or that for each."""
    if mode != "constant":
        raise ConfigurationError(f"pad: mode {mode!r} is not supported: use 'constant'")
    x = as_operand(x)
    widths = np.broadcast_to(np.asarray(pad_width, int), (len(x.spec.shape), 2)).tolist()
    return apply("pad", x, pad_width=widths, value=0 if constant_values is None else constant_values)


def flip(x: Any, axis: Any = None) -> Any:
    """x with the order of elements along these axes reversed; along all where none is given."""
    x = as_operand(x)
    for each in range(len(x.spec.shape)) if axis is None else (axis,) if isinstance(axis, int) else axis:
        x = apply("flip", x, axis=each)
    return x


def roll(x: Any, shift: Any, axis: Any = None) -> Any:
    """x with elements moved on by `shift`, around the end; as if flat where no axis is given."""
    x = as_operand(x)
    if axis is None:
        return reshape(roll(reshape(x, (-1,)), shift, 0), x.spec.shape)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    shifts = (shift,) * len(axes) if isinstance(shift, int) else tuple(shift)
    if len(shifts) != len(axes):
        raise ConfigurationError(f"roll: {len(shifts)} shifts for {len(axes)} axes")
    for each, by in zip(axes, shifts, strict=True):
        x = apply("roll", x, axis=each, shift=by)
    return x


def repeat(x: Any, repeats: int, axis: int | None = None) -> Any:
    """x with each element `repeats` times along an axis; of a flat x where none is given."""
    if not isinstance(repeats, int):
        raise ConfigurationError(f"repeat: repeats must be one number, not {repeats!r}")
    return apply(
        "repeat", reshape(x, (-1,)) if axis is None else x, repeats=repeats, axis=0 if axis is None else axis
    )


def tile(x: Any, repeats: Any) -> Any:
    """x as a whole `repeats` times along each axis."""
    x = as_operand(x)
    times = [repeats] if isinstance(repeats, int) else [int(n) for n in repeats]
    missing = len(times) - len(x.spec.shape)
    if missing > 0:
        x = expand_dims(x, list(range(missing)))
    return apply("tile", x, repeats=[1] * -missing + times)
