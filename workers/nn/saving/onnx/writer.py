"""The nodes of an ONNX graph in the making."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from workers.nn.tensor import FLOATX, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from workers.nn.numerics import Array


@dataclass(frozen=True, slots=True)
class Operand:
    """A value of the graph that is written: its name there, and what is known of it."""

    name: str
    spec: Spec

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.spec.shape)


Given: TypeAlias = "Operand | str | Array | float | None"
"""What a node can take: a value, an array or a number as a constant, or None in the place of an input that is
left out."""


_SMALL_NBYTES = 4096


class Refused(Exception):
    """An operation, as it is used here, has no counterpart in ONNX; the message says why."""


class Writer:
    """Nodes in their order, and the initializers that they share; `label` begins the names of nodes."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.label = ""
        self._constants: dict[tuple[Any, ...], str] = {}
        self._taken: set[str] = set()
        self._count = 0

    def __call__(self, op: str, *operands: Given, dtype: str = FLOATX, **attrs: Any) -> str:
        """In place. One more node with one output, whose name it gives; numbers are constants of `dtype`."""
        return self.several(op, 1, *operands, dtype=dtype, **attrs)[0]

    def several(self, op: str, count: int, *operands: Given, dtype: str = FLOATX, **attrs: Any) -> list[str]:
        """In place. One more node with so many outputs, whose names it gives."""
        from onnx import helper

        inputs = [self.named(operand, dtype) for operand in operands]
        outputs = [self.fresh(op.lower()) for _ in range(count)]
        self.add(helper.make_node(op, inputs, outputs, **attrs))
        return outputs

    def add(self, node: Any) -> None:
        """In place. Name a node and put it behind the others."""
        self._count += 1
        stem = f"{self.label}/{node.op_type}" if self.label else node.op_type
        node.name = f"{stem}_{self._count}"
        self.nodes.append(node)

    def named(self, operand: Given, dtype: str = FLOATX) -> str:
        """In place. The name of what a node takes."""
        if operand is None:
            return ""
        if isinstance(operand, str):
            return operand
        if isinstance(operand, Operand):
            return operand.name
        return self.constant(operand if isinstance(operand, np.ndarray) else np.asarray(operand, dtype))

    def constant(self, array: Array) -> str:
        """In place. The name of a constant; equal ones are stored once, if they are small."""
        if array.nbytes > _SMALL_NBYTES:
            return self.initializer(self.fresh("constant"), array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(self.fresh("constant"), array)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """In place. The name of a constant list of whole numbers, as shapes and axes are given."""
        return self.constant(np.asarray(values, np.int64))

    def initializer(self, name: str, array: Array) -> str:
        """In place. Store an array under this name, or one made from it if that is taken; gives the name."""
        from onnx import numpy_helper

        name = self.reserve(name)
        self.initializers[name] = numpy_helper.from_array(
            np.ascontiguousarray(array).reshape(array.shape), name
        )
        return name

    def reserve(self, name: str) -> str:
        """In place. The name, or where it is taken, the name with a number."""
        found, i = name, 1
        while found in self._taken:
            found, i = f"{name}_{i}", i + 1
        self._taken.add(found)
        return found

    def fresh(self, stem: str) -> str:
        """In place. A name that nothing else has."""
        return self.reserve(f"{stem}_{len(self._taken)}")

    @contextmanager
    def body(self) -> Iterator[list[Any]]:
        """Nodes that are written meanwhile go into the list that this gives: the body of another node."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer

    def shape_of(self, x: Operand, dims: Sequence[int] | None = None) -> str:
        """In place. A list of x's lengths, or of those of some axes, computed where they are not known."""
        axes = range(x.ndim) if dims is None else dims
        parts = []
        for i in axes:
            n = x.spec.shape[i]
            parts.append(self.ints(n) if n is not None else self("Shape", x, start=i, end=i + 1))
        return self("Concat", *parts, axis=0) if parts else self.ints()


def scalar_type(dtype: str) -> int:
    """ONNX's number of a dtype."""
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
