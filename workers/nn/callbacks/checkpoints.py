"""`ModelCheckpoint`: the model, or its weights, saved in the course of a training."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from storage.errors import ConfigurationError, HoldfastError
from storage.strict_json import spelled, unspelled
from workers.nn.callbacks.base import Callback, Logs, Monitor
from workers.nn.callbacks.keeping import Rule, Saved, is_wanted, judge
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Mapping


class ModelCheckpoint(Callback):
    """Save the model, or with `save_weights_only` its weights and the optimizer's state.

        nn.callbacks.ModelCheckpoint("s3://bucket/training/cp-{epoch:04d}.ckpt", save_weights_only=True)

    `filepath` is a path or URL; it may name `{epoch}` (from 1), `{batch}` of the epoch (from 1) and any
    metric. Its ending decides on the format: `.keras`, `.weights.h5`, else our own. What is saved counts as a
    whole or not at all, and takes the place of what was there only then.

    It saves at the end of each epoch, or with a number as `save_freq` after so many batches; with
    `every_steps` also at each multiple of that many steps, with `every_seconds` once so much time has passed.
    `save_freq` None leaves it at these. With `save_best_only` it saves only if `monitor` has become better,
    at first than `initial_value_threshold`.

    With `max_to_keep` the newest stay and with `best` those of the best `monitor`, one reason is enough; of
    the others one in `keep_every_n_hours` stays for good and the rest are deleted. It looks only after what
    it has saved itself. Source: Keras 3, but for what stands behind the `*`.
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: Literal["auto", "min", "max"] = "auto",
        save_freq: Literal["epoch"] | int | None = "epoch",
        initial_value_threshold: float | None = None,
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        max_to_keep: int | None = None,
        keep_every_n_hours: float | None = None,
        best: int | None = None,
    ) -> None:
        super().__init__()
        self.filepath = os.fspath(filepath)
        self.monitor = monitor
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self._monitor = Monitor("ModelCheckpoint", monitor, mode)
        self._rule = Rule(max_to_keep, best, keep_every_n_hours, self._monitor.sign > 0)
        self.best: float | None = None
        if initial_value_threshold is not None:
            self.best = float(initial_value_threshold)
        self._check()
        self._epoch = 0
        self._batch = -1
        self._batches = 0  # since the last save
        self._saved: tuple[Saved, ...] = ()
        self._preserved_at = self.clock()
        self._left: list[str] = []  # could not be deleted
        self._saved_at = time.monotonic()

    clock: ClassVar = staticmethod(time.time)
    """The time of saves, in Unix seconds."""

    def _check(self) -> None:
        for name in ("save_freq", "every_steps"):
            value = getattr(self, name)
            fits = value is None or (type(value) is int and value >= 1)
            words = '"epoch", ' if name == "save_freq" else ""
            check(
                fits or (name == "save_freq" and value == "epoch"),
                f"ModelCheckpoint: {name}={value!r}: give {words}a whole number from 1, or None",
            )
        seconds = self.every_seconds
        check(
            seconds is None or (not isinstance(seconds, bool | str) and seconds > 0),
            f"ModelCheckpoint: every_seconds={seconds!r}: give a number above 0, or None",
        )
        check(
            not self.filepath.endswith(".weights.h5") or self.save_weights_only,
            f"ModelCheckpoint: {self.filepath} is the name of a file of weights: set save_weights_only=True, "
            "or end it in .keras",
        )

    @property
    def saved(self) -> list[str]:
        """The paths of what it has saved and keeps, the last one at the end."""
        return [each.path for each in self._saved]

    # -- what is remembered -------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """The best value, and what was saved and may be deleted."""
        return {
            "best": spelled(self.best),
            "batches": self._batches,
            "saved": [[each.path, each.at, spelled(each.value)] for each in self._saved],
            "preserved_at": self._preserved_at,
            "left": self._left,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """In place. Go on from what `get_state` gave."""
        best = unspelled(state["best"])
        self.best = None if best is None else float(best)
        self._batches = int(state["batches"])
        self._saved = tuple(Saved(path, at, float(unspelled(value))) for path, at, value in state["saved"])
        self._preserved_at = state["preserved_at"]
        self._left = list(state["left"])

    # -- when it saves ------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Begin to count time."""
        self._saved_at = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Take notice of the epoch."""
        self._epoch, self._batch = epoch, -1

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Save, if it is time."""
        self._batch = batch
        self._batches += 1
        steps, seconds = self.every_steps, self.every_seconds
        due = isinstance(self.save_freq, int) and self._batches >= self.save_freq
        due = due or (steps is not None and self.model.optimizer.steps % steps == 0)
        if due or (seconds is not None and time.monotonic() - self._saved_at >= seconds):
            self._batches = 0
            self._consider(logs or {})

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Save, unless that goes by batches."""
        self._epoch = epoch
        if self.save_freq == "epoch":
            self._consider(logs or {})

    # -- parts --------------------------------------------------------------------------------------------

    def _consider(self, logs: Mapping[str, float]) -> None:
        """In place. Save if that is wanted, and delete what is no longer kept."""
        self._saved_at = time.monotonic()
        value = float(logs.get(self.monitor, math.nan))
        if self._rule.best is not None and self.monitor not in logs:
            raise ConfigurationError(
                f"ModelCheckpoint(best={self._rule.best}, monitor={self.monitor!r}): there is no such metric "
                f"here, only {', '.join(logs)}"
            )
        path = self._filled(logs)
        new = Saved(path, self.clock(), value)
        told = self._improvement(logs) if self.save_best_only else "saving model"
        if told is not None and not is_wanted(self._rule, self._saved, new):
            self._say(f"{self.monitor} is not among the best {self._rule.best}")
        elif told is not None:
            self._say(f"{told} to {path}")
            self._save(new)

    def _improvement(self, logs: Mapping[str, float]) -> str | None:
        """In place. Why to save, by what has become better; None if nothing has."""
        value = logs.get(self.monitor)
        if value is None:
            warnings.warn(
                f"ModelCheckpoint(monitor={self.monitor!r}) saves without knowing what is best: there is no "
                f"such metric, only {', '.join(logs)}",
                stacklevel=2,
            )
            return "saving model"
        before = "None" if self.best is None else f"{self.best:.5f}"
        if not self._monitor.is_better(value, self._monitor.worst if self.best is None else self.best):
            self._say(f"{self.monitor} did not improve from {before}")
            return None
        self.best = float(value)
        return f"{self.monitor} improved from {before} to {value:.5f}, saving model"

    def _save(self, new: Saved) -> None:
        if self.save_weights_only:
            self.model.save_weights(new.path)
        else:
            self.model.save(new.path)
        others = [each for each in self._saved if each.path != new.path]
        verdict = judge(self._rule, [*others, new], self._preserved_at)
        self._saved, self._preserved_at = verdict.kept, verdict.preserved_at
        going = [path for path in (*self._left, *verdict.deleted) if path != new.path]
        self._left = [path for path in going if not _deleted(path)]

    def _filled(self, logs: Mapping[str, float]) -> str:
        values = {**logs, "epoch": self._epoch + 1, "batch": self._batch + 1}
        try:
            return self.filepath.format_map(values)
        except KeyError as exc:
            raise ConfigurationError(
                f"ModelCheckpoint: {self.filepath!r} names {exc.args[0]}, and there is only "
                f"{', '.join(values)}"
            ) from exc
        except (ValueError, IndexError, AttributeError) as exc:
            raise ConfigurationError(
                f"ModelCheckpoint: {self.filepath!r} cannot be filled in: {exc}"
            ) from exc

    def _say(self, words: str) -> None:
        if self.verbose:
            sys.stdout.write(f"\nEpoch {self._epoch + 1}: {words}\n")


def _deleted(path: str) -> bool:
    """Whether a save could be deleted: what was saved is saved, whatever becomes of older ones."""
    from workers.nn.saving import api

    try:
        api.delete(path)
    except HoldfastError as error:
        warnings.warn(f"saved, but {path} could not be deleted: {error}", stacklevel=5)
        return False
    return True
