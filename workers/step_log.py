"""What the last steps measured, kept beside the arena: no kill of an agent or coordinator loses it."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress

import numpy as np

Row = tuple[float, ...]
"""Step, time in Unix seconds, then one value for each metric."""

ROWS = 16_384
"""Steps that are kept: those of minutes, where whoever records them does so every few seconds."""


class StepLog:
    """A ring of rows in a file of the node's memory; `take` gives those that were not taken yet.

    Memory that has run out loses rows of the file and nothing else: no step fails for its metrics.
    """

    def __init__(self, path: str, values: int, rows: int = ROWS) -> None:
        self.path = path
        self._width = 2 + values
        self._rows = rows
        self._new: deque[Row] = deque(maxlen=rows)  # where nobody takes any for long, the last ones
        nbytes = rows * self._width * 8
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.fstat(self._fd).st_size != nbytes:  # a new one, or of a job with other metrics
            os.ftruncate(self._fd, 0)
            with suppress(OSError):
                os.ftruncate(self._fd, nbytes)

    def add(self, row: Row) -> None:
        """Keep the row of a step that was committed."""
        self._new.append(row)
        with suppress(OSError):
            data = np.array(row, np.float64).tobytes()
            os.pwrite(self._fd, data, int(row[0]) % self._rows * self._width * 8)

    def recall(self, step: int) -> None:
        """Give what is kept of the steps up to this one once more: to somebody who has not heard of them."""
        data = os.pread(self._fd, self._rows * self._width * 8, 0)
        table = np.frombuffer(data[: len(data) // (self._width * 8) * self._width * 8], np.float64)
        kept = table.reshape(-1, self._width)
        kept = kept[(kept[:, 0] > max(0, step - self._rows)) & (kept[:, 0] <= step)]
        self._new.clear()
        self._new.extend(tuple(row) for row in kept[np.argsort(kept[:, 0])].tolist())

    def take(self) -> list[Row]:
        """The rows since the last call, in the order of steps."""
        rows = [*self._new]
        self._new.clear()
        return rows

    def close(self, *, remove: bool) -> None:
        """The end; deletes the file if nobody will ask for it again."""
        os.close(self._fd)
        if remove:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
