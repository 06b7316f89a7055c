"""What a checkpoint holds: the variables and states below an object, by the attributes that lead to them.

    Checkpoint(step=step, optimizer=optimizer, net=net)
    -> step, optimizer/iteration, optimizer/learning_rate, net/l1/kernel, net/l1/bias,
       optimizer/adam_m/net/l1/kernel, ...

A part of a name is the name of an attribute, the key of a dict or the place in a list; of a layer the key
by which its model finds it. What is held in several places has the shortest name, and its other ones are
aliases. The slot of an optimizer has the name of its variable behind its own. Source of the idea:
TensorFlow's object-based checkpoints.
"""

from __future__ import annotations

import types
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from workers.nn.layers.base import Layer
from workers.nn.model import Model
from workers.nn.optimizers.base import Optimizer
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@runtime_checkable
class Stateful(Protocol):
    """An object with a state of JSON values, such as a callback, or an iterator that knows its position."""

    def get_state(self) -> Any:
        """What must be remembered."""

    def set_state(self, state: Any) -> None:
        """In place. Go on from what `get_state` gave."""


class Parent:
    """Base of what tells itself what it holds."""

    def held(self) -> Iterator[tuple[str, Any]]:
        """What it holds, by name; an empty name is that of something whose parts count as its own."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Structure:
    """What lies below an object, by name."""

    variables: dict[str, Variable] = field(default_factory=dict)
    states: dict[str, Stateful] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    """Other names of what has one already: of variables, and of what variables lie below."""


def structure_of(root: Any) -> Structure:
    """All that can be saved below an object, nearest first."""
    found = Structure()
    names: dict[int, str] = {id(root): ""}
    kept: list[Any] = [root]  # so that no id passes to another object
    optimizers: list[tuple[str, Optimizer]] = []
    queue = deque([("", root)])
    while queue:
        above, parent = queue.popleft()
        for key, child in children(parent):
            name = below(above, key)
            if id(child) in names:
                found.aliases.setdefault(name, names[id(child)])
                continue
            names[id(child)] = name
            kept.append(child)
            if isinstance(child, Variable):
                found.variables[name] = child
            elif isinstance(child, Stateful):
                found.states[name] = child
            else:
                queue.append((name, child))
                if isinstance(child, Optimizer):
                    optimizers.append((name, child))
    for name, optimizer in optimizers:
        for slot, variable in slots(optimizer, lambda target: names.get(id(target))):
            found.variables.setdefault(below(name, slot), variable)
    used = {part for name in (*found.variables, *found.states) for part in prefixes(name)}
    idle = [name for name, target in found.aliases.items() if target not in used]
    for name in idle:
        del found.aliases[name]
    return found


def children(thing: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds itself that can be saved, or may hold such, by the next part of its name."""
    for key, child in _held(thing):
        if can_hold(child):
            yield key, child


def can_hold(thing: Any) -> bool:
    """Whether it is a variable or state, or may hold some."""
    if isinstance(thing, type | types.ModuleType | types.FunctionType | types.MethodType | np.ndarray):
        return False
    return isinstance(thing, list | tuple | dict | Parent) or hasattr(thing, "__dict__")


def slots(optimizer: Optimizer, name_of: Callable[[Variable], str | None]) -> Iterator[tuple[str, Variable]]:
    """The slots that an optimizer has built, as SLOT/NAME of the variable; its path where it has no name."""
    for slot, variables in optimizer.slot_variables.items():
        for target, variable in zip(optimizer.targets, variables, strict=True):
            yield f"{slot}/{name_of(target) or target.path}", variable


def below(name: str, key: str) -> str:
    """The name of what `key` leads to from what has a name; the root's is empty, as is a key that leads
    nowhere else."""
    return f"{name}/{key}" if name and key else name or key


def prefixes(name: str) -> Iterator[str]:
    """The name, and those of all that it lies below; the root's is none of them."""
    while name:
        yield name
        name = name.rpartition("/")[0]


def _held(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Parent):
        yield from thing.held()
    elif isinstance(thing, Optimizer):
        yield "iteration", thing.variables[0]
        if isinstance(thing.learning_rate, Variable):
            yield "learning_rate", thing.learning_rate
    elif isinstance(thing, Layer):
        if isinstance(thing, Model):
            thing.named_variables()  # gives them their paths
            if thing.optimizer is not None:
                yield "optimizer", thing.optimizer
        yield from thing.children()
    elif isinstance(thing, list | tuple):
        yield from ((str(i), item) for i, item in enumerate(thing))
    else:
        items: Mapping[Any, Any] = thing if isinstance(thing, dict) else getattr(thing, "__dict__", {})
        yield from ((str(key), item) for key, item in items.items())
