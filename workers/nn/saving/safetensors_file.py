"""Weights as `.safetensors`: a tensor for each variable, under its path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError, ObjectMissing
from storage.files import file_at
from storage.formats import safetensors_file as safetensors
from workers.nn.saving import named_arrays

if TYPE_CHECKING:
    from workers.nn.model import Model
    from workers.nn.saving.state import Status


def recognises(path: str) -> bool:
    """Whether there is such a file, judged by its beginning."""
    try:
        file = file_at(path)
        head = file.read(0, safetensors.LENGTH_NBYTES + 1)
        return safetensors.looks_like(head, file.info().nbytes)
    except (ObjectMissing, ConfigurationError):
        return False


def save_weights(model: Model, path: str) -> None:
    """Write the weights, without the optimizer's state. ConfigurationError for what has no type there."""
    named_arrays.save(model, path, safetensors.written)


def load_weights(
    model: Model, path: str, *, skip_mismatch: bool = False, by_name: bool = False, **options: Any
) -> Status:
    """In place. Give a built model the tensors of its variables' names: `named_arrays.restore`."""
    return named_arrays.restore(
        model, named_arrays.load(path, safetensors.read), path, skip_mismatch=skip_mismatch, **options
    )
