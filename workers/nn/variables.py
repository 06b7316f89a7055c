"""Variables: the named arrays that a model learns or keeps."""

from __future__ import annotations

import itertools
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.memory import ALIGNMENT
from workers.nn import initializers, random
from workers.nn.numerics import aligned_empty
from workers.nn.tensor import FLOATX, Spec, Tensor, _Arithmetic
from workers.rng import Purpose, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from workers.nn.graph import Builder
    from workers.nn.initializers import Initializer
    from workers.nn.numerics import Array


class _Scope(threading.local):
    """Which graph is being traced by this thread, if any."""

    builder: Builder | None = None


_scope = _Scope()


@contextmanager
def tracing(builder: Builder) -> Iterator[None]:
    """While it lasts, a variable that is assigned to becomes an assignment of this graph."""
    before, _scope.builder = _scope.builder, builder
    try:
        yield
    finally:
        _scope.builder = before


def traced_graph() -> Builder | None:
    """The graph that this thread traces, if it does."""
    return _scope.builder


_living: weakref.WeakValueDictionary[int, Variable] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def all_variables() -> list[Variable]:
    """The variables that are in use anywhere in this process, in the order in which they were made."""
    return [variable for _, variable in sorted(_living.items())]


class Variable(_Arithmetic):
    """An array with a name that operations read, optimizers update and checkpoints hold.

    Its initial value is drawn when it is first asked for. `path` is unique in a model: "dense/kernel".
    `trainable` may change; `trainable_in_principle` tells how it was made. `is_given` says that the value
    is not what was drawn.
    """

    def __init__(
        self,
        initializer: str | Initializer | ArrayLike | Callable[..., Any],
        shape: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        trainable: bool = True,
        name: str = "variable",
        *,
        regularizer: Any = None,
        constraint: Any = None,
    ) -> None:
        self._array: Array | None = None
        self._is_bound = False  # to memory that others know
        self._initializer: Any = None
        self._streams: Streams | None = None  # that the initial value will be drawn from
        if shape is None:
            array = np.asarray(initializer)
            if dtype is None:
                dtype = FLOATX if array.dtype.kind == "f" else array.dtype
            self._array = _aligned(array, np.dtype(dtype))
            shape = array.shape
        else:
            self._initializer = initializers.get(initializer)
            self._streams = random.next_streams(Purpose.INIT)
        self.spec = Spec(tuple(int(n) for n in shape), np.dtype(dtype or FLOATX).name)
        self.name = name
        self.path = name
        self.trainable = trainable
        self.trainable_in_principle = trainable
        self.is_given = self._array is not None
        self.regularizer = regularizer
        self.constraint = constraint
        self.learning_rate_multiplier = 1.0
        _living[next(_numbers)] = self

    @property
    def initializer(self) -> Initializer | None:
        """What draws the initial value; None if that was given as an array."""
        found: Initializer | None = self._initializer
        return found

    @property
    def array(self) -> Array:
        """The value. Do not change it: `assign` does."""
        if self._array is None:
            assert self._streams is not None
            values = self._initializer(self.spec.shape, self._streams.generator())
            self._array = _aligned(values, np.dtype(self.spec.dtype))
        return self._array

    @property
    def value(self) -> Tensor:
        """The value as a tensor."""
        return Tensor(self.array)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.spec.dims, dtype=np.int64))

    def numpy(self) -> Array:
        """The value as an array."""
        return self.array

    def assign(self, value: Any) -> None:
        """In place. Give it a value of the same shape.

        While a model is traced for training, the value becomes the variable's after the step; where a batch
        is cut into several microbatches, the mean of what they assign.
        """
        if _scope.builder is not None:
            _scope.builder.assign(self, value)
            return
        self.restore(value)

    def restore(self, value: Any) -> None:
        """In place. Give it a value of the same shape at once, also while a model is traced."""
        array = np.asarray(value)
        if array.shape != self.spec.shape:
            raise ConfigurationError(
                f"variable {self.path!r} has shape {self.spec.shape}, and was assigned {array.shape}"
            )
        if self._array is None:
            self._array = aligned_empty(array.shape, np.dtype(self.spec.dtype))
        np.copyto(self._array, array, casting="unsafe")
        self.is_given = True

    def adopt(self, array: Array) -> None:
        """In place. `restore` a value that nobody else has: it is not copied, unless memory is bound."""
        fits = array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT == 0
        fits = fits and array.shape == self.spec.shape and array.dtype.name == self.spec.dtype
        if fits and not self._is_bound:
            self._array = array
            self.is_given = True
        else:
            self.restore(array)

    def assign_add(self, value: Any) -> None:
        """In place. Add to it."""
        self.assign(self + value)

    def assign_sub(self, value: Any) -> None:
        """In place. Subtract from it."""
        self.assign(self - value)

    def bind(self, array: Array) -> None:
        """In place. Have the value lie in this array, and take what is there."""
        assert array.shape == self.spec.shape, (self.path, array.shape, self.spec.shape)
        self._array = array
        self._is_bound = True
        self.is_given = True

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.array, dtype, copy=copy)

    def __float__(self) -> float:
        return float(self.array)

    def __int__(self) -> int:
        return int(self.array)

    def __repr__(self) -> str:
        return f"<Variable path={self.path}, shape={self.spec.shape}, dtype={self.spec.dtype}>"


def _aligned(array: ArrayLike, dtype: np.dtype[Any]) -> Array:
    values = np.asarray(array)
    copy = aligned_empty(values.shape, dtype)
    np.copyto(copy, values, casting="unsafe")
    return copy
