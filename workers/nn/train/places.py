"""What names the values below an object have in a checkpoint: our own, or those of TensorFlow's graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from workers.nn.train.structure import below, prefixes, slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from workers.nn.optimizers.base import Optimizer
    from workers.nn.saving.tensorflow_names import GraphNames
    from workers.nn.variables import Variable


class Places(Protocol):
    """Names by the objects that lead to them."""

    def child(self, parent: Any, above: str, key: str) -> str | None:
        """The name of what `key` leads to from `parent`, whose name is `above`; None if it is not known."""

    def slots(
        self, optimizer: Optimizer, above: str, name_of: Callable[[Variable], str | None]
    ) -> Iterator[tuple[str, Variable]]:
        """The optimizer's slots, each with its name, by those of the variables that they belong to."""


class OwnPlaces:
    """The names of `workers.nn.train.structure`, also the other ones of what has several."""

    def __init__(self, names: Iterable[str], aliases: Mapping[str, str]) -> None:
        self._aliases = aliases
        self._known = {"", *(part for name in (*names, *aliases) for part in prefixes(name))}

    def child(self, parent: Any, above: str, key: str) -> str | None:
        """See `Places`."""
        place = below(above, key)
        place = self._aliases.get(place, place)
        return place if place in self._known else None

    def slots(
        self, optimizer: Optimizer, above: str, name_of: Callable[[Variable], str | None]
    ) -> Iterator[tuple[str, Variable]]:
        """See `Places`."""
        for slot, variable in slots(optimizer, name_of):
            yield below(above, slot), variable


class TensorFlowPlaces:
    """The paths in TensorFlow's graph of objects."""

    def __init__(self, names: GraphNames) -> None:
        self._names = names

    def child(self, parent: Any, above: str, key: str) -> str | None:
        """See `Places`."""
        return self._names.child(parent, above, key)

    def slots(
        self, optimizer: Optimizer, above: str, name_of: Callable[[Variable], str | None]
    ) -> Iterator[tuple[str, Variable]]:
        """See `Places`."""
        for slot, variables in optimizer.slot_variables.items():
            for i, (target, variable) in enumerate(zip(optimizer.targets, variables, strict=True)):
                place = self._names.slot(optimizer, above, slot, i, name_of(target))
                if place is not None:
                    yield place, variable
