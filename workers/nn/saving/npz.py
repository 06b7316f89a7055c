"""Weights as NumPy's `.npz`: an array for each variable, under its path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError, ObjectMissing
from storage.files import RangeReader, file_at
from storage.formats import npz
from workers.nn.saving import named_arrays

if TYPE_CHECKING:
    from workers.nn.model import Model
    from workers.nn.saving.state import Status


def recognises(path: str) -> bool:
    """Whether there is such a file, judged by the names in it alone."""
    try:
        file = file_at(path)
        if file.read(0, len(npz.SIGNATURE)) != npz.SIGNATURE:
            return False
        names = npz.names_in(RangeReader(file, file.info().nbytes))
    except (ObjectMissing, ConfigurationError, ValueError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def save_weights(model: Model, path: str) -> None:
    """Write the weights, without the optimizer's state."""
    named_arrays.save(model, path, npz.written)


def load_weights(
    model: Model, path: str, *, skip_mismatch: bool = False, by_name: bool = False, **options: Any
) -> Status:
    """In place. Give a built model the arrays of its variables' names: `named_arrays.restore`."""
    return named_arrays.restore(
        model, named_arrays.load(path, npz.read), path, skip_mismatch=skip_mismatch, **options
    )
