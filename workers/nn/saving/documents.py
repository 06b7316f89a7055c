"""The JSON documents beside saved arrays: written in the order of their dicts, read without trust."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from storage.errors import CorruptCheckpoint
from storage.strict_json import parse, spelled, unspelled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.bundle import Bundle

KERAS_VERSION = "3.15.1"
"""The version whose files Keras's files are."""

MAX_DEPTH = 128
_MAX_NBYTES = 64 << 20
_MAX_VALUES = 1 << 22


def written(document: Mapping[str, Any]) -> bytes:
    """A document as it is stored; numbers that are not finite become strings. TypeError for what is no
    JSON."""
    # In the order of the dicts, which is that of a model's outputs and metrics too.
    return json.dumps(spelled(document), separators=(",", ":"), allow_nan=False).encode()


def read(bundle: Bundle, key: str) -> dict[str, Any]:
    """The document of a key. Raises CorruptCheckpoint for what is no JSON object, or too large."""
    try:
        text = bundle.read(key, _MAX_NBYTES)
        found = unspelled(parse(text, max_depth=MAX_DEPTH, max_values=_MAX_VALUES))
    except ValueError as exc:
        raise CorruptCheckpoint(f"{bundle.url}/{key}: {exc}") from exc
    if not isinstance(found, dict):
        raise CorruptCheckpoint(f"{bundle.url}/{key} is no JSON object")
    return found
