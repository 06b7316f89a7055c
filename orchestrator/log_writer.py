"""What an attempt's processes print, as JSON lines in parts below `logs/` of the run directory.

A store cannot append: the newest part is stored again with every few lines more until it has its size.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.logs import COORDINATOR
from storage import catalog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.store import Store
    from workers.lines import Line
    from workers.redaction import Redactor

EVERY_S = 3.0
"""Seconds between two times that lines are stored."""

PART_BYTES = 256 << 10
"""Bytes of a part, from which on the next one is begun."""

PARTS = 256
"""Parts of an attempt that are kept; the oldest goes for a new one."""

WAITING_BYTES = 16 << 20
"""Bytes of lines that wait while the storage cannot be written; the oldest go."""


class LogWriter:
    """Stores an attempt's lines: `take` costs no I/O, `store` does.

    What could not be stored is tried again.
    """

    def __init__(self, store: Store, attempt: int, nonce: str, redactor: Redactor) -> None:
        self._store = store
        self._key = (attempt, nonce)
        self._redactor = redactor
        self._lock = threading.Lock()  # of what is told
        self._storing = threading.Lock()
        self._told: dict[tuple[int, int], int] = {}  # process -> the last byte that a line was told of
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._left_out = 0
        self._part = b""
        self._number = 0
        self._due_s = 0.0
        self.complained = False

    def take(self, node: int, lines: Sequence[Line]) -> list[Line]:
        """Lines of processes of a node; returns those that were not told before."""
        if not lines:
            return []
        with self._lock:
            fresh = [line for line in lines if line.at > self._told.get((line.pid, line.started), -1)]
            for line in fresh:
                self._told[line.pid, line.started] = line.at
                self._waiting.append(json.dumps(self._row(node, line)).encode() + b"\n")
                self._waiting_bytes += len(self._waiting[-1])
            while self._waiting_bytes > WAITING_BYTES:
                self._waiting_bytes -= len(self._waiting.popleft())
                self._left_out += 1
        return fresh

    def _row(self, node: int, line: Line) -> dict[str, Any]:
        return {
            "time": datetime.fromtimestamp(line.time_s, UTC).isoformat(timespec="milliseconds"),
            "attempt": line.attempt,
            "node": node,
            "role": line.role,
            "rank": line.rank,
            "generation": line.generation,
            "pid": line.pid,
            "stream": line.stream,
            "text": self._redactor.text(line.text),
            "started": line.started,
            "at": line.at,
        }

    def _gap(self, count: int) -> bytes:
        """A line that says that so many are missing, if any are."""
        if not count:
            return b""
        text = f"({count} lines are left out here: the storage could not be written for too long)"
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"time": when, "attempt": self._key[0], "role": COORDINATOR, "rank": 0, "text": text}
        return json.dumps(row).encode() + b"\n"

    def store(self, now_s: float, *, last: bool = False) -> None:
        """Store what waits if that is due or it is the `last`. Raises what the storage does."""
        with self._storing:
            if not self._waiting or (now_s < self._due_s and not last):
                return
            self._due_s = now_s + EVERY_S
            with self._lock:
                lines, self._waiting, self._waiting_bytes = [*self._waiting], deque(), 0
                left_out = self._left_out
            part = self._part + self._gap(left_out) + b"".join(lines)
            try:
                self._store.write(catalog.logs_key(*self._key, self._number), (part,))
            except Exception:
                with self._lock:
                    self._waiting.extendleft(reversed(lines))
                    self._waiting_bytes += sum(map(len, lines))
                raise
            self._part = part
            with self._lock:
                self._left_out -= left_out
            if len(part) >= PART_BYTES:
                self._part, self._number = b"", self._number + 1
                if self._number >= PARTS:
                    self._store.delete([catalog.logs_key(*self._key, self._number - PARTS)])
