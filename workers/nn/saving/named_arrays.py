"""Weights in files of arrays by name, such as `.npz` and `.safetensors`: names are the paths of variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import CheckpointError, ConfigurationError, ObjectMissing
from storage.files import file_at
from storage.naming import check_rename, choose, renamed
from workers.nn.lookup import check
from workers.nn.saving import state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from workers.nn.model import Model

Arrays = dict[str, "NDArray[Any]"]


def save(model: Model, path: str, written: Callable[[Arrays], bytes]) -> None:
    """Write a model's weights, without the optimizer's state, as one file."""
    check(model.built, f"{path}: the model is not built: call it on data, or build it")
    arrays = {name: variable.numpy() for name, variable in model.named_variables().items()}
    file_at(path).write(written(arrays))


def load(path: str, read: Callable[[bytes, str], Arrays]) -> Arrays:
    """The arrays of a file. CheckpointError if there is none."""
    try:
        return read(file_at(path).read(), path)
    except ObjectMissing as exc:
        raise CheckpointError(f"there is no file {path}") from exc


def restore(
    model: Model,
    arrays: Mapping[str, Any],
    where: str,
    *,
    skip_mismatch: bool = False,
    names: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
) -> state.Status:
    """In place. Give a built model the arrays of its variables' names; see `state.assign`.

    `names` are those of the file that are wanted, or globs; `rename` what they are here.
    """
    if not model.built:
        raise ConfigurationError(f"{where} tells no shape to build the model with: call it on data first")
    check_rename(arrays, rename or {}, where)
    found = {
        f"{state.WEIGHTS}/{renamed(name, rename or {})}": arrays[name]
        for name in choose(arrays, names, where)
    }
    return state.assign(
        state.variables(model, include_optimizer=False), found, where, skip_mismatch=skip_mismatch
    )
