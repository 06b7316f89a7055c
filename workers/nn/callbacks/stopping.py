"""Callbacks that end training before its time."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from storage.errors import ConfigurationError
from workers.nn.callbacks.base import Callback, Logs, Monitor
from workers.nn.lookup import check

if TYPE_CHECKING:
    from workers.nn.numerics import Array


class EarlyStopping(Callback):
    """Stop when a metric has not become better by more than `min_delta` for `patience` epochs.

    With `restore_best_weights` the model ends with the weights of its best epoch. Epochs before
    `start_from_epoch` do not count. Source: Keras 3.
    """

    remembers: ClassVar = ("wait", "best", "best_epoch", "stopped_epoch")
    holds: ClassVar = ("best_weights",)

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: Literal["auto", "min", "max"] = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__()
        check(patience >= 0, f"EarlyStopping: patience must be 0 or more, not {patience!r}")
        self._monitor = Monitor("EarlyStopping", monitor, mode, min_delta)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.best_weights: list[Array] | None = None
        self.on_train_begin()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Begin to wait anew."""
        self.wait = 0
        self.stopped_epoch = 0
        self.best_epoch = 0
        self.best = self._monitor.worst
        self.best_weights = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Look at the metric."""
        value = monitored("EarlyStopping", self._monitor.name, logs)
        if epoch < self.start_from_epoch:
            return
        if self.restore_best_weights and self.best_weights is None:
            self.best_weights = self.model.get_weights()
        self.wait += 1
        if self._monitor.is_better(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.model.get_weights()
            if self.baseline is None or self._monitor.is_better(value, self.baseline):
                self.wait = 0
            return
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Give the model its best weights, where that was asked for."""
        if self.stopped_epoch and self.verbose:
            sys.stdout.write(f"Epoch {self.stopped_epoch + 1}: early stopping\n")
        if self.restore_best_weights and self.best_weights is not None:
            if self.verbose:
                sys.stdout.write(
                    f"Restoring model weights from the end of the best epoch: {self.best_epoch + 1}.\n"
                )
            self.model.set_weights(self.best_weights)


class TerminateOnNaN(Callback):
    """Stop as soon as the loss is not finite."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Look at the loss."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            sys.stdout.write(f"Batch {batch}: Invalid loss, terminating training\n")
            self.model.stop_training = True


def monitored(owner: str, name: str, logs: dict[str, Any] | None) -> float:
    """The metric of that name. ConfigurationError, naming those that there are, if there is none."""
    found = (logs or {}).get(name)
    if found is None:
        raise ConfigurationError(
            f"{owner}(monitor={name!r}): there is no such metric, only {', '.join(logs or {})}"
            + (": give fit validation_data" if name.startswith("val_") else "")
        )
    return float(found)
