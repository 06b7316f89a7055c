"""`BackupAndRestore`: a training that is killed goes on where it was, and ends in the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from storage import families
from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.naming import listed
from storage.store import check_url
from workers.nn import random
from workers.nn.callbacks.base import Callback, Logs, StateKeeper
from workers.nn.lookup import check
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workers.nn.model import Model
    from workers.nn.position import Fit
    from workers.nn.train.stored import Stored

PREEMPTED = 75
"""The exit code of a training that was told to stop and can go on (see `storage.errors`)."""

_NAME = "backup"
_STATE = "training"
_SUMS = "sums"


class BackupAndRestore(StateKeeper):
    """Save all that the training is made of, and go on from there when `fit` is called again.

        backup = nn.callbacks.BackupAndRestore("s3://bucket/backup", save_freq=100)
        model.fit(x, y, epochs=50, callbacks=[backup])

    A process that is killed, and one that then calls the same `fit` on a model made and compiled alike, come
    to the bits of one that was not disturbed: weights, optimizer, seeds, the metrics of a part of an epoch,
    and the states of the other callbacks are saved between two batches. A generator that gives the batches
    must begin anew; it is run through to where it was, unless it has `get_state` and `set_state` (JSON
    values). What user code draws from Python's or NumPy's global generators is not known here.

    `save_freq` is "epoch", a number of batches, or False for no saves but that on SIGTERM. On SIGTERM, if
    `fit` runs in the main thread, the batch, be it one of validation, is finished, all is saved and the
    process ends with exit code 75 (SystemExit): call it again to go on. A save counts as a whole or not at
    all; with `double_checkpoint` the one before stays too. When training is over, all is deleted with
    `delete_checkpoint`. Source: Keras.
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: Literal["epoch", False] | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        fits = save_freq == "epoch" or save_freq is False or (type(save_freq) is int and save_freq >= 1)
        check(
            fits,
            f'BackupAndRestore: save_freq={save_freq!r}: give "epoch", a number of batches from 1, or False '
            "for none",
        )
        check(bool(backup_dir), "BackupAndRestore: backup_dir is empty: give a directory or a URL")
        self.backup_dir = os.fspath(backup_dir)
        check_url(self.backup_dir)
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self._url = f"{self.backup_dir.rstrip('/')}/{_NAME}"
        families.check_family(self._url)
        self.is_told_to_stop = False

    @contextlib.contextmanager
    def following(self, fit: Fit) -> Iterator[None]:
        """While it lasts, SIGTERM is a request to save and stop; it begins with what was saved, if anything
        was.

        Raises IncompatibleCheckpoint and ConfigurationError where that is of another training.
        """
        self.is_told_to_stop = False
        with _on_sigterm(self._stop):
            self._restore(fit)
            yield

    def between(self, fit: Fit, *, epoch_ended: bool) -> None:
        """Save, if it is time. Raises SystemExit if the process was told to stop."""
        if self.save_freq == "epoch":
            due = epoch_ended
        else:
            due = bool(self.save_freq) and not epoch_ended and fit.position.batches % self.save_freq == 0
        stops = self.is_told_to_stop
        if due or stops:
            save(fit, self._url, generations=2 if self.double_checkpoint else 1)
        if stops:
            at = fit.position
            sys.stderr.write(
                f"SIGTERM: training is saved after {at.epoch} epochs and {at.batch} batches in "
                f"{self.backup_dir}: run it again to go on\n"
            )
            raise SystemExit(PREEMPTED)

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Delete what is no longer needed."""
        from workers.nn.train.stored import CHECKPOINT

        if self.delete_checkpoint:
            families.delete(self._url, CHECKPOINT)
            if "://" not in self.backup_dir:
                with contextlib.suppress(OSError):  # there is something else in it
                    os.rmdir(os.path.expanduser(self.backup_dir))

    def _stop(self) -> None:
        self.is_told_to_stop = True

    def _restore(self, fit: Fit) -> None:
        from workers.nn.train.stored import CHECKPOINT, open_stored

        found = [each for each in families.listing(self.backup_dir) if each.name == _NAME]
        address = families.good(found[0], {CHECKPOINT}) if found else None
        if address is None:
            if found:
                raise CorruptCheckpoint(
                    f"{self._url} holds no backup that is whole: delete {self.backup_dir} to begin anew"
                )
            return
        restore(fit, open_stored(address))
        if self.params.get("verbose"):
            at = fit.position
            sys.stdout.write(
                f"Going on after {at.epoch} epochs and {at.batch} batches, from {self.backup_dir}\n"
            )


# -- what is saved ------------------------------------------------------------------------------------------


def save(fit: Fit, url: str, *, generations: int) -> None:
    """Save all that a training is made of, as the next generation of `url`."""
    from workers.nn.train.stored import save as save_structure
    from workers.nn.train.structure import Structure

    position = fit.position
    variables = _variables(fit.model)
    if position.sums is not None:
        variables[_SUMS] = _as_variable(position.sums)
    told = []
    for place, callback in _others(fit):
        counts = {}
        for name in callback.holds:
            arrays = getattr(callback, name)
            counts[name] = None if arrays is None else len(arrays)
            for i, array in enumerate(arrays or ()):
                variables[f"callbacks/{place}/{name}/{i}"] = _as_variable(array)
        told.append({"callback": place, "state": callback.get_state(), "arrays": counts})
    document = {
        "epoch": position.epoch,
        "is_between_epochs": position.is_between_epochs,
        "batch": position.batch,
        "first_step": position.first_step,
        "batches": position.batches,
        "logs": {name: float(value) for name, value in position.logs.items()},
        "stopped": bool(fit.model.stop_training),
        "steps": fit.feed.steps,
        "seed": fit.model.seed,
        "random": list(random.get_state()),
        "data": fit.feed.get_state(),
        "callbacks": told,
    }
    save_structure(url, Structure(variables, {_STATE: _Document(document)}), generations=generations)


def restore(fit: Fit, stored: Stored) -> None:
    """In place. Put a training, which has just begun, where a saved one stood.

    Raises IncompatibleCheckpoint for that of another model, ConfigurationError for another seed or other
    data.
    """
    document = stored.states.get(_STATE)
    if not isinstance(document, dict) or not {"epoch", "callbacks", "random"} <= document.keys():
        raise CorruptCheckpoint(f"{stored.where} is no backup of a training: give another backup_dir")
    _check_same(fit, document, stored.where)
    position = fit.position
    for name in ("epoch", "is_between_epochs", "batch", "first_step", "batches", "logs"):
        setattr(position, name, document[name])
    if not position.is_between_epochs:  # before the states, which are those of after it
        fit.told.tell("on_epoch_begin", position.epoch, None)
    arrays = {name: array for name, array in stored.arrays.items() if not _is_apart(name)}
    _assign(_variables(fit.model, arrays), arrays, stored.where)
    position.sums = np.asarray(stored.arrays[_SUMS]) if _SUMS in stored.arrays else None
    _restore_callbacks(fit, document["callbacks"], stored)
    fit.model.seed = document["seed"]
    fit.model.stop_training = document["stopped"]
    random.set_state((document["random"][0], document["random"][1]))
    if document["data"] is not None:
        fit.feed.set_state(document["data"])
    else:
        fit.feed.resume(position.batches)


def _check_same(fit: Fit, document: dict[str, Any], where: str) -> None:
    if fit.seed is not None and fit.seed != document["seed"]:
        raise ConfigurationError(
            f"{where} is of a training with seed {document['seed']}, and this one has {fit.seed}: give that "
            "seed, or another backup_dir"
        )
    if fit.feed.steps != document["steps"]:
        raise ConfigurationError(
            f"{where} is of a training with {document['steps']} batches an epoch, and here are "
            f"{fit.feed.steps}: give the same data and batch_size, or another backup_dir"
        )


def _assign(variables: dict[str, Variable], arrays: dict[str, Any], where: str) -> None:
    from workers.nn.saving import state

    status = state.planned(variables, arrays, where).expect_partial()
    if status.missing or status.unused:
        has = f"it has no {listed(status.missing)}" if status.missing else ""
        lacks = f"the model has no {listed(status.unused)}" if status.unused else ""
        raise IncompatibleCheckpoint(
            f"{where} is of another model: {'; '.join(filter(None, (has, lacks)))}: give another backup_dir"
        )
    state.assign(variables, arrays, where)


def _restore_callbacks(fit: Fit, told: list[dict[str, Any]], stored: Stored) -> None:
    here = dict(_others(fit))
    for entry in told:
        place = entry["callback"]
        callback = here.pop(place, None)
        if callback is None:
            if entry["state"] or any(entry["arrays"].values()):
                warnings.warn(
                    f"{stored.where} has the state of a callback {place}, which fit was not given: it is "
                    "left out",
                    stacklevel=2,
                )
            continue
        for name, count in entry["arrays"].items():
            arrays = [np.asarray(stored.arrays[f"callbacks/{place}/{name}/{i}"]) for i in range(count or 0)]
            setattr(callback, name, None if count is None else arrays)
        callback.set_state(entry["state"])


def _variables(model: Model, stored: dict[str, Any] | None = None) -> dict[str, Variable]:
    """Weights, the optimizer's variables, and what metrics keep by themselves."""
    from workers.nn.saving import state

    found = state.variables(model, build=True)
    for i, metric in enumerate(model.metrics):
        variables = metric.variables
        if stored is not None and not variables and f"metrics/{i}/0" in stored:
            variables = [metric.remade(stored[f"metrics/{i}/0"].shape)]
        found |= {f"metrics/{i}/{j}": variable for j, variable in enumerate(variables)}
    return found


def _is_apart(name: str) -> bool:
    return name == _SUMS or name.startswith("callbacks/")


def _others(fit: Fit) -> list[tuple[str, Callback]]:
    """The other callbacks by class, with a number where a class has several."""
    counts: Counter[str] = Counter()
    found = []
    for callback in fit.told.callbacks:
        if isinstance(callback, StateKeeper):
            continue
        name = type(callback).__name__
        number, counts[name] = counts[name], counts[name] + 1
        found.append((f"{name}_{number}" if number else name, callback))
    return found


def _as_variable(array: Any) -> Variable:
    values = np.asarray(array)
    return Variable(values, dtype=values.dtype, trainable=False)


class _Document:
    """JSON values, as a state of their own."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def get_state(self) -> dict[str, Any]:
        """The values."""
        return self._document

    def set_state(self, state: Any) -> None:
        """Nothing: `restore` puts them in their places."""


@contextlib.contextmanager
def _on_sigterm(function: Any) -> Iterator[None]:
    """While it lasts, SIGTERM calls the function; where signals are ignored, or others' affair, nothing."""
    before = signal.getsignal(signal.SIGTERM)
    is_ours = threading.current_thread() is threading.main_thread() and before is not signal.SIG_IGN
    if not is_ours or before is None:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
