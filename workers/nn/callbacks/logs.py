"""Callbacks that write down what happens."""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from workers.nn.callbacks.base import Callback, Logs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class History(Callback):
    """`fit` returns one: `history` has a list for each metric, with a value for each epoch in `epoch`."""

    observes: ClassVar = True

    def __init__(self) -> None:
        super().__init__()
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}

    result: Any = None
    """How the run stands, of a training by `orchestrator.fit`: an `orchestrator.Result`."""

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Forget what an earlier training gave."""
        self.epoch, self.history = [], {}

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Keep the metrics."""
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)


class CSVLogger(Callback):
    """A line for each epoch in a CSV file, with the names of the metrics above. `append` goes on with a
    file."""

    observes: ClassVar = True

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        super().__init__()
        self.filename = os.fspath(filename)
        self.separator = separator
        self.append = append
        self.keys: list[str] | None = None
        self._nbytes = 0

    def get_state(self) -> dict[str, Any]:
        """The names of the columns, and how long the file is."""
        return {"keys": self.keys, "nbytes": self._nbytes}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """In place. Go on with the file, without the lines that were written after `get_state`."""
        self.keys, self._nbytes = state["keys"], state["nbytes"]

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Look what is there; nothing is written before there is something to write."""
        self._nbytes = 0
        if self.append and os.path.exists(self.filename):
            self._nbytes = os.path.getsize(self.filename)
        if self._nbytes:
            with open(self.filename, encoding="utf-8", newline="") as file:
                head = next(csv.reader(file, delimiter=self.separator), ["epoch"])
            self.keys = head[1:]

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Write a line."""
        with self._opened() as file:
            writer = csv.writer(file, delimiter=self.separator)
            if self.keys is None:
                self.keys = sorted(logs or {})
                writer.writerow(["epoch", *self.keys])
            writer.writerow([epoch, *((logs or {}).get(key, "NA") for key in self.keys)])
            self._nbytes = file.tell()

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Leave a file, also where no epoch has ended."""
        self._opened().close()

    def _opened(self) -> TextIO:
        """The file, without what an earlier training has written behind this one's lines."""
        file = open(self.filename, "a", encoding="utf-8", newline="")  # noqa: SIM115 the caller closes it
        if file.tell() > self._nbytes:
            file.truncate(self._nbytes)
            file.seek(self._nbytes)
        return file


class LambdaCallback(Callback):
    """Calls functions: `LambdaCallback(on_epoch_end=lambda epoch, logs: ...)`."""

    observes: ClassVar = True

    def __init__(
        self,
        on_epoch_begin: Callable[..., Any] | None = None,
        on_epoch_end: Callable[..., Any] | None = None,
        on_train_begin: Callable[..., Any] | None = None,
        on_train_end: Callable[..., Any] | None = None,
        on_train_batch_begin: Callable[..., Any] | None = None,
        on_train_batch_end: Callable[..., Any] | None = None,
        **kwargs: Callable[..., Any],
    ) -> None:
        super().__init__()
        given = {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
        }
        for moment, function in {**given, **kwargs}.items():
            if function is not None:
                setattr(self, moment, function)
