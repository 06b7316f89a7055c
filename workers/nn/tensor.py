"""Tensors, and what is known of one before it has a value.

There are three kinds, which all operations of `workers.nn.ops` take and give: a `Tensor` holds a NumPy
array; a `Symbol` stands for a value of a graph that is being traced; a `KerasTensor` stands for what a
layer will give, while a functional model is put together. `workers.nn.ops.base.apply` tells them apart.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike

    from workers.nn.graph import Builder
    from workers.nn.numerics import Array

Dims: TypeAlias = tuple[int | None, ...]
"""A shape; None is a number of samples that is not known yet."""

FLOATX = "float32"
"""The dtype of weights and of Python floats."""

_PACKAGE = str(Path(__file__).parent)


class Untraceable(ConfigurationError):
    """Python code asked a graph for a value, which it has only when it runs."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of a tensor."""

    shape: Dims
    dtype: str = FLOATX

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape, where all of it is known."""
        assert None not in self.shape, f"{self.shape} is not known"
        return tuple(n for n in self.shape if n is not None)

    def with_rows(self, rows: int) -> Spec:
        """With `rows` in the place of what is not known."""
        return Spec(tuple(rows if n is None else n for n in self.shape), self.dtype)


class _Arithmetic:
    """Python's operators, as operations."""

    __slots__ = ()
    __array_priority__ = 1000  # so that NumPy leaves `array + tensor` to the tensor
    __array_ufunc__ = None

    spec: Spec

    @property
    def shape(self) -> Dims:
        """The shape; None is a number of samples that is not known yet."""
        return self.spec.shape

    @property
    def dtype(self) -> str:
        """The element type's name."""
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.spec.shape)

    def __add__(self, other: object) -> Any:
        return _ops().add(self, other)

    def __radd__(self, other: object) -> Any:
        return _ops().add(other, self)

    def __sub__(self, other: object) -> Any:
        return _ops().subtract(self, other)

    def __rsub__(self, other: object) -> Any:
        return _ops().subtract(other, self)

    def __mul__(self, other: object) -> Any:
        return _ops().multiply(self, other)

    def __rmul__(self, other: object) -> Any:
        return _ops().multiply(other, self)

    def __truediv__(self, other: object) -> Any:
        return _ops().divide(self, other)

    def __rtruediv__(self, other: object) -> Any:
        return _ops().divide(other, self)

    def __floordiv__(self, other: object) -> Any:
        return _ops().floor_divide(self, other)

    def __mod__(self, other: object) -> Any:
        return _ops().mod(self, other)

    def __pow__(self, other: object) -> Any:
        return _ops().power(self, other)

    def __rpow__(self, other: object) -> Any:
        return _ops().power(other, self)

    def __matmul__(self, other: object) -> Any:
        return _ops().matmul(self, other)

    def __rmatmul__(self, other: object) -> Any:
        return _ops().matmul(other, self)

    def __neg__(self) -> Any:
        return _ops().negative(self)

    def __abs__(self) -> Any:
        return _ops().absolute(self)

    def __lt__(self, other: object) -> Any:
        return _ops().less(self, other)

    def __le__(self, other: object) -> Any:
        return _ops().less_equal(self, other)

    def __gt__(self, other: object) -> Any:
        return _ops().greater(self, other)

    def __ge__(self, other: object) -> Any:
        return _ops().greater_equal(self, other)

    def __eq__(self, other: object) -> Any:
        return _ops().equal(self, other)

    def __ne__(self, other: object) -> Any:
        return _ops().not_equal(self, other)

    def __and__(self, other: object) -> Any:
        return _ops().logical_and(self, other)

    def __or__(self, other: object) -> Any:
        return _ops().logical_or(self, other)

    def __invert__(self) -> Any:
        return _ops().logical_not(self)

    def __getitem__(self, key: Any) -> Any:
        return _ops().getitem(self, key)

    __hash__ = object.__hash__


class Tensor(_Arithmetic):
    """An array that operations and gradient tapes know. Do not change the array."""

    __slots__ = ("__weakref__", "array", "mask", "spec")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.spec = Spec(array.shape, array.dtype.name)
        self.mask: Tensor | None = None  # of places that count, where a layer gave one

    def numpy(self) -> Array:
        """The array."""
        return self.array

    def item(self) -> Any:
        """The one element, as a Python number."""
        return self.array.item()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.array, dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self.array)))

    def __bool__(self) -> bool:
        return bool(self.array)

    def __float__(self) -> float:
        return float(self.array)

    def __int__(self) -> int:
        return int(self.array)

    def __index__(self) -> int:
        return self.array.__index__()

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, dtype={self.dtype}, numpy={self.array!r})"


class _WithoutValue(_Arithmetic):
    """What has no value yet, and says so when it is asked for one."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> Any:
        raise Untraceable(
            f"{_users_line()}: this needs the value of {self!r}, which a model has only when it runs: a "
            "layer is traced once, for all data; use nn.ops.where instead of a Python branch, and nn.ops "
            "instead of NumPy"
        )

    __array__ = __bool__ = __float__ = __int__ = __index__ = numpy = item = _refuse

    def __len__(self) -> int:
        n = self.spec.shape[0] if self.spec.shape else None
        return self._refuse() if n is None else n

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"a tensor of shape {self.spec.shape}, {self.spec.dtype}"


class Symbol(_WithoutValue):
    """Value number `value` of the graph that `builder` traces."""

    __slots__ = ("builder", "mask", "spec", "value")

    def __init__(self, builder: Builder, value: int, spec: Spec) -> None:
        self.builder = builder
        self.value = value
        self.spec = spec
        self.mask: Symbol | None = None  # of places that count, where a layer gave one


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Where a functional model's tensor comes from: output `tensor` of call number `node` of a layer."""

    layer: Any
    node: int
    tensor: int


class KerasTensor(_WithoutValue):
    """What a layer will give, in a functional model."""

    __slots__ = ("history", "name", "spec")

    def __init__(self, spec: Spec, history: History | None = None, name: str | None = None) -> None:
        self.spec = spec
        self.history = history
        self.name = name

    def __repr__(self) -> str:
        return f"<KerasTensor shape={self.spec.shape}, dtype={self.spec.dtype}, name={self.name}>"


def map_structure(function: Any, structure: Any) -> Any:
    """`structure` of tuples, lists and dicts with `function` of each leaf in its place; None stays."""
    if structure is None:
        return None
    if isinstance(structure, dict):
        return {key: map_structure(function, item) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        items = [map_structure(function, item) for item in structure]
        return tuple(items) if isinstance(structure, tuple) else items
    return function(structure)


def leaves(structure: Any) -> list[Any]:
    """The leaves of a structure of tuples, lists and dicts, in order; None is none."""
    found: list[Any] = []
    map_structure(found.append, structure)
    return found


def _users_line() -> str:
    """The line of the user's code that is at work."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"


def _ops() -> Any:
    from workers.nn import ops

    return ops
