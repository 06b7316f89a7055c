"""The gradients of a step over several nodes: who has which part of the tree, and how they come together.

Each node computes the microbatches of its range, adds them to parts (aligned subtrees), serves these to the
others and fetches theirs. With all parts, every node finishes the same tree. A step's parts are kept until
the next one's are complete: whoever is a step behind when a node is lost gets them from one who is ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workers.exchange import Key
from workers.parts import Parts
from workers.schedule import subtrees, tree_depth, tree_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from workers.engine import Sums
    from workers.exchange import Exchange
    from workers.messages import Member
    from workers.schedule import Node

FETCH_S = 3600.0
"""Seconds that a fetch may take; a node that is lost is noticed by the coordinator long before."""


@dataclass(frozen=True, slots=True)
class Part:
    """A subtree of the step's tree, whose node it is, and where it lies."""

    member: int
    node: Node
    low: int
    high: int
    slot: int


def parts_of(members: Sequence[Member], count: int, first_slot: int = 0) -> list[Part]:
    """The parts of a tree over `count` leaves, in the order of the leaves, one slot for each."""
    parts: list[Part] = []
    for member in members:
        for level, index in subtrees(min(member.low, count), min(member.high, count), count):
            low, high = index << level, min((index + 1) << level, count)
            parts.append(Part(member.node, (level, index), low, high, first_slot + len(parts)))
    return parts


class Reduction:
    """One epoch's exchange between the members of its plan."""

    def __init__(
        self,
        exchange: Exchange,
        path: str,
        members: Sequence[Member],
        node: int,
        stamp: tuple[int, int],
        counts: Sequence[int],
        length: int,
        num_metrics: int,
    ) -> None:
        """Make the memory for it; `counts` are the numbers of leaves that steps can have."""
        self._exchange = exchange
        self._members = {member.node: member for member in members}
        self._node = node
        self._stamp = stamp
        self._most = max(len(parts_of(members, count)) for count in counts)
        self.memory = Parts.create(path, 2 * self._most, length, num_metrics)
        self.step = -1
        self._parts: list[Part] = []
        self._complete = False  # all parts of the step are here
        self._waiting: dict[int, str] = {}  # request -> where to

    @property
    def quiet(self) -> bool:
        """Nothing is being fetched."""
        return not self._waiting

    def begin(self, step: int, count: int) -> range:
        """Start to fetch the others' parts; returns the microbatches that are this node's to compute."""
        self._exchange.withdraw((*self._stamp, step - 1))  # theirs are the slots that are used again
        self.step, self._complete = step, False
        self._parts = parts_of([*self._members.values()], count, step % 2 * self._most)
        for member in self._members.values():
            theirs = [part for part in self._parts if part.member == member.node]
            if theirs and member.node != self._node:
                self._fetch(member.address, "parts", theirs)
        me = self._members[self._node]
        return range(min(me.low, count), min(me.high, count))

    def own(self) -> list[Part]:
        """The parts that this node's workers have to add up."""
        return [part for part in self._parts if part.member == self._node]

    def publish(self, sums: Sequence[Sums]) -> None:
        """This node's parts are added up; `sums[i]` are those of microbatch `own()[0].low + i`."""
        mine = self.own()
        for part in mine:
            leaves = sums[part.low - mine[0].low : part.high - mine[0].low]
            self.memory.sums[part.slot][:] = added(leaves)
        if mine:
            self._exchange.publish(Key(*self._stamp, self.step, "parts"), self._arrays(mine))

    def replay(self, address: str, epoch: int, step: int) -> bool:
        """Have all parts of the step under way, from a member that does; False if it is another step."""
        if (epoch, step) != (self._stamp[1], self.step):
            return False
        if not self._complete:
            self._fetch(address, "all", self._parts)
        return True

    def fetched(self, request: int) -> str | None:
        """Where a fetch that has ended went to; None for other requests."""
        return self._waiting.pop(request, None)

    def cancel(self) -> None:
        """Fetch no more; `quiet` once that is so."""
        for request in self._waiting:
            self._exchange.cancel(request)

    def finish(self) -> tuple[list[int], list[int]]:
        """All parts are here: their slots and levels, in order. They are kept for who is behind."""
        if not self._complete:
            self._exchange.publish(Key(*self._stamp, self.step, "all"), self._arrays(self._parts))
        self._complete = True
        return [part.slot for part in self._parts], [part.node[0] for part in self._parts]

    def totals(self) -> Sums:
        """The sums over all microbatches of the step."""
        levels = [part.node[0] for part in self._parts]
        return added([self.memory.sums[part.slot] for part in self._parts], levels)

    def close(self) -> None:
        """The epoch is over: serve nothing of it any more."""
        self._exchange.withdraw((self._stamp[0], self._stamp[1] + 1, 0))
        self.memory.remove()

    def _fetch(self, address: str, name: str, parts: Sequence[Part]) -> None:
        key = Key(*self._stamp, self.step, name)
        self._waiting[self._exchange.fetch(address, key, self._arrays(parts), FETCH_S)] = address

    def _arrays(self, parts: Sequence[Part]) -> list[NDArray[np.float32] | NDArray[np.float64]]:
        grads = [self.memory.grads[part.slot] for part in parts]
        return [*grads, *(self.memory.sums[part.slot].reshape(-1) for part in parts)]


def added(sums: Sequence[Sums], levels: Sequence[int] | None = None) -> Sums:
    """The sums along the tree, in memory of their own."""
    work = list(np.empty((tree_depth(len(sums)), *sums[0].shape)))
    return tree_sum(sums, work, levels)
