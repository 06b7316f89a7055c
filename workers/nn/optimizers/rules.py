"""An optimizer for one model: what is done to an element may depend on the variable it belongs to."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.lookup import check
from workers.nn.optimizers.base import Optimizer, rule_of
from workers.nn.optimizers.flat import Rule
from workers.updates import keep

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from storage.layout import Layout
    from workers.engine import Flat
    from workers.nn.variables import Variable


@dataclass(frozen=True, slots=True)
class _Range:
    """Elements to which one rule applies, as one variable or several that are neighbours."""

    start: int
    stop: int
    rule: Rule
    is_whole: bool = False
    """It may not be cut."""


class ModelOptimizer:
    """`workers.engine.Optimizer` of the optimizer's arithmetic and the rules of a model's variables.

    Elements between variables are not touched, or stay zero.
    """

    def __init__(self, optimizer: Optimizer, ranges: Sequence[_Range]) -> None:
        self._optimizer = optimizer
        self._ranges = tuple(ranges)
        self._starts = [each.start for each in ranges]
        self._num_groups = 1 + max((each.rule.group for each in ranges), default=0)
        self.whole = tuple((each.start, each.stop) for each in ranges if each.is_whole)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state arrays kept beside the parameters."""
        return self._optimizer.slots

    @property
    def measures(self) -> bool:
        """Whether norms of the gradient have to be known."""
        return self._optimizer.measures

    def measure(self, step: int, start: int, slots: Sequence[Flat], grad: Flat) -> NDArray[np.float64]:
        """The sums of squares in a piece of the gradient: one for all variables, or one for each."""
        sums = np.zeros(self._num_groups)
        for each, piece in self._pieces(start, len(grad)):
            if each.rule.trainable:
                parts = [slot[piece] for slot in slots]
                sums[each.rule.group] += self._optimizer.squares(step, parts, grad[piece])
        return sums

    def update(
        self,
        step: int,
        start: int,
        params: Flat,
        slots: Sequence[Flat],
        grad: Flat,
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
        sums: NDArray[np.float64] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the state after step `step` (counted from 0) into `new_params` and `new_slots`."""
        for each, piece in self._pieces(start, len(params)):
            rule, length = each.rule, piece.stop - piece.start
            assert not each.is_whole or length == each.stop - each.start, f"{piece} from {start} cuts {each}"
            old = [slot[piece] for slot in slots]
            new = [slot[piece] for slot in new_slots]
            if rule.trainable:
                self._optimizer.update_piece(
                    rule,
                    step,
                    params[piece],
                    old,
                    grad[piece],
                    new_params[piece],
                    new,
                    scratch[piece],
                    sums=sums,
                    knobs=knobs,
                )
                continue
            keep((grad[piece] if rule.assigned else params[piece], *old), (new_params[piece], *new))

    def get_config(self) -> dict[str, Any]:
        """The optimizer's settings as JSON values."""
        return self._optimizer.get_config()

    def _pieces(self, start: int, length: int) -> Iterator[tuple[_Range, slice]]:
        """The parts of a piece of the buffers to which one rule applies, as slices of the piece."""
        stop = start + length
        for i in range(max(0, bisect_right(self._starts, start) - 1), len(self._ranges)):
            each = self._ranges[i]
            if each.start >= stop:
                return
            low, high = max(each.start, start), min(each.stop, stop)
            if low < high:
                yield each, slice(low - start, high - start)


def for_model(
    optimizer: Optimizer,
    layout: Layout,
    variables: Sequence[Variable] | None = None,
    assigned: Collection[int] = (),
) -> ModelOptimizer:
    """The optimizer of a model whose variables lie as `layout` says.

    `variables` are those of the layout, in its order; without them it knows names and which are trainable.
    Their settings are taken as they are now. `assigned` are the places of those that a step assigns to: the
    mean gradient is their new value.
    """
    check(
        variables is None or len(variables) == len(layout.variables),
        f"for_model: {len(variables or ())} variables for a layout of {len(layout.variables)}",
    )
    merges = optimizer.keeps_zeros and not optimizer.needs_whole_variables
    ranges: list[_Range] = []
    group = 0
    for i, place in enumerate(layout.variables):
        if place.size == 0:
            continue
        variable = None if variables is None else variables[i]
        trainable = place.trainable if variable is None else variable.trainable
        if i in assigned or not trainable:
            rule = Rule(trainable=False, assigned=i in assigned)
        elif variable is None:
            rule = Rule(decays=optimizer.decays(place.name), group=group)
        else:
            rule = rule_of(optimizer, variable, group)
        constrains = rule.constraint is not None
        is_whole = rule.trainable and (
            optimizer.needs_whole_variables
            or (constrains and not getattr(rule.constraint, "is_elementwise", False))
        )
        if constrains and not is_whole:
            rule = replace(rule, shape=(-1,))
        if rule.trainable and optimizer.clipnorm is not None:
            group += 1
        last = ranges[-1] if ranges else None
        if merges and last is not None and last.rule == rule and not is_whole:
            ranges[-1] = replace(last, stop=place.offset + place.size)
        else:
            ranges.append(_Range(place.offset, place.offset + place.size, rule, is_whole))
    return ModelOptimizer(optimizer, ranges)
