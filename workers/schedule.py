"""Who computes what, as pure functions: batches, microbatches, segments and the reduction tree.

Nothing here knows how many workers there are except `segments` and `share`, and neither alters a bit: a
microbatch is always one call of the engine, and sums always follow the one tree over microbatch indices.

The tree over `count` leaves: node (level, j) covers the leaves [j * 2**level, (j + 1) * 2**level) that exist;
its value is the sum of its two children, or its only child. A missing child is never replaced by a zero,
which would turn -0.0 into 0.0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from storage.layout import ALIGNMENT
from workers.rng import Purpose, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

Node: TypeAlias = tuple[int, int]
"""(level, index) of a node of the reduction tree."""

T = TypeVar("T")


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Number of batches that cover the data once; the last one may be short."""
    return -(-num_samples // batch_size)


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    generator = Streams(seed, epoch, purpose=Purpose.SHUFFLE).generator()
    order = generator.permutation(num_samples)
    order.flags.writeable = False
    return order


def batch_indices(
    num_samples: int, batch_size: int, seed: int, step: int, *, shuffle: bool
) -> NDArray[np.int64]:
    """The samples of global batch `step`: a function of its arguments, without a cursor."""
    epoch, position = divmod(step, steps_per_epoch(num_samples, batch_size))
    low, high = position * batch_size, min((position + 1) * batch_size, num_samples)
    if shuffle:
        return _permutation(num_samples, seed, epoch)[low:high]
    return np.arange(low, high, dtype=np.int64)


def batch_rows(num_samples: int, batch_size: int, step: int) -> int:
    """Number of samples of global batch `step`."""
    position = step % steps_per_epoch(num_samples, batch_size)
    return min(batch_size, num_samples - position * batch_size)


def microbatches(rows: int, count: int) -> list[tuple[int, int]]:
    """Cut `rows` samples into `count` nearly equal [start, stop) pieces; fewer if there are fewer rows."""
    return share(rows, min(rows, count))


def share(length: int, parts: int) -> list[tuple[int, int]]:
    """Cut [0, length) into `parts` contiguous pieces whose lengths differ by one at most."""
    return [(length * i // parts, length * (i + 1) // parts) for i in range(parts)]


def segments(length: int, parts: int) -> list[tuple[int, int]]:
    """Cut a flat buffer into at most `parts` aligned, non-empty [start, stop) pieces."""
    blocks = -(-length // ALIGNMENT)
    cuts = share(blocks, min(parts, blocks))
    return [(low * ALIGNMENT, min(high * ALIGNMENT, length)) for low, high in cuts]


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
