"""`nn.saved_model`: what a saved model computes, by the names of its signatures. Source: TensorFlow's
SavedModel.

    nn.saved_model.save(model, "served", signatures={"double": doubled})
    loaded = nn.saved_model.load("served")
    loaded.signatures["double"](x)["output_0"]
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError
from storage.files import file_at
from workers.nn.lookup import check
from workers.nn.saving import native
from workers.nn.saving.api import save
from workers.nn.saving.graphs import Graphs, Revived
from workers.nn.saving.signatures import DEFAULT, SERVING, Given, Signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from storage.bundle import Bundle
    from workers.nn.variables import Variable

TRAINING = "train"
_ASSETS, _EXTRA = "assets", "assets.extra"


@dataclass(frozen=True)
class SavedModel:
    """A saved model as a function with signatures: no layers, no training (`nn.load_model` gives those).

    `variables` are by path, `signatures` by name, `tags` those that it was loaded by.
    """

    variables: Mapping[str, Variable]
    signatures: Mapping[str, Signature]
    tags: tuple[str, ...]
    _graphs: Graphs
    _bundle: Bundle

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        """What the model gives, as tensors."""
        return Revived(self._graphs, self.variables, None)(inputs, training=training)

    @property
    def assets(self) -> tuple[str, ...]:
        """The keys of the files that were saved with it: "assets/words.txt"."""
        return tuple(key for key in self._bundle if key.startswith((f"{_ASSETS}/", f"{_EXTRA}/")))

    def read_asset(self, key: str) -> bytes:
        """The content of one of `assets`, checked. CorruptCheckpoint if there is none, or it was changed."""
        return self._bundle.read(key)


def load(path: str | Path, tags: str | Iterable[str] | None = None) -> SavedModel:
    """What was saved at `path` under just these tags; without any, what there is one set of tags for.

    No class of the model is needed. Raises ConfigurationError that names the tags that are there.
    """
    bundle, variables, graphs, found = native.load_signatures(str(path))
    known = {signature.tags for signature in found}
    if tags is None and len(known) == 1:
        wanted = next(iter(known))
    else:
        wanted = _tags([] if tags is None else tags)
    if wanted not in known:
        there = " and ".join(str([*each]) for each in sorted(known)) or "none"
        raise ConfigurationError(f"{path}: nothing was saved with the tags {[*wanted]}: there are {there}")
    chosen = {signature.name: signature for signature in found if signature.tags == wanted}
    return SavedModel(MappingProxyType(variables), MappingProxyType(chosen), wanted, graphs, bundle)


class SavedModelBuilder:
    """Saves a model with signatures under several sets of tags, and files beside it.

    `add_meta_graph_and_variables` comes first and gives the model; `add_meta_graph` adds signatures under
    other tags; `save` writes it all. The model takes the place of TensorFlow's session.
    """

    def __init__(self, export_dir: str | Path) -> None:
        self._path = str(export_dir)
        self._model: Any = None
        self._signatures: list[Signature] = []
        self._assets: dict[str, bytes] = {}

    def add_meta_graph_and_variables(
        self,
        model: Any,
        tags: str | Iterable[str] = SERVING,
        signature_def_map: Mapping[str, Given] | None = None,
        assets_collection: Sequence[str | Path] | None = None,
        extra_assets: Sequence[str | Path] | None = None,
    ) -> None:
        """In place. Take a model, with signatures under these tags; by default its call.

        `assets_collection` and `extra_assets` are paths or URLs of files, kept in `assets/` and
        `assets.extra/`.
        """
        check(self._model is None, "SavedModelBuilder: it has a model already: call add_meta_graph")
        check(model.built, "SavedModelBuilder: the model is not built: call it on data")
        assets = _files(_ASSETS, assets_collection) | _files(_EXTRA, extra_assets)
        found = _made(model, tags, signature_def_map)
        self._model, self._signatures, self._assets = model, found, assets

    def add_meta_graph(
        self, tags: str | Iterable[str], signature_def_map: Mapping[str, Given] | None = None
    ) -> None:
        """In place. Add signatures of the same variables under other tags."""
        check(self._model is not None, "SavedModelBuilder: call add_meta_graph_and_variables first")
        found = _made(self._model, tags, signature_def_map)
        taken = {signature.tags for signature in self._signatures}
        check(found[0].tags not in taken, f"SavedModelBuilder: the tags {[*found[0].tags]} are taken")
        self._signatures += found

    def save(self) -> str:
        """Write what was added; returns the path."""
        check(self._model is not None, "SavedModelBuilder: nothing was added")
        native.save_model(self._model, self._path, signatures=self._signatures, assets=self._assets)
        return self._path


def _made(model: Any, tags: str | Iterable[str], given: Mapping[str, Given] | None) -> list[Signature]:
    named = given or {DEFAULT: model}
    return [Signature.of(model, name, each, _tags(tags)) for name, each in named.items()]


def _tags(tags: str | Iterable[str]) -> tuple[str, ...]:
    """The set of tags, in one order."""
    return tuple(sorted({tags} if isinstance(tags, str) else {*tags}))


def _files(folder: str, paths: Sequence[str | Path] | None) -> dict[str, bytes]:
    found = {}
    for path in paths or ():
        file = file_at(str(path))
        key = f"{folder}/{file.key}"
        check(key not in found, f"SavedModelBuilder: two files are named {file.key}")
        found[key] = file.read()
    return found


__all__ = ["SERVING", "TRAINING", "SavedModel", "SavedModelBuilder", "load", "save"]
