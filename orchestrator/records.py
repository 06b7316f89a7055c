"""What a run keeps of what happens to it: its journal, its ledger and its sign of life.

A thread writes them, so that no storage, however slow, holds training up: every few seconds, and at once
when something happened that must not be forgotten.
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.events import Note
from storage.errors import ConfigurationError, StorageError
from workers.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.ledger import Ledger, Meter
    from storage.run_directory import Attempt, RunDirectory

BEAT_S = 5.0
"""Seconds between two signs of life."""

LOOK_S = 1.0
"""Seconds between two looks at what is asked for by way of the run directory."""

CAN_WAIT = {"ready", "prepared", "evaluated", "epoch-end", "checkpoint-skipped", "resources", "found"}
"""Kinds of notes that are written with the next sign of life."""

BOUNDED = {"checkpoint": 500, "evaluated": 500, "epoch-end": 10_000}
"""Of what happens at every so many steps the journal of an attempt holds the last so many."""


class Teller(Protocol):
    """Somebody who is told what happens."""

    def note(self, note: Note) -> None:
        """Something happened."""


class Records:
    """Journal, ledger and sign of life of one attempt after another."""

    def __init__(self, run: RunDirectory, observer: Teller, ledger: Ledger, meter: Meter) -> None:
        self._run = run
        self.redactor = Redactor.of(os.environ)
        self._observer = observer
        self.ledger = ledger
        self.meter = meter
        self._attempt: Attempt | None = None
        self._sign: Callable[[], dict[str, Any]] = dict
        self._look: Callable[[], bool] = bool
        self._also: Callable[[], None] = lambda: None
        self._entries: list[dict[str, Any]] = []
        self._noted = 0  # entries of all attempts
        self._stored = 0
        self._settled = 0  # stored, or the storage has failed to
        self._beats = 0
        self._failing = False
        self._lock = threading.Lock()  # of the entries and the ledger
        self._writing = threading.Lock()
        self._urgent = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def open(self, attempt: Attempt, sign: Callable[[], dict[str, Any]]) -> None:
        """From now on these are the records of this attempt; `sign` makes its sign of life."""
        with self._writing, self._lock:
            self._attempt, self._sign = attempt, sign
            self._entries = []

    def follow(
        self,
        sign: Callable[[], dict[str, Any]],
        look: Callable[[], bool],
        also: Callable[[], None] = lambda: None,
    ) -> None:
        """Have the thread write what `sign` makes: now and then, and when `look`, asked each second, says.

        `also` is called each second: what it stores, and when, is its own affair.
        """
        self._sign, self._look, self._also = sign, look, also
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_on, name="records", daemon=True)
            self._thread.start()

    def follow_no_more(self, sign: Callable[[], dict[str, Any]]) -> None:
        """The last sign of life is what `sign` makes; the thread has been stopped."""
        self._sign = sign

    def note(self, note: Note) -> int:
        """Put into the journal, and tell the observer; returns a number to ask `durable` with.

        What is secret is hidden from both.
        """
        note = Note(note.kind, self.redactor.text(note.text), self.redactor.value(note.fields))
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "t": round(time.monotonic(), 4),
            "kind": note.kind,
            "text": note.text,
            **note.fields,
        }
        with self._lock:
            entry.setdefault("step", self.ledger.reached)
            last = self._entries[-1] if self._entries else {}
            again = note.kind == last.get("kind") == "checkpoint-skipped"  # one entry for each row of them
            if again:
                self._entries[-1] = {**entry, "times": last.get("times", 1) + 1}
            else:
                self._entries.append(entry)
                self._forget_old(note.kind)
            self._noted += 1
            number = self._noted
            self.ledger = self.ledger.after_all([entry])
        if not again:
            self._observer.note(note)
        if note.kind not in CAN_WAIT:
            self._urgent.set()
        return number

    def _forget_old(self, kind: str) -> None:
        limit = BOUNDED.get(kind)
        if limit is not None and sum(entry["kind"] == kind for entry in self._entries) > limit:
            self._entries.pop(next(i for i, entry in enumerate(self._entries) if entry["kind"] == kind))

    def reached(self, step: int) -> None:
        """Training has come to a step."""
        with self._lock:
            self.ledger = self.ledger.at_step(step)

    def durable(self, number: int) -> bool:
        """Whether the note of this number is stored, or the storage has failed to."""
        return self._settled >= number

    def keep(self, *, strict: bool = False) -> None:
        """Store journal and sign of life, in that order.

        A failure of the storage is no reason to stop training; it is one only if the caller is `strict`.
        """
        with self._writing:
            with self._lock:
                attempt, lines, noted = self._attempt, list(self._entries), self._noted
            if attempt is None:
                return
            self._beats += 1
            try:
                if noted > self._stored:
                    self._run.write_journal(attempt, lines)
                    self._stored = noted
                self._run.beat(attempt, {**self.redactor.value(self._sign()), "counter": self._beats})
            except (StorageError, ConfigurationError) as error:
                if strict:
                    raise
                if not self._failing:
                    text = f"the run's records could not be written, and are tried again and again: {error}"
                    self._observer.note(Note("storage", text, {}))
                self._failing = True
            else:
                self._failing = False
            finally:
                self._settled = noted

    def stop(self) -> None:
        """Write no more but when asked to."""
        self._stopped = True
        self._urgent.set()
        if self._thread is not None:
            self._thread.join()

    def _keep_on(self) -> None:
        beat_at = time.monotonic() + BEAT_S
        while True:
            urgent = self._urgent.wait(LOOK_S)
            if self._stopped:
                return
            self._urgent.clear()
            asked = self._look()
            if urgent or asked or time.monotonic() >= beat_at:
                self.keep()
                beat_at = time.monotonic() + BEAT_S
            self._also()
