"""What is in a checkpoint, and which one of a directory is the latest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage import families
from storage.errors import ConfigurationError
from storage.naming import listed
from workers.nn.saving.native import MODEL, WEIGHTS
from workers.nn.train.stored import CHECKPOINT, open_stored

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from workers.nn.numerics import Array

_KINDS = (CHECKPOINT, WEIGHTS, MODEL)
_TENSORFLOW_ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"


def latest_checkpoint(
    checkpoint_dir: str | os.PathLike[str], latest_filename: str | None = None, *, verify: bool = True
) -> str | None:
    """The path of what was saved last in a directory and is good; None if there is none.

    It is found from a listing: no file has to say so, and `latest_filename` is taken for TensorFlow's sake.
    What is partial or damaged is skipped, and logged with the reason; every byte is read for that, unless
    `verify` is False.
    """
    return families.newest(str(checkpoint_dir), _KINDS, verify=verify)


def load_checkpoint(ckpt_dir_or_file: str | os.PathLike[str]) -> CheckpointReader:
    """A reader of a checkpoint, or of the latest of a directory. ConfigurationError if there is none."""
    path = str(ckpt_dir_or_file)
    try:
        stored = open_stored(path)
    except ConfigurationError:
        latest = latest_checkpoint(path, verify=False)
        if latest is None:
            raise
        stored = open_stored(latest)
    return CheckpointReader(stored.where, stored.arrays)


def list_variables(ckpt_dir_or_file: str | os.PathLike[str]) -> list[tuple[str, list[int]]]:
    """Name and shape of all that is in a checkpoint, by name."""
    return sorted(load_checkpoint(ckpt_dir_or_file).get_variable_to_shape_map().items())


def load_variable(ckpt_dir_or_file: str | os.PathLike[str], name: str) -> Array:
    """One value of a checkpoint."""
    return load_checkpoint(ckpt_dir_or_file).get_tensor(name)


class CheckpointReader:
    """The variables of a checkpoint by name: `net/l1/kernel`, as `workers.nn.train.structure` says.

    TensorFlow's longer names, `net/l1/kernel/.ATTRIBUTES/VARIABLE_VALUE`, mean the same.
    """

    def __init__(self, where: str, arrays: Mapping[str, Any]) -> None:
        self._where = where
        self._arrays = _Named(arrays)

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """The shape of each variable."""
        return _Named({name: list(array.shape) for name, array in self._arrays.items()})

    def get_variable_to_dtype_map(self) -> dict[str, np.dtype[Any]]:
        """The dtype of each variable."""
        return _Named({name: np.dtype(array.dtype) for name, array in self._arrays.items()})

    def has_tensor(self, name: str) -> bool:
        """Whether there is a variable of that name."""
        return name in self._arrays

    def get_tensor(self, name: str) -> Array:
        """The value of a variable, read and checked. ConfigurationError if there is none of that name."""
        if name not in self._arrays:
            raise ConfigurationError(
                f"{self._where} holds no {name!r}: it holds {listed(sorted(self._arrays)) or 'nothing'}"
            )
        return np.asarray(self._arrays[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)


class _Named(dict[str, Any]):
    """Values by name, and by TensorFlow's name for it."""

    def __missing__(self, name: str) -> Any:
        short = name.removesuffix(_TENSORFLOW_ENDING)
        if short == name:
            raise KeyError(name)
        return self[short]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.removesuffix(_TENSORFLOW_ENDING))
