"""Layers that make one tensor of several, and functions of the same name in lower case."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, Any

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Merge(Layer):
    """Base: a function of two or more tensors, element by element; axes are put in behind the samples where
    one has fewer. A place counts in the output if it counts in one of the inputs."""

    supports_masking = True
    exactly_two = False

    def merge(self, tensors: list[Any]) -> Any:
        """One tensor of several with the same number of axes."""
        raise NotImplementedError

    def call(self, inputs: Sequence[Any]) -> Any:
        """The inputs as one."""
        tensors = self._checked(inputs)
        ndim = max(tensor.ndim for tensor in tensors)
        return self.merge([self._with_axes(tensor, ndim - tensor.ndim) for tensor in tensors])

    def _checked(self, inputs: Any) -> list[Any]:
        kind = type(self).__name__
        check(
            isinstance(inputs, list | tuple),
            f"{kind}: call it on a list of tensors, such as {kind}()([a, b])",
        )
        if self.exactly_two:
            check(len(inputs) == 2, f"{kind}: give 2 tensors, not {len(inputs)}")
        check(len(inputs) > 0, f"{kind}: give at least one tensor")
        return list(inputs)

    @staticmethod
    def _with_axes(tensor: Any, count: int) -> Any:
        return ops.expand_dims(tensor, list(range(1, 1 + count))) if count else tensor

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Where one of the inputs counts; None if one has no mask."""
        if mask is None or any(each is None for each in mask):
            return None
        return reduce(ops.logical_or, mask)


class Add(_Merge):
    """The sum of tensors."""

    def merge(self, tensors: list[Any]) -> Any:
        """The sum."""
        return reduce(ops.add, tensors)


class Subtract(_Merge):
    """The first of two tensors without the second."""

    exactly_two = True

    def merge(self, tensors: list[Any]) -> Any:
        """The difference."""
        return ops.subtract(*tensors)


class Multiply(_Merge):
    """The product of tensors."""

    def merge(self, tensors: list[Any]) -> Any:
        """The product."""
        return reduce(ops.multiply, tensors)


class Average(_Merge):
    """The mean of tensors."""

    def merge(self, tensors: list[Any]) -> Any:
        """The mean."""
        return reduce(ops.add, tensors) / len(tensors)


class Maximum(_Merge):
    """The largest of tensors, element by element."""

    def merge(self, tensors: list[Any]) -> Any:
        """The largest."""
        return reduce(ops.maximum, tensors)


class Minimum(_Merge):
    """The smallest of tensors, element by element."""

    def merge(self, tensors: list[Any]) -> Any:
        """The smallest."""
        return reduce(ops.minimum, tensors)


class Concatenate(_Merge):
    """Tensors one behind the other along an axis; all other axes are alike."""

    def __init__(self, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis

    def call(self, inputs: Sequence[Any]) -> Any:
        """The inputs as one."""
        return ops.concatenate(self._checked(inputs), axis=self.axis)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The masks one behind the other, or where all count if the axis is not that of the masks."""
        if mask is None or all(each is None for each in mask):
            return None
        axis = self.axis % inputs[0].ndim
        masks = [
            ops.ones_like(x[..., 0], "bool") if own is None else own
            for x, own in zip(inputs, mask, strict=True)
        ]
        if axis < masks[0].ndim:
            return ops.concatenate(masks, axis=axis)
        return reduce(ops.logical_and, masks)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"axis": self.axis}


class Dot(_Merge):
    """The products of two tensors, summed along one axis of each; `normalize` makes them cosines."""

    exactly_two = True

    def __init__(self, axes: int | Sequence[int], normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pair = (axes, axes) if isinstance(axes, int) else tuple(axes)
        check(
            len(pair) == 2 and 0 not in pair,
            f"Dot: axes must be a number, or two, and not 0, the samples' axis; not {axes!r}",
        )
        self.axes = axes
        self.normalize = bool(normalize)

    def call(self, inputs: Sequence[Any]) -> Any:
        """The products: (samples, the first's other axes, the second's other axes)."""
        first, second = self._checked(inputs)
        axes = (self.axes, self.axes) if isinstance(self.axes, int) else self.axes
        (a, a_rest), (b, b_rest) = self._matrix(first, axes[0]), self._matrix(second, axes[1])
        product = ops.matmul(a, ops.swapaxes(b, 1, 2))
        return ops.reshape(product, (-1, *((*a_rest, *b_rest) or (1,))))

    def _matrix(self, x: Any, axis: int) -> tuple[Any, tuple[int, ...]]:
        """x as (samples, all other axes, the axis), and the lengths of the other axes."""
        x = ops.moveaxis(x, axis, -1)
        rest, length = x.shape[1:-1], x.shape[-1]
        matrix = ops.expand_dims(x, 1) if not rest else ops.reshape(x, (-1, math.prod(rest), length))
        if self.normalize:
            squares = ops.sum(ops.square(matrix), axis=-1, keepdims=True)
            matrix = matrix * ops.rsqrt(ops.maximum(squares, 1e-12))
        return matrix, rest

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """None."""
        return None

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        axes = self.axes if isinstance(self.axes, int) else list(self.axes)
        return super().get_config() | {"axes": axes, "normalize": self.normalize}


def add(inputs: Sequence[Any], **kwargs: Any) -> Any:
    """`Add` applied."""
    return Add(**kwargs)(inputs)


def subtract(inputs: Sequence[Any], **kwargs: Any) -> Any:
    """`Subtract` applied."""
    return Subtract(**kwargs)(inputs)


def multiply(inputs: Sequence[Any], **kwargs: Any) -> Any:
    """`Multiply` applied."""
    return Multiply(**kwargs)(inputs)


def average(inputs: Sequence[Any], **kwargs: Any) -> Any:
    """`Average` applied."""
    return Average(**kwargs)(inputs)


def maximum(inputs: Sequence[Any], **kwargs: Any) -> Any:
    """`Maximum` applied."""
    return Maximum(**kwargs)(inputs)


def minimum(inputs: Sequence[Any], **kwargs: Any) -> Any:
    """`Minimum` applied."""
    return Minimum(**kwargs)(inputs)


def concatenate(inputs: Sequence[Any], axis: int = -1, **kwargs: Any) -> Any:
    """`Concatenate` applied."""
    return Concatenate(axis, **kwargs)(inputs)


def dot(inputs: Sequence[Any], axes: int | Sequence[int], normalize: bool = False, **kwargs: Any) -> Any:
    """`Dot` applied."""
    return Dot(axes, normalize, **kwargs)(inputs)
