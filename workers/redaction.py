"""What is secret does not leave a process as text: values of secret variables, and credentials in URLs. Pure.

Secret is the value of an environment variable whose name ends as `SECRET` says, or which a run was given by
name (`FORWARD`), if it has six characters or more: a shorter one would blot out words. In any text so are a
password in a URL, what signs its query, and the keys and passwords of a connection string. Values are found
as they are and as URLs, JSON and base64 have them.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

E = TypeVar("E", bound=BaseException)

HIDDEN = "***"
LEAST = 6
FORWARD = "HOLDFAST_FORWARD"
"""An environment variable: names of further ones, with commas, which all processes of the run get."""

LONGEST_URL = 4096
"""Characters of a text's end that may be held back because more of a URL may follow."""

SECRET = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING|SAS|SIGNATURE|DATABASE_URL)$",
    re.IGNORECASE,
)
_OF_ERRORS = ("strerror", "filename", "filename2", "reason", "__notes__")
"""Attributes that are not among the others, of OSErrors, UnicodeErrors and any."""

_USERINFO = re.compile(r"(?<=://)([^\s/:@?#]*):[^\s/@?#]+(?=@)")
_QUERY = re.compile(
    r"([?&;](?:[\w-]*(?:signature|token|secret|password|credential|api_?key|access_?key)|sig|key)=)[^&\s\"'#;]+",
    re.IGNORECASE,
)
_CONNECTION = re.compile(
    r"\b((?:Account|SharedAccess)Key|SharedAccessSignature|Password|Pwd)=(?!env:\w+\b(?![^;\s\"',\]]))[^;\s\"']+",
    re.IGNORECASE,
)


class Redactor:
    """Hides these values, and credentials in URLs, wherever they stand in a text."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values for form in _forms(value) if len(form) >= LEAST}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._values = re.compile("|".join(map(re.escape, longest_first))) if forms else None
        # What may be told by its beginning: of one with several lines, each line is a form of its own.
        self._beginning: dict[str, list[str]] = {}
        for form in longest_first:
            if "\n" not in form:
                self._beginning.setdefault(form[0], []).append(form)
        self._longest = max(map(len, forms), default=0)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Redactor:
        """One that hides what is secret of an environment."""
        return cls(secrets_of(environment))

    def text(self, text: str) -> str:
        """The text without what is secret."""
        if self._values is not None:
            text = self._values.sub(HIDDEN, text)
        return without_credentials(text)

    def hides(self, text: str) -> bool:
        """Whether something in a text is secret."""
        return self.text(text) != text

    def value(self, value: Any, *, keys: bool = False) -> Any:
        """A JSON value, every text in it redacted; those that are `keys` only if asked to."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {
                self.text(key) if keys else key: self.value(each, keys=keys) for key, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(each, keys=keys) for each in value]
        return value

    def error(self, error: E) -> E | RuntimeError:
        """In place. An exception, and those that it came of, with what is secret hidden in their texts.

        One that says it nevertheless is left out, or, if it is this one, a RuntimeError stands for it.
        """
        seen: set[int] = set()
        waiting: list[BaseException] = [error]
        while waiting:
            each = waiting.pop()
            seen.add(id(each))
            if isinstance(each, BaseExceptionGroup):
                waiting += [one for one in each.exceptions if id(one) not in seen and self._hide(one)]
            for name in ("__cause__", "__context__"):
                other = getattr(each, name)
                if other is not None and id(other) not in seen:
                    if self._hide(other):
                        waiting.append(other)
                    else:
                        setattr(each, name, None)
        if self._hide(error):
            return error
        return RuntimeError(f"{type(error).__name__}: {self.text(str(error))}")

    def _hide(self, error: BaseException) -> bool:
        """In place. Whether an exception says nothing secret any more."""
        with suppress(Exception):
            args = tuple(self.value(arg) if isinstance(arg, str | dict) else arg for arg in error.args)
            if args != error.args:
                error.args = args
            texts = {**vars(error), **{name: getattr(error, name, None) for name in _OF_ERRORS}}
            for name, text in texts.items():
                if isinstance(text, str | list) and self.value(text) != text:
                    setattr(error, name, self.value(text))
        try:
            return not self.hides(f"{error} {error!r}")
        except Exception:  # noqa: BLE001 anybody's may fail to say anything
            return False

    def told(self, text: str) -> int:
        """How much of a text that goes on can be judged: what follows may be the beginning of a secret, or
        the rest of a URL. Up to its last newline, always.
        """
        line = text.rfind("\n") + 1
        at = self._url(text, line)
        if self._beginning:
            for i in range(max(line, len(text) - self._longest + 1), at):
                end = text[i:]
                if any(form.startswith(end) and form != end for form in self._beginning.get(end[0], ())):
                    at = i
                    break
        if line < at < len(text) and self._values is not None:
            for match in self._values.finditer(text, line):
                if match.start() < at < match.end():  # it is whole, and ends as another one begins
                    return match.end()
        return at

    @staticmethod
    def _url(text: str, line: int) -> int:
        scheme = max(text.rfind("://", line), text.rfind(":/", max(line, len(text) - 2)))
        if scheme < 0 or len(text) - scheme > LONGEST_URL or re.search(r"\s", text[scheme:]):
            return len(text)
        found = re.search(r"\S*\Z", text[line:scheme])
        assert found is not None  # it matches nothing, too
        return line + found.start()


class RedactedStream:
    """A text stream that hides what is secret in what is written to it, also over several writes.

    The end of a line that is not complete, where it may become a secret, waits for what is written next, or
    for `release`. `lock` is held while a text is written.
    """

    def __init__(
        self, stream: Any, redactor: Redactor, lock: AbstractContextManager[Any] | None = None
    ) -> None:
        self._stream = stream
        self._redactor = redactor
        self._lock = lock or nullcontext()
        self._held = ""
        self._colon = ""  # the last that was written, if it is one: the rest of a URL may follow
        self._buffer: Any = None

    def write(self, text: str) -> int:
        """Write the redacted text; returns the length of what was given."""
        with self._lock:
            whole = self._colon + self._held + text
            told = self._redactor.told(whole)
            self._held = whole[max(told, len(self._colon)) :]
            self._put(whole[:told])
            return len(text)

    def release(self) -> None:
        """Write what waits: nothing follows it."""
        with self._lock:
            text, self._held = self._held, ""
            self._put(self._colon + text)

    def _put(self, text: str) -> None:
        new = self._redactor.text(text).removeprefix(self._colon)
        if new:
            self._colon = ":" if text.endswith(":") else ""
            self._stream.write(new)

    def redact_with(self, redactor: Redactor) -> None:
        """From now on hide what this one does."""
        self._redactor = redactor

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def close(self) -> None:
        """Write what waits, and close the stream."""
        self.release()
        self._stream.close()

    @property
    def buffer(self) -> Any:
        """The stream for bytes; they are redacted as text in UTF-8."""
        if self._buffer is None:
            self._buffer = _RedactedBuffer(self, self._stream.buffer)
        return self._buffer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _RedactedBuffer:
    """What writes bytes to a RedactedStream."""

    def __init__(self, stream: RedactedStream, buffer: Any) -> None:
        self._stream = stream
        self._buffer = buffer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: Any) -> int:
        self._stream.write(self._decoder.decode(bytes(data)))
        return len(data)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)


def secrets_of(environment: Mapping[str, str], names: Iterable[str] = ()) -> list[str]:
    """The values of variables that are named here or in FORWARD, or named as secrets are."""
    named = {*names, *environment.get(FORWARD, "").split(",")}
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
