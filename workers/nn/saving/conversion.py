"""What is at a place, whatever its format; whether it is whole; and the same in another format.

A conversion goes by a model: of what is at the source, or of an architecture that is given where the source
holds weights alone. Arrays by name need none to become other arrays by name.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage import library, zarr_arrays
from storage.address import find
from storage.bundle import kind_of, open_files, save_files
from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.files import file_at, is_file
from storage.formats import hdf5, npz, safetensors_file
from storage.naming import listed
from storage.store import open_store
from workers.nn.lookup import CannotBeMade
from workers.nn.model import Functional
from workers.nn.saving import api, named_arrays, native, onnx, signatures, tensorflow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from storage.bundle import Bundle
    from workers.nn.layers.base import Layer

WHOLE = ("weights", "architecture", "compile settings", "optimizer state", "seed")
_ADDED, _SIGNATURES, _ASSETS, _GRAPH = "added losses and metrics", "signatures", "assets", "graph"
_ARRAYS = "arrays"


@dataclass(frozen=True, slots=True)
class Kind:
    """A format, what of a model it holds, and how damage shows in it."""

    name: str
    module: str | None
    holds: tuple[str, ...]
    checked: str

    @property
    def is_whole(self) -> bool:
        """Whether a model can be made of it."""
        return "architecture" in self.holds

    @property
    def has_names(self) -> bool:
        """Whether its arrays have the names of variables."""
        return self.module is None or self.module in (_NPZ, _SAFETENSORS)


_SAVING = "workers.nn.saving."
_NPZ, _SAFETENSORS = f"{_SAVING}npz", f"{_SAVING}safetensors_file"

NATIVE = Kind(
    "a model in Holdfast's own format",
    None,
    (*WHOLE, _ADDED, _GRAPH, _SIGNATURES, _ASSETS),
    "every byte, by BLAKE3 and CRC-32C",
)
NATIVE_WEIGHTS = Kind(
    "weights in Holdfast's own format",
    None,
    ("weights", "optimizer state", "seed"),
    "every byte, by BLAKE3 and CRC-32C",
)
CHECKPOINT = Kind(
    "a checkpoint of nn.train", None, ("weights", "optimizer state"), "every byte, by BLAKE3 and CRC-32C"
)
RUN = Kind(
    "a checkpoint of a run, or of storage.save",
    None,
    ("weights", "optimizer state"),
    "every byte, by BLAKE3 and CRC-32C",
)
_OWN = (NATIVE, NATIVE_WEIGHTS, CHECKPOINT)
_OTHERS = {
    f"{_SAVING}weights_h5": Kind(
        "Keras's weights (.weights.h5)",
        f"{_SAVING}weights_h5",
        ("weights", "optimizer state", "seed"),
        "its structure, and arrays by CRC-32C where Holdfast wrote it",
    ),
    f"{_SAVING}keras_file": Kind(
        "a model of Keras (.keras)", f"{_SAVING}keras_file", (*WHOLE, _ADDED), "every byte, by zip's CRC-32"
    ),
    f"{_SAVING}legacy_h5": Kind(
        "a model of Keras 2 (.h5)",
        f"{_SAVING}legacy_h5",
        WHOLE,
        "its structure, and arrays by CRC-32C where Holdfast wrote it",
    ),
    _NPZ: Kind("arrays of NumPy (.npz)", _NPZ, ("weights",), "every byte, by zip's CRC-32"),
    _SAFETENSORS: Kind(
        "safetensors", _SAFETENSORS, ("weights",), "its structure: the format has no checksums"
    ),
    f"{_SAVING}tensorflow": Kind(
        "a checkpoint of TensorFlow",
        f"{_SAVING}tensorflow",
        ("weights", "optimizer state"),
        "every byte, by CRC-32C",
    ),
}

ONNX = Kind(
    "an ONNX file of what the model computes without training",
    f"{_SAVING}onnx",
    ("weights", _GRAPH),
    "nothing: it is written, and not read",
)


def kind_at(url: str) -> Kind:
    """The format of what is at a place. ConfigurationError if nothing is, CorruptCheckpoint if it is lost."""
    place, _, step = url.partition("#")
    own = None if is_file(place) else kind_of(place)
    if own in (native.MODEL, native.WEIGHTS) and not step:
        return NATIVE if own == native.MODEL else NATIVE_WEIGHTS
    if own == "checkpoint":
        return CHECKPOINT
    if not is_file(place) and (own == _ARRAYS or (own is None and _is_run(url))):
        return RUN
    found = api.format_at(url)
    if found is None:
        raise ConfigurationError(f"there is no model and no checkpoint at {url}")
    kind = _OTHERS[found.module]
    if kind.module == f"{_SAVING}legacy_h5" and "model_config" not in hdf5.root_names(url):
        return Kind("weights of Keras 2 (.h5)", kind.module, ("weights",), kind.checked)
    return kind


def _is_run(url: str) -> bool:
    """Whether a training run, or one of its checkpoints, is meant."""
    try:
        run, _, _ = find(url)
    except ConfigurationError:
        return False
    return (run.identity() or {}).get("kind") is None


def kind_for(url: str) -> Kind:
    """The format in which something is saved under a name: by its ending, else Holdfast's own."""
    if url.endswith(onnx.ENDING):
        return ONNX
    found = api.format_for(url, None, models=False)
    return NATIVE if found is None else _OTHERS[found.module]


def arrays_at(url: str, kind: Kind) -> dict[str, Any]:
    """All arrays by their names in the format, with shapes and dtypes; they may be read when looked at."""
    if kind is RUN:
        checkpoint = library.open(url)
        return {name: checkpoint[name] for name in checkpoint}
    if kind in _OWN:
        return {**_arrays_of(open_files(url))}
    if kind.module in (_NPZ, _SAFETENSORS):
        return named_arrays.load(url, npz.read if kind.module == _NPZ else safetensors_file.read)
    if kind.module == f"{_SAVING}tensorflow":
        return dict(tensorflow.values_of(tensorflow.bundle_of(url)))
    if kind.module == f"{_SAVING}keras_file":
        from workers.nn.saving import keras_file

        with hdf5.reading(url, keras_file.entries_of(url)[keras_file.WEIGHTS]) as found:
            return {name: np.asarray(array) for name, array in found.arrays.items()}
    with hdf5.reading(url) as found:
        return {name: np.asarray(array) for name, array in found.arrays.items()}


def _arrays_of(bundle: Bundle) -> dict[str, zarr_arrays.StoredArray]:
    return {
        name if part == "variables" else f"{part}/{name}": array
        for part in ("variables", "optimizer")
        for name, array in zarr_arrays.StoredArrays(bundle, part).items()
    }


def verify(url: str) -> int:
    """Read all that is at a place, and check it as far as the format allows; the bytes of its arrays.

    Raises CorruptCheckpoint that names what is damaged.
    """
    kind = kind_at(url)
    try:
        return _verified(url, kind)
    except ConfigurationError as error:  # what is there says that it should be whole
        raise CorruptCheckpoint(str(error)) from error


def _verified(url: str, kind: Kind) -> int:
    if kind is RUN:
        report = library.verify(url)
        if report.faults:
            raise CorruptCheckpoint(str(report.faults[0]))
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in arrays_at(url, kind).values())
    if kind in _OWN:
        return _verified_bundle(open_files(url), kind)
    if kind.is_whole:
        with contextlib.suppress(CannotBeMade):  # of a class that only its maker has
            api.load_model(url)
    return sum(np.asarray(array).nbytes for array in arrays_at(url, kind).values())


def _verified_bundle(bundle: Bundle, kind: Kind) -> int:
    """As `_verified`; each file is read once."""
    if kind.is_whole:
        with contextlib.suppress(CannotBeMade):
            native.model_of(bundle)
    arrays = _arrays_of(bundle)
    for array in arrays.values():
        if not array.is_seen:
            np.asarray(array)
    for key in bundle:
        if key not in bundle.seen:
            bundle.read(key)
    return sum(array.nbytes for array in arrays.values())


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion did: formats, what is left behind, and what was said on the way."""

    source: Kind
    target: Kind
    lost: tuple[str, ...]
    notes: tuple[str, ...]
    parameters: int


def convert(
    source: str, target: str, *, architecture: Callable[[], Any] | None = None, overwrite: bool = False
) -> Converted:
    """Save what is at `source` at `target`, in the format of its ending; `target` is whole or not there.

    `architecture` makes the model that weights alone are of. Raises ConfigurationError if it is needed, if
    something is at `target` and may not be overwritten, and for what the format cannot hold;
    IncompatibleCheckpoint if weights do not fit the architecture; CorruptCheckpoint.
    """
    kind, wanted = kind_at(source), kind_for(target)
    if not overwrite and (is_file(target) or open_store(target).list()):
        raise ConfigurationError(f"{target} is there already: give another place, or --overwrite")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if kind is NATIVE and wanted is NATIVE:
            bundle = open_files(source)
            save_files(target, native.MODEL, {key: bundle.read(key) for key in bundle})
            weights = _weights(arrays_at(source, kind), kind)
            sizes = [math.prod(array.shape) for array in weights.values()]
            return Converted(kind, wanted, (), (), sum(sizes))
        named = not kind.is_whole and kind.has_names and wanted.module in (_NPZ, _SAFETENSORS)
        if named and architecture is None:
            arrays = arrays_at(source, kind)
            values = {name: np.asarray(array) for name, array in _weights(arrays, kind).items()}
            write = npz.written if wanted.module == _NPZ else safetensors_file.written
            file_at(target).write(write(values))
            lost: tuple[str, ...] = () if len(values) == len(arrays) else ("optimizer state",)
            return Converted(kind, wanted, lost, (), sum(array.size for array in values.values()))
        model = _model(source, kind, architecture)
        if wanted is ONNX:
            onnx.export(model, target)
        elif wanted.is_whole:
            model.save(target)
        else:
            model.save_weights(target)
    present = _present(model, source, kind)
    stays = {*wanted.holds}
    if kind in (RUN, CHECKPOINT) or model.optimizer is None or not model.optimizer.built:
        stays.discard("optimizer state")  # the model did not get it
    lost = tuple(what for what in present if what not in stays)
    notes = tuple(dict.fromkeys(str(each.message) for each in said))
    return Converted(kind, wanted, lost, notes, model.count_params())


def _weights(found: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Of the arrays of a place the weights, by the names of variables."""
    if kind is not RUN:
        return {name: array for name, array in found.items() if not name.startswith("optimizer/")}
    parameters = {name.removeprefix("params/"): a for name, a in found.items() if name.startswith("params/")}
    return parameters or found


def _model(source: str, kind: Kind, architecture: Callable[[], Any] | None) -> Any:
    if kind.is_whole:
        return api.load_model(source)
    if architecture is None:
        raise ConfigurationError(
            f"{source} is {kind.name}, without an architecture: give --architecture, a model, its JSON, or a "
            "job's file"
        )
    model = architecture()
    if kind in (RUN, CHECKPOINT):
        status = named_arrays.restore(model, _weights(arrays_at(source, kind), kind), source)
    else:
        status = api.load_weights(model, source)
    status.expect_partial()
    if status.missing:
        missing = [name.removeprefix("variables/") for name in status.missing]
        raise IncompatibleCheckpoint(f"{source} has no values for {listed(missing)}")
    if status.unused:
        left = listed(status.unused)
        warnings.warn(f"left out, as the architecture has no place for it: {left}", stacklevel=2)
    return model


def _present(model: Any, source: str, kind: Kind) -> list[str]:
    """What there is to be lost, in the order in which it is told."""
    found = ["weights", "architecture"] if kind.is_whole else ["weights"]
    optimizer = model.optimizer
    if kind.is_whole and optimizer is not None:
        found.append("compile settings")
    if kind.is_whole:
        has_state = optimizer is not None and optimizer.built
    else:
        has_state = "optimizer state" in kind.holds and any(
            name.startswith(("optimizer", "slots/")) for name in arrays_at(source, kind)
        )
    if has_state:
        found.append("optimizer state")
    if model.seed is not None:
        found.append("seed")
    if isinstance(model, Functional) and model.without_added is not model:
        found.append(_ADDED)
    if kind is NATIVE:
        bundle = open_files(source)
        if "graph.json" in bundle:
            found.append(_GRAPH)
            if any(each.name != signatures.DEFAULT for each in native.load_signatures(source)[3]):
                found.append(_SIGNATURES)
        if any(key.startswith("assets") for key in bundle):
            found.append(_ASSETS)
    return found


def architecture_of(text: bytes) -> Any:
    """The model of an architecture in JSON."""
    return api.model_from_json(text.decode())


def described(url: str) -> dict[str, Any]:
    """What is at a place, as JSON values: format, the model's layers and settings, and all arrays."""
    kind = kind_at(url)
    model, why = None, None
    if kind.is_whole:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = api.load_model(url)
        except CannotBeMade as error:
            why = str(error)
    shapes: Mapping[str, Any] = arrays_at(url, kind)
    if model is not None:
        shapes = {name: variable.array for name, variable in model.named_variables().items()}
    return {
        "path": url,
        "format": kind.name,
        "holds": [*kind.holds],
        "model": None if model is None else _about(model),
        "error": why,
        "variables": [
            {"name": name, "dtype": str(np.dtype(array.dtype)), "shape": [*array.shape]}
            for name, array in shapes.items()
        ],
        "summary": None if model is None else _summary(model),
    }


def _about(model: Any) -> dict[str, Any]:
    compiled = model.get_compile_config()
    optimizer = model.optimizer
    return {
        "name": model.name,
        "class": type(model).__name__,
        "parameters": {
            "total": model.count_params(),
            "trainable": sum(variable.numpy().size for variable in model.trainable_weights),
        },
        "layers": [_layer(layer) for layer in model.layers],
        "loss": None if compiled is None else compiled.get("loss"),
        "metrics": None if compiled is None else compiled.get("metrics"),
        "optimizer": None
        if optimizer is None
        else {
            "class": type(optimizer).__name__,
            "iterations": int(optimizer.iterations),
            "learning_rate": float(optimizer.learning_rate),
        },
    }


def _layer(layer: Layer) -> dict[str, Any]:
    return {"name": layer.name, "class": type(layer).__name__, "parameters": layer.count_params()}


def _summary(model: Any) -> str:
    from workers.nn.summary import summary_text

    return summary_text(model)
