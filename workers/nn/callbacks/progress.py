"""The progress of `fit` and `evaluate`: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import ClassVar

from workers.nn.callbacks.base import Callback, Logs

_WIDTH = 20
_PAUSE_S = 0.1


class ProgbarLogger(Callback):
    """`verbose` 1: a bar for each epoch, drawn again and again on a terminal, once elsewhere; 2: a line for
    each."""

    observes: ClassVar = True

    def __init__(self, verbose: int = 1) -> None:
        super().__init__()
        self._verbose = verbose
        self._terminal = sys.stdout.isatty()
        self._began = self._drawn = 0.0
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Begin a bar."""
        self._began, self._epoch = time.monotonic(), epoch
        if self._verbose == 1 and self.params.get("epochs", 1) > 1:
            sys.stdout.write(f"Epoch {epoch + 1}/{self.params['epochs']}\n")

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Draw it again, ten times a second at most."""
        now = time.monotonic()
        if self._verbose == 1 and self._terminal and now - self._drawn >= _PAUSE_S:
            self._drawn = now
            sys.stdout.write("\r" + self._bar(batch + 1, logs))
            sys.stdout.flush()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Draw it for the last time."""
        steps = self.params.get("steps") or 0
        if self._verbose == 1:
            sys.stdout.write(("\r" if self._terminal else "") + self._bar(steps, logs) + "\n")
        elif self._verbose == 2:
            seconds = time.monotonic() - self._began
            sys.stdout.write(
                f"Epoch {epoch + 1}/{self.params.get('epochs', 1)} - {steps}/{steps} - {seconds:.0f}s - "
                f"{_words(logs)}\n"
            )
        sys.stdout.flush()

    def _bar(self, done: int, logs: Logs | None) -> str:
        steps = self.params.get("steps") or done
        seconds = time.monotonic() - self._began
        filled = _WIDTH * done // max(steps, 1)
        per_step = _duration(seconds / max(done, 1))
        left = f"{seconds:.0f}s" if done >= steps else _duration(seconds / max(done, 1) * (steps - done))
        bar = "━" * filled + " " * (_WIDTH - filled)
        return f"{done}/{steps} {bar} {left} {per_step}/step - {_words(logs)}"


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.0f}s"
    return f"{seconds * 1e3:.0f}ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f}us"


def _words(logs: Logs | None) -> str:
    return " - ".join(f"{name}: {value:.4f}" for name, value in (logs or {}).items())
