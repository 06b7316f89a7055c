"""What a batch consists of: arrays, and tuples and dicts of them, with samples along the first axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

Part: TypeAlias = Any
"""An array, or a tuple or a dict (keyed by str) of parts."""


def mapped(function: Callable[[NDArray[Any]], Any], part: Part) -> Part:
    """The same structure with what `function` makes of each array."""
    if isinstance(part, tuple):
        return tuple(mapped(function, each) for each in part)
    if isinstance(part, dict):
        return {name: mapped(function, each) for name, each in part.items()}
    return function(part)


def leaves(part: Part, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each array with where it stands, such as "1" or "0/age"; those of a dict by name."""
    if isinstance(part, tuple):
        for i, each in enumerate(part):
            yield from leaves(each, f"{name}/{i}" if name else str(i))
    elif isinstance(part, dict):
        for key in sorted(part):
            yield from leaves(part[key], f"{name}/{key}" if name else key)
    else:
        yield name, part


def structure(part: Part) -> Any:
    """How the parts are nested, as JSON values: None is an array."""
    if isinstance(part, tuple):
        return [structure(each) for each in part]
    if isinstance(part, dict):
        return {name: structure(each) for name, each in part.items()}
    return None


def is_flat(parts: Sequence[Part]) -> bool:
    """Whether there are arrays alone."""
    return not any(isinstance(part, tuple | dict) for part in parts)


class Numbers(Protocol):
    """What an array is checked by, wherever its numbers are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths; the first is the number of samples."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its numbers."""


def check_numbers(what: str, name: str, array: Numbers) -> None:
    """Raise ConfigurationError unless these are real numbers with an axis of samples."""
    if array.dtype.kind not in "fiub":
        raise ConfigurationError(f"{what}: array {name} is {array.dtype}: give real numbers")
    if not array.shape:
        raise ConfigurationError(f"{what}: array {name} is one number: give an axis of samples")


def common_length(what: str, arrays: Sequence[Numbers]) -> int:
    """The number of samples that all the arrays hold.

    Raises ConfigurationError where they differ, or hold none.
    """
    lengths = [array.shape[0] for array in arrays]
    if len(set(lengths)) > 1:
        raise ConfigurationError(
            f"{what}: the arrays hold {', '.join(map(str, lengths))} samples: give equally many"
        )
    if lengths[0] == 0:
        raise ConfigurationError(f"{what}: the arrays hold no samples")
    return lengths[0]


def check_indices(indices: NDArray[np.int64], samples: int) -> None:
    """Raise IndexError unless every one is that of a sample."""
    if len(indices) and (indices.min() < 0 or indices.max() >= samples):
        raise IndexError(f"samples {indices.min()} to {indices.max()} were asked for, of {samples}")
