"""Who computes what, as pure functions: batches, microbatches, segments and the reduction tree.

Nothing here knows how many workers there are except `segments` and `share`, and neither alters a bit: a
microbatch is always one call of the engine, and sums always follow the one tree over microbatch indices.

The tree over `count` leaves: node (level, j) covers the leaves [j * 2**level, (j + 1) * 2**level) that exist;
its value is the sum of its two children, or its only child. A missing child is never replaced by a zero,
which would turn -0.0 into 0.0.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from storage.layout import ALIGNMENT, round_up
from workers.rng import Purpose, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Node: TypeAlias = tuple[int, int]
"""(level, index) of a node of the reduction tree."""

Range: TypeAlias = tuple[int, int]
"""Elements from the first number up to, and without, the second."""

T = TypeVar("T")


class Order(Protocol):
    """The samples of an epoch, by their place in it."""

    def __getitem__(self, places: slice, /) -> NDArray[np.int64]:
        """The samples at the places [low, high), which are given and lie in the epoch."""


Remainder: TypeAlias = Literal["keep", "drop", "pad"]
"""What becomes of the samples that are left when an epoch is cut into batches: they make a short batch; they
are left out, and others in each epoch if the order is shuffled; or the first samples of the epoch fill it up.
"""


def steps_per_epoch(num_samples: int, batch_size: int, remainder: Remainder = "keep") -> int:
    """Number of batches that an epoch is cut into."""
    return num_samples // batch_size if remainder == "drop" else -(-num_samples // batch_size)


@lru_cache(maxsize=2)
def permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Every order of all samples is equally likely; read-only, as the last ones are kept."""
    generator = Streams(seed, epoch, purpose=Purpose.SHUFFLE).generator()
    order = generator.permutation(num_samples)
    order.flags.writeable = False
    return order


def batch_indices(
    num_samples: int,
    batch_size: int,
    seed: int,
    step: int,
    *,
    shuffle: bool,
    remainder: Remainder = "keep",
    order: Callable[[int, int], Order] | None = None,
) -> NDArray[np.int64]:
    """The samples of global batch `step`: a function of its arguments, without a cursor.

    `order(seed, epoch)` is the dataset's own way to shuffle; without one it is `permutation`.
    """
    epoch, position = divmod(step, steps_per_epoch(num_samples, batch_size, remainder))
    low = position * batch_size
    high = low + batch_rows(num_samples, batch_size, step, remainder)
    if not shuffle:
        return np.arange(low, high, dtype=np.int64) % num_samples
    epochs_order = permutation(num_samples, seed, epoch) if order is None else order(seed, epoch)
    if high <= num_samples:
        return epochs_order[low:high]
    fill = np.resize(epochs_order[: min(high - num_samples, num_samples)], high - num_samples)
    return np.concatenate([epochs_order[low:num_samples], fill])


def batch_rows(num_samples: int, batch_size: int, step: int, remainder: Remainder = "keep") -> int:
    """Number of samples of global batch `step`."""
    if remainder != "keep":
        return batch_size
    position = step % steps_per_epoch(num_samples, batch_size)
    return min(batch_size, num_samples - position * batch_size)


def microbatches(rows: int, count: int) -> list[tuple[int, int]]:
    """Cut `rows` samples into `count` nearly equal [start, stop) pieces; fewer if there are fewer rows."""
    return share(rows, min(rows, count))


def share(length: int, parts: int) -> list[tuple[int, int]]:
    """Cut [0, length) into `parts` contiguous pieces whose lengths differ by one at most."""
    return [(length * i // parts, length * (i + 1) // parts) for i in range(parts)]


def segments(length: int, parts: int, whole: Sequence[Range] = ()) -> list[Range]:
    """Cut a flat buffer into at most `parts` aligned, non-empty [start, stop) pieces.

    None is cut within one of the ascending ranges `whole`: a cut goes to the nearer end of it.
    """
    count = -(-length // ALIGNMENT)
    cuts = [low * ALIGNMENT for low, _ in share(count, min(parts, count))]
    uncut = _aligned(whole)
    edges = {_snapped(cut, uncut) for cut in cuts}
    return [*pairwise(sorted({edge for edge in edges if edge < length} | {length}))]


def blocks(start: int, stop: int, size: int, whole: Sequence[Range] = ()) -> Iterator[Range]:
    """Cut a piece that `segments` gave into [low, high) blocks of at most `size` elements, in order.

    Each of the ascending ranges `whole` lies in one block, however long that is.
    """
    low = start
    while low < stop:
        high = min(low + size, stop)
        i = bisect_left(whole, (high,)) - 1
        if i >= 0 and whole[i][1] > high:
            high = whole[i][0] if whole[i][0] > low else whole[i][1]
        yield low, high
        low = high


def _aligned(ranges: Sequence[Range]) -> list[Range]:
    """The ranges widened to aligned ends; those that then overlap are one."""
    found: list[Range] = []
    for low, high in ranges:
        start, stop = low - low % ALIGNMENT, round_up(high, ALIGNMENT)
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def _snapped(cut: int, uncut: Sequence[Range]) -> int:
    i = bisect_left(uncut, (cut,)) - 1
    if i < 0 or uncut[i][1] <= cut:
        return cut
    low, high = uncut[i]
    return low if cut - low <= high - cut else high


def subtrees(start: int, stop: int, count: int) -> list[Node]:
    """The fewest nodes of the tree over `count` leaves that cover exactly the leaves [start, stop)."""
    nodes: list[Node] = []
    while start < stop:
        level = 0
        while start % (2 << level) == 0 and (
            start + (2 << level) <= stop or (stop == count and start + (1 << level) < count)
        ):
            level += 1
        nodes.append((level, start >> level))
        start += 1 << level
    return nodes


def combine(parts: Mapping[Node, T], count: int, add: Callable[[T, T], T]) -> T:
    """The root of the tree over `count` leaves from any set of nodes that covers them.

    Raises KeyError naming a leaf that is missing.
    """

    def value(level: int, index: int) -> T:
        if (level, index) in parts:
            return parts[level, index]
        if level == 0:
            raise KeyError(f"leaf {index} of {count} is missing from the reduction")
        left = value(level - 1, 2 * index)
        if (2 * index + 1) << (level - 1) >= count:
            return left
        return add(left, value(level - 1, 2 * index + 1))

    return value((count - 1).bit_length(), 0)


def tree_sum(
    leaves: Sequence[NDArray[Any]], work: Sequence[NDArray[Any]], levels: Sequence[int] | None = None
) -> NDArray[Any]:
    """Elementwise sum of equally shaped arrays along the tree; `work` is overwritten, `leaves` are not.

    With `levels`, each of `leaves` is the value of a node of that level, and they cover the tree in order.
    `work` holds `tree_depth(len(leaves))` arrays of the leaves' shape. Returns one of them, or the leaf
    itself when there is only one.
    """
    free = list(work)
    stack: list[tuple[int, NDArray[Any], bool]] = []  # (level, partial sum, whether it is one of `work`)

    def merge() -> None:
        _, right, right_owned = stack.pop()
        level, left, left_owned = stack.pop()
        out = left if left_owned else right if right_owned else free.pop()
        np.add(left, right, out=out)
        if left_owned and right_owned:
            free.append(right)
        stack.append((level + 1, out, True))

    for level, leaf in zip(levels or [0] * len(leaves), leaves, strict=True):
        stack.append((level, leaf, False))
        while len(stack) > 1 and stack[-1][0] == stack[-2][0]:
            merge()
    while len(stack) > 1:  # promoted nodes: the shorter right part joins its left neighbour
        merge()
    return stack[0][1]


def tree_depth(count: int) -> int:
    """Number of work arrays that `tree_sum` needs for `count` leaves."""
    return max(1, (count - 1).bit_length())
