"""The native format: a directory of which each save is a generation that counts as a whole or not at all.

A generation is a Zarr group: `variables/` and `optimizer/` hold one array for each weight and slot, by path.
`model.json` describes a model, `graph.json` what it computes, so that it loads without its classes;
`assets/` and `assets.extra/` are files of the user's. What is saved as weights has `weights.json` instead.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from storage import zarr_arrays
from storage.bundle import Bundle, kind_of, open_files, save_files
from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.naming import check_rename, choose, listed, renamed
from storage.objects import while_replaced
from storage.strict_json import fields
from workers.nn.layers.base import Layer
from workers.nn.lookup import CannotBeMade, Unknown, check, serialize
from workers.nn.ops.attributes import DTYPES
from workers.nn.registration import custom_object_scope
from workers.nn.saving import documents, objects, signatures, state
from workers.nn.saving.graphs import Graphs, Revived
from workers.nn.saving.signatures import Signature
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.model import Model

MODEL, WEIGHTS = "model", "weights"
"""What run.json calls the directories."""

_MODEL_FORMAT, _WEIGHTS_FORMAT, _GRAPH_FORMAT = "holdfast-model-1", "holdfast-weights-1", "holdfast-graphs-1"
_CONSTANTS = "constants"
_MODEL_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "model": (dict, type(None)),
    "compile_config": (dict, type(None)),
    "seed": (int, type(None)),
    "variables": list,
}
_VARIABLE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "path": str,
    "shape": list,
    "dtype": str,
    "trainable": bool,
}


def recognises(path: str) -> bool:
    """Whether a model or weights were saved at `path` in this format."""
    return kind_at(path) is not None


def kind_at(path: str) -> str | None:
    """Which of the two was saved at `path` in this format; None if neither was."""
    kind = kind_of(path)
    return kind if kind in (MODEL, WEIGHTS) else None


def save_model(
    model: Model,
    path: str,
    *,
    include_optimizer: bool = True,
    save_traces: bool = True,
    signatures: Sequence[Signature] | None = None,
    assets: Mapping[str, bytes] | None = None,
) -> None:
    """Save a model as the content of the directory at `path`, in the place of what was saved there before.

    `assets` are files by key, such as "assets/words.txt". An optimizer that cannot tell its settings is left
    out, with a warning. Raises Untraceable for code that cannot become a graph, ConfigurationError,
    StorageError, CheckpointError and Superseded as `storage.save` does; what was there then still is.
    """
    check(model.built, "save: the model is not built: call it on data, or build it with the input's shape")
    compiled = _compile_config(model) if include_optimizer else None
    variables = state.variables(model, include_optimizer=compiled is not None)
    document = {
        "format": _MODEL_FORMAT,
        "model": _architecture(model, needed=not save_traces),
        "compile_config": compiled,
        "seed": model.seed,
        "variables": [
            {"path": path, "shape": list(v.spec.dims), "dtype": v.spec.dtype, "trainable": v.trainable}
            for path, v in model.named_variables().items()
        ],
    }
    files = {"model.json": documents.written(document), **(assets or {})}
    arrays = {name: variable.numpy() for name, variable in variables.items()}
    if save_traces:
        graphs, constants = _graphs(model, signatures)
        files["graph.json"] = documents.written(graphs)
        arrays |= {f"{_CONSTANTS}/{name}": array for name, array in constants.items()}
    save_files(path, MODEL, zarr_arrays.encode(arrays) | files)


def load_model(path: str, *, custom_objects: Mapping[str, Any] | None = None, compile: bool = True) -> Model:
    """The model of a directory, with weights, optimizer and seed, so that training goes on as it would have.

    Where its classes are not known, a model of its graphs: it calls and trains alike. Raises
    ConfigurationError that names the class where there are no graphs either, CorruptCheckpoint.
    """
    return while_replaced(lambda: model_of(open_files(path), custom_objects=custom_objects, compile=compile))


def model_of(
    bundle: Bundle, *, custom_objects: Mapping[str, Any] | None = None, compile: bool = True
) -> Model:
    """As `load_model`, of a directory that is open."""
    document = _read_model(bundle)
    arrays = zarr_arrays.StoredArrays(bundle, state.WEIGHTS)
    model = _made(bundle, document, custom_objects)
    own = model.named_variables()
    _assign_all(own, arrays, bundle)
    for entry in document["variables"]:
        if entry["path"] in own:
            own[entry["path"]].trainable = entry["trainable"]
    model.seed = document["seed"]
    if compile and document["compile_config"] is not None:
        with custom_object_scope(custom_objects):
            model.compile_from_config(document["compile_config"])
        found = zarr_arrays.StoredArrays(bundle, state.OPTIMIZER)
        _assign_all(_optimizer_variables(model, found), found, bundle)
    return model


def save_weights(model: Model, path: str) -> None:
    """Save weights and the optimizer's variables as the content of the directory at `path`."""
    check(model.built, "save_weights: the model is not built: call it on data, or build it")
    optimizer = model.optimizer
    arrays = {name: variable.numpy() for name, variable in state.variables(model).items()}
    document = {
        "format": _WEIGHTS_FORMAT,
        "build_config": model.get_build_config(),
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "seed": model.seed,
    }
    save_files(path, WEIGHTS, zarr_arrays.encode(arrays) | {"weights.json": documents.written(document)})


def load_weights(
    model: Model,
    path: str,
    *,
    skip_mismatch: bool = False,
    names: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
) -> state.Status:
    """In place. Give a model the weights of the same paths, and its optimizer its state where all of it fits.

    A model that is not built is built as the saved one was. `names` are those of the file that are wanted, or
    globs; `rename` what they are here, such as {"dense/*": "encoder/dense/*"}. With either, the optimizer is
    left alone. Raises IncompatibleCheckpoint, and changes nothing, for weights of another model.
    """
    whole = kind_of(path) == MODEL
    return while_replaced(lambda: _load_weights(model, open_files(path), whole, skip_mismatch, names, rename))


def _load_weights(
    model: Model,
    bundle: Bundle,
    whole: bool,
    skip_mismatch: bool,
    names: Sequence[str] | None,
    rename: Mapping[str, str] | None,
) -> state.Status:
    document = documents.read(bundle, "model.json" if whole else "weights.json")
    check(
        document.get("format") == (_MODEL_FORMAT if whole else _WEIGHTS_FORMAT), f"{bundle.url}: no weights"
    )
    if not model.built:
        build = (document.get("model") or {}).get("build_config") if whole else document.get("build_config")
        if not isinstance(build, dict):
            raise ConfigurationError(f"{bundle.url} tells no shape to build the model with: call it on data")
        model.build_from_config(build)
    stored = zarr_arrays.StoredArrays(bundle, state.WEIGHTS)
    check_rename(stored, rename or {}, bundle.url)
    arrays: dict[str, Any] = {
        f"{state.WEIGHTS}/{renamed(name, rename or {})}": stored[name]
        for name in choose(stored, names, bundle.url)
    }
    variables = state.variables(model, include_optimizer=False)
    state.planned(variables, arrays, bundle.url, skip_mismatch=skip_mismatch).expect_partial()
    seed = None
    if model.optimizer is not None and names is None and not rename:
        found = zarr_arrays.StoredArrays(bundle, state.OPTIMIZER)
        arrays |= {f"{state.OPTIMIZER}/{name}": array for name, array in found.items()}
        if _fits_optimizer(model, found):
            own = _optimizer_variables(model, found)
            variables |= {f"{state.OPTIMIZER}/{name}": variable for name, variable in own.items()}
            seed = document.get("seed")
    status = state.assign(variables, arrays, bundle.url, skip_mismatch=skip_mismatch)
    model.seed = seed if type(seed) is int else model.seed
    return status


def load_signatures(path: str) -> tuple[Bundle, dict[str, Variable], Graphs, list[Signature]]:
    """What a saved model computes, over variables with their values: no class of it is needed."""
    return while_replaced(lambda: _signatures_of(open_files(path)))


def _signatures_of(bundle: Bundle) -> tuple[Bundle, dict[str, Variable], Graphs, list[Signature]]:
    variables = _variables(_read_model(bundle))
    _assign_all(variables, zarr_arrays.StoredArrays(bundle, state.WEIGHTS), bundle)
    graphs, found = _read_graphs(bundle, variables)
    return bundle, variables, graphs, found


# -- what is written ----------------------------------------------------------------------------------------


def _architecture(model: Model, *, needed: bool) -> Any:
    """What is written of the model; None where it cannot be, and its graphs will do."""
    try:
        return serialize(model)
    except (ConfigurationError, NotImplementedError):
        if needed:
            raise
        return None


def _compile_config(model: Model) -> dict[str, Any] | None:
    """The compile settings; None, with a warning, where the optimizer cannot tell its own."""
    optimizer = model.optimizer
    if optimizer is None:
        return None
    cls = type(optimizer)
    own = [each for each in cls.__mro__ if each.__module__.partition(".")[0] != "workers"]
    tells = not own or any("get_config" in vars(each) for each in own[:-1]) or not _takes_settings(own[:-1])
    try:
        if tells:
            return model.get_compile_config()
    except NotImplementedError:
        pass
    warnings.warn(
        f"{cls.__name__} has no get_config: the model is saved without its optimizer, and has to be compiled "
        "when it is loaded",
        stacklevel=5,
    )
    return None


def _takes_settings(classes: Sequence[type]) -> bool:
    return any("__init__" in vars(cls) for cls in classes)


def _graphs(model: Model, given: Sequence[Signature] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    graphs = Graphs.of(model)
    if given is None:
        given = [Signature.of(model, signatures.DEFAULT, _serve(model), [signatures.SERVING])]
    document, arrays = graphs.to_json()
    documents, more = signatures.all_to_json(given)
    return {"format": _GRAPH_FORMAT, "model": document, "signatures": documents}, arrays | more


def _serve(model: Model) -> Any:
    """The model's call as a function."""
    return lambda inputs: model(inputs, training=False)


# -- what is read -------------------------------------------------------------------------------------------


def _read_model(bundle: Bundle) -> dict[str, Any]:
    document = documents.read(bundle, "model.json")
    try:
        fields(document, "the model", _MODEL_FIELDS)
        for i, entry in enumerate(document["variables"]):
            fields(entry, f"variable {i}", _VARIABLE_FIELDS)
        if document["format"] != _MODEL_FORMAT:
            raise ValueError(f"the format is not {_MODEL_FORMAT}")  # noqa: TRY301
    except ValueError as exc:
        raise CorruptCheckpoint(f"{bundle.url}/model.json: {exc}") from exc
    return document


def _made(bundle: Bundle, document: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> Model:
    """The model of its classes, or else of its graphs; without values yet."""
    written = document["model"]
    try:
        if written is None:
            raise Unknown(f"{bundle.url}: the model's settings could not be written")
        model = objects.deserialize(written, custom_objects, compile=False)
        if not isinstance(model, Layer):
            raise CorruptCheckpoint(f"{bundle.url}/model.json describes no model")
    except CannotBeMade as error:
        if "graph.json" not in bundle:
            raise CannotBeMade(f"{error} (the model was saved with save_traces=False)") from error
        if not isinstance(error, Unknown):
            warnings.warn(f"{bundle.url} is loaded as what it computes: {error}", stacklevel=7)
        variables = _variables(document)
        graphs, _ = _read_graphs(bundle, variables)
        name = None if written is None else written["config"].get("name")
        return Revived(graphs, variables, written, name)
    found: Any = model
    return found  # type: ignore[no-any-return]


def _assign_all(variables: Mapping[str, Variable], arrays: Mapping[str, Any], bundle: Bundle) -> None:
    """In place. Give just these variables their values. IncompatibleCheckpoint if there are others."""
    status = state.planned(variables, arrays, bundle.url).expect_partial()
    if status.missing or status.unused:
        without = f"it has no value for {listed(status.missing)}" if status.missing else ""
        beyond = f"the model has no {listed(status.unused)}" if status.unused else ""
        told = "; ".join(each for each in (without, beyond) if each)
        raise IncompatibleCheckpoint(
            f"{bundle.url} holds other variables than the model of its class: {told}"
        )
    state.assign(variables, arrays, bundle.url)


def _variables(document: Mapping[str, Any]) -> dict[str, Variable]:
    """New variables as the document lists them, in its order."""
    found: dict[str, Variable] = {}
    for entry in document["variables"]:
        path, shape, dtype = entry["path"], tuple(entry["shape"]), entry["dtype"]
        fits = dtype in DTYPES and all(type(n) is int and n >= 0 for n in shape)
        check(fits and path not in found, f"{path!r} is no variable")
        found[path] = Variable("zeros", shape, dtype, bool(entry["trainable"]), path)
    return found


def _read_graphs(bundle: Bundle, variables: Mapping[str, Variable]) -> tuple[Graphs, list[Signature]]:
    check("graph.json" in bundle, f"{bundle.url} holds no graph: the model was saved with save_traces=False")
    document = documents.read(bundle, "graph.json")
    constants = zarr_arrays.StoredArrays(bundle, _CONSTANTS)
    try:
        check(document.get("format") == _GRAPH_FORMAT, f"the format is not {_GRAPH_FORMAT}")
        graphs = Graphs.from_json(document.get("model"), constants, variables)
        return graphs, signatures.all_from_json(document.get("signatures"), constants, variables)
    except ConfigurationError as exc:
        raise CorruptCheckpoint(f"{bundle.url}/graph.json: {exc}") from exc


def _optimizer_variables(model: Model, found: Mapping[str, Any]) -> dict[str, Variable]:
    """The optimizer's variables, with its slots where the file has some."""
    return state.optimizer_variables(model, build=any("/" in name for name in found))


def _fits_optimizer(model: Model, found: Mapping[str, Any]) -> bool:
    """Whether what is found is just the state of the model's optimizer."""
    own = {"iteration", "learning_rate"} & state.optimizer_variables(model).keys()
    slots = {f"{slot}/{v.path}": v for slot in model.optimizer.slots for v in model.trainable_weights}
    names = {*found}
    return names - {*slots} == own and (
        names == own
        or (
            slots.keys() == names - own
            and all(np.shape(slots[name].array) == found[name].shape for name in slots)
        )
    )
