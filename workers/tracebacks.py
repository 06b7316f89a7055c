"""Tracebacks as users want them: of their own code, with what was raised in the last line."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OWN = tuple(os.path.join(_ROOT, package) + os.sep for package in ("orchestrator", "workers", "storage"))
_EXAMPLES = os.path.join(_ROOT, "orchestrator", "examples") + os.sep


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` from the first frame of the user's code on, ending in a newline.

    An error of a file that does not even compile has no such frame; then there are none.
    """
    frames = error.__traceback__
    while frames is not None and _is_ours(frames):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def summary(error: BaseException) -> str:
    """What was raised, in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _is_ours(frames: TracebackType) -> bool:
    filename = frames.tb_frame.f_code.co_filename
    own = filename.startswith(_OWN) and not filename.startswith(_EXAMPLES)
    return own or filename.startswith("<frozen") or os.path.basename(filename) == "functools.py"
