"""What commands say: results on standard output, all else on standard error."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from storage.errors import StorageError


def say(text: str) -> None:
    """Tell the user something."""
    _print(text, sys.stderr)


def put(text: str) -> None:
    """Print a result."""
    _print(text, sys.stdout)


def harmless(text: str) -> str:
    """Without what makes a terminal do something, but for new lines: a run directory may be anybody's."""
    return "".join(c if c.isprintable() or c in "\t\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def duration(seconds: float) -> str:
    """1:05 or 2:01:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _print(text: str, stream: TextIO | None) -> None:
    if stream is None:  # closed by who started us
        return
    try:
        print(text, file=stream, flush=True)
    except OSError as exc:
        # Python would complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if stream is sys.stdout and not isinstance(exc, BrokenPipeError):
            raise StorageError(f"cannot write to standard output: {exc.strerror}") from exc
        # Else the reader has gone, which is its right, or there is nobody left to tell.
