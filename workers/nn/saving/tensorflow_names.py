"""Which object of a TensorFlow checkpoint's graph is which of ours, by the attributes that lead to it.

The layers of Sequential and functional models are "layer_with_weights-0", ... there, and "layer-0", ..., as
Keras 2 has them; of Keras 3, which `tf.train.Checkpoint` saves too, they are members of "_operations". Some
attributes have other names. Slots of optimizers are found by the list that Keras keeps them in, or by their
names as optimizers before TensorFlow 2.11 had them, and by the variable that they belong to. What was stored
for an optimizer of another kind is not taken.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from storage.formats.object_graph import VALUE
from workers.nn.layers.base import Layer
from workers.nn.model import Functional
from workers.nn.optimizers.base import Optimizer
from workers.nn.sequential import Sequential

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from storage.formats.object_graph import ObjectGraph
    from workers.nn.variables import Variable

_ATTRIBUTES = {
    ("MultiHeadAttention", "query_dense"): "_query_dense",
    ("MultiHeadAttention", "key_dense"): "_key_dense",
    ("MultiHeadAttention", "value_dense"): "_value_dense",
    ("MultiHeadAttention", "output_dense"): "_output_dense",
    ("DepthwiseConv1D", "kernel"): "depthwise_kernel",
    ("DepthwiseConv2D", "kernel"): "depthwise_kernel",
}
"""Names in Keras 2 of attributes that have others here, by class."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How an optimizer's slots are stored: for each of ours the list, the word in names, the older name."""

    slots: Mapping[str, tuple[str, str, str]]
    marks: frozenset[str]
    """The lists, and the like, by which the kind is told."""
    names: frozenset[str]
    """The classes whose state is this one's."""


def _kind(names: str, marks: str, **slots: tuple[str, str, str]) -> Kind:
    return Kind(slots, frozenset(marks.split()), frozenset(names.split()))


_ADAM = _kind(
    "Adam AdamW",
    "_momentums _velocities",
    adam_m=("_momentums", "m", "m"),
    adam_v=("_velocities", "v", "v"),
    adam_vhat=("_velocity_hats", "vhat", "vhat"),
)
KINDS: dict[str, Kind] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": _kind("SGD", "momentums", sgd_momentum=("momentums", "m", "momentum")),
    "Lion": _kind("Lion", "momentums", lion_momentum=("momentums", "m", "m")),
    "Adamax": _kind("Adamax", "_m _u", adamax_m=("_m", "m", "m"), adamax_u=("_u", "u", "v")),
    "Nadam": _kind(
        "Nadam",
        "_momentums _velocities _u_product",
        nadam_m=("_momentums", "m", "m"),
        nadam_v=("_velocities", "v", "v"),
    ),
    "Adagrad": _kind(
        "Adagrad", "_accumulators", adagrad_accumulator=("_accumulators", "accumulator", "accumulator")
    ),
    "Adadelta": _kind(
        "Adadelta",
        "_accumulated_grads _accumulated_delta_vars",
        adadelta_accumulated_grad=("_accumulated_grads", "accumulated_grad", "accum_grad"),
        adadelta_accumulated_delta_var=("_accumulated_delta_vars", "accumulated_delta_var", "accum_var"),
    ),
    "RMSprop": _kind(
        "RMSprop",
        "_velocities _momentums _average_gradients",
        rmsprop_velocity=("_velocities", "velocity", "rms"),
        rmsprop_momentum=("_momentums", "momentum", "momentum"),
        rmsprop_average_gradient=("_average_gradients", "average_gradient", "mg"),
    ),
    "Ftrl": _kind(
        "Ftrl",
        "_accumulators _linears",
        ftrl_accumulator=("_accumulators", "accumulator", "accumulator"),
        ftrl_linear=("_linears", "linear", "linear"),
    ),
}
"""By the names of our classes."""

AVERAGE = ("_model_variables_moving_average", "average", "average")
"""The slot "ema" of any optimizer."""

PRODUCT = "_u_product"

_TRAINED = "_trainable_variables"
"""The list of what an optimizer of Keras 3 was built for."""
_OF_KERAS_3 = {"Lion": frozenset({"_momentums"})}
"""Marks of kinds that have others in Keras 3."""

_MARKS = frozenset({"_r", "_c", "_v"}).union(*(kind.marks for kind in KINDS.values()))


class GraphNames:
    """The objects of a graph by the shortest paths to them, and what of ours they are."""

    def __init__(self, graph: ObjectGraph) -> None:
        self.graph = graph
        self.paths = _paths(graph)
        self._numbers = {path: number for number, path in self.paths.items()}
        self._optimizers: dict[str, StoredOptimizer | None] = {}
        self._layers: WeakKeyDictionary[Layer, dict[str, tuple[int, int | None]]] = WeakKeyDictionary()

    def find(self, path: str) -> str | None:
        """The shortest path to the object at "net/layer"; None if there is none."""
        number = self.graph.find(path)
        return None if number is None else self.paths.get(number)

    def tensors(self) -> dict[str, str]:
        """The tensor of each object that holds one, by the object's path."""
        found = {path: self.graph.nodes[number].tensors for number, path in self.paths.items()}
        return {path: tensors[VALUE] for path, tensors in found.items() if VALUE in tensors}

    def child(self, parent: Any, above: str, key: str) -> str | None:
        """The path of what `key` leads to from `parent`, which is at `above`; None if it is not there."""
        if not key:
            return above
        number = self._numbers.get(above)
        if number is None:
            return None
        if isinstance(parent, Optimizer):
            return self._own(parent, above, key)
        for name in (*self._numbered(parent, key), attribute(parent, key), key, f"_{key}"):
            found = self.graph.find(name, number)
            if found is not None:
                return self.paths.get(found)
        return None

    def slot(self, optimizer: Optimizer, above: str, slot: str, place: int, target: str | None) -> str | None:
        """The path of the slot of the optimizer's variable number `place`, whose own path is `target`."""
        stored = self._optimizer(optimizer, above)
        if stored is None or target is None or target not in self._numbers:
            return None
        number = stored.slot(slot, place, self._numbers[target], len(optimizer.targets))
        return None if number is None else self.paths.get(number)

    def idle(self, optimizer: Optimizer, above: str) -> Iterator[str]:
        """The paths of state that ours has no need of: momentum 0, and what follows from the iteration."""
        stored = self._optimizer(optimizer, above)
        if stored is None or stored.kind is None:
            return
        numbers = [stored.own[key] for key in ("u_product",) if key in stored.own]
        if type(optimizer).__name__ == "SGD" and not optimizer.groups:
            numbers += stored.lists.get("momentums", [])
        yield from (self.paths[number] for number in numbers if number in self.paths)

    def pairs(self, model: Layer, above: str) -> Iterator[tuple[Variable, str]]:
        """The variables below a layer, each with its path in the graph, where it is there."""
        for key, child in model.children():
            place = self.child(model, above, key)
            if place is None:
                continue
            if isinstance(child, Layer):
                yield from self.pairs(child, place)
            else:
                yield child, place

    def trained(self, above: str) -> list[str]:
        """The paths of the variables that an optimizer was built for, where Keras 3 has saved it."""
        number = self.graph.find(_TRAINED, self._numbers[above]) if above in self._numbers else None
        return [] if number is None else [self.paths[each] for each in _members(self.graph, number)]

    def _numbered(self, parent: Any, key: str) -> Iterator[str]:
        """The names of a layer of a Sequential or functional model by its number."""
        if not isinstance(parent, Functional | Sequential):
            return
        numbers = self._layers.get(parent)
        if numbers is None:
            numbers = numbers_of(parent)
            if _is_built(parent):
                self._layers[parent] = numbers
        if key not in numbers:
            return
        number, with_weights = numbers[key]
        yield f"layer-{number}" if with_weights is None else f"layer_with_weights-{with_weights}"
        operation = f"_operations/{number + isinstance(parent, Sequential)}"  # behind that of the input
        yield from (operation, f"_functional/{operation}")

    def _own(self, optimizer: Optimizer, above: str, key: str) -> str | None:
        stored = self._optimizer(optimizer, above)
        number = None if stored is None else stored.own.get(key)
        return None if number is None else self.paths.get(number)

    def _optimizer(self, optimizer: Optimizer, above: str) -> StoredOptimizer | None:
        if above not in self._optimizers:
            number = self._numbers.get(above)
            self._optimizers[above] = (
                None if number is None else stored_optimizer(self.graph, number, optimizer)
            )
        return self._optimizers[above]


@dataclass(frozen=True, slots=True)
class StoredOptimizer:
    """Where a graph has the state of an optimizer."""

    graph: ObjectGraph
    kind: Kind | None
    own: dict[str, int]
    """"iteration", "learning_rate" and the like."""
    lists: dict[str, list[int]] = field(default_factory=dict)
    older: dict[tuple[int, str], int] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    """The places of variables among those that it was built for, where Keras 3 has saved them."""
    named: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """The members of lists by the names of their variables, as far as they were asked for."""

    def slot(self, slot: str, place: int, target: int, count: int) -> int | None:
        """The object that holds a slot of the variable that is object `target`, and was number `place`."""
        if slot == "ema":
            attribute, word, older = AVERAGE
        elif self.kind is not None and slot in self.kind.slots:
            attribute, word, older = self.kind.slots[slot]
        else:
            return None
        if (target, older) in self.older:
            return self.older[target, older]
        members = self.lists.get(attribute) or self.lists.get(f"_{attribute}", [])
        if target in self.trained:  # as Keras 3 has it
            return members[self.trained[target]] if len(members) == len(self.trained) else None
        if attribute not in self.named:
            self.named[attribute] = _by_name(self.graph, members, word)
        named = self.named[attribute].get(self.graph.nodes[target].name, [])
        if len(named) == 1:
            return named[0]
        return members[place] if len(members) == count and (not named or members[place] in named) else None


def stored_optimizer(graph: ObjectGraph, number: int, optimizer: Optimizer) -> StoredOptimizer | None:
    """The optimizer that is an object of the graph, if it is one of this kind."""
    node = graph.nodes[number]
    kind = KINDS.get(type(optimizer).__name__)
    iteration = node.children.get("_iterations", node.children.get("iter"))
    if iteration is None:
        return None
    lists = {name: _members(graph, child) for name, child in node.children.items()}
    marks = _MARKS & node.children.keys()
    slots = {name for _, name in node.slots}
    numbers = {*node.slots.values(), *(n for each in lists.values() for n in each)}
    firsts = {graph.nodes[n].name.partition("/")[0] for n in numbers}
    if kind is None:
        is_ours = not marks and not slots
    else:
        is_known = not marks or marks in (kind.marks, _OF_KERAS_3.get(type(optimizer).__name__))
        is_ours = is_known and slots <= {each[2] for each in kind.slots.values()}
        is_ours = is_ours and not any(_is_of_another(first, kind) for first in firsts)
    if not is_ours:
        return None
    own = {"iteration": iteration}
    for key, candidates in {
        "learning_rate": ("_learning_rate", "learning_rate"),
        "u_product": (PRODUCT,),
    }.items():
        found = next((node.children[name] for name in candidates if name in node.children), None)
        if found is not None and graph.nodes[found].tensors:
            own[key] = found
    trained = {each: place for place, each in enumerate(lists.get(_TRAINED, []))}
    return StoredOptimizer(graph, kind, own, lists, dict(node.slots), trained)


def numbers_of(parent: Functional | Sequential) -> dict[str, tuple[int, int | None]]:
    """The number of each layer of a model, and that among those with weights, as Keras 2 counts; None: none.

    Behind a layer that is not built, the latter is not known.
    """
    found: dict[str, tuple[int, int | None]] = {}
    count, is_known = 0, True
    for i, (key, child) in enumerate(parent.children()):
        is_weighted = isinstance(child, Layer) and bool(child.weights)
        found[key] = (i, count if is_weighted and is_known else None)
        count += is_weighted
        is_known = is_known and (is_weighted or (isinstance(child, Layer) and child.built))
    return found


def attribute(layer: Any, key: str) -> str:
    """The name that Keras 2 has for an attribute of a layer."""
    return _ATTRIBUTES.get((type(layer).__name__, key), key)


def _is_built(model: Layer) -> bool:
    return all(isinstance(child, Layer) and child.built for _, child in model.children())


def _by_name(graph: ObjectGraph, members: list[int], word: str) -> dict[str, list[int]]:
    """Slots called "Adam/m/dense/kernel", or "m/dense/kernel", by "dense/kernel"."""
    found: dict[str, list[int]] = {}
    for number in members:
        name = f"/{graph.nodes[number].name}".partition(f"/{word}/")[2]
        found.setdefault(name, []).append(number)
    return found


def _is_of_another(first: str, kind: Kind) -> bool:
    """Whether the first part of a slot's name is that of a class of another kind."""
    known = {each.lower() for each in KINDS}
    return first.lower() in known and first.lower() not in {each.lower() for each in kind.names}


def _members(graph: ObjectGraph, number: int) -> list[int]:
    """The objects of a list, in its order."""
    children = graph.nodes[number].children
    return [children[key] for key in sorted((k for k in children if k.isdecimal()), key=int)]


def _paths(graph: ObjectGraph) -> dict[int, str]:
    """The shortest path to each object from the root; of two of one length, the first that is stored."""
    found = {0: ""}
    queue = deque([0])
    while queue:
        number = queue.popleft()
        for key, child in graph.nodes[number].children.items():
            if child not in found:
                found[child] = f"{found[number]}/{key}" if found[number] else key
                queue.append(child)
    for node in graph.nodes:  # what only optimizers lead to
        for (target, name), child in node.slots.items():
            if child not in found and target in found:
                found[child] = f"{found[target]}/.OPTIMIZER_SLOT/{name}"
    return found
