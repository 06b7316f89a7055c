"""What a person sees of a running job, on standard error: a progress bar on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress

    from orchestrator.coordinator import Snapshot
    from orchestrator.events import Note

LINE_EVERY_S = 5.0
QUIET = {"ready", "prepared", "lost", "missed", "ended", "found"}
"""Kinds of notes that only the journal gets."""


def is_shown(note: Note) -> bool:
    """Whether a person is told; what has no words is for the journal, too."""
    return bool(note.text) and note.kind not in QUIET


class LineDisplay:
    """A line for each event, and one for progress every few seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._next = time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, note: Note) -> None:
        """Print the event."""
        if is_shown(note):
            self._print(note.text)

    def progress(self, snapshot: Snapshot) -> None:
        """Print where training is, now and then."""
        if time.monotonic() >= self._next and snapshot.steps_per_s:
            self._next = time.monotonic() + LINE_EVERY_S
            self._print(describe(snapshot))

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop training
            print(text, file=self._stream, flush=True)


class BarDisplay:
    """A progress bar with the metrics behind it; events scroll by above."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bar: Progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("training", total=None, facts="starting")

    def __enter__(self) -> BarDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, note: Note) -> None:
        """Print the event above the bar."""
        if is_shown(note):
            with suppress(OSError, ValueError):
                self._console.print(note.text, markup=False, highlight=False)

    def progress(self, snapshot: Snapshot) -> None:
        """Move the bar."""
        facts = facts_of(snapshot)
        with suppress(OSError, ValueError):
            self._bar.update(
                self._task, completed=snapshot.step, total=snapshot.steps, facts=", ".join(facts)
            )


def make_display() -> LineDisplay | BarDisplay:
    """The display that suits standard error."""
    return BarDisplay() if sys.stderr.isatty() else LineDisplay()


def describe(snapshot: Snapshot) -> str:
    """Where training is, in one line."""
    left = ""
    if snapshot.steps_per_s:
        left = f", {_duration((snapshot.steps - snapshot.step) / snapshot.steps_per_s)} left"
    return f"step {snapshot.step} of {snapshot.steps}: {', '.join(facts_of(snapshot))}{left}"


def facts_of(snapshot: Snapshot) -> list[str]:
    """Metrics, speed and workers, each in words."""
    facts = [f"{name} {value:.4g}" for name, value in snapshot.metrics.items() if math.isfinite(value)]
    if snapshot.steps_per_s:
        facts.append(f"{snapshot.steps_per_s:.0f} steps/s")
    facts.append(f"{snapshot.workers} worker{'' if snapshot.workers == 1 else 's'}")
    return facts


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
