"""The optimizer's variables in the order of Keras 2's `.h5` files.

TensorFlow's optimizers before 2.11 wrote the iteration, and then all of one slot before the next: so do we,
as Keras 2 makes such an optimizer of a config that Keras 3 can read, too. Later ones of tf_keras write the
slots variable by variable, and Keras 3 has the learning rate behind the iteration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import IncompatibleCheckpoint
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from workers.nn.optimizers import Optimizer

_RATE, _PRODUCT = "learning_rate", "u_product"
_BY_VARIABLE = frozenset({"Ftrl"})
"""Those that always wrote the slots of one variable together."""


def in_order(optimizer: Optimizer, paths: Mapping[int, str]) -> Iterator[tuple[str, Any]]:
    """Names and values as they are written; `paths` are those of the model's variables, in order, by ids."""
    kind = type(optimizer).__name__
    yield f"{kind}/iter:0", optimizer.variables[0].numpy()
    slots = optimizer.slot_variables
    place_of = {id(target): place for place, target in enumerate(optimizer.targets)}
    places = [(place_of[key], path) for key, path in paths.items() if key in place_of]
    pairs = [(slot, *each) for slot in slots for each in places]
    if kind in _BY_VARIABLE:
        pairs = [(slot, *each) for each in places for slot in slots]
    for slot, place, path in pairs:
        yield f"{kind}/{path}/{slot.partition('_')[2] or slot}:0", slots[slot][place].numpy()


def by_order(optimizer: Optimizer, arrays: Mapping[str, Any], where: str) -> dict[int, Any]:
    """The arrays of a file by their variables' places in `optimizer.variables`.

    Raises IncompatibleCheckpoint if there are more or fewer than the optimizer has.
    """
    rest = {name: array for name, array in arrays.items() if _last(name) != _PRODUCT}
    found: dict[int, Any] = {}
    first = next(iter(rest), None)
    if first is not None and tuple(rest[first].shape) == ():
        found[0] = rest.pop(first)
    second = next(iter(rest), None)
    if second is not None and _last(second) == _RATE:
        rate = rest.pop(second)
        if isinstance(optimizer.learning_rate, Variable):
            found[1] = rate
    of_slots = [*optimizer.slot_variables.values()]
    place_of = {id(variable): place for place, variable in enumerate(optimizer.variables)}
    if _is_by_slot([*rest], len(optimizer.targets)):
        places = [place_of[id(variable)] for of_slot in of_slots for variable in of_slot]
    else:
        places = sorted(place_of[id(variable)] for of_slot in of_slots for variable in of_slot)
    if len(rest) != len(places):
        raise IncompatibleCheckpoint(
            f"{where} has {len(rest)} arrays of the optimizer's state, and {type(optimizer).__name__} of "
            f"this model has {len(places)}"
        )
    return found | dict(zip(places, rest.values(), strict=True))


def _is_by_slot(names: Sequence[str], count: int) -> bool:
    """Whether names are slot by slot, of so many variables: "dense/kernel/m", "dense/bias/m", ..."""
    by_slot = [names[i : i + count] for i in range(0, len(names), count)] if count > 1 else []
    ends = [{_last(name) for name in of_slot} for of_slot in by_slot]
    return len(ends) > 1 and all(len(each) == 1 for each in ends) and len(set.union(*ends)) == len(ends)


def _last(name: str) -> str:
    return name.removesuffix(":0").rpartition("/")[2]
