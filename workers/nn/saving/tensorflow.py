"""TensorFlow's V2 checkpoints into models: weights, and the state of optimizers of Keras 2.

A checkpoint holds a graph of objects. A model's part of it is named as its attributes are; the layers of
Sequential and functional models are "layer_with_weights-0", ... in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.formats.tensor_bundle import OBJECT_GRAPH, TensorBundle, numpy_dtype, open_bundle
from workers.nn.model import Functional
from workers.nn.saving.state import OPTIMIZER, WEIGHTS, Status, assign
from workers.nn.sequential import Sequential
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike

    from storage.formats.object_graph import ObjectGraph
    from workers.nn.layers import Layer
    from workers.nn.model import Model

_BESIDE = (OBJECT_GRAPH, "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
"""What a checkpoint holds for its own sake."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of a checkpoint, which is read when an array is made of it."""

    bundle: TensorBundle
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Any:
        return np.asarray(self.bundle.get_tensor(self.name), dtype)


def load_weights(model: Model, path: str, *, root: str = "", skip_mismatch: bool = False) -> Status:
    """In place. Give a built model the values of the checkpoint with this prefix, at any fsspec URL.

    `root` is the attribute of a `tf.train.Checkpoint` that holds the model. A compiled model gets the state
    of its optimizer too. Raises IncompatibleCheckpoint, and changes nothing, where shapes differ or nothing
    fits; ConfigurationError for a checkpoint without a graph of objects, as TF1 wrote them.
    """
    bundle = open_bundle(path)
    graph = bundle.object_graph()
    if graph is None:
        raise ConfigurationError(
            f"{path} was written by a Saver of TensorFlow 1, which names variables freely: read it with "
            "nn.train.load_checkpoint, and assign its tensors"
        )
    variables, names = _of_weights(model, graph, root)
    for name, (variable, place) in _of_optimizer(model).items():
        variables[name] = variable
        if (tensor := graph.variable(f"{OPTIMIZER}/{place}")) is not None:
            names[name] = tensor
    shapes, dtypes = bundle.get_variable_to_shape_map(), bundle.get_variable_to_dtype_map()
    taken = {tensor: name for name, tensor in names.items()}
    arrays = {
        taken.get(tensor, tensor): _Stored(bundle, tensor, tuple(shape), numpy_dtype(dtypes[tensor]))
        for tensor, shape in shapes.items()
        if tensor not in _BESIDE
    }
    return assign(variables, arrays, path, skip_mismatch=skip_mismatch)


def _of_weights(model: Model, graph: ObjectGraph, root: str) -> tuple[dict[str, Variable], dict[str, str]]:
    """The model's weights by our names, and where the checkpoint has a tensor for one, its name."""
    ours = {id(variable): f"{WEIGHTS}/{path}" for path, variable in model.named_variables().items()}
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    for path, variable in _paths(model):
        name = ours[id(variable)]
        variables[name] = variable
        if (tensor := graph.variable(f"{root}/{path}")) is not None:
            names[name] = tensor
    return variables, names


def _paths(owner: Layer) -> Iterator[tuple[str, Variable]]:
    """The variables below a layer, by the names that Keras 2 gives their places."""
    numbered, count = isinstance(owner, Functional | Sequential), 0
    for key, child in owner.children():
        if isinstance(child, Variable):
            yield key, child
            continue
        if numbered and child.weights:
            key, count = f"layer_with_weights-{count}", count + 1
        for path, variable in _paths(child):
            yield f"{key}/{path}", variable


def _of_optimizer(model: Model) -> dict[str, tuple[Variable, str]]:
    """The optimizer's variables by our names, with their places in one of Keras 2."""
    optimizer = model.optimizer
    if optimizer is None:
        return {}
    optimizer.build(model.trainable_weights)
    iteration, *state = optimizer.variables
    found = {f"{OPTIMIZER}/iteration": (iteration, "_iterations")}
    if state and state[0] is optimizer.learning_rate:
        found[f"{OPTIMIZER}/learning_rate"] = (state.pop(0), "_learning_rate")
    for i, variable in enumerate(state, 1):
        found[f"{OPTIMIZER}/{variable.path}"] = (variable, f"_variables/{i}")
    return found
