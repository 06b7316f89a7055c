"""Rows of a table by their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.numerics import aligned_empty
from workers.nn.ops.base import Op, Run, Site, apply, register
from workers.nn.ops.indexing import add_at
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


@register
class Embedding(Op):
    """table[x], for whole numbers x (...) and a table (V, D)."""

    name = "embedding"
    arity = (2, 2)

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, table = inputs
        if np.dtype(x.dtype).kind not in "iu":
            raise ConfigurationError(f"embedding: the numbers of rows are {x.dtype}: give whole numbers")
        return Spec((*x.shape, table.shape[1]), table.dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._x = np.empty(0, np.int64)  # of the last forward, flat

    def forward(self, run: Run, *inputs: Array) -> Array:
        x, table = inputs
        rows = len(table)
        if x.size and not (int(x.min()) >= 0 and int(x.max()) < rows):
            wrong = int(x.min()) if x.min() < 0 else int(x.max())
            raise ConfigurationError(
                f"embedding: there is no row {wrong}: the table has {rows}, numbered 0 to {rows - 1}; "
                "set input_dim to the greatest number plus 1"
            )
        self._x = x.reshape(-1).astype(np.int64)
        np.take(table, x, axis=0, out=self._y, mode="clip")  # "raise" would copy the result once more
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        gradient = into[1]
        if gradient is None:
            spec = self.site.inputs[1]
            gradient = aligned_empty(spec.dims, np.dtype(spec.dtype))
        add_at(gradient[None], self._x, dy.reshape(1, self._x.size, gradient.shape[1]))
        return [None, gradient]


def embedding(x: Any, table: Any) -> Any:
    """Row x of the table, for each element of x."""
    return apply("embedding", x, table)
