"""A run's logs, read from its directory: what its processes printed, and its journal, by time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage import catalog
from storage.errors import CorruptCheckpoint, ObjectMissing
from storage.strict_json import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from storage.run_directory import RunDirectory

COORDINATOR = "coordinator"
_KNOWN = {"time": str, "attempt": int, "role": str, "rank": int, "text": str}


class LogReader:
    """Gives the lines of a run that were not given yet; reads no part again that has not grown."""

    def __init__(self, run: RunDirectory, wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
        self._run = run
        self._wanted = wanted
        self._sizes: dict[str, int] = {}
        self._given: set[tuple[Any, ...]] = set()

    def read(self) -> list[dict[str, Any]]:
        """New lines by time: time (ISO 8601), attempt, node, role, rank, pid, stream, text and others.

        What a line of a damaged part says, and that a journal is damaged, is text of the role "damaged".
        """
        lines = [*self._printed(), *self._journal()]
        return sorted(filter(self._wanted, lines), key=lambda line: str(line["time"]))

    def _printed(self) -> Iterable[dict[str, Any]]:
        for key, nbytes in sorted(self._run.store.list(catalog.LOGS).items()):
            attempt = catalog.parse_logs(key)
            if attempt is None or self._sizes.get(key) == nbytes:
                continue
            try:
                data = self._run.store.read(key)
            except ObjectMissing:
                continue  # an old part, which has gone for a new one
            self._sizes[key] = len(data)
            for number, row in enumerate(data.splitlines()):
                line = _parsed(row, attempt)
                which = tuple(line.get(name) for name in ("pid", "started", "at"))
                known = all(isinstance(each, int | float) for each in which)
                if self._is_new(which if known else (key, number)):
                    yield line

    def _journal(self) -> Iterable[dict[str, Any]]:
        sizes = self._run.store.list(catalog.JOURNAL)
        journals = catalog.journals(sizes)
        for key in journals:
            if key != journals[-1] and self._sizes.get(key) == sizes[key]:
                continue  # that of an earlier attempt, to which nothing is added
            self._sizes[key] = sizes[key]
            attempt = catalog.attempt_of_journal(key)
            try:
                entries = self._run.read_journal(key)
            except CorruptCheckpoint as error:
                if self._is_new((key, str(error))):
                    yield _damaged(str(error), attempt)
                continue
            for entry in entries:
                text = entry.get("text") or entry.get("error")
                if text and self._is_new((key, repr(entry.get("t")), repr(entry.get("kind")))):
                    yield {
                        "time": str(entry.get("time", "")),
                        "attempt": attempt,
                        "role": COORDINATOR,
                        "rank": 0,
                        "kind": entry.get("kind"),
                        "step": entry.get("step"),
                        "text": str(text),
                    }

    def _is_new(self, which: tuple[Any, ...]) -> bool:
        if which in self._given:
            return False
        self._given.add(which)
        return True


def _parsed(row: bytes, attempt: int) -> dict[str, Any]:
    try:
        line = parse(row)
    except ValueError:
        line = None
    if isinstance(line, dict) and all(isinstance(line.get(name), kind) for name, kind in _KNOWN.items()):
        return line
    return _damaged(row.decode(errors="replace"), attempt)


def _damaged(text: str, attempt: int) -> dict[str, Any]:
    return {"time": "", "attempt": attempt, "role": "damaged", "rank": 0, "text": text}
