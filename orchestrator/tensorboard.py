"""A run's metrics as TensorBoard's events (`holdfast[tensorboard]`), by whoever coordinates the run."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator.events import Note
from storage.errors import ConfigurationError
from workers.event_files import EventFiles

if TYPE_CHECKING:
    from types import TracebackType

    from orchestrator.coordinator import Observer, Snapshot


class TensorBoardEvents:
    """Writes scalars of the steps that it is shown, several a second, and passes all on to another observer.

    Each start adds a file to the directory, and has TensorBoard discard what earlier ones say of the steps
    from where it begins: after a resumption no step stands twice. Raises ConfigurationError where there can
    be no directory; a disk that fails later costs the events, not the run.
    """

    def __init__(self, directory: str, observer: Observer) -> None:
        self._files = EventFiles("--tensorboard", directory)
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as exc:
            raise ConfigurationError(f"--tensorboard {directory}: {exc.strerror}") from exc
        self._directory = directory
        self._observer = observer
        self.draws = observer.draws
        self._writer: Any = None
        self._last = -1
        self._failed = False

    def __enter__(self) -> TensorBoardEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def note(self, note: Note) -> None:
        """Write the metrics of an evaluation."""
        metrics = note.fields.get("metrics")
        if note.kind == "evaluated" and isinstance(metrics, dict):
            self._write(metrics, note.fields["step"])
        self._observer.note(note)

    def progress(self, snapshot: Snapshot) -> None:
        """Write the metrics of a step, and the speed."""
        if snapshot.step > self._last and snapshot.metrics:
            self._last = snapshot.step
            speed = {} if snapshot.steps_per_s is None else {"steps_per_s": snapshot.steps_per_s}
            self._write(snapshot.metrics | speed, snapshot.step)
        self._observer.progress(snapshot)

    def _write(self, metrics: dict[str, Any], step: int) -> None:
        if self._failed:
            return
        try:
            if self._writer is None:
                self._writer = self._files.writer(self._directory, step)
            for name, value in metrics.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as exc:
            self._failed = True
            text = f"no more of TensorBoard's events are written: {self._directory}: {exc.strerror}"
            self._observer.note(Note("tensorboard", text, {}))
