"""Giving what lies below an object the values of a checkpoint: at once, or as soon as it has been built."""

from __future__ import annotations

import functools
import weakref
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import IncompatibleCheckpoint
from workers.nn.awaited import Awaited
from workers.nn.layers.base import Layer
from workers.nn.optimizers.base import Optimizer
from workers.nn.saving.state import Status, mismatch
from workers.nn.train.places import OwnPlaces
from workers.nn.train.structure import Stateful, children, prefixes, structure_of
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from workers.nn.train.stored import Stored

_SHOWN = 5


class Restoration:
    """What of a checkpoint has found its place below `root`, and what still waits for its own.

    An object is told by the names that lead to it, through aliases where it had several: whoever saved them
    may have held more, or less.
    """

    def __init__(self, root: Any, stored: Stored) -> None:
        self.root = root
        self.stored = stored
        self.restored: list[str] = []
        self._names: dict[int, tuple[weakref.ref[Any], str]] = {}  # of what has been restored
        self._unused = dict.fromkeys([*stored.arrays, *stored.states])
        self._below = Counter(part for name in self._unused for part in prefixes(name))
        self._waiting: weakref.WeakKeyDictionary[Awaited, set[str]] = weakref.WeakKeyDictionary()
        self._is_given_up = False
        self._places = stored.places or OwnPlaces(self._unused, stored.aliases)

    def begin(self) -> Status:
        """In place. Restore all that is there, and wait for the rest; the status tells how far it came.

        Raises IncompatibleCheckpoint, and changes nothing, where a shape or dtype differs.
        """
        self._restore(self.root, "")
        return _Restored(self)

    def give_up(self) -> None:
        """In place. Restore nothing any more: another checkpoint has taken this one's place."""
        self._is_given_up = True

    @property
    def unused(self) -> list[str]:
        """The names of what has found no place yet."""
        return list(self._unused)

    def missing(self) -> list[str]:
        """The names of what lies below the root and was not in the checkpoint."""
        found = structure_of(self.root)
        return [
            name for name, each in (found.variables | found.states).items() if self._name_of(each) is None
        ]

    def awaited(self) -> frozenset[str]:
        """The names of what belongs to layers and optimizers that are not built yet."""
        places = {name for each, name in self._visits(self.root, "") if _is_unbuilt(each)}
        return frozenset(name for name in self._unused if not places.isdisjoint(["", *prefixes(name)]))

    # -- parts --------------------------------------------------------------------------------------------

    def _restore(self, thing: Any, name: str) -> bool:
        """In place. Restore what lies below an object that the checkpoint has under this name.

        Returns whether there is nothing left to wait for.
        """
        if self._is_given_up:
            return True
        pairs, waiting = self._matches(thing, name)
        variables = [(each, found) for each, found in pairs if isinstance(each, Variable)]
        faults = [
            f"{found} {fault}" for each, found in variables if (fault := mismatch(each, self._array(found)))
        ]
        if faults:
            raise IncompatibleCheckpoint(
                f"{self.stored.where}: {len(faults)} of {len(variables)} values do not fit: "
                + "; ".join(faults[:_SHOWN])
            )
        values = {found: np.asarray(self._array(found)) for _, found in variables}
        for each, found in pairs:
            if isinstance(each, Variable):
                each.restore(values[found])
            else:
                each.set_state(self.stored.states[found])
            self._note(each, found)
        for each, found in waiting:
            if not self._is_done(found) and found not in self._waiting.setdefault(each, set()):
                self._waiting[each].add(found)
                each.await_more(functools.partial(self._restore, each, found))
        return self._is_done(name)

    def _matches(self, thing: Any, name: str) -> tuple[list[tuple[Any, str]], list[tuple[Awaited, str]]]:
        """What can be restored below an object, each with its stored name; and what may grow."""
        pairs: list[tuple[Any, str]] = []
        names: dict[int, str] = {}
        growing: list[tuple[Awaited, str]] = []
        optimizers: list[tuple[Optimizer, str]] = []
        for each, found in self._visits(thing, name):
            if isinstance(each, Variable | Stateful):
                known = self.stored.arrays if isinstance(each, Variable) else self.stored.states
                if found in known and id(each) not in names and self._name_of(each) is None:
                    names[id(each)] = found
                    pairs.append((each, found))
                continue
            if isinstance(each, Optimizer):
                optimizers.append((each, found))
            if isinstance(each, Awaited) and (_is_unbuilt(each) or not isinstance(each, Layer | Optimizer)):
                growing.append((each, found))
        for optimizer, found in optimizers:
            own = self._places.slots(
                optimizer, found, lambda target: names.get(id(target)) or self._name_of(target)
            )
            for place, variable in own:
                if place in self.stored.arrays and self._name_of(variable) is None:
                    pairs.append((variable, place))
        return pairs, growing

    def _visits(self, thing: Any, name: str) -> list[tuple[Any, str]]:
        """What lies below an object as far as the checkpoint knows it, with stored names, nearest first."""
        found = [(thing, name)]
        seen = {(id(thing), name)}
        queue = deque(found)
        while queue:
            parent, above = queue.popleft()
            for key, child in children(parent):
                place = self._places.child(parent, above, key)
                if place is None or (id(child), place) in seen:
                    continue
                seen.add((id(child), place))
                found.append((child, place))
                if not isinstance(child, Variable | Stateful):
                    queue.append((child, place))
        return found

    def _is_done(self, name: str) -> bool:
        """Whether all that lies below a name has been restored."""
        return not self._below[name] if name else not self._unused

    def _array(self, name: str) -> Any:
        return self.stored.arrays[name]

    def _name_of(self, thing: Any) -> str | None:
        """The stored name of something that has been restored."""
        reference, name = self._names.get(id(thing), (None, None))
        return name if reference is not None and reference() is thing else None

    def _note(self, thing: Any, name: str) -> None:
        self._names[id(thing)] = weakref.ref(thing), name
        self.restored.append(name)
        if name in self._unused:
            del self._unused[name]
            self._below.subtract(prefixes(name))


class _Restored(Status):
    """The status of a restoration, which may go on."""

    def __init__(self, restoration: Restoration) -> None:
        self._restoration = restoration
        super().__init__(restoration.stored.where, (), (), ())
        self.refresh()

    def refresh(self) -> None:
        """In place. Take notice of what was restored since."""
        restoration = self._restoration
        self.restored = tuple(restoration.restored)
        self.unused = tuple(restoration.unused)
        self.missing = tuple(restoration.missing())
        self.awaited = restoration.awaited() if self.unused else frozenset()


def _is_unbuilt(thing: Any) -> bool:
    return isinstance(thing, Layer | Optimizer) and not thing.built
