"""JSON with one spelling for each value, read back without trust.

`canonical` is what digests and fingerprints are taken over; `parse` and `fields` turn every surprise in a
document that anyone may have written into a ValueError that says where it is.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NBYTES = 64 << 20
MAX_DEPTH = 16
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Floats that JSON cannot hold, as Zarr spells them."""
MAX_VALUES = 1 << 18  # a value of two bytes may take 200 in memory


def canonical(value: object) -> bytes:
    """The UTF-8 JSON text of `value` with sorted keys and no spaces.

    Raises ValueError for NaN and infinities, TypeError for what JSON has no type for.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def spelled(value: Any) -> Any:
    """`value` with numbers that JSON cannot hold as the strings "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def unspelled(value: Any) -> Any:
    """What `spelled` made a value of, whose strings have none of those three."""
    if isinstance(value, dict):
        return {key: unspelled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unspelled(item) for item in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def printable(text: str, longest: int = 400) -> str:
    """`text` in one line, without what a terminal would take for a command, and cut where it is too long."""
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def parse(
    data: bytes,
    *,
    max_nbytes: int = MAX_NBYTES,
    max_depth: int = MAX_DEPTH,
    max_values: int = MAX_VALUES,
) -> Any:
    """The value of a JSON text.

    Raises ValueError if it is too long, may hold more than `max_values`, is nested too deeply, repeats a key
    or holds a number that is not finite.
    """
    if len(data) > max_nbytes:
        raise ValueError(f"{len(data)} bytes of JSON, more than the {max_nbytes} allowed")
    if (values := most_values(data)) > max_values:
        raise ValueError(f"up to {values} values, more than the {max_values} allowed")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"nested deeper than {max_depth} levels") from None
    level = [value]
    for _ in range(max_depth):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError("a number is too large for a float")
        if not inner:
            return value
        level = inner
    raise ValueError(f"nested deeper than {max_depth} levels")


def most_values(data: bytes) -> int:
    """No fewer than the values and names in a JSON text: how often `[`, `{`, `,` and `:` stand in it."""
    return sum(map(data.count, (b"[", b"{", b",", b":")))


def fields(value: object, where: str, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """`value` as a dict that has exactly the keys of `kinds`, each of the kind given there.

    Raises ValueError naming `where` and the key. A bool is no int here.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where[:80]} is not an object")  # noqa: TRY004 - a fault of the document
    if value.keys() != kinds.keys():
        missing = sorted(kinds.keys() - value.keys())
        unknown = [key[:80] for key in sorted(value.keys() - kinds.keys())[:20]]
        raise ValueError(f"{where[:80]}: missing {missing}, unknown {unknown}")
    for key, kind in kinds.items():
        wanted = kind if isinstance(kind, tuple) else (kind,)
        item = value[key]
        if not isinstance(item, wanted) or (isinstance(item, bool) and bool not in wanted):
            names = " or ".join(k.__name__ for k in wanted)
            raise ValueError(f"{where[:80]}: {key} is {type(item).__name__}, not {names}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is repeated")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
