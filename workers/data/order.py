"""The order of an epoch where samples come in groups that are read as a whole. Pure."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from workers.data.dataset import Dataset, Ordered
from workers.rng import Purpose, Streams
from workers.schedule import permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from workers.schedule import Order

_OF_GROUPS = 1
"""The stream that permutes groups; microbatch w of the next one permutes window w."""
_OF_WINDOWS = 2


def order_of(dataset: Dataset, seed: int, epoch: int) -> Order:
    """The dataset's own order of an epoch, or one in which all orders are equally likely."""
    if isinstance(dataset, Ordered):
        return dataset.order(seed, epoch)
    return permutation(len(dataset), seed, epoch)


class WindowedOrder:
    """The order of one epoch: groups are permuted, and the samples within each `window` groups in a row.

    A function of the sizes of the groups, `window`, the seed and the epoch. Holds a few numbers for each
    group, and the order of the two windows that were asked for last.
    """

    def __init__(self, sizes: Sequence[int], window: int, seed: int, epoch: int) -> None:
        self._seed = seed
        self._epoch = epoch
        generator = Streams(seed, epoch, purpose=Purpose.SHUFFLE).generator(_OF_GROUPS)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        groups = generator.permutation(len(sizes))
        self._windows = [groups[i : i + window] for i in range(0, len(groups), window)]
        self._ranges = [[(int(starts[g]), int(starts[g + 1])) for g in groups] for groups in self._windows]
        lengths = [sum(high - low for low, high in ranges) for ranges in self._ranges]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        self._samples = lru_cache(maxsize=2)(self._permuted)

    def __getitem__(self, places: slice) -> NDArray[np.int64]:
        """The samples at the places [low, high) of the epoch."""
        low, high = places.start or 0, places.stop
        pieces = [np.empty(0, np.int64)]
        window = bisect_right(self._starts, low) - 1
        while window < len(self._windows) and (start := self._starts[window]) < high:
            pieces.append(self._samples(window)[max(low - start, 0) : high - start])
            window += 1
        return np.concatenate(pieces)

    def _permuted(self, window: int) -> NDArray[np.int64]:
        samples = np.concatenate([np.arange(low, high, dtype=np.int64) for low, high in self._ranges[window]])
        streams = Streams(self._seed, self._epoch, window, Purpose.SHUFFLE)
        streams.generator(_OF_WINDOWS).shuffle(samples)
        return samples
