"""The seed of a model's training in an HDF5 file: an attribute of the root, which Keras does not look at.

With it, dropout and the order of samples go on as they would have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.formats import hdf5
    from workers.nn.model import Model

_SEED = "holdfast_seed"
_MAX_DIGITS = 19


def seed_attribute(model: Model) -> dict[str, hdf5.Attribute]:
    """What a file's root holds of a model's seed."""
    return {} if model.seed is None else {_SEED: str(model.seed)}


def restore_seed(model: Model, root: hdf5.Attributes) -> None:
    """In place. Give the model the seed that it was trained with, if the file tells it."""
    seed = root.text(_SEED)
    if seed is not None and seed.isdecimal() and seed.isascii() and len(seed) <= _MAX_DIGITS:
        model.seed = int(seed)
