"""What commands say: results on standard output, all else on standard error."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str) -> None:
    """Tell the user something."""
    _print(text, sys.stderr)


def put(text: str) -> None:
    """Print a result."""
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # The reader has gone, which is its right; Python would complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
