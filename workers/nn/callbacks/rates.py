"""Callbacks that change the learning rate."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from storage.errors import ConfigurationError
from workers.nn.callbacks.base import Callback, Logs, Monitor
from workers.nn.callbacks.stopping import monitored
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Callable


class LearningRateScheduler(Callback):
    """At the beginning of each epoch, set the learning rate to `schedule(epoch, learning_rate)`."""

    def __init__(self, schedule: Callable[[int, float], float], verbose: int = 0) -> None:
        super().__init__()
        self.schedule = schedule
        self.verbose = verbose

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Set the learning rate."""
        rate: Any = self.schedule(epoch, float(self.model.optimizer.learning_rate))
        if isinstance(rate, bool) or (not isinstance(rate, int | float) and not hasattr(rate, "item")):
            raise ConfigurationError(f"LearningRateScheduler: the schedule gave {rate!r}, which is no number")
        self.model.optimizer.learning_rate = float(rate)
        if self.verbose:
            sys.stdout.write(
                f"\nEpoch {epoch + 1}: LearningRateScheduler setting learning rate to {float(rate)}.\n"
            )

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Tell the learning rate."""
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)


class ReduceLROnPlateau(Callback):
    """Multiply the learning rate by `factor` when a metric has not become better for `patience` epochs.

    After that it waits `cooldown` epochs before it counts again; the rate falls no lower than `min_lr`.
    Source: Keras 3.
    """

    remembers: ClassVar = ("wait", "best", "cooldown_counter")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: Literal["auto", "min", "max"] = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__()
        check(0 < factor < 1, f"ReduceLROnPlateau: factor must be between 0 and 1, not {factor!r}")
        self._monitor = Monitor("ReduceLROnPlateau", monitor, mode, min_delta)
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.on_train_begin()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Begin to wait anew."""
        self.best = self._monitor.worst
        self.wait = 0
        self.cooldown_counter = 0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Look at the metric, and tell the learning rate."""
        value = monitored("ReduceLROnPlateau", self._monitor.name, logs)
        rate = float(self.model.optimizer.learning_rate)
        assert logs is not None
        logs["learning_rate"] = rate
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self._monitor.is_better(value, self.best):
            self.best, self.wait = value, 0
            return
        if self.cooldown_counter > 0:
            return
        self.wait += 1
        if self.wait >= self.patience and rate > self.min_lr:
            lower = max(rate * self.factor, self.min_lr)
            self.model.optimizer.learning_rate = lower
            if self.verbose:
                sys.stdout.write(
                    f"\nEpoch {epoch + 1}: ReduceLROnPlateau reducing learning rate to {lower}.\n"
                )
            self.cooldown_counter = self.cooldown
            self.wait = 0
