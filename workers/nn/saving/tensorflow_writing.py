"""Models as TensorFlow's V2 checkpoints, as Keras 2 writes them with `save_weights`.

The graph of objects is that of a Keras 2 model: its layers, also those without weights, by their numbers,
and the optimizer with its lists of slots. The same model in Keras 2 finds a value for each of its objects.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.formats.object_graph import VALUE, Node, ObjectGraph
from storage.formats.tensor_bundle import OBJECT_GRAPH, write_bundle
from storage.formats.tensorflow_files import CheckpointState, split, write_state
from storage.naming import listed
from workers.nn.layers.base import Layer
from workers.nn.model import Functional
from workers.nn.optimizers.base import Optimizer
from workers.nn.saving.tensorflow_names import AVERAGE, KINDS, PRODUCT, attribute, numbers_of
from workers.nn.sequential import Sequential
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from workers.nn.model import Model
    from workers.nn.train.checkpoint import Checkpoint

_FUNCTIONS = ("train_function", "train_tf_function", "test_function", "predict_function")
"""What a Keras 2 model that was used has, too; they hold nothing."""

_COUNTER = "save_counter"

_PARTS = {"MultiHeadAttention": ("_softmax", "_dropout_layer")}
"""Layers without weights that Keras 2 has in its own layers, by class."""


def save_weights(model: Model, path: str, *, include_optimizer: bool = True) -> None:
    """Write a built model's weights, and the optimizer's state, as the checkpoint with the prefix `path`.

    An ending `.index` is no part of the prefix. The directory's file `checkpoint` names it from then on. The
    state of an optimizer that Keras 2 has not is left out, with a warning. Raises ConfigurationError for a
    model that has no weights yet, StorageError.
    """
    names = model.named_variables()  # which gives them their paths
    if not names:
        raise ConfigurationError(f"{path}: {model.name} has no weights yet: build it, or call it on a batch")
    prefix = _prefix(path)
    graph = _Graph({id(variable): name for name, variable in names.items()})
    graph.add(model, 0, include_optimizer=include_optimizer)
    graph.child(0, "root", 0)
    function = graph.node()
    for name in _FUNCTIONS:
        graph.child(0, name, function)
    _write(prefix, graph)


def save_checkpoint(checkpoint: Checkpoint, path: str) -> None:
    """Write what a `Checkpoint` holds as that of a `tf.train.Checkpoint` of the same attributes.

    That of TensorFlow takes it with `restore`. Models, optimizers and files are as `save_weights` has them.
    States that are no variables are left out, with a warning. Raises as `save_weights` does.
    """
    from workers.nn.train.structure import structure_of

    found = structure_of(checkpoint)
    if not found.variables:
        raise ConfigurationError(f"{path}: there is nothing to save: no variable is held anywhere")
    if found.states:
        warnings.warn(
            f"TensorFlow has no place for the states of {listed([*found.states])}: they are left out",
            stacklevel=3,
        )
    prefix = _prefix(path)
    graph = _Graph({id(variable): name for name, variable in found.variables.items()})
    graph.add(checkpoint, 0)
    if _COUNTER not in graph.nodes[0].children:
        graph.child(0, _COUNTER, graph.node(_COUNTER, np.int64(0)))
    _write(prefix, graph)


def _prefix(path: str) -> str:
    prefix = path.removesuffix(".index")
    if not prefix or prefix.endswith("/"):
        raise ConfigurationError(
            f"{path} names no checkpoint: give a name before .index, such as cp.ckpt.index"
        )
    return prefix


def _write(prefix: str, graph: _Graph) -> None:
    write_bundle(prefix, graph.tensors())
    directory, name = split(prefix)
    write_state(directory, CheckpointState(name, (name,)))


@dataclass(slots=True)
class _Graph:
    """A graph that grows: its nodes, the arrays of some, and which is which variable's."""

    paths: dict[int, str]
    """The variables' own names, by id."""
    nodes: list[Node] = field(default_factory=lambda: [Node({}, {}, {})])
    arrays: dict[int, Any] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)

    def node(self, name: str = "", array: Any = None) -> int:
        """In place. A new node, which holds an array if one is given; returns its number."""
        self.nodes.append(Node({}, {}, {}, name))
        number = len(self.nodes) - 1
        if array is not None:
            self.arrays[number] = array
        return number

    def child(self, above: int, key: str, number: int) -> None:
        """In place. Let `key` lead from one node to another."""
        self.nodes[above].children[key] = number

    def add(self, thing: Any, number: int, *, include_optimizer: bool = True) -> None:
        """In place. Add what lies below an object, which is a node already, and then its optimizers."""
        optimizers: list[tuple[Optimizer, int]] = []
        self._add(thing, number, optimizers)
        if not include_optimizer:
            self.nodes[number].children.pop("optimizer", None)
            return
        for optimizer, above in optimizers:
            self._add_optimizer(optimizer, above)

    def _add(self, thing: Any, number: int, optimizers: list[tuple[Optimizer, int]]) -> None:
        from workers.nn.train.structure import Stateful, children

        self.known[id(thing)] = number
        numbers = numbers_of(thing) if isinstance(thing, Functional | Sequential) else {}
        for key, child in children(thing):
            if not key:  # the root of a checkpoint, whose attributes are its own
                self._add(child, number, optimizers)
                continue
            if isinstance(child, Stateful):
                continue
            found = self.known.get(id(child))
            if found is None:
                is_variable = isinstance(child, Variable)
                name = self.paths.get(id(child), key) if is_variable else ""
                found = self.node(name, np.asarray(child.numpy()) if is_variable else None)
                self.known[id(child)] = found
                if isinstance(child, Optimizer):
                    if key in numbers:
                        raise ConfigurationError(
                            f"a layer has the name {key!r}, under which the optimizer is saved: "
                            "name it otherwise"
                        )
                    optimizers.append((child, found))
                elif not is_variable:
                    self._add(child, found, optimizers)
            for name in _names(thing, key, numbers):
                *between, last = name.split("/")
                self.child(self._between(number, between), last, found)
        for key in _PARTS.get(type(thing).__name__, ()) if isinstance(thing, Layer) else ():
            self.child(number, key, self.node())

    def _add_optimizer(self, optimizer: Optimizer, above: int) -> None:
        """In place. Add the state of an optimizer, which is a node, as far as Keras 2 has one of its kind."""
        kind = KINDS.get(type(optimizer).__name__)
        if kind is None:
            warnings.warn(
                f"Keras 2 has no {type(optimizer).__name__}: the weights are saved without its state",
                stacklevel=4,
            )
            return
        iteration = self.node("iteration", np.asarray(optimizer.variables[0].numpy(), np.int64))
        variables = self._between(above, ["_variables"])
        self.child(variables, "0", iteration)
        self.child(above, "_iterations", iteration)
        rate = "learning_rate" if isinstance(optimizer.learning_rate, Variable) else "current_learning_rate"
        self.child(above, f"_{rate}", self.node(rate, np.float32(float(optimizer.learning_rate))))
        self.child(above, "_index_dict", self.node())
        if PRODUCT in kind.marks and optimizer.built:
            self.child(above, PRODUCT, self.node("Variable", np.float32(optimizer.variables[-1].numpy())))
        for names in kind.slots.values():
            if names[0] in kind.marks:
                self._between(above, [names[0]])
        for number, (slot, place, array) in enumerate(_state(optimizer), 1):
            listed, word, _ = AVERAGE if slot == "ema" else kind.slots[slot]
            target = optimizer.targets[place]
            path = self.paths.get(id(target), target.path)
            found = self.node(f"{type(optimizer).__name__}/{word}/{path}", array)
            self.child(variables, str(number), found)
            self.child(self._between(above, [listed]), str(place), found)

    def tensors(self) -> dict[str, Any]:
        """In place. Name the arrays by the shortest paths to them; all that the checkpoint holds, by name."""
        names, queue = {0: ""}, [0]
        for number in queue:
            for key, child in self.nodes[number].children.items():
                if child not in names:
                    part = key.replace(".", "..").replace("/", ".S")
                    names[child] = f"{names[number]}/{part}" if names[number] else part
                    queue.append(child)
        found = {}
        for number, array in self.arrays.items():
            key = f"{names[number]}/.ATTRIBUTES/{VALUE}"
            self.nodes[number].tensors[VALUE] = key
            found[key] = array
        return {**found, OBJECT_GRAPH: ObjectGraph(tuple(self.nodes)).written()}

    def _between(self, number: int, keys: Sequence[str]) -> int:
        """In place. The node of the list, or the like, below a node, which is made if need be."""
        for key in keys:
            children = self.nodes[number].children
            if key not in children:
                children[key] = self.node()
            number = children[key]
        return number


def _names(thing: Any, key: str, numbers: Mapping[str, tuple[int, int | None]]) -> Iterator[str]:
    """The names under which Keras 2 has what is below an object, whose layers have these numbers."""
    if key not in numbers:
        yield attribute(thing, key)
        return
    number, with_weights = numbers[key]
    if with_weights is not None:
        yield f"layer_with_weights-{with_weights}"
    yield f"layer-{number}"


def _state(optimizer: Optimizer) -> Iterator[tuple[str, int, Any]]:
    """The slots in the order of Keras 2, each with the place of its variable, and its array."""
    if not optimizer.built:
        return
    groups = (*((slot,) for slot in optimizer.common), *optimizer.groups)
    for group in ([slot.name for slot in group] for group in groups):
        if group == ["gradient_accumulator"]:
            warnings.warn("Keras 2 keeps no accumulated gradients: they are left out", stacklevel=5)
            continue
        for place in range(len(optimizer.targets)):
            for slot in group:
                yield slot, place, np.asarray(optimizer.slot_variables[slot][place].numpy())
    if type(optimizer).__name__ == "SGD" and not optimizer.groups:  # Keras 2 keeps a momentum of 0
        for place, target in enumerate(optimizer.targets):
            yield "sgd_momentum", place, np.zeros(target.spec.dims, np.float32)
