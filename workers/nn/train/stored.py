"""A checkpoint of a structure as files, and what is read of it before its values are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from storage import zarr_arrays
from storage.bundle import Bundle, open_files, save_files
from storage.errors import ConfigurationError, CorruptCheckpoint
from storage.families import check_family
from storage.formats.tensorflow_files import bundle_at, is_prefix
from storage.naming import listed
from storage.objects import while_replaced
from workers.nn.saving import documents, tensorflow
from workers.nn.saving.native import MODEL, WEIGHTS
from workers.nn.saving.state import OPTIMIZER
from workers.nn.saving.state import WEIGHTS as VARIABLES
from workers.nn.saving.tensorflow import kind_beside
from workers.nn.saving.tensorflow_names import GraphNames
from workers.nn.train.places import TensorFlowPlaces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.formats.tensor_bundle import TensorBundle
    from workers.nn.train.places import Places
    from workers.nn.train.structure import Structure

CHECKPOINT = "checkpoint"
"""What run.json calls the directories."""

GRAPH, CONSTANTS = "graph.json", "constants"

_FORMAT = "holdfast-checkpoint-1"
_DOCUMENT = "checkpoint.json"
_FIELDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "aliases": (dict,),
    "states": (dict,),
    "kept": (dict, type(None)),
}


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds: arrays by name, which are read when they are asked for, states, aliases."""

    where: str
    arrays: Mapping[str, Any]
    states: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Any] | None = None
    """What the manager that saved it keeps, and does not."""
    bundle: Bundle | None = None
    places: Places | None = None
    """How the names follow from the objects, where it is not as ours do."""


def save(
    path: str,
    structure: Structure,
    *,
    kept: Mapping[str, Any] | None = None,
    graph: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    generations: int = 1,
) -> None:
    """Save what lies below an object as the next generation of `path`, with a graph and its constants.

    The newest `generations` stay.
    Raises ConfigurationError where there is nothing to save, or a state is no JSON; StorageError,
    CheckpointError and Superseded as `save_files` does.
    """
    check_family(path)
    if not structure.variables and not structure.states:
        raise ConfigurationError(f"{path}: there is nothing to save: no variable is held anywhere")
    states = {name: each.get_state() for name, each in structure.states.items()}
    document = {"format": _FORMAT, "aliases": structure.aliases, "states": states, "kept": kept}
    arrays = {f"{VARIABLES}/{name}": np.asarray(v.numpy()) for name, v in structure.variables.items()}
    try:
        written = {_DOCUMENT: documents.written(document)}
    except TypeError as exc:
        raise ConfigurationError(f"{path}: the state of one of {listed([*states])}: {exc}") from exc
    if graph is not None:
        written[GRAPH] = documents.written(graph[0])
        arrays |= {f"{CONSTANTS}/{name}": np.asarray(array) for name, array in graph[1].items()}
    save_files(path, CHECKPOINT, zarr_arrays.encode(arrays) | written, keep=generations)


def open_stored(path: str) -> Stored:
    """What is at `path`: a checkpoint of any kind that is known, or weights.

    Raises ConfigurationError where there is none, CorruptCheckpoint where it is damaged.
    """
    return while_replaced(lambda: _open(path))


def _open(path: str) -> Stored:
    kind = kind_beside(path)
    if kind == CHECKPOINT:
        return _open_checkpoint(open_files(path))
    if kind in (MODEL, WEIGHTS):
        bundle = open_files(path)
        optimizer = zarr_arrays.StoredArrays(bundle, OPTIMIZER)
        of_optimizer = {f"{OPTIMIZER}/{name}": array for name, array in optimizer.items()}
        return Stored(path, {**zarr_arrays.StoredArrays(bundle, VARIABLES), **of_optimizer}, bundle=bundle)
    if kind is None and bundle_at(path) is not None:
        return _open_tensorflow(tensorflow.bundle_of(path))
    raise ConfigurationError(f"there is no checkpoint at {path}: see nn.train.latest_checkpoint")


def is_stored(path: str) -> bool:
    """Whether `path` is that of a checkpoint or of weights, and not of a directory of such."""
    return kind_beside(path) in (CHECKPOINT, MODEL, WEIGHTS) or is_prefix(path)


def _open_tensorflow(bundle: TensorBundle) -> Stored:
    """By the paths of the objects; by the names that a Saver of TensorFlow 1 gave."""
    values: dict[str, Any] = dict(tensorflow.values_of(bundle))
    graph = bundle.object_graph()
    if graph is None:
        return Stored(bundle.url, values)
    names = GraphNames(graph)
    arrays = {path: values.pop(name) for path, name in names.tensors().items() if name in values}
    return Stored(bundle.url, arrays | values, places=TensorFlowPlaces(names))


def _open_checkpoint(bundle: Bundle) -> Stored:
    document = documents.read(bundle, _DOCUMENT)
    fits = (
        document.keys() == _FIELDS.keys()
        and all(isinstance(document[name], kinds) for name, kinds in _FIELDS.items())
        and all(isinstance(name, str) for name in document["aliases"].values())
    )
    if not fits or document["format"] != _FORMAT:
        raise CorruptCheckpoint(
            f"{bundle.url}/{_DOCUMENT} does not describe a checkpoint of format {_FORMAT}"
        )
    arrays = zarr_arrays.StoredArrays(bundle, VARIABLES)
    return Stored(bundle.url, arrays, document["states"], document["aliases"], document["kept"], bundle)
