"""Which workers are on which node, and which microbatches a node computes. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def choose(wanted: int, room: Mapping[int, int], least: int, now: Iterable[int]) -> dict[int, int]:
    """The nodes to use, with the room on them: as few as have room for all, but `least` if there are so many.

    Those that are used now come first, then those with most room.
    """
    used = {*now}
    order = sorted(room, key=lambda node: (node not in used, -room[node], node))
    count = min(least, len(order), wanted)
    while count < len(order) and sum(room[node] for node in order[:count]) < wanted:
        count += 1
    return {node: room[node] for node in sorted(order[:count])}


def spread(wanted: int, room: Mapping[int, int]) -> dict[int, int]:
    """How many of `wanted` workers each node gets: as evenly as the room on them permits.

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

    A rank that has to leave its node is not at once another's.
    """
    count = spread(wanted, room)
    kept: dict[int, int] = {}
    for rank, node in sorted(now.items()):
        if count.get(node, 0) > 0:
            kept[rank] = node
            count[node] -= 1
    for node, missing in count.items():
        for _ in range(missing):
            rank = 0
            while rank in kept or rank in now:
                rank += 1
            kept[rank] = node
    return dict(sorted(kept.items()))


def spans(count: int, weights: Sequence[int]) -> list[tuple[int, int]]:
    """Cut [0, count) into contiguous pieces in proportion to the weights, which are not all zero."""
    total = sum(weights)
    ends = [(count * sum(weights[:i]) + total // 2) // total for i in range(len(weights) + 1)]
    return list(pairwise(ends))
