"""Operations that pick elements by their places."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.numerics import aligned_empty
from workers.nn.ops import attributes as kinds
from workers.nn.ops.arithmetic import add, multiply
from workers.nn.ops.base import Op, Run, Site, apply, as_operand, axis_of, register
from workers.nn.ops.logic import less, where
from workers.nn.ops.shapes import reshape
from workers.nn.tensor import FLOATX, Dims, Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


@register
class Getitem(Op):
    """A view of a part. Attribute "key": for each axis a number, a list [start, stop, step] of numbers and
    nulls, "..." for as many as are left, or null for a new axis."""

    name = "getitem"
    attributes: ClassVar = {"key": kinds.several(kinds.part_of_key)}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x = inputs[0]
        return Spec(_indexed(x.shape, attrs["key"]), x.dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        key = [
            slice(*each) if isinstance(each, list) else ... if each == "..." else each
            for each in site.attrs["key"]
        ]
        self._key = tuple(key) if ... in key else (*key, ...)  # so that it never gives a bare number
        self._dx = site.like(0) if site.needs[0] else None

    def forward(self, run: Run, *inputs: Array) -> Array:
        return inputs[0][self._key]

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        assert dx is not None
        dx[...] = 0
        dx[self._key] = dy
        return [dx]


def _indexed(shape: Dims, key: Sequence[Any]) -> Dims:
    """The shape of what a key gives."""
    taken = sum(each is not None and each != "..." for each in key)
    if taken > len(shape) or list(key).count("...") > 1:
        raise ConfigurationError(f"index: {len(shape)} axes of shape {shape} cannot be indexed by {key}")
    found: list[int | None] = []
    axis = 0
    for each in [*key, *(() if "..." in key else ("...",))]:
        if each is None:
            found.append(1)
        elif each == "...":
            found += shape[axis : axis + len(shape) - taken]
            axis += len(shape) - taken
        else:
            n = shape[axis]
            axis += 1
            if isinstance(each, list):
                part = slice(*each)
                if n is None and part != slice(None) and part.step not in (None, -1):
                    raise ConfigurationError(f"index: axis {axis - 1} of shape {shape} has no known length")
                found.append(None if n is None else len(range(*part.indices(n))))
            elif n is not None and not -n <= each < n:
                raise ConfigurationError(
                    f"index: {each} is out of range for axis {axis - 1} of shape {shape}"
                )
    return tuple(found)


@register
class Take(Op):
    """The slices of x at some places of an axis: operands x and whole numbers, attribute "axis".

    Places count from the end where they are negative. ConfigurationError if one is out of range.
    """

    name = "take"
    arity = (2, 2)
    attributes: ClassVar = {"axis": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, places = inputs
        _check_places("take", places)
        axis = axis_of(attrs["axis"], len(x.shape))
        return Spec((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]), x.dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x, places = site.inputs
        self._axis = axis_of(site.attrs["axis"], len(x.shape))
        self._length = x.dims[self._axis]
        self._flat = (math.prod(x.dims[: self._axis]), -1, math.prod(x.dims[self._axis + 1 :]))
        self._places = aligned_empty(places.dims, np.dtype(np.intp))
        self._y = site.empty()
        self._dx = site.like(0) if site.needs[0] else None

    def forward(self, run: Run, *inputs: Array) -> Array:
        _resolve(inputs[1], self._length, self._places)
        # mode="clip" lets it write to `out` at once; all places have been checked.
        return np.take(inputs[0], self._places, axis=self._axis, out=self._y, mode="clip")

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        assert dx is not None
        add_at(_split(dx, self._flat), self._places.reshape(-1), _split(dy, self._flat))
        return [dx, None]


def _split(x: Array, flat: tuple[int, int, int]) -> Array:
    """x with its axes before and behind one (or several) made one each."""
    before, _, behind = flat
    return x.reshape(before, x.size // max(before * behind, 1), behind)


def add_at(out_BVD: Array, places_N: Array, values_BND: Array) -> None:
    """In place. Write into `out` the sum of the values that belong to each place; zeros where none does.
    `values` are overwritten.

    The values of one place are added in pairs, pairs of pairs and so on, for all places at once: as many
    rounds as the most frequent has doublings, where `np.add.at` goes element by element. The order of the
    sums is that of the values, so the result depends on nothing else.
    """
    out_BVD[...] = 0
    count = len(places_N)
    if not count or not out_BVD.size:
        return
    keys = places_N * count + np.arange(count)  # all different, so that no sort can change their order
    keys.sort()
    place, at = np.divmod(keys, count)
    first = np.flatnonzero(np.diff(place, prepend=-1))
    rank = np.arange(count) - np.repeat(first, np.diff(first, append=count))
    stride, greatest = 1, int(rank.max())
    while stride <= greatest:
        right = np.flatnonzero(rank % (2 * stride) == stride)
        values_BND[:, at[right - stride]] += values_BND[:, at[right]]
        stride *= 2
    out_BVD[:, place[first]] = values_BND[:, at[first]]


@register
class TakeAlongAxis(Op):
    """For each of some whole numbers, x at that place of an axis: attribute "axis". The other axes of both
    operands are alike, or broadcast."""

    name = "take_along_axis"
    arity = (2, 2)
    attributes: ClassVar = {"axis": kinds.whole}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, places = inputs
        _check_places("take_along_axis", places)
        axis = axis_of(attrs["axis"], len(x.shape))
        others = [(*each.shape[:axis], *each.shape[axis + 1 :]) for each in inputs]
        if others[0] != others[1] or len(x.shape) != len(places.shape):
            raise ConfigurationError(
                f"take_along_axis: shapes {x.shape} and {places.shape} differ in more than axis {axis}"
            )
        return Spec(places.shape, x.dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x, places = site.inputs
        self._axis = axis_of(site.attrs["axis"], len(x.shape))
        self._length = x.dims[self._axis]
        self._places = aligned_empty(places.dims, np.dtype(np.intp))
        self._grid = list(np.ix_(*(np.arange(n) for n in places.dims)))
        self._grid[self._axis] = self._places
        self._y = site.empty()
        self._dx = site.like(0) if site.needs[0] else None

    def forward(self, run: Run, *inputs: Array) -> Array:
        _resolve(inputs[1], self._length, self._places)
        self._y[...] = inputs[0][tuple(self._grid)]
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._dx if into[0] is None else into[0]
        assert dx is not None
        dx[...] = 0
        np.add.at(dx, tuple(self._grid), dy)
        return [dx, None]


@register
class OneHot(Op):
    """1 at the place that a whole number gives along a new axis, else 0; all 0 where it is out of range.

    Attributes "num_classes", "axis" (its number in the result) and "dtype".
    """

    name = "one_hot"
    differentiable = False
    attributes: ClassVar = {"num_classes": kinds.whole, "axis": kinds.whole, "dtype": kinds.dtype}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, count = inputs[0], attrs["num_classes"]
        _check_places("one_hot", x)
        if count < 1:
            raise ConfigurationError(f"one_hot: {count} is no number of classes")
        shape = list(x.shape)
        shape.insert(axis_of(attrs["axis"], len(shape) + 1), count)
        return Spec(tuple(shape), np.dtype(attrs["dtype"]).name)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._axis = axis_of(site.attrs["axis"], self._y.ndim)
        shape = [1] * self._y.ndim
        shape[self._axis] = site.attrs["num_classes"]
        self._classes = np.arange(site.attrs["num_classes"], dtype=site.inputs[0].dtype).reshape(shape)

    def forward(self, run: Run, *inputs: Array) -> Array:
        np.equal(np.expand_dims(inputs[0], self._axis), self._classes, out=self._y, casting="unsafe")
        return self._y


def _check_places(op: str, places: Spec) -> None:
    if np.dtype(places.dtype).kind not in "iu":
        raise ConfigurationError(f"{op}: the places are {places.dtype}: give whole numbers")


def _resolve(places: Array, length: int, out: Array) -> None:
    """Write the places, counted from the start, into `out`. ConfigurationError if one is out of range."""
    if places.size:
        low, high = places.min(), places.max()
        if low < -length or high >= length:
            raise ConfigurationError(
                f"place {low if low < -length else high} is out of range for an axis of length {length}"
            )
    np.copyto(out, places, casting="unsafe")
    np.add(out, length, out=out, where=out < 0)


def getitem(x: Any, key: Any) -> Any:
    """x[key], for whole numbers, slices, None, Ellipsis, and tensors or lists of whole numbers.

    Of several tensors, all stand side by side and are broadcast, as in NumPy.
    """
    x = as_operand(x)
    keys = list(key) if isinstance(key, tuple) else [key]
    tensors = [i for i, each in enumerate(keys) if _is_tensor(each)]
    picking = [i for i, each in enumerate(keys) if i in tensors or _is_number(each)]
    if tensors and picking[-1] - picking[0] >= len(picking):
        raise ConfigurationError("index: tensors and numbers must stand side by side")
    simple = [slice(None) if i in tensors else each for i, each in enumerate(keys)]
    found = (
        x
        if all(each == slice(None) for each in simple)
        else apply("getitem", x, key=list(map(_json, simple)))
    )
    if not tensors:
        return found
    # The axis that a tensor indexes, after those before it have been taken away by numbers.
    ndim = len(x.spec.shape)
    left = ndim - sum(each is not None and each is not ... for each in keys)
    axes = []
    axis = 0
    for i, each in enumerate(keys):
        if i in tensors:
            axes.append(axis)
        axis += left if each is ... else 0 if _is_number(each) else 1
    return _gather(found, axes, [as_operand(_whole(keys[i])) for i in tensors])


def _gather(x: Any, axes: Sequence[int], places: Sequence[Any]) -> Any:
    """x at places along axes that stand side by side, as one `take` from those axes made flat."""
    if len(axes) == 1:
        return take(x, places[0], axes[0])
    shape = x.spec.shape
    if list(axes) != list(range(axes[0], axes[0] + len(axes))) or None in (shape[i] for i in axes[1:]):
        raise ConfigurationError(
            f"index: tensors at axes {list(axes)} of shape {shape}: give them side by side, and all but the "
            "first axis a known length"
        )
    flat: Any = None
    for axis, each in zip(axes, places, strict=True):
        length = shape[axis]
        if length is not None:
            each = where(less(each, 0), add(each, length), each)
        flat = each if flat is None else add(multiply(flat, length), each)
    inner = -1 if shape[axes[0]] is None else math.prod(shape[i] for i in axes)
    return take(reshape(x, (*shape[: axes[0]], inner, *shape[axes[-1] + 1 :])), flat, axes[0])


def _is_number(key: Any) -> bool:
    return isinstance(key, int | np.integer) and not isinstance(key, bool)


def _is_tensor(key: Any) -> bool:
    return isinstance(key, list | np.ndarray) or hasattr(key, "spec")


def _whole(key: Any) -> Any:
    spec = as_operand(key).spec
    if spec.dtype == "bool":
        raise ConfigurationError("index: a mask gives a shape that is not known: use nn.ops.where")
    return key


def _json(key: Any) -> Any:
    """A part of an index as a JSON value."""
    if key is None:
        return None
    if key is ...:
        return "..."
    if _is_number(key):
        return int(key)
    if isinstance(key, slice):
        ends = (key.start, key.stop, key.step)
        if all(end is None or _is_number(end) for end in ends):
            return [None if end is None else int(end) for end in ends]
    raise ConfigurationError(f"index: {key!r} is no whole number, slice, None, Ellipsis or tensor")


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """The slices of x at these places of an axis; of a flat x where none is given."""
    return apply("take", reshape(x, (-1,)) if axis is None else x, indices, axis=0 if axis is None else axis)


def take_along_axis(x: Any, indices: Any, axis: int | None = None) -> Any:
    """For each of `indices`, x at that place of an axis; of a flat x where none is given."""
    if axis is None:
        return apply("take_along_axis", reshape(x, (-1,)), reshape(indices, (-1,)), axis=0)
    return apply("take_along_axis", x, indices, axis=axis)


def one_hot(x: Any, num_classes: int, axis: int = -1, dtype: Any = FLOATX) -> Any:
    """1 at the place that x gives along a new axis, else 0; all 0 where x is out of range."""
    return apply("one_hot", x, num_classes=num_classes, axis=axis, dtype=np.dtype(dtype or FLOATX).name)
