"""Functions of the C library that Python has no names for."""

from __future__ import annotations

import ctypes
from typing import Any


def from_libc(name: str, *types: Any) -> Any:
    """The function of this name, with arguments of these types; None where there is none."""
    found = getattr(ctypes.CDLL(None), name, None)
    if found is not None:
        found.argtypes = types
    return found
