"""Keras 3's `.weights.h5`: weights by the attributes' paths, and the optimizer's variables in their order.

A layer's variables are "PATH/vars/0", ... where PATH is made of attributes' names; the layers of Sequential
and functional models are "layers/CLASS", "layers/CLASS_1", ... by their classes, not by their names.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.formats import hdf5
from workers.nn.layers.base import Layer
from workers.nn.lookup import check, snake_case
from workers.nn.model import Functional
from workers.nn.saving import legacy_h5
from workers.nn.saving.seeds import restore_seed, seed_attribute
from workers.nn.saving.state import OPTIMIZER, WEIGHTS, Status, assign
from workers.nn.sequential import Sequential
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from workers.nn.model import Model

_SEEDS = "seed_generator"
_INTERNAL = frozenset({"_calls", "_functional_layers", "_order", "_sequence", "_source", "optimizer"})
"""Attributes of ours in which Keras has no layers, or has them as `layers`."""


def recognises(path: str) -> bool:
    """Whether there is a file of weights of Keras 3."""
    return hdf5.recognises(path) and not legacy_h5.LEGACY & hdf5.root_names(path)


def save_weights(model: Model, path: str) -> None:
    """Write a built model's weights, and the optimizer's variables if it is built."""
    check_built(model, path)
    hdf5.write(path, *contents(model))


def load_weights(model: Model, path: str, *, skip_mismatch: bool = False, by_name: bool = False) -> Status:
    """In place. Give a built model the weights of a file, and a compiled one the optimizer's state.

    `by_name` says nothing: places decide. Raises IncompatibleCheckpoint, and changes nothing, where shapes
    differ or nothing fits.
    """
    with hdf5.reading(path) as file:
        return restore(model, file, path, skip_mismatch=skip_mismatch)


def contents(
    model: Model, *, include_optimizer: bool = True
) -> tuple[dict[str, Any], dict[str, Mapping[str, hdf5.Attribute]]]:
    """The arrays of a file by their paths, and the names of layers, as Keras writes them.

    The seed of a model that was trained is an attribute of the root, which Keras does not look at.
    """
    arrays: dict[str, Any] = {}
    names: dict[str, Mapping[str, hdf5.Attribute]] = {"": seed_attribute(model)}
    for path, layer in _places(model):
        place = f"{path}/vars" if path else "vars"
        names[place] = {"name": layer.name}
        for i, variable in enumerate(_own(layer)):
            arrays[f"{place}/{i}"] = variable.numpy()
        if _draws(layer):
            arrays[f"{path}/{_SEEDS}/vars/0"] = np.zeros(2, np.uint32)  # ours are functions of the step
    optimizer = model.optimizer
    if include_optimizer and optimizer is not None and optimizer.built:
        names[f"{OPTIMIZER}/vars"] = {"name": optimizer.name}
        for i, variable in enumerate(optimizer.variables):
            value = variable.numpy()
            arrays[f"{OPTIMIZER}/vars/{i}"] = value.astype(np.float32) if value.dtype.kind == "f" else value
    return arrays, names


def restore(model: Model, file: hdf5.Contents, where: str, *, skip_mismatch: bool = False) -> Status:
    """In place. Give the model what a file holds; the seed, too, if the optimizer goes on."""
    arrays = file.arrays
    ours = {id(variable): f"{WEIGHTS}/{path}" for path, variable in model.named_variables().items()}
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    for path, layer in _places(model):
        for i, variable in enumerate(_own(layer)):
            name = ours[id(variable)]
            variables[name] = variable
            names[f"{path}/vars/{i}" if path else f"vars/{i}"] = name
    optimizer = model.optimizer
    if optimizer is not None and f"{OPTIMIZER}/vars/0" in arrays:
        optimizer.build(model.trainable_weights)
        for i, variable in enumerate(optimizer.variables):
            name = f"{OPTIMIZER}/{'iteration' if i == 0 else variable.path}"
            variables[name] = variable
            names[f"{OPTIMIZER}/vars/{i}"] = name
    found = {names.get(path, path): array for path, array in arrays.items() if _SEEDS not in path.split("/")}
    if not found.keys() <= variables.keys():
        check_built(model, where)  # what is not there yet would be left out
    status = assign(variables, found, where, skip_mismatch=skip_mismatch, read=hdf5.read)
    if f"{OPTIMIZER}/iteration" in status.restored:
        restore_seed(model, file.groups[""])
    return status


def check_built(model: Model, where: str) -> None:
    """Raise ConfigurationError for a model that may lack variables yet."""
    check(
        model.built, f"{where}: the model is not built: call it on data, or build it with the input's shape"
    )


def _places(owner: Layer, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Layer]]:
    """All layers below one and itself, each once, by their paths in the file."""
    seen = set() if seen is None else seen
    if id(owner) in seen:
        return
    seen.add(id(owner))
    yield prefix, owner
    for name, layer in _sublayers(owner):
        yield from _places(layer, f"{prefix}/{name}" if prefix else name, seen)


def _sublayers(owner: Layer) -> Iterator[tuple[str, Layer]]:
    if isinstance(owner, Functional | Sequential):
        yield from _members("layers", owner.layers)
    attributes = {key: value for key, value in vars(owner).items() if key not in _INTERNAL}
    for key in sorted(attributes, key=lambda key: (key.startswith("_"), key)):
        value = attributes[key]
        if isinstance(value, Layer):
            yield key, value
        elif isinstance(value, list | tuple | dict):
            yield from _members(key, value)


def _members(container: str, items: Any) -> Iterator[tuple[str, Layer]]:
    """The layers in a container by their classes, the second of a class with a number.

    Containers within it are called "container".
    """
    counts: Counter[str] = Counter()
    for item in items.values() if isinstance(items, dict) else items:
        within = isinstance(item, list | tuple | dict)
        if not within and not isinstance(item, Layer):
            continue
        name = "container" if within else snake_case(type(item).__name__)
        number = counts[name]
        counts[name] += 1
        path = f"{container}/{name}_{number}" if number else f"{container}/{name}"
        if within:
            yield from _members(path, item)
        else:
            yield path, item


def _own(layer: Layer) -> list[Variable]:
    """A layer's own variables, those that are trained first."""
    own = [child for _, child in layer.children() if isinstance(child, Variable)]
    return sorted(own, key=lambda variable: not variable.trainable_in_principle)


def _draws(layer: Layer) -> bool:
    """Whether Keras keeps a state of random numbers for a layer."""
    name = type(layer).__name__
    return name.endswith(("Dropout", "Dropout1D", "Dropout2D", "Dropout3D")) or name == "GaussianNoise"
