"""Saving and loading whatever the format: saving goes by the name's ending, loading by what is there."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage import families
from storage.errors import ConfigurationError, CorruptCheckpoint
from storage.files import file_at, is_file
from storage.store import check_url, open_store
from storage.strict_json import parse
from workers.nn.lookup import check
from workers.nn.saving import documents, native, objects, onnx, signatures
from workers.nn.saving.signatures import Signature

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from workers.nn.model import Model
    from workers.nn.saving.signatures import Given
    from workers.nn.saving.state import Status


@dataclass(frozen=True, slots=True)
class Format:
    """A format besides the native one, in a module that is imported when it is needed.

    The module has `save_weights(model, path)`, `load_weights(model, path, ...)` and `recognises(path)`, and
    for whole models `save_model(model, path, include_optimizer=)` and `load_model(path, custom_objects=,
    compile=)`, or `why_no_model(path)`, the message if one asks for a model.
    """

    name: str
    module: str
    endings: tuple[str, ...]
    holds_models: bool = True
    save_formats: tuple[str, ...] = ()
    """The words for it in `save_format`."""
    options: tuple[str, ...] = ()
    """What its weights are loaded with beside what all are."""

    def load(self) -> ModuleType:
        """The module."""
        return importlib.import_module(self.module)


_BY_NAME = ("names", "rename")

FORMATS: tuple[Format, ...] = (
    Format(
        "Keras's weights file",
        "workers.nn.saving.weights_h5",
        (".weights.h5",),
        holds_models=False,
        save_formats=("h5",),
    ),
    Format(
        "Keras's weights in several files",
        "workers.nn.saving.sharded_h5",
        (".weights.json",),
        holds_models=False,
    ),
    Format("Keras's file", "workers.nn.saving.keras_file", (".keras",), save_formats=("keras",)),
    Format("Keras 2's file", "workers.nn.saving.legacy_h5", (".h5", ".hdf5"), save_formats=("h5",)),
    Format("NumPy's file", "workers.nn.saving.npz", (".npz",), holds_models=False, options=_BY_NAME),
    Format(
        "safetensors",
        "workers.nn.saving.safetensors_file",
        (".safetensors",),
        holds_models=False,
        options=_BY_NAME,
    ),
    Format(
        "TensorFlow's checkpoint",
        "workers.nn.saving.tensorflow",
        (".index",),
        holds_models=False,
        options=("root",),
    ),
)
"""Those with the longest endings first."""


def save(
    model: Model,
    path: str | Path,
    overwrite: bool = True,
    include_optimizer: bool = True,
    save_format: str | None = None,
    signatures: Given | Mapping[str, Given] | None = None,
    save_traces: bool = True,
    zipped: bool = True,
) -> None:
    """Save architecture, weights, compile settings and the optimizer's state.

    `save_format` "tf" is the native directory, as is what has no ending of another format. `signatures` are
    functions to be called by name (`nn.saved_model.load`). Without `save_traces` no graph is stored: loading
    then needs the model's classes. Without `overwrite`, ConfigurationError if something is there. Keras's
    format becomes a directory of files with `zipped=False`, as `keras.saving.save_model` makes it.
    """
    url = _writable(path, overwrite=overwrite)
    if not zipped:
        _save_directory(model, url, include_optimizer, save_format, signatures)
        return
    found = format_for(url, save_format, models=True)
    if found is None:
        given = None if signatures is None else _signatures(model, signatures)
        native.save_model(
            model, url, include_optimizer=include_optimizer, save_traces=save_traces, signatures=given
        )
        return
    if signatures is not None:
        raise ConfigurationError(f"{url}: {found.name} holds no signatures: save to a directory")
    found.load().save_model(model, url, include_optimizer=include_optimizer)


def _save_directory(
    model: Model, url: str, include_optimizer: bool, save_format: str | None, signatures: Any
) -> None:
    if save_format not in (None, "keras") or signatures is not None or url.endswith(".keras"):
        raise ConfigurationError(
            f"{url}: zipped=False is for Keras's format in a directory, whose name does not end in .keras, "
            "without signatures"
        )
    from workers.nn.saving import keras_file

    keras_file.save_directory(model, url, include_optimizer=include_optimizer)


def load_model(
    path: str | Path, custom_objects: Mapping[str, Any] | None = None, compile: bool = True
) -> Any:
    """The model that was saved at `path`, in whatever format; compiled as it was, if `compile`.

    `custom_objects` are classes and functions by name. Raises ConfigurationError if there is none.
    """
    url = _url(path)
    found = format_at(url)
    if found is not None and not found.holds_models:
        why = getattr(found.load(), "why_no_model", None)
        raise ConfigurationError(
            why(url) if why else f"{url}: {found.name} holds weights alone: make the model, and load_weights"
        )
    module: Any = native if found is None else found.load()
    return module.load_model(url, custom_objects=custom_objects, compile=compile)


def save_weights(
    model: Model,
    path: str | Path,
    overwrite: bool = True,
    save_format: str | None = None,
    max_shard_size: float | None = None,
) -> None:
    """Save the weights, and the optimizer's state where the format holds it.

    With `max_shard_size`, in files of at most so many GiB beside an index, `X.weights.json`, which is also
    made of a name `X.weights.h5`.
    """
    url = _url(path)
    if max_shard_size is not None:
        stem = url.removesuffix(".json").removesuffix(".h5")
        if not stem.endswith(".weights") or stem == url:
            raise ConfigurationError(f"{url}: weights in several files are named X.weights.json")
        from workers.nn.saving import sharded_h5

        url = _writable(f"{stem}.json", overwrite=overwrite)
        sharded_h5.save_weights(model, url, max_shard_size=max_shard_size)
        return
    url = _writable(path, overwrite=overwrite)
    found = format_for(url, save_format, models=False)
    module: Any = native if found is None else found.load()
    module.save_weights(model, url)


def load_weights(
    model: Model, path: str | Path, skip_mismatch: bool = False, by_name: bool = False, **options: Any
) -> Status:
    """In place. Give a model the weights at `path`, in whatever format; returns what was restored.

    Weights that do not fit raise IncompatibleCheckpoint, and nothing is changed; with `skip_mismatch` those
    of another shape are left out. `options` are the format's: `names` and `rename` where names decide
    (the native one, .npz, .safetensors), so that `by_name` says nothing.
    """
    url = _url(path)
    found = format_at(url)
    _check_options(url, found, options)
    if found is None:
        return native.load_weights(model, url, skip_mismatch=skip_mismatch, **options)
    status: Status = found.load().load_weights(
        model, url, skip_mismatch=skip_mismatch, by_name=by_name, **options
    )
    return status


def _check_options(url: str, found: Format | None, options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for what weights of that format are not loaded with."""
    name, known = ("Holdfast's format", _BY_NAME) if found is None else (found.name, found.options)
    if unknown := sorted(options.keys() - {*known}):
        taken = f": it takes {', '.join(f'{each}=' for each in known)}" if known else ""
        raise ConfigurationError(
            f"{url}: {name} is not loaded with {', '.join(f'{each}=' for each in unknown)}{taken}"
        )
    names, rename, root = (options.get(each) for each in (*_BY_NAME, "root"))
    fits = names is None or (
        isinstance(names, str | Sequence | Set) and all(isinstance(each, str) for each in names)
    )
    check(fits, f"load_weights: names={names!r}: give names or globs, such as ['dense/*']")
    fits = rename is None or (
        isinstance(rename, Mapping) and all(isinstance(each, str) for pair in rename.items() for each in pair)
    )
    check(fits, f"load_weights: rename={rename!r}: give stored names and new ones, such as {{'a/*': 'b/*'}}")
    check(root is None or isinstance(root, str), f"load_weights: root={root!r}: give an attribute's name")


def delete(path: str | Path) -> None:
    """Remove what `save` or `save_weights` has saved at a path, in whatever format; nothing is no error."""
    url = _url(path)
    if any(url.endswith(each.endings) for each in FORMATS) and is_file(url):
        file_at(url).delete()
    elif (kind := native.kind_at(url)) is not None:
        families.delete(url, kind)


def model_from_json(json_string: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A new model of the architecture that `Model.to_json`, or Keras's, wrote."""
    try:
        config = parse(json_string.encode(), max_depth=documents.MAX_DEPTH)
    except ValueError as exc:
        raise ConfigurationError(f"model_from_json: {exc}") from exc
    return objects.deserialize(config, custom_objects)


def _signatures(model: Model, given: Given | Mapping[str, Given]) -> list[Signature]:
    named: Mapping[str, Any] = given if isinstance(given, dict) else {signatures.DEFAULT: given}
    return [Signature.of(model, name, each, [signatures.SERVING]) for name, each in named.items()]


def _url(path: str | Path) -> str:
    check(isinstance(path, str | os.PathLike), f"{path!r} is no path: give a str, a pathlib.Path or a URL")
    url = os.fspath(path)
    check_url(url)
    return url


def _writable(path: str | Path, *, overwrite: bool) -> str:
    """The URL, after making sure that nothing is there, unless it may be replaced."""
    url = _url(path)
    if not overwrite and (is_file(url) or open_store(url).list()):
        raise ConfigurationError(f"{url} is there already: give another place, or overwrite=True")
    return url


def format_for(url: str, save_format: str | None, *, models: bool) -> Format | None:
    """The format to save in; None for the native one."""
    if save_format == "tf":
        return None
    fitting = [each for each in FORMATS if each.holds_models or not models]
    if save_format is None:
        check(not url.endswith(onnx.ENDING), f"{url}: ONNX is written by nn.saving.onnx.export(model, path)")
        found = next((each for each in FORMATS if url.endswith(each.endings)), None)
        if found is not None and found not in fitting:
            raise ConfigurationError(f"{url}: {found.name} holds weights alone: give a model another ending")
        return found
    named = [each for each in fitting if save_format in each.save_formats]
    if not named:
        known = ", ".join(['"tf"', *(f'"{word}"' for each in fitting for word in each.save_formats)])
        raise ConfigurationError(f"save_format={save_format!r} is not known: give one of {known}")
    return next((each for each in named if url.endswith(each.endings)), named[0])


def format_at(url: str) -> Format | None:
    """The format of what is there; None for the native one. ConfigurationError if nothing is."""
    found = next((each for each in FORMATS if each.load().recognises(url)), None)
    if found is None and is_file(url):
        check(
            not url.endswith(onnx.ENDING),
            f"{url}: ONNX files are written, and not read: take what this one was made from",
        )
        raise CorruptCheckpoint(
            f"{url} is a file in no format that is known: it is damaged, or holds no model and no weights"
        )
    if found is None and not native.recognises(url):
        raise ConfigurationError(f"there is no model, and no weights in a format that is known, at {url}")
    return found
