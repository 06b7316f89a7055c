"""New tensors, and tensors as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, as_dtype, as_operand, register
from workers.nn.tensor import FLOATX, Spec, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.nn.numerics import Array


@register
class FullLike(Op):
    """A tensor of the operand's shape, all of it the attribute "value", of "dtype"."""

    name = "full_like"
    differentiable = False
    attributes: ClassVar = {"value": kinds.either(kinds.number, kinds.flag), "dtype": kinds.dtype}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return Spec(inputs[0].shape, np.dtype(attrs["dtype"]).name)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._y[...] = site.attrs["value"]

    def forward(self, run: Run, *inputs: Array) -> Array:
        return self._y


def full_like(x: Any, fill_value: Any, dtype: Any = None) -> Any:
    """A tensor of the shape of x, all of it one number; of the dtype of x where none is given."""
    x = as_operand(x)
    name = x.spec.dtype if dtype is None else np.dtype(dtype).name
    if not isinstance(fill_value, int | float):
        raise ConfigurationError(f"full_like: the value must be a number, not {type(fill_value).__name__}")
    return apply("full_like", x, value=fill_value, dtype=name)


def zeros_like(x: Any, dtype: Any = None) -> Any:
    """Zeros of the shape of x."""
    return full_like(x, 0, dtype)


def ones_like(x: Any, dtype: Any = None) -> Any:
    """Ones of the shape of x."""
    return full_like(x, 1, dtype)


def full(shape: Any, fill_value: Any, dtype: Any = None) -> Tensor:
    """A tensor of this shape, all of it one number."""
    dims = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(n is None for n in dims):
        raise ConfigurationError(
            f"shape {dims}: the number of samples is not known: use full_like or zeros_like"
        )
    return Tensor(np.full(dims, fill_value, np.dtype(dtype or FLOATX)))


def zeros(shape: Any, dtype: Any = None) -> Tensor:
    """Zeros of this shape."""
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = None) -> Tensor:
    """Ones of this shape."""
    return full(shape, 1, dtype)


def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = None) -> Tensor:
    """A matrix with ones where the column's number is k larger than the row's, else zeros."""
    return Tensor(np.eye(N, M, k, dtype=np.dtype(dtype or FLOATX)))


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Tensor:
    """Numbers from `start` (0 where `stop` is not given) up to `stop`, which is not among them."""
    if None in (start, step) or hasattr(start, "spec") or hasattr(stop, "spec"):
        raise ConfigurationError("arange: give numbers: how many there are must be known beforehand")
    if stop is None:
        start, stop = 0, start
    if dtype is None:
        dtype = "int32" if all(isinstance(n, int | np.integer) for n in (start, stop, step)) else FLOATX
    return Tensor(np.arange(start, stop, step).astype(dtype))


def shape(x: Any) -> tuple[int | None, ...]:
    """The shape of x; in a graph, None is the number of samples."""
    found: tuple[int | None, ...] = as_operand(x).spec.shape
    return found


def convert_to_tensor(x: Any, dtype: Any = None) -> Any:
    """x as a tensor: numbers become float32, int32 or bool, and arrays keep their dtype."""
    found = as_operand(x)
    return found if dtype is None else as_dtype(found, np.dtype(dtype).name)


def convert_to_numpy(x: Any) -> Array:
    """The value of x as an array."""
    return np.asarray(x)
