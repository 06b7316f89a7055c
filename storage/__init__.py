"""Checkpoints one can trust, on any fsspec URL.

import storage

storage.save("s3://bucket/weights", {"kernel": kernel, "bias": bias})
arrays = storage.load("s3://bucket/weights")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.library import latest, load, open, save, verify

__all__ = ["latest", "load", "open", "save", "verify"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import storage` alone costs nothing."""
    if name in __all__:
        from storage import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
