"""What a person sees of a running job: a bar and facts on a terminal and in a notebook, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from orchestrator.coordinator import Observer
from orchestrator.events import OUTPUT
from orchestrator.terminal import duration

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Group

    from orchestrator.coordinator import Snapshot
    from orchestrator.events import Note

LINE_EVERY_S = 5.0
QUIET = {"ready", "prepared", "lost", "missed", "ended", "found"}
"""Kinds of notes that only the journal gets."""

_RECENT = 5


class Display(Observer, Protocol):
    """An observer that is shown from entering it to leaving it."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state standing."""


def is_shown(note: Note) -> bool:
    """Whether a person is told; what has no words is for the journal, too."""
    return bool(note.text) and note.kind not in QUIET


class Scene:
    """What there is to be shown: where training is, the last checkpoint, the last events."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.checkpoint: int | None = None
        self.events: deque[str] = deque(maxlen=_RECENT)

    def note(self, note: Note) -> bool:
        """In place. Take an event; whether it is one to tell: that of a checkpoint is among the facts."""
        if note.kind == "checkpoint":
            self.checkpoint = note.fields.get("step")
            return False
        if is_shown(note) and note.kind != OUTPUT:
            self.events.append(note.text)
        return is_shown(note)

    def facts(self) -> list[str]:
        """Metrics, speed, workers and checkpoint, each in words."""
        if self.snapshot is None:
            return ["starting"]
        kept = [] if self.checkpoint is None else [f"checkpoint {self.checkpoint}"]
        return [*facts_of(self.snapshot), *kept]

    def left(self) -> str:
        """The time that is left, as far as one knows."""
        found = self.snapshot
        if found is None or not found.steps_per_s:
            return "-:--"
        return duration((found.steps - found.step) / found.steps_per_s)


class LineDisplay:
    """A line for each event, and one for progress every few seconds."""

    draws = False

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._next = time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> Self:
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


class TerminalDisplay:
    """A bar with the facts below it; events, and what processes print, scroll by above."""

    draws = True

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._scene = Scene()
        self._console = Console(stderr=True)
        self._live = Live(
            console=self._console, get_renderable=self._drawn, refresh_per_second=5, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError):
            self._live.stop()

    def note(self, note: Note) -> None:
        """Print the event above the bar."""
        if self._scene.note(note):
            with suppress(OSError, ValueError):
                self._console.print(note.text, markup=False, highlight=False)

    def progress(self, snapshot: Snapshot) -> None:
        """Move the bar, the next time that it is drawn."""
        self._scene.snapshot = snapshot

    def _drawn(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        found = self._scene.snapshot
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(found.steps, found.step) if found else ProgressBar(pulse=True)
        at = f"{found.step}/{found.steps}" if found else ""
        line.add_row(Text("training", "bold"), bar, Text(f"{at} {self._scene.left()}".strip()))
        return Group(line, Text("  ".join(self._scene.facts()), "dim", overflow="ellipsis"))


def make_display() -> Display:
    """The display that suits where standard error goes."""
    if _is_notebook():
        from orchestrator.notebook_display import NotebookDisplay

        return NotebookDisplay()
    return TerminalDisplay() if sys.stderr.isatty() else LineDisplay()


def describe(snapshot: Snapshot) -> str:
    """Where training is, in one line."""
    left = ""
    if snapshot.steps_per_s:
        left = f", {duration((snapshot.steps - snapshot.step) / snapshot.steps_per_s)} left"
    return f"step {snapshot.step} of {snapshot.steps}: {', '.join(facts_of(snapshot))}{left}"


def facts_of(snapshot: Snapshot) -> list[str]:
    """Metrics, speed and workers, each in words."""
    facts = [f"{name} {value:.4g}" for name, value in snapshot.metrics.items() if math.isfinite(value)]
    if snapshot.steps_per_s:
        facts.append(f"{snapshot.steps_per_s:.0f} steps/s")
    facts.append(f"{snapshot.workers} worker{'' if snapshot.workers == 1 else 's'}")
    return facts


def _is_notebook() -> bool:
    """Whether a kernel of Jupyter runs this, which shows what IPython displays."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
