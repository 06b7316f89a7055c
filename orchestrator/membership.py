"""Which workers are on which node, how many stand by, and which microbatches a node computes. Pure."""

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


def staff(
    wanted: int, standby: int, room: Mapping[int, int], least: int, now: Iterable[int]
) -> tuple[dict[int, int], dict[int, int]]:
    """How many workers compute on each node that is used, and how many it has with those that stand by.

    On each node up to `standby` do, where those that compute leave room for them: more nodes are used for
    their sake, but nobody computes less. The other arguments are those of `choose`.
    """
    usable = {node: min(each, max(1, each - standby)) for node, each in room.items()}
    active = spread(wanted, {node: room[node] for node in choose(wanted, usable, least, now)})
    return active, {n: min(room[n], count + standby) if count else 0 for n, count in active.items()}


def assign(counts: Mapping[int, int], now: Mapping[int, int]) -> dict[int, int]:
    """Which rank is on which node: each has so many, and of those that are there `now` nobody moves in vain.

    A rank that has to leave its node is not at once another's.
    """
    count = dict(counts)
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
