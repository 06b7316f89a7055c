"""Which variables are meant by names, globs, rename maps and dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from storage.errors import ConfigurationError, IncompatibleCheckpoint
from storage.layout import DTYPES, STORED_AS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import DTypeLike

DTypes: TypeAlias = "DTypeLike | Mapping[str, DTypeLike] | None"
"""What variables are to become: one type for all that are floats, or by stored name or glob."""

_SHOWN = 20
_WILD = frozenset("*?[")


def numpy_dtype(dtype: object) -> np.dtype[Any]:
    """The NumPy type of a variable's dtype, by its name or NumPy's own; bfloat16 is that of ml_dtypes."""
    name = dtype if isinstance(dtype, str) else _name_of(dtype)
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if name not in DTYPES and name not in STORED_AS:
        known = ", ".join((*DTYPES, *STORED_AS))
        raise ConfigurationError(f"dtype {name!r} is not known: give one of {known}")
    return np.dtype(name)


def _name_of(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return repr(dtype)


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
        found = {k for k in known if fnmatchcase(k, name)} if _WILD & {*name} else {name}.intersection(known)
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


def check_rename(known: Iterable[str], rename: Mapping[str, str], where: str) -> None:
    """Raise ConfigurationError for an entry that cannot be followed, IncompatibleCheckpoint for those that
    mean nothing.
    """
    known = [*known]
    for name, target in rename.items():
        if name.endswith("/*") and not target.endswith("*"):
            raise ConfigurationError(f"rename: {name!r} to {target!r} would run names together: end it in /*")
    _refuse_idle(
        [name for name in rename if not _renames(name, known)], "rename", "a name, or PREFIX/*", where, known
    )


def check_casts(known: Iterable[str], wanted: DTypes, where: str) -> None:
    """Raise IncompatibleCheckpoint for names and globs of types that mean nothing."""
    known = [*known]
    idle = [name for name in wanted if not _any(known, name)] if isinstance(wanted, Mapping) else []
    _refuse_idle(idle, "dtype", "a name or glob", where, known)


def _renames(name: str, known: Sequence[str]) -> bool:
    return name in known or (name.endswith("/*") and any(k.startswith(name[:-1]) for k in known))


def _any(known: Sequence[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in known)


def _refuse_idle(names: Sequence[str], what: str, kind: str, where: str, known: Sequence[str]) -> None:
    if names:
        raise IncompatibleCheckpoint(
            f"{where} does not hold {listed(names)}, which {what} is for: give {kind}; "
            f"it holds {listed(known) if known else 'nothing'}"
        )


def cast_of(name: str, found: np.dtype[Any], wanted: DTypes) -> np.dtype[Any]:
    """The type a variable is to become. One type for all leaves integers and booleans as they are.

    Raises IncompatibleCheckpoint where a type was asked for by name that the variable cannot be cast to.
    """
    if wanted is None:
        return found
    if not isinstance(wanted, Mapping):
        target = numpy_dtype(wanted)
        if not _is_float(target):
            raise ConfigurationError(f"dtype={str(target)!r}: only floating-point types can be asked for all")
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
