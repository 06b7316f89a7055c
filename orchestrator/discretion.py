"""What the user is told, without what is secret; and parameters that stand for secrets."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.events import Note
from storage.errors import ConfigurationError
from workers.redaction import LEAST, SECRET, Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from orchestrator.coordinator import Observer, Snapshot

_REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")


class Discreet:
    """Tells an observer what happens, without what is secret."""

    def __init__(self, observer: Observer, redactor: Redactor) -> None:
        self._observer = observer
        self._redactor = redactor
        self.draws = observer.draws
        self.progress: Callable[[Snapshot], None] = observer.progress

    def note(self, note: Note) -> None:
        """Something happened."""
        text, fields = self._redactor.text(note.text), self._redactor.value(note.fields)
        self._observer.note(Note(note.kind, text, fields))


@contextmanager
def discretion() -> Iterator[None]:
    """What is raised in here, and what it came of, says nothing secret of this process's environment."""
    try:
        yield
    except Exception as error:
        if (hidden := Redactor.of(os.environ).error(error)) is error:
            raise
        raise hidden from None


def is_secret(name: str, value: str, redactor: Redactor) -> bool:
    """Whether a parameter's value is secret by its name, as a variable's would be, or by what it holds.

    Where it only stands for what is secret it is not.
    """
    if variable_of(value) is not None:
        return False
    return bool(len(value) >= LEAST and SECRET.search(name)) or redactor.hides(f"{name}={value}")


def variable_of(value: str) -> str | None:
    """The environment variable that a parameter's value `env:VARIABLE` stands for; None for any other."""
    found = _REFERENCE.fullmatch(value)
    return found[1] if found else None


def variables_of(parameters: Mapping[str, str]) -> list[str]:
    """The environment variables that parameters stand for."""
    return [name for value in parameters.values() if (name := variable_of(value)) is not None]


def resolved(name: str, value: str) -> str:
    """A parameter's value, or what it stands for. Raises ConfigurationError if that is not there."""
    variable = variable_of(value)
    if variable is None:
        return value
    if variable not in os.environ:
        raise ConfigurationError(f"--set {name}={value}: the environment has no variable {variable}")
    return os.environ[variable]
