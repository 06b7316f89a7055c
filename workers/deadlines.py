"""How long a worker or writer may be silent over a piece of work before it is superseded. Pure: no clock.

The time that items of a phase take is learnt from those that are done. Nothing depends on it but when work is
handed on: a deadline that is too short costs a process and a redo, one that is too long costs waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST_S = 60.0
"""Seconds, at least, for each of a worker's first items of a phase: the job's code may compile, load and read
cold data in them. Also for the redo of an item that a worker has not finished in time."""

FIRST_ITEMS = 3

LEAST_S = {"gradient": 5.0, "evaluate": 5.0}
"""Seconds, at least, for any item: where the job reads its data, which storage may hold up for a while."""

LEAST_OTHERWISE_S = 2.0
"""Seconds, at least, for an item of a phase that only computes."""

TIMES_TYPICAL = 10.0
PATIENCE = 4.0
"""Each worker that did not finish an item in time earns the next one this many times as long for it: an
item that is slow is done in the end, and only one that hangs everybody costs three workers."""

START_S = 120.0
"""Seconds without a sign of life from a worker or writer that has not finished loading."""

BEAT_S = 10.0
"""Seconds between two signs of life of a worker that is loading the job."""

STORE_S = 300.0
"""Seconds, at least, for storing or reading a checkpoint: failing storage is asked again for 2 minutes."""

SLOWEST_STORAGE = 2e6
"""Bytes per second that a storage is expected to reach before anything has been measured."""

ASLEEP_S = 3.0
"""An agent that has not looked for so many seconds was suspended, as by Ctrl-Z, perhaps with its workers, or
was busy: that time counts against nobody."""

START_VARIABLE = "HOLDFAST_START_TIMEOUT_S"
_WINDOW = 32
_TYPICAL = 0.75  # the quantile that is typical; neither the first slow items nor single ones move it


def start_s_of(environment: Mapping[str, str]) -> float:
    """`START_S`, or what the environment gives in its place. Raises ConfigurationError."""
    text = environment.get(START_VARIABLE) or str(START_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < inf:
        raise ConfigurationError(f"{START_VARIABLE}={text} in the environment: give seconds, more than 0")
    return seconds


class _Pace:
    """How long items of one phase take."""

    __slots__ = ("_count", "_least_s", "_recent", "allowed_s")

    def __init__(self, least_s: float, first_s: float) -> None:
        self._least_s = least_s
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._count = 0
        self.allowed_s = first_s  # nothing is known yet

    def learn(self, seconds: float) -> None:
        self._recent.append(seconds)
        self._count += 1
        if self._count % 16 and self._count not in (4, 8):
            return  # sorting at every item would cost more than it tells
        typical = sorted(self._recent)[int(_TYPICAL * len(self._recent))]
        self.allowed_s = max(self._least_s, TIMES_TYPICAL * typical)


@dataclass(slots=True)
class _Watch:
    """Since when somebody is at an item, and how long it may be."""

    phase: str
    item: int  # or bytes to be stored
    since: float
    allowed_s: float


class Deadlines:
    """Who is at work, on what, since when, and until when."""

    def __init__(self, start_s: float = START_S) -> None:
        self._start_s = start_s
        self._fixed_s: float | None = None
        self._fixed_store_s: float | None = None
        self._paces: dict[str, _Pace] = {}
        self._watches: dict[int, _Watch] = {}
        self._stores: deque[float] = deque(maxlen=8)  # seconds per byte
        self._stores_missed = 0
        self._items_done: Counter[tuple[int, str]] = Counter()
        self._missed: Counter[int] = Counter()  # item of this phase -> workers that were too slow for it
        self._next = inf  # no deadline is before it
        self._looked: float | None = None

    def configure(self, worker_timeout_s: float | None, checkpoint_timeout_s: float | None) -> None:
        """What the job says about it; None: adapt to what is measured."""
        self._fixed_s, self._fixed_store_s = worker_timeout_s, checkpoint_timeout_s

    # -- who does what ------------------------------------------------------------------------------------

    def starts(self, peer: int, now: float) -> None:
        """A process has connected, or given a sign of life while it loads."""
        self._watch(peer, _Watch("start", 0, now, self._start_s))

    def begin(self) -> None:
        """A phase begins."""
        self._missed.clear()

    def given(self, worker: int, phase: str, item: int, now: float) -> None:
        """A worker has work, `item` first; nothing changes if it had some before."""
        if worker not in self._watches:
            self._watch(worker, _Watch(phase, item, now, self._allowed_s(worker, phase, item)))

    def finished(self, worker: int, following: int | None, now: float) -> None:
        """A worker has done its item and is at the following one."""
        watch = self._watches.get(worker)
        if watch is not None:
            self._items_done[worker, watch.phase] += 1
            self._pace(watch.phase).learn(now - watch.since)
            self._follow(worker, watch, following, now)

    def gave_up(self, worker: int, following: int | None, now: float) -> None:
        """Its item raised; the worker is at the following one."""
        watch = self._watches.get(worker)
        if watch is not None:
            self._follow(worker, watch, following, now)

    def stores(self, writer: int, nbytes: int, now: float) -> None:
        """A writer stores a checkpoint, or reads one."""
        allowed_s = self._fixed_store_s
        if allowed_s is None:
            slowest = TIMES_TYPICAL * max(self._stores) if self._stores else 1 / SLOWEST_STORAGE
            allowed_s = max(STORE_S, nbytes * slowest) * PATIENCE**self._stores_missed
        self._watch(writer, _Watch("store", nbytes, now, allowed_s))

    def stored(self, writer: int, now: float) -> None:
        """The writer is done with it."""
        watch = self._watches.pop(writer, None)
        if watch is not None:
            self._stores.append((now - watch.since) / max(1, watch.item))
            self._stores_missed = 0

    def forget(self, peer: int) -> None:
        """It does nothing any more, or is gone."""
        self._watches.pop(peer, None)
        for key in [key for key in self._items_done if key[0] == peer]:
            del self._items_done[key]

    # -- who is late --------------------------------------------------------------------------------------

    def wait_s(self, now: float, most_s: float) -> float:
        """Seconds until the next deadline, or `most_s`."""
        return min(most_s, max(0.0, self._next - now))

    def look(self, now: float) -> None:
        """The agent is awake; to be told as often as it is, and before what it hears."""
        gap_s = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        if gap_s > ASLEEP_S:
            for watch in self._watches.values():
                watch.since += gap_s

    def overdue(self, now: float) -> list[tuple[int, str]]:
        """Who is past its deadline, with the reason in words."""
        if now < self._next:
            return []
        ends = {peer: watch.since + watch.allowed_s for peer, watch in self._watches.items()}
        self._next = min(ends.values(), default=inf)
        late = [(peer, self._watches[peer]) for peer, end in ends.items() if now >= end]
        return [(peer, f"it did not answer within {watch.allowed_s:.3g} s") for peer, watch in late]

    def allowed_s(self, peer: int) -> float:
        """Seconds that a peer has for what it is doing."""
        return self._watches[peer].allowed_s

    def missed(self, peer: int) -> None:
        """It is superseded for that: whoever does its work next may be slower."""
        watch = self._watches.pop(peer)
        if watch.phase == "store":
            self._stores_missed += 1
        elif watch.phase != "start":
            self._missed[watch.item] += 1

    # -- how long -----------------------------------------------------------------------------------------

    def _allowed_s(self, worker: int, phase: str, item: int) -> float:
        if self._fixed_s is not None:
            return self._fixed_s
        allowed_s = self._pace(phase).allowed_s
        missed = self._missed[item] if self._missed else 0
        if missed:
            return max(allowed_s, FIRST_S) * PATIENCE ** (missed - 1)
        return allowed_s if self._items_done[worker, phase] >= FIRST_ITEMS else max(allowed_s, FIRST_S)

    def _pace(self, phase: str) -> _Pace:
        pace = self._paces.get(phase)
        if pace is None:
            pace = self._paces[phase] = _Pace(LEAST_S.get(phase, LEAST_OTHERWISE_S), FIRST_S)
        return pace

    def _follow(self, worker: int, watch: _Watch, item: int | None, now: float) -> None:
        if item is None:
            del self._watches[worker]
            return
        watch.item, watch.since = item, now
        watch.allowed_s = self._allowed_s(worker, watch.phase, item)
        self._next = min(self._next, now + watch.allowed_s)

    def _watch(self, peer: int, watch: _Watch) -> None:
        self._watches[peer] = watch
        self._next = min(self._next, watch.since + watch.allowed_s)
