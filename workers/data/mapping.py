"""A function over the samples of a dataset, with random numbers that any worker can draw again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError
from workers.data.code import digest_of, name_of
from workers.data.dataset import Dataset, ReadsAhead, taken
from workers.data.order import order_of
from workers.data.parts import leaves
from workers.rng import Purpose, Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from workers.engine import Batch
    from workers.schedule import Order


class Mappable:
    """What every dataset here has beside the methods of `Dataset`."""

    def map(self: Dataset, function: Callable[[Batch, np.random.Generator], Batch]) -> MapDataset:
        """The dataset of what `function(batch, rng)` makes of each microbatch: see `MapDataset`."""
        return MapDataset(self, function)


class MapDataset(Mappable):
    """`function(batch, rng)` of each microbatch, whose arrays are its own to change.

    `rng` is a function of the run's seed, the step and the microbatch, so the result does not depend on who
    computes it; for validation data it is one of the seed and the batch, the same each time. The function
    must draw from nothing else, and give as many samples as it was given.

    Its identity holds the function's name and a digest of its bytecode, its constants, its defaults and the
    plain values (numbers, texts, tuples of them) that it was closed over, so that a changed function is
    noticed. What it calls is not, and another version of Python makes other bytecode of the same function.
    """

    def __init__(self, source: Dataset, function: Callable[[Batch, np.random.Generator], Batch]) -> None:
        if not callable(function):
            raise ConfigurationError(f"map({function!r}): give a function of (batch, rng)")
        self._source = source
        self._function = function
        self._depth: int = source._depth + 1 if isinstance(source, MapDataset) else 0

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._source)

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """As `take_with`, with the same random numbers each time."""
        return self.take_with(indices, Streams(0, purpose=Purpose.MAP))

    def take_with(self, indices: NDArray[np.int64], streams: Streams) -> Batch:
        """What the function makes of these samples; it draws from a stream of its own."""
        batch = self._function(taken(self._source, indices, streams), streams.generator(self._depth))
        name = name_of(self._function)
        if not isinstance(batch, tuple):
            raise ConfigurationError(
                f"map: {name} returned {type(batch).__name__}: return a tuple such as (x, y)"
            )
        for where, array in leaves(batch):
            if len(array) != len(indices):
                raise ConfigurationError(
                    f"map: {name} returned {len(array)} samples in array {where}, of {len(indices)} that it "
                    "was given: return as many"
                )
        return batch

    def order(self, seed: int, epoch: int) -> Order:
        """That of the dataset below."""
        return order_of(self._source, seed, epoch)

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Let the dataset below read ahead, if it can."""
        if isinstance(self._source, ReadsAhead):
            self._source.prefetch(indices)

    def identity(self) -> dict[str, Any]:
        """That of the dataset below, and the function's name and digest."""
        return {
            "kind": "map",
            "function": name_of(self._function),
            "code": digest_of(self._function),
            "of": self._source.identity(),
        }
