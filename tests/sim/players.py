"""Workers and writers, played: they compute real bits into the real memory, and die whenever they like.

A dead one goes on scribbling over whatever it was told to write until it is known to be gone, so every rule
about who may write where shows up in the state at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.checkpoint import Part
from storage.errors import CorruptCheckpoint, StorageError, UserCodeError
from tests.sim.training_job import (
    BATCH,
    LENGTH,
    RATE,
    description,
    evaluated,
    gradient,
    initial,
    num_items,
    total_of,
    update,
)
from workers.parts import Parts
from workers.schedule import share
from workers.state import Arena

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.sim.training_job import State
    from tests.sim.world import Agent, World
    from workers.course import Question
    from workers.processes import ProcessId

IN_FLIGHT = 7


@dataclass(eq=False)
class Player:
    """A worker or writer: what it was told, what it has said that nobody heard yet."""

    world: World
    agent: Agent
    parent: int  # attempt of the coordinator that started it
    id: int
    role: str
    rank: int
    generation: int
    process: ProcessId
    told: list[tuple[Any, ...]] = field(default_factory=list)
    said: list[tuple[Any, ...]] = field(default_factory=list)
    arena: Arena | None = None
    parts: Parts | None = None
    ready: bool = False
    alive: bool = True
    lost: bool = False
    buried: bool = False
    slots: set[int] = field(default_factory=set)
    reading: int | None = None  # buffer that a writer has not finished with
    half: Any = None

    def __post_init__(self) -> None:
        what = (
            description(self.world.validation, callbacks=self.world.callbacks is not None)
            if self.role == "worker"
            else None
        )
        self.said.append(("ready", what))

    def send(self, *message: Any) -> None:
        assert not self.lost, f"{message[0]} was sent to a {self.role} that was lost"
        self.check(message)
        self.told.append(message)

    def work(self) -> None:
        """Do the next piece of what it was told."""
        kind, *arguments = self.told[0]
        getattr(self, kind)(*arguments)

    def next(self) -> None:
        del self.told[0]

    # -- what it is told to do ----------------------------------------------------------------------------

    def open(self, path: str, *settings: Any) -> None:
        if self.role == "worker":
            assert settings == (0, BATCH, self.world.microbatches, True, "keep")
        self.arena = Arena.attach(path)
        self.next()

    def exit(self) -> None:
        self.told.clear()
        self.alive = False

    def share(self, path: str, count: int) -> None:
        assert self.arena is not None
        try:
            self.parts = Parts(path, count, LENGTH, 1)
        except (FileNotFoundError, ValueError):
            self.parts = None  # of an epoch that is over, as in `Worker.share`
        self.next()

    def state(self, buffer: int) -> State:
        assert self.arena is not None
        params, slot = (self.arena.buffers[buffer][name][:LENGTH] for name in ("params", "slots/m"))
        return params, slot

    def initialise(self, ticket: int, target: int, items: tuple[int, ...]) -> None:
        for array, value in zip(self.state(target), initial(), strict=True):
            array[:] = value
        self.said.append(("done", ticket, items[0]))
        self.next()

    def gradient(
        self, ticket: int, step: int, buffer: int, items: tuple[int, ...], slots: tuple[int, ...]
    ) -> None:
        assert self.arena is not None
        if self.world.raises(step, items[0]):
            error = UserCodeError("Traceback\nValueError: now and then")
            self.said.append(("raised", ticket, items[0], error))
        else:
            grad, sums = gradient(self.state(buffer)[0], step, items[0])
            self.arena.grads[slots[0]][:LENGTH] = grad
            self.arena.sums[slots[0]][:] = sums
            self.said.append(("done", ticket, items[0]))
        self.slots.discard(slots[0])
        self.told[0] = ("gradient", ticket, step, buffer, items[1:], slots[1:])
        if not items[1:]:
            self.next()

    def reduce(self, ticket: int, step: int, pieces: list[tuple[int, list[int], int, int, int]]) -> None:
        finite = self._reduce(pieces[0])
        self.said.append(("done", ticket, pieces[0][0], None, finite))
        self.told[0] = ("reduce", ticket, step, pieces[1:])
        if not pieces[1:]:
            self.next()

    def _reduce(self, piece: tuple[int, list[int], int, int, int]) -> bool:
        assert self.arena is not None
        assert self.parts is not None
        _, slots, part, low, high = piece
        total = total_of([self.arena.grads[slot][:LENGTH].copy() for slot in slots])
        self.parts.grads[part][low:high] = total[low:high]
        return bool(np.isfinite(total[low:high]).all())

    def update(
        self,
        ticket: int,
        step: int,
        source: int,
        target: int,
        slots: list[int],
        pieces: list[tuple[int, int, int]],
        levels: list[int] | None = None,
        knobs: Mapping[str, float] | None = None,
        keeps_best: bool = False,
    ) -> None:
        assert not keeps_best
        assert (knobs is None) == (self.world.callbacks is None)
        rest = (levels, *(() if knobs is None else (knobs,)))
        finite = self._update(source, target, slots, pieces[:1], *rest)
        self.said.append(("done", ticket, pieces[0][0], None, finite))
        self.told[0] = ("update", ticket, step, source, target, slots, pieces[1:], *rest)
        if not pieces[1:]:
            self.next()

    def _update(
        self,
        source: int,
        target: int,
        slots: list[int],
        pieces: list[tuple[int, int, int]],
        levels: list[int] | None = None,
        knobs: Mapping[str, float] | None = None,
        keeps_best: bool = False,
    ) -> bool:
        assert self.arena is not None
        memory = self.arena if levels is None else self.parts
        assert memory is not None
        total = total_of([memory.grads[slot][:LENGTH].copy() for slot in slots], levels)
        for _, low, high in pieces:
            new = update(self.state(source), total, low, high, (knobs or {}).get("rate", RATE))
            for array, value in zip(self.state(target), new, strict=True):
                array[low:high] = value
        return all(bool(np.isfinite(total[low:high]).all()) for _, low, high in pieces)

    def callbacks(self, ticket: int, buffer: int, items: tuple[int, ...], question: Question) -> None:
        assert self.world.callbacks is not None
        self.said.append(("done", ticket, items[0], self.world.callbacks.answer(question)))
        self.next()

    def evaluate(self, ticket: int, buffer: int, items: tuple[int, ...]) -> None:
        for item in items if ("drop", ticket) not in self.told else ():
            self.said.append(("done", ticket, item, evaluated(self.state(buffer)[0], item)))
        self.next()

    def drop(self, ticket: int) -> None:
        self.next()

    def write(
        self,
        buffer: int,
        step: int,
        url: str,
        directory: str,
        compression: None,
        in_flight: int,
        number_of: tuple[int, int],
    ) -> None:
        """In two halves, with a world between them."""
        assert in_flight == IN_FLIGHT
        low, high = share(LENGTH, number_of[1])[number_of[0]]
        state = [array[low:high] for array in self.state(buffer)]
        if self.half is None:
            self.half = [array[: len(array) // 2].copy() for array in state]
            return
        pieces = [np.concatenate([a, b[len(a) :]]) for a, b in zip(self.half, state, strict=True)]
        self.half = None
        self.next()
        if self.world.chance(self.world.odds.writing_fails):
            self.said.append(("failed", "write", StorageError("the disk is full for a moment")))
        else:
            self.world.stored[directory, number_of[0]] = (step, low, high, pieces)
            self.said.append(("written", step, Part({}, (number_of[0],), {}), directory))  # type: ignore[arg-type]
        self.reading = None

    def restore(self, target: int, url: str, directory: str) -> None:
        self.next()
        checkpoint = self.world.checkpoints[directory]
        if directory in self.world.damaged:
            self.state(target)[0][:50] = np.nan
            self.said.append(("failed", "restore", CorruptCheckpoint(f"{directory} is damaged")))
            return
        for array, value in zip(self.state(target), checkpoint.state, strict=True):
            array[:] = value
        self.said.append(("restored", checkpoint.step, checkpoint.metrics, checkpoint.counters))

    def scribble(self) -> None:
        """Dead or superseded, and not known to be gone: what it may write, it may have written."""
        if self.arena is None:
            return
        for slot in self.slots:
            self.arena.grads[slot][:] = np.nan
            self.arena.sums[slot][:] = np.nan
        for kind, *arguments in self.told:
            if kind == "update":  # one that runs late writes the same bits, as does a late sum
                _, _, source, target, slots, pieces, *rest = arguments
                if not rest or rest[0] is None or self.parts is not None:
                    self._update(source, target, slots, pieces, *rest)
            elif kind == "reduce" and self.parts is not None:
                for piece in arguments[2]:
                    self._reduce(piece)
            elif kind == "restore":
                self.state(arguments[0])[1][:] = np.nan

    # -- what must hold -----------------------------------------------------------------------------------

    def check(self, message: tuple[Any, ...]) -> None:
        """At the moment that it is told to do something: nobody else reads or writes there."""
        kind, *arguments = message
        arena = self.agent.training._arena
        if kind == "exit":
            assert not self.slots, "a worker was let go that has work"
            return
        assert arena is not None
        commit = arena.committed()
        others = [each for each in self.agent.players if each is not self and not each.buried]
        if kind == "gradient":
            _, step, buffer, items, slots = arguments
            assert commit is not None
            assert (step, buffer) == (commit.step, commit.buffer)
            assert len(items) == len(slots) > 0
            for other in others:
                assert not set(slots) & other.slots, f"slots {slots} may still be written by #{other.id}"
            self.slots |= set(slots)
        elif kind == "update":
            _, step, source, target, slots, pieces, *levels = arguments
            assert commit is not None
            assert (step, source) == (commit.step, commit.buffer)
            assert target != commit.buffer, "the committed buffer would be written"
            assert not any(each.reading == target for each in others), "a pinned buffer would be written"
            assert len(slots) == len(set(slots))
            if levels and levels[0] is not None:
                assert len(levels[0]) == len(slots)
            else:
                assert len(slots) == num_items(step, self.world.microbatches)
            assert pieces
        elif kind in ("initialise", "restore"):
            target = arguments[1] if kind == "initialise" else arguments[0]
            assert commit is None or target != commit.buffer, "the surviving state would be written"
            assert not any(each.reading == target for each in others), "a pinned buffer would be written"
        elif kind == "write":
            buffer, step = arguments[:2]
            assert commit is not None
            assert (step, buffer) == (commit.step, commit.buffer)
            assert self.reading is None
            self.reading = buffer
