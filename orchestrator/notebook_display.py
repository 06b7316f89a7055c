"""The progress of a job in the output of a notebook's cell: HTML that is replaced as training goes on."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING, Any, Self

from orchestrator.display import Scene
from orchestrator.events import OUTPUT
from orchestrator.terminal import put

if TYPE_CHECKING:
    from types import TracebackType

    from orchestrator.coordinator import Snapshot
    from orchestrator.events import Note

_EVERY_S = 0.5


class NotebookDisplay:
    """A bar, the facts, and the last few events, in one place that is drawn again twice a second.

    What processes print stands below it.
    """

    draws = True

    def __init__(self) -> None:
        self._scene = Scene()
        self._handle: Any = None
        self._next = 0.0

    def __enter__(self) -> Self:
        from IPython.display import display

        self._handle = display(self._shown(), display_id=True)  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()

    def note(self, note: Note) -> None:
        """Show the event below the bar."""
        if note.kind == OUTPUT:
            put(note.text)
        elif self._scene.note(note):
            self._draw()

    def progress(self, snapshot: Snapshot) -> None:
        """Move the bar."""
        self._scene.snapshot = snapshot
        if time.monotonic() >= self._next:
            self._draw()

    def _draw(self) -> None:
        self._next = time.monotonic() + _EVERY_S
        self._handle.update(self._shown())

    def _shown(self) -> Any:
        from IPython.display import HTML

        return HTML(html(self._scene))  # type: ignore[no-untyped-call]


def html(scene: Scene) -> str:
    """What there is to be shown, as HTML; whatever an event says is text there."""
    found = scene.snapshot
    step, steps = (found.step, found.steps) if found else (0, 1)
    at = f"{step} of {steps} steps, {scene.left()} left" if found else ""
    events = "".join(f"<div>{escape(text)}</div>" for text in scene.events)
    return (
        f'<progress value="{step}" max="{steps}" style="width: 20em" aria-label="steps"></progress> {at}'
        f"<div>{escape(', '.join(scene.facts()))}</div>{events}"
    )
