"""Keras 2's `.h5`, which Keras 3 reads and writes, too: a whole model, or weights by layers' names.

The weights of each layer of a model are in one group, those that are trained first: so a file depends on
what was frozen when it was written. Loading goes by the layers' order, not by their names, unless asked to.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.formats import hdf5
from storage.naming import listed
from storage.strict_json import parse
from workers.nn.model import Functional
from workers.nn.registration import custom_object_scope
from workers.nn.saving import keras2
from workers.nn.saving.documents import KERAS_VERSION, MAX_DEPTH
from workers.nn.saving.objects import check_model, deserialize, only_fitting, serialize
from workers.nn.saving.optimizer_order import by_order, in_order
from workers.nn.saving.seeds import restore_seed, seed_attribute
from workers.nn.saving.state import OPTIMIZER, WEIGHTS, Status, assign, mismatch
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from workers.nn.layers.base import Layer
    from workers.nn.model import Model

_LAYERS, _NAMES = "layer_names", "weight_names"
_MODEL, _TRAINING = "model_config", "training_config"
_MODEL_WEIGHTS, _OPTIMIZER_WEIGHTS, _TOP = "model_weights", "optimizer_weights", "top_level_model_weights"

LEGACY = frozenset({_LAYERS, f"{_LAYERS}0", _MODEL, _MODEL_WEIGHTS})
"""One of these is in the root of such a file."""


def recognises(path: str) -> bool:
    """Whether there is such a file, judged by the names in its root alone."""
    return hdf5.recognises(path) and bool(LEGACY & hdf5.root_names(path))


# -- saving -------------------------------------------------------------------------------------------------


def save_model(model: Model, path: str, *, include_optimizer: bool = True) -> None:
    """Write a whole model: its architecture, weights, compile settings and the optimizer's state.

    Losses and metrics that were added to the model itself are left out, with a warning: this format has no
    place for them. Raises ConfigurationError for a model that has no settings.
    """
    if not model.built:
        raise ConfigurationError(f"{path}: the model is not built: call it on data, or build it")
    stored = model.without_added if isinstance(model, Functional) else model
    if stored is not model:
        warnings.warn(
            f"{path}: a .h5 file holds no losses and metrics that were added to the model itself: "
            "save it as .keras, or to a directory",
            stacklevel=4,
        )
    root = _writer() | seed_attribute(model)
    root[_MODEL] = json.dumps(keras2.classic_model(serialize(stored)))
    compiled = model.get_compile_config() if include_optimizer else None
    if compiled is not None:
        root[_TRAINING] = json.dumps(keras2.training_config(compiled))
    arrays, attributes = _weights(stored, f"{_MODEL_WEIGHTS}/")
    if compiled is not None and model.optimizer.built:
        values = dict(in_order(model.optimizer, _paths(stored)))
        attributes[_OPTIMIZER_WEIGHTS] = {_NAMES: [*values]}
        arrays |= {f"{_OPTIMIZER_WEIGHTS}/{name}": value for name, value in values.items()}
    hdf5.write(path, arrays, {"": root, **attributes})


def save_weights(model: Model, path: str) -> None:
    """Write the weights alone. Raises ConfigurationError for a model that is not built."""
    if not model.built:
        raise ConfigurationError(f"{path}: the model is not built: call it on data, or build it")
    hdf5.write(path, *_weights(model, ""))


def _weights(model: Model, prefix: str) -> tuple[dict[str, Any], dict[str, dict[str, hdf5.Attribute]]]:
    """Arrays and attributes of the groups of all layers, below `prefix`, which is "" or ends in "/"."""
    paths = _paths(model)
    layers = model.layers
    attributes: dict[str, dict[str, hdf5.Attribute]] = {
        prefix.rstrip("/"): {_LAYERS: [layer.name for layer in layers], **_writer()}
    }
    arrays: dict[str, Any] = {}
    groups = [(layer.name, legacy_order(layer)) for layer in layers] + [(_TOP, _top_level(model))]
    for name, variables in groups:
        values = {f"{paths[id(variable)]}:0": variable.numpy() for variable in variables}
        attributes[f"{prefix}{name}"] = {_NAMES: [*values]}
        arrays |= {f"{prefix}{name}/{path}": value for path, value in values.items()}
    return arrays, attributes


def _paths(model: Model) -> dict[int, str]:
    """The paths of the model's variables by their ids."""
    return {id(variable): path for path, variable in model.named_variables().items()}


def _writer() -> dict[str, hdf5.Attribute]:
    return {"backend": "numpy", "keras_version": KERAS_VERSION}


def legacy_order(layer: Layer) -> list[Variable]:
    """A layer's variables in the order of these files: those that are trained now, then the others."""
    return [*layer.trainable_weights, *layer.non_trainable_weights]


def _top_level(model: Model) -> list[Variable]:
    """The variables that the model itself holds."""
    own = [child for _, child in model.children() if isinstance(child, Variable)]
    return sorted(own, key=lambda variable: not variable.trainable)


# -- loading ------------------------------------------------------------------------------------------------


def load_model(path: str, *, custom_objects: Mapping[str, Any] | None = None, compile: bool = True) -> Any:
    """The model in a file, compiled as it was, with its optimizer's state, if `compile`.

    No code of the file is run. Raises CheckpointError if there is none, CorruptCheckpoint if it is damaged,
    ConfigurationError for classes that are not known, and where it holds weights alone.
    """
    with hdf5.reading(path) as file:
        root = file.groups[""]
        config = _document(root, _MODEL, path)
        if config is None:
            raise ConfigurationError(f"{path} holds weights alone: make the model, and load_weights")
        model = deserialize(config, custom_objects, compile=False)
        check_model(model, f"{path}: {_MODEL}")
        found = _Found(file, f"{_MODEL_WEIGHTS}/", path)
        _restore(model, found, by_name=False, skip_mismatch=False).check_whole()
        training = _document(root, _TRAINING, path) if compile else None
        if training is not None:
            _compile(model, training, custom_objects)
            if _OPTIMIZER_WEIGHTS in file.groups:
                _restore_optimizer(model, file, path)
        restore_seed(model, root)
    return model


def load_weights(model: Model, path: str, *, skip_mismatch: bool = False, by_name: bool = False) -> Status:
    """In place. Give a built model the weights of a file, of whole models, too; the optimizer is left alone.

    `by_name` gives layers what is stored under their names, and leaves others alone. Raises
    IncompatibleCheckpoint, and changes nothing, where layers, numbers of weights or shapes differ.
    """
    if not model.built:
        raise ConfigurationError(f"{path}: the model is not built: call it on data, or build it")
    with hdf5.reading(path) as file:
        prefix = f"{_MODEL_WEIGHTS}/" if _MODEL_WEIGHTS in file.groups else ""
        found = _Found(file, prefix, path)
        return _restore(model, found, by_name=by_name, skip_mismatch=skip_mismatch)


class _Found:
    """The weights of a file by layers: the names of layers, and of each its arrays in their order."""

    def __init__(self, file: hdf5.Contents, prefix: str, where: str) -> None:
        self.where = where
        self._file = file
        self._prefix = prefix
        group = file.groups.get(prefix.rstrip("/"))
        names = None if group is None else group.texts(_LAYERS)
        if names is None:
            raise CorruptCheckpoint(f"{where} does not tell which layers it holds ({_LAYERS})")
        if len(set(names)) != len(names):
            raise CorruptCheckpoint(f"{where} holds two layers of one name")
        self.layers = {name: self._arrays(name) for name in names}
        self.top = self._arrays(_TOP) if f"{prefix}{_TOP}" in file.groups else {}

    def _arrays(self, layer: str) -> dict[str, hdf5.Dataset]:
        return dict(named_arrays(self._file, f"{self._prefix}{layer}", self.where))


def named_arrays(file: hdf5.Contents, group: str, where: str) -> Iterator[tuple[str, hdf5.Dataset]]:
    """The arrays of a group in the order of its `weight_names`. CorruptCheckpoint if there is none."""
    if group not in file.groups:
        raise CorruptCheckpoint(f"{where} has no group {group}, which it names")
    names = file.groups[group].texts(_NAMES) or []
    if len(set(names)) != len(names):
        raise CorruptCheckpoint(f"{where}: {group} names a weight twice")
    for name in names:
        if f"{group}/{name}" not in file.arrays:
            raise CorruptCheckpoint(f"{where}: {group} names a weight {name}, which is not there")
        yield name, file.arrays[f"{group}/{name}"]


def _restore(model: Model, found: _Found, *, by_name: bool, skip_mismatch: bool) -> Status:
    """In place. Give the model's layers their weights."""
    paths = _paths(model)
    variables = {f"{WEIGHTS}/{path}": variable for path, variable in model.named_variables().items()}
    arrays: dict[str, Any] = {}
    for layer, name, stored in _matched(model, found, by_name=by_name):
        own = legacy_order(layer) if layer is not model else _top_level(model)
        if len(own) != len(stored):
            if skip_mismatch and by_name:
                arrays |= {each.name: each for each in stored.values()}
                continue
            raise IncompatibleCheckpoint(
                f"{found.where}: layer {name!r} has {len(stored)} weights in the file ({listed([*stored])}), "
                f"and {len(own)} in the model ({listed([paths[id(v)] for v in own])})"
            )
        for variable, array in _in_pairs(own, [paths[id(v)] for v in own], stored, name):
            arrays[f"{WEIGHTS}/{paths[id(variable)]}"] = array
    left = (a for each in (*found.layers.values(), found.top) for a in each.values())
    used = {id(array) for array in arrays.values()}
    arrays |= {array.name: array for array in left if id(array) not in used}
    return assign(variables, arrays, found.where, skip_mismatch=skip_mismatch, read=hdf5.read)


def _matched(
    model: Model, found: _Found, *, by_name: bool
) -> Iterator[tuple[Layer, str, dict[str, hdf5.Dataset]]]:
    """Each layer of the model with the name and the arrays of its like in the file."""
    if by_name:
        for layer in model.layers:
            if layer.name in found.layers:
                yield layer, layer.name, found.layers[layer.name]
    else:
        layers = [layer for layer in model.layers if layer.weights]
        stored = {name: arrays for name, arrays in found.layers.items() if arrays}
        if len(layers) != len(stored):
            raise IncompatibleCheckpoint(
                f"{found.where} has {len(stored)} layers with weights ({listed([*stored])}), and the model "
                f"{len(layers)} ({listed([layer.name for layer in layers])}): with by_name=True, those of "
                "the same names are loaded"
            )
        for layer, (name, arrays) in zip(layers, stored.items(), strict=True):
            yield layer, name, arrays
    if found.top or (_top_level(model) and not by_name):
        yield model, _TOP, found.top


def _in_pairs(
    own: Sequence[Variable], paths: Sequence[str], stored: Mapping[str, hdf5.Dataset], layer: str
) -> list[tuple[Variable, hdf5.Dataset]]:
    """Variables with their arrays, as many: by names if what was frozen then explains another order."""
    arrays = [*stored.values()]
    for names in ([_plain(name) for name in stored], [f"{layer}/{_plain(name)}" for name in stored]):
        if names != paths and {*names} == {*paths}:
            pairs = [(variable, arrays[names.index(path)]) for variable, path in zip(own, paths, strict=True)]
            if not any(mismatch(*pair) for pair in pairs):
                return pairs
    return [*zip(own, arrays, strict=True)]


def _plain(name: str) -> str:
    """A weight's name without the number that Keras 2 puts behind it: "dense/kernel:0"."""
    return name.removesuffix(":0")


def _document(root: hdf5.Attributes, name: str, where: str) -> Any:
    """The JSON value of an attribute; None if it is not there."""
    text = root.text(name)
    if text is None:
        return None
    try:
        found = parse(text.encode(), max_depth=MAX_DEPTH)
    except ValueError as exc:
        raise CorruptCheckpoint(f"{where}: {name}: {exc}") from exc
    if not isinstance(found, dict):
        raise CorruptCheckpoint(f"{where}: {name} is no JSON object")
    return found


def _compile(model: Model, training: dict[str, Any], custom_objects: Mapping[str, Any] | None) -> None:
    with custom_object_scope(custom_objects), only_fitting():
        model.compile_from_config(keras2.compile_config(training))


def _restore_optimizer(model: Model, file: hdf5.Contents, where: str) -> None:
    """In place. Give the optimizer of a compiled model its state."""
    optimizer = model.optimizer
    arrays = dict(named_arrays(file, _OPTIMIZER_WEIGHTS, where))
    if not arrays:
        return
    optimizer.build(model.trainable_weights)
    variables = {f"{OPTIMIZER}/{i}": variable for i, variable in enumerate(optimizer.variables)}
    try:
        found = by_order(optimizer, arrays, where)
        status = assign(variables, {f"{OPTIMIZER}/{i}": a for i, a in found.items()}, where)
    except IncompatibleCheckpoint as exc:
        raise IncompatibleCheckpoint(
            f"{exc}; compile=False loads the model without its optimizer's state"
        ) from exc
    status.expect_partial()
