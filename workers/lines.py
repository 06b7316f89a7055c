"""What a process prints, as bytes of its spool file: lines with their time and stream. Pure.

A spool file is appended to by several: the process's Python code writes records, one for each line; whatever
writes to its standard streams by other means leaves raw text between them; and the agent marks from where on
an attempt is served. A record is the byte 0x1E, JSON, and a newline.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = b"\x1e"
LONGEST = 16_384
"""Characters of a line; a longer one is cut into several."""

RAW = "raw"
"""The stream of what did not come through Python's: of a library, the interpreter, a child process."""

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a process of a run printed: at byte `at` of what process (pid, started) has printed."""

    time_s: float
    attempt: int
    role: str
    rank: int
    generation: int
    pid: int
    started: int
    stream: str
    text: str
    at: int
    again: bool = False
    """Whether it was given to somebody before, who may not have come to storing it."""


def split_lines(text: str) -> tuple[list[str], str]:
    """The whole lines of a text and what is left: of what overwrites itself, as a progress bar, the last."""
    *whole, rest = text.split("\n")
    lines = [piece for line in whole for piece in _cut(_visible(line))]
    if "\r" in rest[:-1]:
        rest = rest[:-1].rpartition("\r")[2] + rest[-1]
    if len(rest) > LONGEST:
        pieces = list(_cut(rest))
        lines += pieces[:-1]
        rest = pieces[-1]
    return lines, rest


def _visible(line: str) -> str:
    """A line as a terminal would show it in the end, without colours and control characters."""
    return _CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2])


def _cut(line: str) -> Iterator[str]:
    for start in range(0, max(1, len(line)), LONGEST):
        yield line[start : start + LONGEST]


def record(time_s: float, stream: str, text: str) -> bytes:
    """A line of a stream, as it is spooled."""
    return MARK + json.dumps([time_s, stream, text]).encode() + b"\n"


def attempt_mark(attempt: int) -> bytes:
    """From here on the process serves this attempt."""
    return MARK + json.dumps(attempt).encode() + b"\n"


def first_attempt(data: bytes) -> int | None:
    """The attempt of the first mark, to which what comes before it belongs, too."""
    found = re.search(rb"\x1e([0-9]{1,9})\n", data)
    return int(found[1]) if found else None


def parse(line: bytes, now_s: float) -> Iterator[int | tuple[float, str, str]]:
    """What one line of a spool file, without its newline, says: attempts, and (time, stream, text)."""
    raw, *records = line.split(MARK)
    if raw:
        for text in _cut(_visible(raw.decode(errors="replace"))):
            yield now_s, RAW, text
    for each in records:
        try:
            match json.loads(each):
                case int(attempt):
                    yield attempt
                case [int() | float() as time_s, str(stream), str(text)]:
                    yield float(time_s), stream, text
        except ValueError:
            continue  # cut off: the process was killed, or memory ran out, in the middle of it
