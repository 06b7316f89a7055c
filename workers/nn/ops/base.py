"""What an operation is, and how one is applied.

An `Op` is one operation at one place: it knows the specs of its operands and owns the workspaces that it
computes in. An eager call makes one for itself; a program makes one for each node of its graph and uses it
step after step.

The registry is closed: a stored graph can name nothing else, and runs no stored code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.numerics import Array, aligned_empty, quiet
from workers.nn.tensor import FLOATX, KerasTensor, Spec, Symbol, Tensor
from workers.nn.variables import Variable, traced_graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.gradients import GradientTape
    from workers.nn.ops.attributes import Kind
    from workers.rng import Streams

OPS: dict[str, type[Op]] = {}
"""All operations by name."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where an operation works. All shapes are known."""

    attrs: Mapping[str, Any]
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    needs: tuple[bool, ...]
    """For each operand, whether its gradient is wanted; all are False where nothing is differentiated."""
    reused: bool = False
    """The same operation runs again and again, and nobody looks at its results after `backward`: then it may
    overwrite them. Else they are a user's."""

    def empty(self, output: int = 0) -> Array:
        """A workspace for an output."""
        spec = self.outputs[output]
        return self.workspace(spec.shape, spec.dtype)

    def like(self, operand: int) -> Array:
        """A workspace for an operand's gradient."""
        spec = self.inputs[operand]
        return self.workspace(spec.shape, spec.dtype)

    def workspace(self, shape: Sequence[int | None], dtype: str) -> Array:
        """An aligned array, uninitialised."""
        return aligned_empty(Spec(tuple(shape)).dims, np.dtype(dtype))


@dataclass(slots=True)
class Run:
    """What an operation may use beside its operands."""

    streams: Streams | None = None
    """Where random numbers come from; eager calls take new ones."""


class Op:
    """Base of the operations.

    A subclass gives `infer`, `forward` and, unless it is not `differentiable`, `backward`.

    - `forward` returns a workspace of its own, or a view of an operand (never the other way round: operands
      are not written). Several outputs are returned as a tuple.
    - `backward(dy, into)` gets the gradient of its output (a tuple of them, None for those that nothing
      depends on, if it has several), and may overwrite it. For each operand that `site.needs`, it returns
      an array that nobody else uses: where `into[i]` is an array, that one, written in full (so that a
      gradient lands where it is wanted without a copy); else a workspace of its own, or `dy` or a view of
      it, but that only for one operand. Others get None. It may keep arrays of its `forward` for it.
    - What a result holds depends on the operands alone, to the last bit.
    """

    name: ClassVar[str]
    differentiable: ClassVar[bool] = True
    arity: ClassVar[tuple[int, int]] = (1, 1)
    """The least and the largest number of operands."""
    attributes: ClassVar[Mapping[str, Kind]] = {}
    """All attributes, and what each has to be: a stored graph is read by it."""
    random: ClassVar[bool] = False
    """It draws from `run.streams`, by the number that is its attribute "stream"."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        """The outputs' specs; a dimension that is None stays so. ConfigurationError for what does not fit."""
        raise NotImplementedError

    def forward(self, run: Run, *inputs: Array) -> Array | tuple[Array, ...]:
        """Compute the output."""
        raise NotImplementedError

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        """Compute the gradients of the operands."""
        raise NotImplementedError


OpType = TypeVar("OpType", bound=type[Op])


def register(cls: OpType) -> OpType:
    """Decorator: put an operation into the registry."""
    assert cls.name not in OPS, cls.name
    OPS[cls.name] = cls
    return cls


def infer(name: str, attrs: Mapping[str, Any], inputs: Sequence[Spec]) -> tuple[Spec, ...]:
    """The specs of what an operation gives, always as a tuple."""
    found = OPS[name].infer(attrs, *inputs)
    return (found,) if isinstance(found, Spec) else found


@dataclass(slots=True)
class _Tapes:
    """The gradient tapes that are recording."""

    active: list[GradientTape] = field(default_factory=list)


tapes = _Tapes()


def apply(name: str, *operands: Any, **attrs: Any) -> Any:
    """Apply an operation to tensors, variables, arrays or numbers; `attrs` are JSON values.

    Gives a tensor of the kind of its operands (a tuple where it has several outputs): a value, or in a
    model that is traced or put together, what stands for it.
    """
    values = [as_operand(operand) for operand in operands]
    for value in values:
        if isinstance(value, Symbol):
            return value.builder.add(name, attrs, values)
    if (builder := traced_graph()) is not None and any(isinstance(value, Variable) for value in values):
        return builder.add(name, attrs, values)
    if any(isinstance(value, KerasTensor) for value in values):
        from workers.nn.functional import apply_to_keras_tensors

        return apply_to_keras_tensors(name, attrs, values)
    return _compute(name, attrs, values)


def _compute(name: str, attrs: Mapping[str, Any], values: Sequence[Tensor | Variable]) -> Any:
    cls = OPS[name]
    specs = tuple(value.spec for value in values)
    tape = cls.differentiable and any(tape.wants(values) for tape in tapes.active)
    needs = tuple(tape and spec.dtype in FLOATS for spec in specs)
    op = cls(Site(attrs, specs, infer(name, attrs, specs), needs))
    run = Run()
    if cls.random:
        from workers.nn.random import next_streams

        run.streams = next_streams()
    with quiet():
        found = op.forward(run, *(value.array for value in values))
    outputs = [Tensor(array) for array in (found if isinstance(found, tuple) else (found,))]
    if tape:
        for each in tapes.active:
            each.record(op, values, outputs)
    return tuple(outputs) if isinstance(found, tuple) else outputs[0]


MANY = 1 << 16
"""The largest number of operands or results of one operation."""

FLOATS = ("float32", "float64", "float16")
"""Names of the dtypes that gradients can have."""


def as_operand(value: Any) -> Any:
    """What has a spec as it is, an array as a tensor, numbers as a tensor of float32, int32 or bool."""
    if hasattr(value, "spec"):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return Tensor(np.asarray(value))
    array = np.asarray(value)
    return Tensor(array.astype(_PYTHON.get(array.dtype.name, array.dtype), copy=False))


_PYTHON = {"float64": FLOATX, "int64": "int32"}
"""What Python's numbers, which NumPy takes for 64 bits wide, become."""


def together(*operands: Any) -> list[Any]:
    """Operands of one dtype: numbers take that of the tensors, and of two dtypes the wider is taken.

    An integer and a float give that float's dtype; a bool takes any other; as in Keras.
    """
    weak = [type(operand) for operand in operands if type(operand) in (int, float)]
    operands = tuple(o if type(o) in (int, float) else as_operand(o) for o in operands)
    found = [operand.spec.dtype for operand in operands if hasattr(operand, "spec")]
    kinds = {np.dtype(dtype).kind for dtype in found}
    if float in weak and "f" not in kinds:
        found.append(FLOATX)
    elif int in weak and kinds <= {"b"}:
        found.append("int32")
    dtype = wider(found)
    return [as_dtype(operand, dtype) for operand in operands]


def wider(dtypes: Sequence[str]) -> str:
    """The dtype that values of all of these have together."""
    floats = [dtype for dtype in dtypes if np.dtype(dtype).kind == "f"]
    found = np.result_type(*(floats or dtypes))
    return FLOATX if found.kind == "f" and not floats else str(found.name)


def floating(x: Any) -> Any:
    """The operand, as float32 if it is not of a float dtype."""
    x = as_operand(x)
    return x if x.spec.dtype in FLOATS else as_dtype(x, FLOATX)


def as_dtype(operand: Any, dtype: str) -> Any:
    """The operand as a tensor of this dtype."""
    if not hasattr(operand, "spec"):
        return Tensor(np.asarray(operand, dtype))
    return operand if operand.spec.dtype == dtype else apply("cast", operand, dtype=dtype)


def same_dtype(*inputs: Spec) -> str:
    """The one dtype of the operands."""
    dtypes = {spec.dtype for spec in inputs}
    if len(dtypes) != 1:
        raise ConfigurationError(f"operands of dtypes {sorted(dtypes)}: cast them to one")
    return inputs[0].dtype


def broadcast(*shapes: Sequence[int | None]) -> tuple[int | None, ...]:
    """The shape that these have together by NumPy's rule; None goes with 1 and None, or the number beside
    it."""
    ndim = max(map(len, shapes))
    padded = [(1,) * (ndim - len(shape)) + tuple(shape) for shape in shapes]
    result: list[int | None] = []
    for dims in zip(*padded, strict=True):
        known = {n for n in dims if n not in (1, None)}
        if len(known) > 1:
            raise ConfigurationError(
                f"shapes {' and '.join(str(tuple(s)) for s in shapes)} do not go together"
            )
        result.append(known.pop() if known else None if None in dims else 1)
    return tuple(result)


def deliver(gradient: Array, into: Array | None) -> Array:
    """The gradient, where it is wanted."""
    if into is None:
        return gradient
    into[...] = gradient
    return into


def unbroadcast(gradient: Array, shape: Sequence[int | None], into: Array | None = None) -> Array:
    """The gradient of an operand of `shape` that was broadcast, from that of the result."""
    if gradient.shape == tuple(shape):
        return deliver(gradient, into)
    extra = gradient.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(shape) if n == 1 and gradient.shape[i + extra] != 1
    )
    if into is None:
        into = aligned_empty(tuple(shape), gradient.dtype)  # type: ignore[arg-type]  # all are known
    target = into.reshape((1,) * extra + into.shape)
    gradient.sum(axis=axes, keepdims=True, out=target)
    return into


def axis_of(axis: int, ndim: int) -> int:
    """The axis as a number from 0. ConfigurationError if it is out of range."""
    if not isinstance(axis, int) or not -ndim <= axis < ndim:
        raise ConfigurationError(f"axis {axis!r} is out of range for {ndim} axes")
    return axis % ndim


def axes_of(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The axes as numbers from 0, in order; None means all. ConfigurationError if one is out of range or
    given twice."""
    given = range(ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    found = sorted(axis_of(each, ndim) for each in given)
    if len(set(found)) != len(found):
        raise ConfigurationError(f"axes {tuple(given)} name one twice")
    return tuple(found)


def axes_attr(axis: Any) -> Any:
    """An argument "axis" as a JSON value."""
    return axis if axis is None or isinstance(axis, int) else [int(each) for each in axis]
