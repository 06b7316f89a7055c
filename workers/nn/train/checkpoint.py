"""`Checkpoint`: any structure of variables, saved and restored by the attributes that lead to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.objects import while_replaced
from workers.nn.awaited import Awaited
from workers.nn.saving.state import Status
from workers.nn.train.restoration import Restoration
from workers.nn.train.stored import open_stored, save
from workers.nn.train.structure import Parent, can_hold, structure_of
from workers.nn.variables import Variable

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

_COUNTER = "save_counter"


class Checkpoint(Awaited, Parent):
    """Models, optimizers, variables, lists and dicts of them, other checkpoints, and objects that hold such.

        checkpoint = nn.train.Checkpoint(step=nn.Variable(1), optimizer=optimizer, net=net)
        path = checkpoint.save("training/ckpt")  # training/ckpt-1
        checkpoint.restore(path).assert_consumed()

    An object with `get_state` and `set_state` (JSON values), such as a callback, is saved with its state.
    What is given later as an attribute belongs to it too. With `root`, what that holds stands beside the
    keywords. `workers.nn.train.structure` says what names variables have. Source: TensorFlow's
    `tf.train.Checkpoint`.
    """

    def __init__(self, root: Any = None, **structure: Any) -> None:
        self._root = root
        self._counter: Variable | None = None
        self._restorations: list[Restoration] = []
        for name, value in structure.items():
            if not can_hold(value) or isinstance(value, str):
                raise ConfigurationError(
                    f"Checkpoint: {name} is {value!r}, which cannot be saved: give a variable, such as "
                    "nn.Variable(1), or an object that holds some"
                )
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_"):
            self.tell_more()

    def held(self) -> Iterator[tuple[str, Any]]:
        """What was given, by name, and the counter of saves once there is one."""
        if self._root is not None:
            yield "", self._root
        yield from ((name, value) for name, value in vars(self).items() if not name.startswith("_"))
        if self._counter is not None:
            yield _COUNTER, self._counter

    @property
    def save_counter(self) -> Variable:
        """How often `save` was called: a variable, which is saved too."""
        if self._counter is None:
            self._counter = Variable(np.int64(0), trainable=False, name=_COUNTER)
            self.tell_more()
        return self._counter

    def save(self, file_prefix: str | os.PathLike[str], options: Any = None) -> str:
        """Save as `file_prefix-N`, where N counts the saves; returns that path. Raises as `write` does."""
        return self.save_as(str(file_prefix))

    def save_as(self, prefix: str, number: int | None = None, kept: Mapping[str, Any] | None = None) -> str:
        """`save`, under another number than the counter's, and with what a manager has to remember."""
        counter = self.save_counter
        before = int(counter)
        counter.assign(np.int64(before + 1))
        path = f"{prefix}-{before + 1 if number is None else number}"
        try:
            save(path, structure_of(self), kept=kept)
        except BaseException:
            counter.assign(np.int64(before))
            raise
        return path

    def write(self, file_prefix: str | os.PathLike[str], options: Any = None) -> str:
        """Save at this path, in the place of what was saved there, which goes afterwards; returns the path.

        It counts as a whole or not at all. Raises ConfigurationError, StorageError, CheckpointError,
        Superseded.
        """
        save(str(file_prefix), structure_of(self))
        return str(file_prefix)

    def restore(self, save_path: str | os.PathLike[str] | None, options: Any = None) -> Status:
        """In place. Take the values that `save` has saved, now and, for what is not built yet, when it is.

        Without a path, as `latest_checkpoint` gives where there is none, nothing is done. Raises
        IncompatibleCheckpoint, and changes nothing, where a shape or dtype differs; CorruptCheckpoint;
        ConfigurationError if nothing is there.
        """
        if save_path is None:
            return Status("no checkpoint", (), structure_of(self).variables, ())
        return while_replaced(lambda: self._take(save_path, counts=True))

    def read(self, save_path: str | os.PathLike[str], options: Any = None) -> Status:
        """In place. Take the values that `write` has saved: as `restore`, without the counter of saves."""
        return while_replaced(lambda: self._take(save_path, counts=False))

    def _take(self, path: str | os.PathLike[str], *, counts: bool) -> Status:
        stored = open_stored(str(path))
        made = counts and self._counter is None and _COUNTER in stored.arrays
        if made:
            self._counter = Variable(np.int64(0), trainable=False, name=_COUNTER)
        restoration = Restoration(self, stored)
        try:
            status = restoration.begin()
        except BaseException:
            self._counter = None if made else self._counter
            raise
        for each in self._restorations:
            each.give_up()
        self._restorations = [restoration]
        return status
