"""TensorFlow's V2 checkpoints into models and from them: weights, and the state of optimizers of Keras 2.

A checkpoint holds a graph of objects. A model's part of it is named as its attributes are; the layers of
Sequential and functional models are "layer_with_weights-0", ... in their order. What `tf.train.Checkpoint`
saved of models of Keras 3 is read, too (`workers.nn.saving.tensorflow_names`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.bundle import kind_of
from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.files import file_at, is_file
from storage.formats import tensorflow_files as files
from storage.formats.tensor_bundle import OBJECT_GRAPH, TensorBundle, numpy_dtype, open_bundle
from storage.naming import listed
from workers.nn.saving.state import OPTIMIZER, WEIGHTS, Status, assign
from workers.nn.saving.tensorflow_names import GraphNames
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import DTypeLike

    from workers.nn.model import Model
    from workers.nn.optimizers.base import Optimizer
    from workers.nn.train.checkpoint import Checkpoint

ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"
"""What the names of tensors end with, behind the path of attributes that leads to a variable."""

_TRIES = 5

_BESIDE = (OBJECT_GRAPH, f"save_counter{ENDING}")
"""What a checkpoint holds for its own sake."""

_DERIVED = ("/.ATTRIBUTES/OBJECT_CONFIG_JSON", f"_current_learning_rate{ENDING}")
"""What names of that end with which says nothing new: settings, and what a schedule gives."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint, which is read when an array is made of it."""

    bundle: TensorBundle
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self) -> Any:
        """As `TensorBundle.get_tensor`."""
        return self.bundle.get_tensor(self.name)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Any:
        return np.asarray(self.read(), object if self.dtype == object else dtype)


def recognises(path: str) -> bool:
    """Whether there is a checkpoint of TensorFlow, a directory of some, or a SavedModel."""
    return kind_beside(path) is None and (files.bundle_at(path) is not None or files.is_saved_model(path))


def kind_beside(path: str) -> str | None:
    """What of our own is in the directory at `path`; None if nothing is, and of a file."""
    return None if is_file(path) else kind_of(path)


def bundle_of(path: str) -> TensorBundle:
    """The checkpoint at a prefix, in a SavedModel or, the latest, in a directory, at any fsspec URL.

    Raises CheckpointError if there is none, CorruptCheckpoint if its index is damaged.
    """
    found = files.bundle_at(path)
    if found is None:
        raise CheckpointError(f"there is no TensorFlow checkpoint at {path}: {path}.index is missing")
    return open_bundle(found)


def tensors_of(bundle: TensorBundle) -> dict[str, StoredTensor]:
    """All tensors by TensorFlow's names, without being read."""
    dtypes = bundle.get_variable_to_dtype_map()
    return {
        name: StoredTensor(bundle, name, tuple(shape), numpy_dtype(dtypes[name]))
        for name, shape in bundle.get_variable_to_shape_map().items()
    }


def values_of(bundle: TensorBundle) -> dict[str, StoredTensor]:
    """What belongs to the objects that were saved, by TensorFlow's names."""
    return {
        name: each
        for name, each in tensors_of(bundle).items()
        if name != OBJECT_GRAPH and not name.endswith(_DERIVED)
    }


def why_no_model(path: str) -> str:
    """What to say to who wants a model of what is at `path`."""
    what = "holds weights alone"
    if files.is_saved_model(path):
        what = "is a SavedModel of TensorFlow, whose graphs are not executed here"
    return (
        f"{path} {what}: make the model, and load its variables by model.load_weights({path!r}), or read "
        f"them with nn.train.load_checkpoint({path!r})"
    )


def save_weights(model: Model, path: str, *, include_optimizer: bool = True) -> None:
    """Write weights and optimizer as the checkpoint with a prefix; see `tensorflow_writing.save_weights`."""
    from workers.nn.saving import tensorflow_writing

    tensorflow_writing.save_weights(model, path, include_optimizer=include_optimizer)


def save_checkpoint(checkpoint: Checkpoint, path: str) -> None:
    """Write what a `Checkpoint` holds for that of TensorFlow to restore; see `tensorflow_writing`."""
    from workers.nn.saving import tensorflow_writing

    tensorflow_writing.save_checkpoint(checkpoint, path)


def load_weights(
    model: Model, path: str, *, root: str = "", skip_mismatch: bool = False, by_name: bool = False
) -> Status:
    """In place. Give a built model the values of a TensorFlow checkpoint, and a compiled one its optimizer's.

    `path` is the checkpoint's prefix, a SavedModel, or a directory, of which the latest counts, at any fsspec
    URL. `root` is the attribute of a `tf.train.Checkpoint` that holds the model. The state of an optimizer of
    another kind is left out. `by_name` says nothing: attributes decide. Raises IncompatibleCheckpoint, and
    changes nothing, where shapes differ or nothing fits; CheckpointError where nothing is; CorruptCheckpoint;
    ConfigurationError for a checkpoint without a graph of objects, as TF1 wrote them, and an unknown `root`.
    """
    for _ in range(_TRIES - 1):
        bundle = bundle_of(path)
        index = _index(bundle)
        try:
            return _load(model, bundle, root, skip_mismatch)
        except CorruptCheckpoint:
            if _index(bundle_of(path)) == index:
                raise  # else it was replaced meanwhile
    return _load(model, bundle_of(path), root, skip_mismatch)


def _index(bundle: TensorBundle) -> bytes:
    return file_at(f"{bundle.url}.index").read()


def _load(model: Model, bundle: TensorBundle, root: str, skip_mismatch: bool) -> Status:
    graph = bundle.object_graph()
    if graph is None:
        raise ConfigurationError(
            f"{bundle.url} was written by a Saver of TensorFlow 1, which names variables freely: restore it "
            "with nn.train.Saver({name: variable}), or read it with nn.train.load_checkpoint"
        )
    names = GraphNames(graph)
    top = names.find(root)
    if top is None:
        raise ConfigurationError(
            f"{bundle.url} holds no {root!r}: it holds {listed([*graph.nodes[0].children])}"
        )
    variables, places = _of_weights(model, names, top)
    if not places and variables and not root:
        _refuse_what_lies_deeper(model, names, bundle.url)
    optimizer = _Optimizer.of(model, names, top)
    if optimizer is not None:
        for name, variable, place in optimizer.variables():
            variables[name] = variable
            if place is not None:
                places[name] = place
    tensors = names.tensors()
    taken = {tensors[place]: name for name, place in places.items() if place in tensors}
    idle = {
        tensors[place] for place in (optimizer.idle() if optimizer is not None else ()) if place in tensors
    }
    arrays = {
        taken.get(name, _short(name, variables)): each
        for name, each in values_of(bundle).items()
        if name not in _BESIDE and name not in idle
    }
    return assign(variables, arrays, bundle.url, skip_mismatch=skip_mismatch)


def _short(name: str, variables: Mapping[str, Variable]) -> str:
    """TensorFlow's name of what has no variable, without its ending, unless one of ours is called so."""
    short = name.removesuffix(ENDING)
    return name if short in variables else short


def _of_weights(model: Model, names: GraphNames, top: str) -> tuple[dict[str, Variable], dict[str, str]]:
    """The model's weights by our names, and where the graph has one, its path there."""
    variables = {f"{WEIGHTS}/{path}": variable for path, variable in model.named_variables().items()}
    ours = {id(variable): name for name, variable in variables.items()}
    return variables, {ours[number]: place for number, place in _pairs(model, names, top).items()}


def _pairs(model: Model, names: GraphNames, top: str) -> dict[int, str]:
    """The paths in the graph of the model's weights, by id.

    TensorFlow sees no lists of layers in models of Keras 3: what is in them has no path but that of the
    optimizer that trained it, by whose order it is told, if that is ours for all that has a path.
    """
    found = {id(variable): place for variable, place in names.pairs(model, top)}
    trained = names.trained(_optimizer_place(model, names, top) or "")
    weights = [id(variable) for variable in model.trainable_weights]
    if found and len(trained) == len(weights):
        by_order = dict(zip(weights, trained, strict=True))
        if all(by_order.get(number, place) == place for number, place in found.items()):
            found = by_order | found
    return found


def _optimizer_place(model: Model, names: GraphNames, top: str) -> str | None:
    """The path of the optimizer: below the model, or beside it."""
    return names.child(model, top, OPTIMIZER) or names.find(OPTIMIZER)


def _refuse_what_lies_deeper(model: Model, names: GraphNames, where: str) -> None:
    """Raise IncompatibleCheckpoint where an attribute of the root is such a model."""
    tensors = names.tensors()
    for key in names.graph.nodes[0].children:
        place = names.find(key)
        if place and any(found in tensors for _, found in names.pairs(model, place)):
            raise IncompatibleCheckpoint(
                f"{where} has nothing for this model itself, but holds one like it as {key!r}: load it with "
                f"root={key!r}; nothing was changed"
            )


@dataclass(frozen=True, slots=True)
class _Optimizer:
    """A model's optimizer, and where the graph has it: below the model, or beside it."""

    optimizer: Optimizer
    names: GraphNames
    place: str | None
    targets: dict[int, str]
    """The paths of variables that are trained, by id."""

    @classmethod
    def of(cls, model: Model, names: GraphNames, top: str) -> _Optimizer | None:
        """None of a model that is not compiled. In place: the optimizer is built."""
        optimizer = model.optimizer
        if optimizer is None:
            return None
        optimizer.build(model.trainable_weights)
        place = _optimizer_place(model, names, top)
        return cls(optimizer, names, place, _pairs(model, names, top))

    def variables(self) -> Iterator[tuple[str, Variable, str | None]]:
        """The state by our names, with paths in the graph, None of what is not there."""
        optimizer = self.optimizer
        yield f"{OPTIMIZER}/iteration", optimizer.variables[0], self._own("iteration")
        if isinstance(optimizer.learning_rate, Variable):
            yield f"{OPTIMIZER}/learning_rate", optimizer.learning_rate, self._own("learning_rate")
        for slot, slots in optimizer.slot_variables.items():
            for i, (target, variable) in enumerate(zip(optimizer.targets, slots, strict=True)):
                yield f"{OPTIMIZER}/{variable.path}", variable, self._slot(slot, i, target)

    def idle(self) -> Iterator[str]:
        """The paths of what Keras 2 stores, and ours follows from settings and the iteration."""
        return iter(()) if self.place is None else self.names.idle(self.optimizer, self.place)

    def _own(self, key: str) -> str | None:
        return None if self.place is None else self.names.child(self.optimizer, self.place, key)

    def _slot(self, slot: str, i: int, target: Variable) -> str | None:
        if self.place is None:
            return None
        return self.names.slot(self.optimizer, self.place, slot, i, self.targets.get(id(target)))
