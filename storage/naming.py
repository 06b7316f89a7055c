"""Which variables are meant by names, globs, rename maps and dtypes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError, IncompatibleCheckpoint
from storage.layout import DTYPES, STORED_AS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SHOWN = 20
_WILD = frozenset("*?[")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of a variable's dtype; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if name not in DTYPES and name not in STORED_AS:
        known = ", ".join((*DTYPES, *STORED_AS))
        raise ConfigurationError(f"dtype {name!r} is not known: give one of {known}")
    return np.dtype(name)


def choose(known: Iterable[str], names: Sequence[str] | None, where: str) -> list[str]:
    """The known names that are meant, in the order in which they are known; all if `names` is None.

    Raises IncompatibleCheckpoint listing every name and glob that means nothing.
    """
    known = [*known]
    if names is None:
        return known
    if isinstance(names, str):
        names = [names]
    wanted: set[str] = set()
    unknown = []
    for name in names:
        found = {k for k in known if k == name or (_WILD & {*name} and fnmatchcase(k, name))}
        if not found:
            unknown.append(name)
        wanted |= found
    if unknown:
        raise IncompatibleCheckpoint(
            f"{where} does not hold {listed(unknown)}; it holds {listed(known) if known else 'nothing'}"
        )
    return [name for name in known if name in wanted]


def renamed(name: str, rename: Mapping[str, str]) -> str:
    """What a stored name becomes: by its own entry, else by the longest PREFIX/* that fits, else as it is."""
    if name in rename:
        return rename[name]
    for prefix in sorted((k for k in rename if k.endswith("/*")), key=len, reverse=True):
        if name.startswith(prefix[:-1]):
            return rename[prefix].removesuffix("*") + name[len(prefix) - 1 :]
    return name


def cast_of(name: str, found: np.dtype[Any], wanted: str | Mapping[str, str] | None) -> np.dtype[Any]:
    """The type a variable is to become. One type for all leaves integers and booleans as they are.

    Raises IncompatibleCheckpoint where a type was asked for by name that the variable cannot be cast to.
    """
    if wanted is None:
        return found
    if isinstance(wanted, str):
        target = numpy_dtype(wanted)
        if not _is_float(target):
            raise ConfigurationError(f"dtype={wanted!r}: only floating-point types can be asked for all")
        return target if _is_float(found) else found
    for pattern, dtype in wanted.items():
        if fnmatchcase(name, pattern):
            target = numpy_dtype(dtype)
            between_floats = _is_float(target) and _is_float(found)
            if not between_floats and not np.can_cast(found, target, "safe"):
                raise IncompatibleCheckpoint(f"{name}: {found} cannot become {target} without loss")
            return target
    return found


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def listed(names: Sequence[str]) -> str:
    """The names for a message, cut short where there are many."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
