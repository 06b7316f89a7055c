"""Coordinators race on one run directory, in all interleavings up to a bound: one line survives."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage import catalog, library, run_directory, saving
from storage.checkpoint import commit, directory_name, write_part
from storage.errors import CheckpointError, ConfigurationError, StorageError, Superseded
from storage.layout import Layout, StateArray
from storage.manifest import Base
from storage.reader import restore
from storage.retention import Retention
from storage.run_directory import RunDirectory
from storage.shards import plan
from storage.store import Store
from tests.sim.storage_model import ModelStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ARRAYS = (StateArray("params", Layout.of({"w": (40,)})),)
FLAT = {"params": np.arange(ARRAYS[0].padded_length, dtype=np.float32) * (np.arange(1024) < ARRAYS[0].length)}


class Baton:
    """Lets one of several threads go on at a time, and decides at each operation which one."""

    def __init__(self, count: int, choose: Callable[[int, list[int]], int]) -> None:
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._alive = set(range(count))
        self._choose = choose
        self._turn: int | None = None
        self.trace: list[tuple[int, list[int]]] = []

    def wait(self, me: int) -> None:
        """Be about to do an operation; returns when it is this thread's turn."""
        with self._changed:
            self._turn = None if self._turn == me else self._turn
            self._waiting.add(me)
            self._pick(me)
            while self._turn != me:
                self._changed.wait(30)
            self._waiting.discard(me)

    def leave(self, me: int) -> None:
        """Be done."""
        with self._changed:
            self._alive.discard(me)
            self._turn = None
            self._pick(me)

    def _pick(self, last: int) -> None:
        if self._turn is None and self._alive and self._waiting == self._alive:
            runnable = sorted(self._alive)
            self._turn = self._choose(len(self.trace), runnable)
            self.trace.append((self._turn, runnable))
            self._changed.notify_all()


class Shared(Store):
    """A store whose operations are done one at a time, when the baton says so."""

    def __init__(self, inner: ModelStore, baton: Baton, me: int) -> None:
        super().__init__(inner.url)
        self._inner, self._baton, self._me = inner, baton, me

    def list(self, prefix: str = "") -> dict[str, int]:
        self._baton.wait(self._me)
        return self._inner.list(prefix)

    def children(self, prefix: str = "") -> list[str]:
        self._baton.wait(self._me)
        return self._inner.children(prefix)

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        self._baton.wait(self._me)
        return self._inner.read(key, start, stop)

    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        self._baton.wait(self._me)
        return self._inner.write(key, buffers)

    def create(self, key: str, data: bytes) -> bool:
        self._baton.wait(self._me)
        return self._inner.create(key, data)

    def delete(self, keys: Iterable[str]) -> None:
        self._baton.wait(self._me)
        self._inner.delete(keys)

    def delete_directory(self, prefix: str) -> None:
        self._baton.wait(self._me)
        self._inner.delete_directory(prefix)

    def last_change(self, prefix: str) -> float | None:
        self._baton.wait(self._me)
        return self._inner.last_change(prefix)


@dataclass
class World:
    """One interleaving: the store, what was acknowledged, and how it ended for each."""

    inner: ModelStore
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    ended: dict[int, str] = field(default_factory=dict)


def coordinate(world: World, store: Store, me: int) -> None:
    """Claim, choose, record, write, commit, retain: two checkpoints, then done, or superseded."""
    try:
        run = RunDirectory(store)
        attempt = run.claim_attempt()
        latest = run.latest()
        base = None if latest is None else Base(latest.step, latest.attempt)
        run.record_base(attempt, base)
        for _ in range(2 if base is None else 1):
            step = 1 if base is None else base.step + 1
            directory = directory_name(step, attempt.number, attempt.nonce)
            part = write_part(store, directory, ARRAYS, FLAT, plan(ARRAYS, 1), in_flight=1)
            commit(
                run,
                attempt,
                directory,
                ARRAYS,
                [part],
                step=step,
                parent=base,
                counters={},
                metrics={},
                fingerprint={},
            )
            base = Base(step, attempt.number)
            world.acknowledged.append((attempt.number, step))
            run.retain(Retention(keep=1), attempt)
        world.ended[me] = "done"
    except (Superseded, CheckpointError, StorageError) as error:
        world.ended[me] = type(error).__name__


HERE = threading.local()
"""The store that the library opens in this thread."""


def save(world: World, store: Store, me: int) -> None:
    """storage.save, from the first look at a new directory on."""
    HERE.store = store
    try:
        url = library.save("model", {"w": FLAT["params"]}, step=me, keep=1)
        named = catalog.parse_directory(url.removeprefix("model/"))
        assert named is not None
        world.acknowledged.append((named[1], named[0]))
        world.ended[me] = "done"
    except (Superseded, ConfigurationError, CheckpointError, StorageError) as error:
        world.ended[me] = type(error).__name__


def played(
    count: int,
    exclusive: bool,
    choose: Callable[[int, list[int]], int],
    act: Callable[[World, Store, int], None] = coordinate,
) -> tuple[World, Baton]:
    """One interleaving, to its end."""
    world = World(ModelStore(exclusive=exclusive))
    if act is coordinate or not exclusive:  # see the test of a saver who looked too early
        RunDirectory(world.inner).create_identity({"kind": "arrays"})
    baton = Baton(count, choose)

    def body(me: int) -> None:
        act(world, Shared(world.inner, baton, me), me)
        baton.leave(me)

    threads = [threading.Thread(target=body, args=(me,), daemon=True) for me in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "an interleaving hangs"
    return world, baton


def check(world: World, trace: object, name: str = "params") -> None:
    """All that was acknowledged is on the line that decides; the latest is at least as far, and whole."""
    run = RunDirectory(world.inner)
    number, chain = run.line()
    for attempt, step in world.acknowledged:
        assert catalog.is_valid(attempt, step, chain, number), (
            attempt,
            step,
            number,
            chain,
            world.ended,
            trace,
        )
    claims = [key for key in world.inner.list("attempts") if key.count(".") == 1]
    kept = {int(key.split("/")[1][:8]) for key in claims}
    assert len(kept) >= len([end for end in world.ended.values() if end == "done"]), trace
    latest = run.latest()
    if world.acknowledged:
        assert latest is not None, (world.ended, trace)
        assert latest.step >= max(step for _, step in world.acknowledged), trace
        assert latest.manifest is not None
        if name != "params":
            return
        into = {"params": np.full(ARRAYS[0].padded_length, 7, np.float32)}
        restore(world.inner, latest.directory, latest.manifest, ARRAYS, into)
        assert into["params"].tobytes() == FLAT["params"].tobytes()
    assert "done" in world.ended.values() or not world.acknowledged or latest is not None


def interleavings(
    count: int,
    exclusive: bool,
    preemptions: int,
    act: Callable[[World, Store, int], None] = coordinate,
) -> Iterator[tuple[World, Any]]:
    """All schedules that take the turn from a thread that could go on at most so many times."""
    todo: list[tuple[tuple[int, ...], int]] = [((), 0)]
    while todo:
        prefix, used = todo.pop()
        last: list[int] = []

        def choose(
            i: int, runnable: list[int], prefix: tuple[int, ...] = prefix, last: list[int] = last
        ) -> int:
            wanted = prefix[i] if i < len(prefix) else (last[-1] if last else runnable[0])
            chosen = wanted if wanted in runnable else runnable[0]
            last.append(chosen)
            return chosen

        world, baton = played(count, exclusive, choose, act)
        yield world, [turn for turn, _ in baton.trace]
        if used == preemptions:
            continue
        turns = tuple(turn for turn, _ in baton.trace)
        for i in range(len(prefix), len(turns)):
            others = [other for other in baton.trace[i][1] if other != turns[i]]
            todo += [((*turns[:i], other), used + 1) for other in others]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leaves a number to another tries again at once: the schedule decides who is first."""
    monkeypatch.setattr(run_directory.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("count", "preemptions", "exclusive"), [(2, 2, True), (2, 2, False), (3, 1, True), (3, 1, False)]
)
def test_every_interleaving_up_to_a_bound(count: int, preemptions: int, exclusive: bool) -> None:
    played_out = 0
    ends: set[tuple[str, ...]] = set()
    for world, trace in interleavings(count, exclusive, preemptions):
        check(world, trace)
        ends.add(tuple(sorted(world.ended.values())))
        played_out += 1
    print(f"{count} coordinators, at most {preemptions} preemptions: {played_out} interleavings, {ends}")
    assert any("Superseded" in end for end in ends), "no coordinator was ever superseded"
    assert played_out > 50


@pytest.mark.parametrize(("count", "preemptions"), [(2, 2), (3, 1)])
@pytest.mark.parametrize("exclusive", [True, False])
def test_every_interleaving_of_savers(
    count: int, preemptions: int, exclusive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "open_store", lambda url: HERE.store)
    played_out = 0
    for world, trace in interleavings(count, exclusive, preemptions, save):
        check(world, trace, "data/float32")
        played_out += 1
    print(f"{count} savers, at most {preemptions} preemptions: {played_out} interleavings")


@pytest.mark.parametrize("exclusive", [True, False])
def test_random_interleavings(exclusive: bool) -> None:
    for seed in range(300):
        rng = random.Random(seed)
        world, baton = played(3, exclusive, lambda _, runnable, rng=rng: rng.choice(runnable))
        check(world, f"seed {seed}: {[turn for turn, _ in baton.trace]}")
