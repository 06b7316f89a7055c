"""One node and its coordinator in virtual time, against peers that die, hang and miscount whenever they like.

`Training` and `machine.transition` are the real ones, over a real (tiny) arena. Workers, writers, the network
and the storage are played: what can happen next happens in an order drawn from a printed seed. Played workers
compute real bits into the real slots, and a dead one goes on scribbling over whatever it was told to write
until it is known to be gone, so every rule about who may write where shows up in the state at the end.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from orchestrator import events, machine
from storage.catalog import directory_name
from storage.checkpoint import Part
from storage.errors import (
    CorruptCheckpoint,
    DivergenceError,
    InfrastructureError,
    StorageError,
    UserCodeError,
)
from storage.layout import Layout, StateArray
from storage.manifest import Base
from workers import messages as m
from workers.processes import ProcessId
from workers.reports import mean
from workers.schedule import batch_rows, tree_depth, tree_sum
from workers.state import Arena
from workers.training import Training

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

IN_FLIGHT = 7
LENGTH = 160
NUM_SAMPLES = 10
BATCH = 4
ARRAYS = tuple(StateArray(name, Layout.of({"w": (LENGTH,)})) for name in ("params", "slots/m"))
MAX_TURNS = 20_000
WORK = ("initialise", "gradient", "update", "evaluate")
State = tuple["NDArray[np.float32]", "NDArray[np.float32]"]


# -- the job: cheap, and with sums that depend on their order --------------------------------------------


def initial() -> State:
    rng = np.random.default_rng(0)
    return rng.standard_normal(LENGTH).astype(np.float32), np.zeros(LENGTH, np.float32)


def gradient(params: NDArray[np.float32], step: int, item: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    rng = np.random.default_rng((step, item))
    noise = rng.standard_normal(LENGTH) * 10.0 ** rng.integers(-6, 7, LENGTH)
    return (params * np.float32(0.25) + noise.astype(np.float32)), np.array([[float(params[0]) + item, 2.0]])


def update(state: State, total: NDArray[np.float32], low: int, high: int) -> State:
    slot = state[1][low:high] * np.float32(0.9) + total[low:high]
    return state[0][low:high] - np.float32(1e-3) * slot, slot


def evaluated(params: NDArray[np.float32], item: int) -> NDArray[Any]:
    return np.array([[float(params[item]) * 3, 3.0]])


def num_items(step: int, microbatches: int) -> int:
    return min(batch_rows(NUM_SAMPLES, BATCH, step), microbatches)


@lru_cache(maxsize=200)
def reference(step: int, microbatches: int) -> State:
    """The state after `step` undisturbed steps."""
    if step == 0:
        return initial()
    state = reference(step - 1, microbatches)
    leaves = [gradient(state[0], step - 1, i)[0] for i in range(num_items(step - 1, microbatches))]
    return update(state, total_of(leaves), 0, LENGTH)


def total_of(leaves: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return tree_sum(leaves, list(np.empty((tree_depth(len(leaves)), LENGTH), np.float32)))


def same(a: State, b: State) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


# -- the players -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Player:
    """A worker or writer: what it was told, what it has said that nobody heard yet."""

    sim: Sim
    id: int
    role: str
    rank: int
    generation: int
    process: ProcessId
    told: list[tuple[Any, ...]] = field(default_factory=list)
    said: list[tuple[Any, ...]] = field(default_factory=list)
    arena: Arena | None = None
    alive: bool = True
    lost: bool = False
    buried: bool = False
    slots: set[int] = field(default_factory=set)
    reading: int | None = None  # buffer that a writer has not finished with
    half: Any = None
    hung: bool = False
    greeted: bool = False
    worked: bool = False

    def send(self, *message: Any) -> None:
        assert not self.lost, f"{message[0]} was sent to a {self.role} that was lost"
        self.sim.check(self, message)
        self.told.append(message)

    def work(self) -> None:
        """Do the next piece of what it was told."""
        kind, *arguments = self.told[0]
        self.worked = self.worked or kind in WORK
        getattr(self, kind)(*arguments)

    def next(self) -> None:
        del self.told[0]

    def open(self, path: str, *settings: Any) -> None:
        if self.role == "worker":
            assert settings == (0, BATCH, self.sim.microbatches, True, "keep")
        self.arena = Arena.attach(path)
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
        if self.sim.raises(step, items[0]):
            error = UserCodeError("Traceback\nValueError: now and then")
            self.said.append(("raised", ticket, items[0], error))
        else:
            grad, sums = gradient(self.state(buffer)[0], step, items[0])
            self.arena.grads[slots[0]][:LENGTH] = grad
            self.arena.sums[slots[0]][:] = sums
            if self.sim.flips(self):
                self.arena.grads[slots[0]][self.sim.rng.randrange(LENGTH)] = np.nan
            elif self.sim.flips(self):
                self.arena.sums[slots[0]][0, 0] = self.sim.rng.choice([np.nan, np.inf])
            self.said.append(("done", ticket, items[0]))
        self.slots.discard(slots[0])
        self.told[0] = ("gradient", ticket, step, buffer, items[1:], slots[1:])
        if not items[1:]:
            self.next()

    def update(
        self, ticket: int, step: int, source: int, target: int, slots: list[int], pieces: list[Any]
    ) -> None:
        assert self.arena is not None
        item, low, high = pieces[0]
        total = total_of([self.arena.grads[slot][:LENGTH].copy() for slot in slots])
        if self.sim.flips(self):
            total[low] = np.nan
        new = update(self.state(source), total, low, high)
        for array, value in zip(self.state(target), new, strict=True):
            array[low:high] = value
        self.said.append(("done", ticket, item, None, bool(np.isfinite(total[low:high]).all())))
        self.told[0] = ("update", ticket, step, source, target, slots, pieces[1:])
        if not pieces[1:]:
            self.next()

    def evaluate(self, ticket: int, buffer: int, items: tuple[int, ...]) -> None:
        for item in items:
            self.said.append(("done", ticket, item, evaluated(self.state(buffer)[0], item)))
        self.next()

    def write(
        self,
        buffer: int,
        step: int,
        url: str,
        directory: str,
        compression: None,
        in_flight: int,
        share: tuple[int, int],
    ) -> None:
        """In two halves, with a world between them."""
        assert in_flight == IN_FLIGHT
        assert share == (0, 1)
        state = self.state(buffer)
        if self.half is None:
            self.half = [array[: LENGTH // 2].copy() for array in state]
            return
        whole = tuple(np.concatenate([a, b[LENGTH // 2 :]]) for a, b in zip(self.half, state, strict=True))
        self.half = None
        self.next()
        if self.sim.chance(0.1):
            self.said.append(("failed", "write", StorageError("the disk is full for a moment")))
        else:
            self.sim.stored[directory] = (step, whole)  # type: ignore[assignment]
            self.said.append(("written", step, Part({}, (), {}), directory))
        self.reading = None

    def restore(self, target: int, url: str, directory: str) -> None:
        self.next()
        step, state = self.sim.stored[directory]
        if directory in self.sim.damaged:
            self.sim.bad_restores += 1
            self.state(target)[0][:50] = np.nan
            self.said.append(("failed", "restore", CorruptCheckpoint(f"{directory} is damaged")))
            return
        for array, value in zip(self.state(target), state, strict=True):
            array[:] = value
        self.said.append(("restored", step, {"loss": 0.5}, {"iterations": step}))

    def scribble(self) -> None:
        """Dead or superseded, and not known to be gone: what it may write, it may have written."""
        if self.arena is None:
            return
        for slot in self.slots:
            self.arena.grads[slot][:] = np.nan
            self.arena.sums[slot][:] = np.nan
        for message in self.told:
            if message[0] == "update":
                _, _, _, source, target, slots, pieces = message
                total = total_of([self.arena.grads[slot][:LENGTH].copy() for slot in slots])
                for _, low, high in pieces:  # an update that runs late writes the same bits
                    new = update(self.state(source), total, low, high)
                    for array, value in zip(self.state(target), new, strict=True):
                        array[low:high] = value


class AgentDied(Exception):
    """The agent's process was killed."""


@dataclass
class Odds:
    """How likely each disturbance is, at every turn."""

    kill: float = 0.02
    raising: float = 0.05
    commit_fails: float = 0.1
    agent_dies: float = 0.0
    signal: float = 0.0
    hang: float = 0.0
    flip: float = 0.0
    """How likely a piece of work is to end with a NaN where a number should be."""

    goes_on: float = 0.02
    """How likely a hung process is to go on, at every turn."""

    lag: float = 0.5
    """How likely it is that the coordinator does something at a turn."""


class Sim:
    """One run of a job: attempts follow each other as after a restart."""

    def __init__(self, seed: int, place: str, odds: Odds | None = None) -> None:
        self.rng = random.Random(seed)
        self.odds = odds or Odds()
        self.seed = seed
        self.place = place
        self.num_workers = self.rng.randint(1, 4)
        self.microbatches = self.rng.randint(self.num_workers, 5)
        self.steps = self.rng.randint(1, 7)
        self.every = self.rng.choice([None, 1, 2, 3])
        self.validate_every = self.rng.choice([None, 1, 2])
        self.validation = self.rng.choice([0, 3, 9])
        self.stored: dict[str, tuple[int, State]] = {}
        self.committed: dict[str, int] = {}  # checkpoints with a manifest
        self.damaged: set[str] = set()
        self.bad_restores = 0
        self.standby = self.rng.choice([0, 0, 1, 2])
        self.replaces_workers = True
        self.attempt = 0
        self.kills_left = 12
        self.raised: set[tuple[int, int]] = set()
        self.highest = 0
        self.log: list[str] = []

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def raises(self, step: int, item: int) -> bool:
        if (step, item) in self.raised or not self.chance(self.odds.raising):
            return False
        self.raised.add((step, item))
        return True

    def flips(self, player: Player) -> bool:
        """Whether a worker computes wrong. That costs it its life, so it counts as a death."""
        if not self.may_kill(player) or not self.chance(self.odds.flip):
            return False
        if self.training.phase == "review" and player.id == self.training._first_maker:
            return False  # it might be wrong by the same bits twice, which is a divergence to all who look
        self.log.append(f"worker {player.rank} (#{player.id}) computes wrong in {self.training._phase}")
        self.flipped += 1
        self.count_kill(player)
        return True

    # -- one attempt --------------------------------------------------------------------------------------

    def run(self) -> machine.State:
        """Run an attempt to its end."""
        self.attempt += 1
        self.log.clear()
        self.now = 1000.0
        self.superseded: list[str] = []
        self.flipped = 0
        self.doubted: list[str] = []
        self.training = Training(clock=lambda: self.now)
        self.state = machine.State()
        self.players: list[Player] = []
        self.heard: list[m.Event] = []
        self.commands: list[m.Command] = []
        self.answers: list[events.Event] = []
        self.exits: list[events.Exited] = []
        self.starting: list[tuple[str, int, int]] = []
        self.kills_since_ready = 0
        self.last: tuple[int, int] | None = None  # (sequence, step) of the newest commit seen
        self.kills_at: Counter[int] = Counter()
        self.tell_machine(events.Begin(self.num_workers, self.num_workers, standby=self.standby))
        for _ in range(MAX_TURNS):
            if self.state.phase is machine.Phase.ENDED:
                break
            self.turn()
        else:
            raise AssertionError(f"it never ends: node in {self.training._phase}, {self.state}")
        self.release()
        return self.state

    def release(self) -> None:
        """All processes of the attempt end, and with them their locks and descriptors."""
        arenas = [self.training._arena, *(player.arena for player in self.players)]
        for arena in arenas:
            if arena is not None:
                fcntl.flock(arena._fd, fcntl.LOCK_UN)
                os.close(arena._fd)

    def turn(self) -> None:
        """Let one of the things happen that can. Raises AgentDied if it was that."""
        self.now += self.rng.expovariate(200.0)
        self.look()
        options: list[Any] = []
        for player in self.players:
            if player.hung:
                if player.alive and self.chance(self.odds.goes_on):
                    options.append(lambda p=player: self.go_on(p))
            elif player.alive and self.may_hang(player) and self.chance(self.odds.hang):
                options += [lambda p=player: self.hang(p)] * 5
            if player.alive and player.told and not player.hung:
                options += [player.work] * 2
            if player.said and not player.lost:
                options += [lambda p=player: self.hear(p)] * 2
            if player.alive and self.may_kill(player):
                if self.chance(self.odds.kill):
                    options += [lambda p=player: self.kill(p)] * 5
            elif not player.alive and not player.lost:
                options.append(lambda p=player: self.lose(p))
            elif player.lost and not player.buried:
                options += [player.scribble, lambda p=player: self.bury(p)]
        if self.starting:
            options.append(self.start)
        if self.news() and self.chance(self.odds.lag):
            options += [self.coordinate] * 2
        if self.commands:
            options += [self.obey] * 2
        if self.chance(self.odds.agent_dies):
            raise AgentDied
        if self.chance(self.odds.signal) and self.state.phase is not machine.Phase.STOPPING:
            options.append(lambda: self.tell_machine(events.Signalled(events.Status.PREEMPTED)))
        if options:
            self.rng.choice(options)()
            self.observe()
        elif not self.news():  # all wait for somebody who hangs
            self.now += self.training.deadlines.wait_s(self.now, 1.0)

    def news(self) -> bool:
        """Whether there is something for the coordinator to hear."""
        return bool(self.training._events or self.heard or self.exits or self.answers)

    def look(self) -> None:
        """As the agent's loop does."""
        deadlines = self.training.deadlines
        deadlines.look(self.now)
        for number, cause in self.training.take_doomed():
            player = self.players[number - 1]
            self.doubted.append(cause)
            self.log.append(f"worker {player.rank} (#{number}): {cause}")
            player.alive = False
            if not player.lost:
                self.lose(player, cause)
        for number, cause in deadlines.overdue(self.now):
            player = self.players[number - 1]
            if player.said:
                self.hear(player)
                continue
            deadlines.missed(number)
            self.superseded.append(self.training._phase.value if player.told else "loading")
            self.log.append(f"{player.role} {player.rank} (#{number}) in {self.superseded[-1]}: {cause}")
            player.alive = False
            self.lose(player, cause)

    def hang(self, player: Player) -> None:
        self.log.append(f"{player.role} {player.rank} (#{player.id}) hangs, node in {self.training._phase}")
        self.count_kill(player)
        player.hung = True

    def go_on(self, player: Player) -> None:
        """It had not been superseded yet: nothing has happened."""
        self.log.append(f"{player.role} {player.rank} (#{player.id}) goes on")
        player.hung = False
        if not player.greeted:
            self.say_ready(player)

    def may_kill(self, player: Player) -> bool:
        """Keep below the numbers from which on the job is blamed."""
        committed = self.last[1] if self.last else -1
        # One that is killed in an update may be found dead in the next step.
        few = self.kills_at[committed] + self.kills_at[committed - 1] < 2 and self.kills_since_ready < 2
        return self.kills_left > 0 and few

    def may_hang(self, player: Player) -> bool:
        """Of who stands by nobody would know before it is given work, with others that were struck since."""
        stands_by = player.id in self.training._workers and player.id not in self.training._barrier
        return not stands_by and self.may_kill(player)

    def kill(self, player: Player) -> None:
        self.log.append(
            f"{player.role} {player.rank} (#{player.id}) is killed, node in {self.training._phase}"
        )
        player.alive = False
        self.count_kill(player)

    def count_kill(self, player: Player) -> None:
        self.kills_left -= 1
        if player.role == "worker":
            self.kills_since_ready += 1
            committed = self.last[1] if self.last else -1
            self.kills_at[committed] += 1

    def lose(self, player: Player, cause: str = "") -> None:
        """The agent reads the end of the stream; what it had said before may have been read or not."""
        player.lost = True
        end = "killed by SIGKILL"
        self.exits.append(events.Exited(0, player.role, player.rank, player.generation, end))
        self.training.lose(player, cause)

    def bury(self, player: Player) -> None:
        player.buried = True
        player.reading = None
        self.training.bury(player)

    def start(self) -> None:
        role, rank, generation = self.starting.pop(self.rng.randrange(len(self.starting)))
        if role == "agent":
            return
        number = len(self.players) + 1
        player = Player(self, number, role, rank, generation, ProcessId((1 << 23) + number, 1))
        self.players.append(player)
        self.training.join(player)
        self.training.deadlines.starts(number, self.now)
        if self.may_kill(player) and self.chance(self.odds.hang):
            self.hang(player)
        else:
            self.say_ready(player)

    def say_ready(self, player: Player) -> None:
        player.said.append(("ready", self.description() if player.role == "worker" else None))
        player.greeted = True

    def description(self) -> dict[str, Any]:
        return {
            "arrays": [array.to_json() for array in ARRAYS],
            "whole": [],
            "metrics": [mean("loss")],
            "samples": NUM_SAMPLES,
            "validation_samples": self.validation,
            "callbacks": None,
            "fingerprint": {"numpy": "2"},
        }

    def hear(self, player: Player) -> None:
        message = player.said.pop(0)
        if message[0] == "ready" and player.role == "worker":
            self.kills_since_ready = 0
        self.training.hear(player, *message)

    def obey(self) -> None:
        self.training.obey(self.commands.pop(0))

    # -- the coordinator ----------------------------------------------------------------------------------

    def coordinate(self) -> None:
        self.heard += self.training.take_events()
        if self.heard:
            self.tell_machine(events.Heard(0, self.heard.pop(0)))
        elif self.exits and self.chance(0.5):
            self.tell_machine(self.exits.pop(0))
        elif self.answers:
            self.tell_machine(self.answers.pop(0))

    def tell_machine(self, event: events.Event) -> None:
        self.state, actions = machine.transition(self.state, event, self.attempt)
        said: Any = event.event if isinstance(event, events.Heard) else event
        if not isinstance(said, m.Ready | m.Lost):
            self.log.append(f"{type(said).__name__}{tuple(getattr(said, s) for s in said.__slots__)}"[:160])
        for action in actions:
            match action:
                case events.StartProcess(_, role, rank, generation):
                    if not generation or role != "worker" or self.replaces_workers:
                        self.starting.append((role, rank, generation))
                case events.Tell(_, command):
                    self.commands.append(command)
                case events.Identify():
                    prepare = m.Prepare(
                        place_id=self.place,
                        seed=0,
                        batch_size=BATCH,
                        microbatches=self.microbatches,
                        shuffle=True,
                        url="memory://run",
                    )
                    self.answers.append(events.Identified(prepare))
                case events.ChooseBase(epoch, found, bad, _):
                    self.answers.append(self.choose(epoch, found, bad))
                case events.RecordBase():
                    plan = m.Plan(
                        attempt=self.attempt,
                        epoch=0,
                        url="memory://run",
                        steps=self.steps,
                        checkpoint_every=self.every,
                        validate_every=self.validate_every,
                        in_flight=IN_FLIGHT,
                    )
                    self.answers.append(events.Based(plan))
                case events.CommitCheckpoint((written,)):
                    self.answers.append(self.commit(written))

    def choose(self, epoch: int, states: tuple[m.Found, ...], bad: tuple[str, ...]) -> events.Event:
        found = next(iter(states), None)
        best = max(
            ((step, directory) for directory, step in self.committed.items() if directory not in bad),
            default=None,
        )
        if found is not None and (best is None or found.step >= best[0]):
            assert found.fingerprint == {"numpy": "2"}
            memory = Base(step=found.step, attempt=found.attempt)
            return events.BaseChosen(epoch, memory, None, in_memory=True)
        if best is None:
            return events.BaseChosen(epoch, None, None, in_memory=False)
        return events.BaseChosen(epoch, Base(step=best[0], attempt=1), best[1], in_memory=False)

    def commit(self, written: m.CheckpointWritten) -> events.Event:
        step, state = self.stored[written.directory]
        assert step == written.step
        assert written.counters == {"iterations": step}
        assert same(state, reference(step, self.microbatches)), "a checkpoint mixes two states"
        assert written.directory.startswith(directory_name(step, self.attempt, "0" * 16)[:-16])
        if self.chance(self.odds.commit_fails):
            return events.CommitFailed(step, StorageError("503 slow down"))
        self.committed[written.directory] = step
        return events.Committed(step, "digest")

    # -- what must hold -----------------------------------------------------------------------------------

    def check(self, player: Player, message: tuple[Any, ...]) -> None:
        """At the moment a player is told to do something."""
        kind, *arguments = message
        arena = self.training._arena
        assert arena is not None
        commit = arena.committed()
        others = [each for each in self.players if each is not player and not each.buried]
        if kind in WORK:
            busy = [p for p in others if not p.lost and any(told[0] in WORK for told in p.told)]
            assert len(busy) < self.num_workers, "one that stands by was given work"
        if kind == "gradient":
            _, step, buffer, items, slots = arguments
            assert commit is not None
            assert (step, buffer) == (commit.step, commit.buffer)
            assert len(items) == len(slots) > 0
            for other in others:
                assert not set(slots) & other.slots, f"slots {slots} may still be written by #{other.id}"
            player.slots |= set(slots)
            return
        if kind == "update":
            _, step, source, target, slots, pieces = arguments
            assert commit is not None
            assert (step, source) == (commit.step, commit.buffer)
            assert target != commit.buffer, "the committed buffer would be written"
            assert not any(each.reading == target for each in others), "a pinned buffer would be written"
            assert len(slots) == len(set(slots)) == num_items(step, self.microbatches)
            assert pieces
        elif kind in ("initialise", "restore"):
            target = arguments[1] if kind == "initialise" else arguments[0]
            assert commit is None or target != commit.buffer, "the surviving state would be written"
        elif kind == "write":
            buffer, step = arguments[:2]
            assert commit is not None
            assert (step, buffer) == (commit.step, commit.buffer)
            assert player.reading is None
            player.reading = buffer

    def observe(self) -> None:
        """After every event: each step is committed once, in order, with the right bits."""
        arena = self.training._arena
        commit = None if arena is None else arena.committed()
        if commit is None or (self.last is not None and commit.sequence == self.last[0]):
            return
        if self.last is not None and self.state.phase in (machine.Phase.TRAINING, machine.Phase.STOPPING):
            assert commit.sequence == self.last[0] + 1
            assert commit.step == self.last[1] + 1, f"step {commit.step} after step {self.last[1]}"
            assert commit.attempt == self.attempt
        self.last = (commit.sequence, commit.step)
        self.highest = max(self.highest, commit.step)
        assert arena is not None
        params, slot = (arena.buffers[commit.buffer][name][:LENGTH] for name in ("params", "slots/m"))
        assert same((params, slot), reference(commit.step, self.microbatches)), f"step {commit.step} is wrong"

    def check_done(self) -> None:
        """The run is done: all steps, the last one evaluated and in a checkpoint."""
        assert self.state.status is events.Status.DONE, self.state
        assert self.state.step == self.steps
        assert self.last is not None
        assert self.last[1] == self.steps
        assert self.steps in self.committed.values(), "the last step has no checkpoint"
        if self.validation:
            params = reference(self.steps, self.microbatches)[0]
            items = [evaluated(params, i) for i in range(-(-self.validation // BATCH))]
            total = tree_sum(items, list(np.empty((tree_depth(len(items)), 1, 2))))
            assert self.state.metrics == {"val_loss": float(total[0, 0] / total[0, 1])}


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(tmp_path))


def played(sim: Sim) -> Sim:
    """Run it, again where the infrastructure failed; what goes wrong is told with its seed and events."""
    try:
        sim.run()
        while sim.state.status is events.Status.FAILED and sim.attempt < 50:
            assert isinstance(sim.state.error, InfrastructureError | StorageError)
            sim.run()
        assert sim.state.status in (events.Status.DONE, events.Status.PREEMPTED), sim.state
        if sim.state.status is events.Status.DONE:
            sim.check_done()
        elif sim.state.error is None and any(line.startswith("Based") for line in sim.log):
            assert sim.state.step in sim.committed.values(), "the step of the stop has no checkpoint"
    except BaseException as error:
        error.add_note("\n".join([f"seed {sim.seed}, attempt {sim.attempt}:", *sim.log[-40:]]))
        raise
    return sim


SEEDS = range(0, 240, 20)


@pytest.mark.parametrize("first", SEEDS)
def test_every_run_ends_in_the_bits_of_the_undisturbed_one(first: int) -> None:
    for seed in range(first, first + 20):
        assert played(Sim(seed, f"run-{seed}")).state.status is events.Status.DONE


def test_an_undisturbed_run_ends_with_the_processes_it_began_with() -> None:
    quiet = Odds(kill=0, raising=0, commit_fails=0)
    for seed in range(30):
        sim = played(Sim(seed, f"run-{seed}", quiet))
        assert all(player.alive for player in sim.players)
        assert len(sim.players) == sim.num_workers + sim.standby + 1
        assert sum(player.worked for player in sim.players if player.role == "worker") <= sim.num_workers


def test_workers_that_stand_by_go_on_where_nobody_comes_in_the_place_of_the_dead() -> None:
    """One or two compute, and two die: the phase that they were in is finished by who stood by."""
    seen: Counter[str] = Counter()
    for seed in range(200):
        sim = Sim(seed, f"run-{seed}", Odds(kill=0.01))
        sim.num_workers, sim.standby, sim.replaces_workers = 1 + seed % 2, 2, False
        sim.microbatches, sim.steps, sim.kills_left = 4, 6, 2
        assert played(sim).state.status is events.Status.DONE
        deaths = [line for line in sim.log if line.startswith("worker") and "is killed" in line]
        seen.update(line.rpartition("Phase.")[2] for line in deaths)
    for phase in ("GRADIENT", "UPDATE", "EVALUATE"):
        assert seen[phase] > 5, seen


def test_whoever_hangs_is_superseded_and_no_bit_changes() -> None:
    """In every phase, while loading and while storing; some go on in time."""
    seen: Counter[str] = Counter()
    for seed in range(300):
        odds = Odds(kill=0.01, hang=0.03, goes_on=[0.0, 0.02][seed % 2])
        sim = played(Sim(seed, f"run-{seed}", odds))
        assert sim.state.status is events.Status.DONE
        seen.update(sim.superseded)
    for phase in ("initialise", "gradient", "update", "evaluate", "loading", "drain"):
        assert seen[phase] > 2, seen


def test_a_worker_that_computes_wrong_is_found_out_and_no_bit_changes() -> None:
    """While others die and hang; with one worker, its own second try tells."""
    flipped, doubted = 0, Counter[str]()
    for seed in range(200):
        sim = played(Sim(seed, f"run-{seed}", Odds(kill=0.01, hang=0.01, flip=0.05)))
        assert sim.state.status is events.Status.DONE
        flipped += sim.flipped
        doubted.update("update" if "update" in cause else "microbatch" for cause in sim.doubted)
    assert flipped > 100
    assert doubted["update"] > 5, doubted
    assert doubted["microbatch"] > 20, doubted


def test_a_microbatch_that_is_not_finite_twice_is_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of that step is committed, whoever dies meanwhile."""
    plain = gradient

    def diverging(params: NDArray[np.float32], step: int, item: int) -> tuple[Any, Any]:
        grad, sums = plain(params, step, item)
        if (step, item) == (2, 1):
            grad[7] = np.inf
        return grad, sums

    monkeypatch.setitem(globals(), "gradient", diverging)
    for seed in range(40):
        sim = Sim(seed, f"run-{seed}", Odds(kill=0.02, hang=0.02))
        sim.num_workers, sim.microbatches, sim.steps = max(2, sim.num_workers), 4, 5
        with np.errstate(invalid="ignore"):
            sim.run()
            while isinstance(sim.state.error, InfrastructureError | StorageError):
                sim.run()
        assert isinstance(sim.state.error, DivergenceError), sim.state
        assert "step 2, microbatch 1" in str(sim.state.error)
        assert sim.last is not None
        assert sim.last[1] == 2
        assert not sim.doubted


def test_work_that_hangs_every_worker_ends_the_run_naming_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Player, "gradient", lambda player, *_: player.sim.hang(player))
    sim = Sim(1, "endless", Odds(kill=0, raising=0, commit_fails=0, goes_on=0))
    sim.run()
    assert isinstance(sim.state.error, UserCodeError)
    assert "step 0, microbatch" in str(sim.state.error)
    assert "was not done by 3 workers in a row" in str(sim.state.error)
    assert "worker_timeout_s" in str(sim.state.error)


@pytest.mark.parametrize("first", SEEDS)
def test_a_stopped_run_keeps_its_step_and_goes_on_with_the_same_bits(first: int) -> None:
    for seed in range(first, first + 10):
        sim = played(Sim(seed, f"run-{seed}", Odds(signal=0.01)))
        step = sim.highest
        sim.odds.signal = 0
        assert played(sim).state.status is events.Status.DONE
        assert sim.highest >= step


@pytest.mark.parametrize("forget", [False, True], ids=["memory survives", "memory is lost"])
@pytest.mark.parametrize("first", SEEDS)
def test_an_agent_that_dies_at_any_moment_loses_nothing_that_survives(
    first: int, forget: bool, tmp_path: Path
) -> None:
    for seed in range(first, first + 10):
        sim = Sim(seed, f"run-{seed}", Odds(agent_dies=0.004))
        for _ in range(3):
            try:
                played(sim)
                break
            except AgentDied:
                sim.release()
            if forget:
                for path in tmp_path.iterdir():
                    path.unlink()
            elif sim.last is not None:
                found = Arena.attach(str(tmp_path / f"holdfast-run-{seed}")).committed()
                assert found is not None
                assert found.step == sim.last[1]
        sim.odds.agent_dies = 0
        assert played(sim).state.status is events.Status.DONE


def test_damaged_checkpoints_are_left_for_those_before_them(tmp_path: Path) -> None:
    for seed in range(40):
        sim = played(Sim(seed, f"run-{seed}", Odds(kill=0.01)))
        for path in tmp_path.iterdir():
            path.unlink()
        newest = max(sim.committed, key=lambda directory: sim.committed[directory])
        sim.damaged.add(newest)
        sim.steps += 2
        played(sim)
        assert sim.bad_restores


@pytest.mark.parametrize("phase", ["initialise", "gradient", "update", "evaluate"])
def test_work_that_kills_every_worker_ends_the_run_naming_it(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in native code, or out of memory: redoing it for ever helps nobody."""
    monkeypatch.setattr(Player, phase, lambda player, *_: player.sim.kill(player))
    sim = Sim(1, "deadly", Odds(kill=0, raising=0, commit_fails=0))
    sim.validation = 3
    sim.run()
    assert isinstance(sim.state.error, UserCodeError)
    assert "killed" in str(sim.state.error)
