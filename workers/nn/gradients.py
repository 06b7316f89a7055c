"""`GradientTape`: gradients of what was computed eagerly, as in TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.numerics import quiet
from workers.nn.ops.base import tapes
from workers.nn.tensor import Tensor, leaves, map_structure
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from workers.nn.numerics import Array
    from workers.nn.ops.base import Op


class GradientTape:
    """Records operations on trainable variables and watched tensors; `gradient` runs them backwards.

        with nn.GradientTape() as tape: loss = loss_fn(y, model(x, training=True)) gradients =
        tape.gradient(loss, model.trainable_variables)

    A tape that is not `persistent` gives gradients once. Gradients are arrays, not recorded in turn: there
    are no second derivatives.
    """

    def __init__(self, persistent: bool = False, watch_accessed_variables: bool = True) -> None:
        self._persistent = persistent
        self._watches_variables = watch_accessed_variables
        self._records: list[tuple[Op, Sequence[Any], Sequence[Tensor]]] = []
        self._live: dict[int, Any] = {}  # watched, or computed from what is; kept, so that ids stay theirs
        self._used = False

    def __enter__(self) -> GradientTape:
        tapes.active.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tapes.active.remove(self)

    def watch(self, tensor: Any) -> None:
        """In place. Record what is computed from these tensors or variables."""
        for each in leaves(tensor):
            self._live[id(each)] = each

    def wants(self, operands: Sequence[Any]) -> bool:
        """Whether an operation on these is to be recorded."""
        return any(
            id(each) in self._live
            or (self._watches_variables and isinstance(each, Variable) and each.trainable)
            for each in operands
        )

    def record(self, op: Op, operands: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        """In place. Keep an operation that was done, if it is wanted."""
        if self.wants(operands):
            self._records.append((op, operands, outputs))
            self._live.update((id(each), each) for each in outputs)

    def gradient(self, target: Any, sources: Any, output_gradients: Any = None) -> Any:
        """The gradients of the sum of `target`'s elements by each of `sources`, as tensors in their
        structure.

        None where `target` does not depend on a source. Raises ConfigurationError on a second call of a
        tape that is not persistent.
        """
        if self._used and not self._persistent:
            raise ConfigurationError(
                "this tape has given its gradients: make it with persistent=True to ask again"
            )
        self._used = True
        found: dict[int, Array] = {}
        for tensor, given in zip(
            leaves(target), leaves(output_gradients) or [None] * len(leaves(target)), strict=True
        ):
            start = np.ones(tensor.shape, tensor.dtype) if given is None else np.array(given, tensor.dtype)
            _accumulate(found, tensor, start)
        wanted = {id(source) for source in leaves(sources)}
        for op, operands, outputs in reversed(self._records):
            dys = [found.get(id(output)) for output in outputs]
            if all(dy is None for dy in dys):
                continue
            dys = [
                dy.copy() if dy is not None and id(output) in wanted else dy
                for dy, output in zip(dys, outputs, strict=True)
            ]
            with quiet():
                gradients = op.backward(dys[0] if len(dys) == 1 else tuple(dys), [None] * len(operands))
            for operand, gradient in zip(operands, gradients, strict=True):
                if gradient is not None:
                    _accumulate(found, operand, gradient)
        # An operation's workspace, which the next call of a persistent tape would overwrite.
        own = np.copy if self._persistent else np.asarray
        return map_structure(
            lambda source: Tensor(own(found[id(source)])) if id(source) in found else None, sources
        )


def _accumulate(found: dict[int, Array], operand: Any, gradient: Array) -> None:
    if id(operand) in found:
        found[id(operand)] = found[id(operand)] + gradient
    else:
        found[id(operand)] = gradient
