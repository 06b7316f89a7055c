"""The assignment of a phase's items to workers, and when the phase is complete. Pure: no I/O, no clock.

A phase is a set of items (microbatches, segments, validation batches) that workers compute independently. A
worker that dies or is declared dead is *superseded*: its unfinished items go to the others at once, but no
slot that it may still write is given out again, and the phase does not end, until it is known to be gone.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.schedule import share

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@dataclass(frozen=True, slots=True)
class Assignment:
    """Items for one worker, in order; with slots, `slots[i]` is where the result of `items[i]` goes."""

    worker: int
    items: tuple[int, ...]
    slots: tuple[int, ...]


class Barrier:
    """Members, their unfinished items, and the slots that results are written to."""

    __slots__ = (
        "_aside",
        "_avoid",
        "_busy",
        "_deaths",
        "_doers",
        "_errors",
        "_free",
        "_leaving",
        "_retiring",
        "_slots_of",
        "_todo",
        "_use_slots",
        "makers",
        "slots",
    )

    def __init__(self, num_slots: int) -> None:
        self._busy: dict[int, list[int]] = {}  # worker -> unfinished items, in the order it works on them
        self._retiring: dict[int, list[int]] = {}  # superseded worker -> slots that it may still write
        self._slots_of: dict[tuple[int, int], int] = {}  # (worker, item) -> slot
        self._free = list(range(num_slots - 1, -1, -1))
        self._todo: deque[int] = deque()
        self._deaths: Counter[int] = Counter()
        self._errors: Counter[int] = Counter()
        self._avoid: dict[int, list[int]] = {}  # item -> workers that had it before, the last one last
        self._use_slots = False
        self._leaving: set[int] = set()
        self._doers: dict[int, int] = {}  # item of a phase without slots -> worker that did it
        self._aside: dict[int, int] = {}  # item under review -> slot of its first result
        self.slots: dict[int, int] = {}
        """Item -> slot of its accepted result."""
        self.makers: dict[int, int] = {}
        """Item -> worker that wrote its slot."""

    @property
    def members(self) -> tuple[int, ...]:
        """Workers that can be given work."""
        return tuple(worker for worker in self._busy if worker not in self._leaving)

    def __contains__(self, worker: int) -> bool:
        """Whether a worker is there, be it that it leaves when it has finished what it is doing."""
        return worker in self._busy

    @property
    def complete(self) -> bool:
        """Every item is done, and nobody who was superseded can write any more."""
        return not self._todo and not self._retiring and not any(self._busy.values())

    @property
    def idle(self) -> bool:
        """Nobody is at work, and nobody who was superseded can write any more."""
        return not self._retiring and not any(self._busy.values())

    def current(self, worker: int) -> int | None:
        """The item that a worker is at; None if it has nothing to do."""
        items = self._busy.get(worker)
        return items[0] if items else None

    def abandon(self) -> None:
        """Give up what nobody works on: the phase is over without having been completed."""
        self._todo.clear()

    def cancel(self) -> list[int]:
        """Give up a phase without slots; returns the workers that are at it, who are not waited for."""
        assert not self._use_slots
        self._todo.clear()
        busy = [worker for worker, items in self._busy.items() if items]
        for worker in busy:
            self._busy[worker] = []
        return busy

    def dismiss(self, worker: int) -> bool:
        """Give a worker nothing more to do; True if it is doing nothing and can leave now."""
        if worker in self._busy:
            self._leaving.add(worker)
        return not self._busy.get(worker)

    def leave(self, worker: int) -> None:
        """An idle worker leaves."""
        assert not self._busy[worker]
        del self._busy[worker]
        self._leaving.discard(worker)

    def begin(self, items: Sequence[int], *, use_slots: bool) -> list[Assignment]:
        """Start a phase. The slots of the phase before last are free again if this one uses slots."""
        assert self.complete
        if use_slots:
            self._free.extend(sorted([*self.slots.values(), *self._aside.values()], reverse=True))
            self.slots, self.makers, self._aside = {}, {}, {}
        self._todo.extend(items)
        self._use_slots = use_slots
        self._deaths.clear()
        self._errors.clear()
        self._avoid.clear()
        self._doers.clear()
        return self._assign()

    def review(self, item: int, others: Sequence[int] = ()) -> list[Assignment]:
        """Start a phase of one item that has a slot: into another one, by another worker if there is one.

        `others` are workers that had it before the last one: one that is none of them is better.
        """
        assert self.complete
        self._aside = {item: self.slots.pop(item)}
        self._todo.append(item)
        self._use_slots = True
        self._deaths.clear()
        self._errors.clear()
        self._avoid = {item: [*others, self.makers[item]]}
        return self._assign()

    def reviewed(self, item: int) -> tuple[int, int]:
        """The slots of the first and of the second result."""
        return self._aside[item], self.slots[item]

    def accept(self, item: int) -> None:
        """The second result counts; the slot of the first is free."""
        self._free.append(self._aside.pop(item))

    def doers(self, items: Collection[int]) -> set[int]:
        """Who did these items of this phase, which has no slots."""
        return {self._doers[item] for item in items if item in self._doers}

    def join(self, worker: int) -> list[Assignment]:
        """A worker is ready. It gets what nobody works on; otherwise it waits for the next phase."""
        assert worker not in self._busy
        self._busy[worker] = []
        return self._assign()

    def done(self, worker: int, item: int) -> bool:
        """A worker finished an item; False when that is not (any more) its to finish."""
        if item not in self._busy.get(worker, ()):
            return False
        self._busy[worker].remove(item)
        if self._use_slots:
            self.slots[item] = self._slots_of.pop((worker, item))
            self.makers[item] = worker
        else:
            self._doers[item] = worker
        return True

    def failed(self, worker: int, item: int) -> tuple[int, list[Assignment]]:
        """An item raised on a worker, which lives on. Returns how often it has now, and who tries again."""
        if item not in self._busy.get(worker, ()):
            return 0, []
        self._busy[worker].remove(item)
        if self._use_slots:
            self._free.append(self._slots_of.pop((worker, item)))
        self._errors[item] += 1
        self._todo.append(item)
        self._avoid[item] = [worker]
        return self._errors[item], self._assign()

    def lost(self, worker: int) -> tuple[int | None, int, list[Assignment]]:
        """A worker is superseded: dead, or about to be killed.

        Returns the item it was working on, how many workers that item has now cost, and the new assignments.
        """
        items = self._busy.pop(worker, [])
        self._leaving.discard(worker)
        if self._use_slots:
            self._retiring[worker] = [self._slots_of.pop((worker, item)) for item in items]
        else:
            self._retiring[worker] = []
        self._todo.extend(items)
        blamed = items[0] if items else None
        if blamed is not None:
            self._deaths[blamed] += 1
        return blamed, self._deaths[blamed] if blamed is not None else 0, self._assign()

    def gone(self, worker: int) -> list[Assignment]:
        """A superseded worker is known to have ended: its slots can be written again."""
        self._free.extend(self._retiring.pop(worker, []))
        return self._assign()

    def _assign(self) -> list[Assignment]:
        count = min(len(self._todo), len(self._free)) if self._use_slots else len(self._todo)
        staying = [worker for worker in self._busy if worker not in self._leaving]
        if not staying or not count:
            return []
        # Stable; `share` gives the rest to the last, the idlest.
        workers = sorted(staying, key=lambda worker: -len(self._busy[worker]))
        items = [self._todo.popleft() for _ in range(count)]
        mine: dict[int, list[int]] = {worker: [] for worker in workers}
        for worker, (low, high) in zip(workers, share(count, len(workers)), strict=True):
            for item in items[low:high]:
                avoid = self._avoid.get(item, [])
                others = [w for w in workers if w not in avoid] or [w for w in workers if w not in avoid[-1:]]
                mine[worker if worker in others or not others else others[-1]].append(item)
        return [self._give(worker, tuple(work)) for worker, work in mine.items() if work]

    def _give(self, worker: int, items: tuple[int, ...]) -> Assignment:
        slots = tuple(self._free.pop() for _ in items) if self._use_slots else ()
        self._busy[worker].extend(items)
        self._slots_of.update(((worker, item), slot) for item, slot in zip(items, slots, strict=False))
        return Assignment(worker, items, slots)
