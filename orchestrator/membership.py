"""Which workers are on which node, and which microbatches a node computes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def spread(wanted: int, room: Mapping[int, int]) -> dict[int, int]:
    """How many of `wanted` workers each node gets: as evenly as the room on them permits, all if there is room.

    Of nodes that could take one more, the lower number does.
    """
    count = dict.fromkeys(sorted(room), 0)
    for _ in range(wanted):
        free = [node for node in count if count[node] < room[node]]
        if not free:
            break
        count[min(free, key=lambda node: (count[node], node))] += 1
    return count


def assign(wanted: int, room: Mapping[int, int], now: Mapping[int, int]) -> dict[int, int]:
    """Which rank is on which node, given where ranks are `now`: nobody moves who need not.

    Ranks are numbered from 0; those that are too many, and those of nodes that are gone, go first.
    """
    count = spread(wanted, room)
    kept: dict[int, int] = {}
    for rank in sorted(now):
        node = now[rank]
        if count.get(node, 0) > sum(other == node for other in kept.values()):
            kept[rank] = node
    for node in count:
        for _ in range(count[node] - sum(other == node for other in kept.values())):
            rank = 0
            while rank in kept or rank in now:  # a rank that has to leave its node is not at once another's
                rank += 1
            kept[rank] = node
    return dict(sorted(kept.items()))


def spans(count: int, weights: Sequence[int]) -> list[tuple[int, int]]:
    """Cut [0, count) into contiguous pieces in proportion to the weights, which are not all zero."""
    total = sum(weights)
    ends = [0]
    for i in range(1, len(weights) + 1):
        ends.append((count * sum(weights[:i]) + total // 2) // total)
    return [(low, high) for low, high in zip(ends, ends[1:], strict=False)]
