"""What is secret does not leave a process as text: values of secret variables, and credentials in URLs. Pure.

Secret is the value of an environment variable whose name ends as `SECRET` says, if it has six characters or
more: a shorter one would blot out words. In any text so are a password in a URL, what signs its query, and
the keys and passwords of a connection string. Values are found as they are and as URLs, JSON and base64
have them.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HIDDEN = "***"
LEAST = 6

SECRET = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING|SAS|SIGNATURE|DATABASE_URL)$",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(?<=://)([^\s/:@?#]*):[^\s/@?#]+(?=@)")
_QUERY = re.compile(
    r"([?&;](?:[\w-]*(?:signature|token|secret|password|credential|api_?key|access_?key)|sig|key)=)[^&\s\"'#;]+",
    re.IGNORECASE,
)
_CONNECTION = re.compile(
    r"\b((?:Account|SharedAccess)Key|SharedAccessSignature|Password|Pwd)=[^;\s\"']+", re.IGNORECASE
)


class Redactor:
    """Hides these values, and credentials in URLs, wherever they stand in a text."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values if len(value) >= LEAST for form in _forms(value)}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._values = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def text(self, text: str) -> str:
        """The text without what is secret."""
        if self._values is not None:
            text = self._values.sub(HIDDEN, text)
        return without_credentials(text)

    def value(self, value: Any) -> Any:
        """A JSON value, every text in it redacted; keys are kept."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        return value


class RedactedStream:
    """A text stream that hides what is secret in each text that is written to it."""

    def __init__(self, stream: Any, redactor: Redactor) -> None:
        self._stream = stream
        self._redactor = redactor

    def write(self, text: str) -> int:
        """Write the redacted text; returns the length of what was given."""
        self._stream.write(self._redactor.text(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secrets_of(environment: Mapping[str, str], names: Iterable[str] = ()) -> list[str]:
    """The values of variables that are named here, or named as secrets are."""
    named = set(names)
    return [value for name, value in environment.items() if name in named or SECRET.search(name)]


def without_credentials(text: str) -> str:
    """The text without passwords and signatures of URLs and connection strings; depends on nothing else."""
    if "://" in text:
        text = _USERINFO.sub(rf"\1:{HIDDEN}", text)
    if "=" in text:
        text = _CONNECTION.sub(rf"\1={HIDDEN}", _QUERY.sub(rf"\1{HIDDEN}", text))
    return text


def _forms(value: str) -> set[str]:
    """How a value may be written."""
    encoded = base64.b64encode(value.encode(errors="surrogateescape")).decode().rstrip("=")
    url = quote(value, safe="", errors="replace"), quote_plus(value, errors="replace")
    lines = {line for line in value.splitlines() if len(line) >= LEAST}  # of a key that has several
    return {value, value.strip(), *url, json.dumps(value)[1:-1], repr(value)[1:-1], encoded} | lines
