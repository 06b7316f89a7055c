"""What is in a checkpoint, and which one of a directory is the latest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage import families
from storage.errors import ConfigurationError
from storage.formats import tensorflow_files
from storage.naming import listed
from workers.nn.saving import tensorflow
from workers.nn.saving.native import MODEL, WEIGHTS
from workers.nn.train.stored import CHECKPOINT, is_stored, open_stored

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from workers.nn.numerics import Array

_KINDS = (CHECKPOINT, WEIGHTS, MODEL)


def latest_checkpoint(
    checkpoint_dir: str | os.PathLike[str], latest_filename: str | None = None, *, verify: bool = True
) -> str | None:
    """The path of what was saved last in a directory and is good; None if there is none.

    It is found from a listing: no file has to say so. Of TensorFlow's checkpoints, where there are no others,
    it is the one that the file `checkpoint`, or `latest_filename`, names, else the one of the last name. What
    is partial or damaged is skipped, and logged with the reason; every byte is read for that, unless `verify`
    is False.
    """
    directory = str(checkpoint_dir)
    newest = families.newest(directory, _KINDS, verify=verify)
    return newest or tensorflow_files.latest_in(directory, latest_filename, verify=verify)


def load_checkpoint(ckpt_dir_or_file: str | os.PathLike[str]) -> CheckpointReader:
    """A reader of a checkpoint, or of the latest of a directory, of ours or of TensorFlow.

    Raises ConfigurationError if there is none, CorruptCheckpoint.
    """
    path = str(ckpt_dir_or_file)
    if not is_stored(path):
        path = latest_checkpoint(path, verify=False) or path
    if tensorflow.kind_beside(path) is None and tensorflow_files.is_prefix(path):
        bundle = tensorflow.bundle_of(path)
        return CheckpointReader(bundle.url, tensorflow.tensors_of(bundle))
    stored = open_stored(path)
    return CheckpointReader(stored.where, stored.arrays)


def list_variables(ckpt_dir_or_file: str | os.PathLike[str]) -> list[tuple[str, list[int]]]:
    """Name and shape of all that is in a checkpoint, by name."""
    return sorted(load_checkpoint(ckpt_dir_or_file).get_variable_to_shape_map().items())


def load_variable(ckpt_dir_or_file: str | os.PathLike[str], name: str) -> Array:
    """One value of a checkpoint."""
    return load_checkpoint(ckpt_dir_or_file).get_tensor(name)


class CheckpointReader:
    """The variables of a checkpoint by name: `net/l1/kernel`, as `workers.nn.train.structure` says.

    TensorFlow's longer names, `net/l1/kernel/.ATTRIBUTES/VARIABLE_VALUE`, mean the same. Of a checkpoint of
    TensorFlow it has TensorFlow's names, and strings are objects of type bytes.
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
        found = self._arrays[name]
        return found.read() if isinstance(found, tensorflow.StoredTensor) else np.asarray(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)


class _Named(dict[str, Any]):
    """Values by name, and by TensorFlow's name for it, or the other way round."""

    def __missing__(self, name: str) -> Any:
        for other in _other_names(name):
            if super().__contains__(other):
                return self[other]
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(super(_Named, self).__contains__(n) for n in _other_names(name))


def _other_names(name: str) -> tuple[str, str, str]:
    return name, name.removesuffix(tensorflow.ENDING), name + tensorflow.ENDING
