"""Kinds of attributes: what a value that is read from a file must be before an operation uses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

Kind: TypeAlias = Callable[[object], bool]
"""Whether a JSON value is of the kind."""

_LARGEST = 2**31
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""Names of the dtypes that tensors can have."""


def whole(value: object) -> bool:
    """A whole number of at most 32 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -_LARGEST <= value < _LARGEST


def count(value: object) -> bool:
    """A positive whole number."""
    return isinstance(value, int) and whole(value) and value > 0


def number(value: object) -> bool:
    """A real number of float32's range, or an infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2.0**128 or (isinstance(value, float) and math.isinf(value))


def flag(value: object) -> bool:
    """True or false."""
    return isinstance(value, bool)


def text(value: object) -> bool:
    """A string of moderate length."""
    return isinstance(value, str) and len(value) <= 256


def dtype(value: object) -> bool:
    """The name of a dtype that tensors can have."""
    return value in DTYPES


def optional(kind: Kind) -> Kind:
    """Of that kind, or null."""
    return lambda value: value is None or kind(value)


def either(*kinds: Kind) -> Kind:
    """Of one of these kinds."""
    return lambda value: any(kind(value) for kind in kinds)


def several(kind: Kind) -> Kind:
    """A list, all of that kind."""
    return lambda value: isinstance(value, list) and all(map(kind, value))


def pair(kind: Kind) -> Kind:
    """A list of two of that kind."""
    return lambda value: isinstance(value, list) and len(value) == 2 and all(map(kind, value))


def settings(value: object) -> bool:
    """A JSON object, which whoever takes it checks."""
    return isinstance(value, dict)


def arguments(value: object) -> bool:
    """Names with numbers, flags or nulls."""
    return isinstance(value, dict) and all(
        text(key) and either(number, flag, optional(number))(each) for key, each in value.items()
    )


wholes = several(whole)
counts = several(count)
axes = optional(either(whole, wholes))
"""One axis, several, or null for all."""
dims = several(optional(whole))


def part_of_key(value: object) -> bool:
    """A part of an index: a number, null, "...", or a slice as three numbers or nulls."""
    if isinstance(value, list):
        return len(value) == 3 and dims(value) and value[2] != 0
    return value is None or value == "..." or whole(value)
