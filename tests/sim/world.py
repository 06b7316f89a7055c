"""Several nodes and their coordinators in virtual time.

`AgentLoop` (without its sockets), `Training` and `machine.transition` are the real ones, over real, tiny
arenas. Workers, writers, the network, the storage and the clock are played: what can happen next happens in
an order drawn from a printed seed.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator import events as e
from orchestrator import machine
from orchestrator.events import Status
from orchestrator.machine import Phase
from storage import catalog
from storage.errors import InfrastructureError, StorageError, Superseded
from storage.manifest import Base
from tests.sim.network import Network, PlayedExchange
from tests.sim.players import IN_FLIGHT, Player
from tests.sim.training_job import (
    BATCH,
    FINGERPRINT,
    LENGTH,
    PER_EPOCH,
    Callbacks,
    evaluated,
    reference,
    same,
    total_of,
)
from workers import messages as m
from workers.agent import AgentLoop
from workers.arenas import arena_path
from workers.processes import ProcessId
from workers.state import Arena, Commit

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sim.training_job import State

MAX_TURNS = 60_000
AT_WORK = (Phase.TRAINING, Phase.STOPPING)


@dataclass(frozen=True)
class Odds:
    """How likely each disturbance is at a turn, as long as there are any left, and each failure."""

    disturbance: float = 0.01
    worker: int = 10  # relative weights of the disturbances
    agent: int = 0
    crowd: int = 0
    machine: int = 0
    coordinator: int = 0
    zombie: int = 0
    scale: int = 0
    drain: int = 0
    signal: int = 0
    disturbances: int = 12
    raising: float = 0.02
    writing_fails: float = 0.05
    commit_fails: float = 0.05
    fetch_fails: float = 0.01
    nodes: int = 3


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with a manifest."""

    step: int
    attempt: int
    state: State
    metrics: dict[str, float]
    counters: dict[str, Any]


@dataclass(eq=False)
class Agent:
    """An agent's process with the processes that belong to it."""

    world: World
    node: int
    generation: int
    loop: AgentLoop
    players: list[Player] = field(default_factory=list)
    alive: bool = True
    let_go: bool = False  # told to end
    last: Commit | None = None
    kills: Counter[int] = field(default_factory=Counter)

    @property
    def training(self) -> Any:
        return self.loop._training

    def committed(self) -> Commit | None:
        arena = self.training._arena
        return None if arena is None else arena.committed()

    def options(self) -> list[Callable[[], None]]:
        """What can happen on this node now."""
        options: list[Callable[[], None]] = []
        exchange = self.training._links._exchange
        if self.loop._inbox or (exchange is not None and exchange.ended):
            options += [self.obey] * 3
        for player in self.players:
            if player.buried:
                continue
            if player.alive and player.told:
                options += [player.work] * 2
            if player.said and not player.lost:
                options += [lambda p=player: self.hear(p)] * 2
            elif not player.alive and not player.lost:
                options.append(lambda p=player: self.lose(p))
            elif player.lost:
                options += [player.scribble, lambda p=player: self.bury(p)]
        return options

    def obey(self) -> None:
        if any(isinstance(command, m.Prepare) for command in self.loop._inbox):
            for other in [*self.world.agents]:  # it takes the memory over
                if other is not self and other.node == self.node:
                    other.die()
        self.loop._call()
        self.loop._obey(self.loop._woken)
        if self.loop._closed:
            self.close(remove=self.loop._remove_arena)

    def hear(self, player: Player) -> None:
        message = player.said.pop(0)
        player.ready = player.ready or message[0] == "ready"
        if message[0] == "ready":
            self.world.deaths[player.role] = 0
        self.training.hear(player, *message)

    def lose(self, player: Player) -> None:
        """The end of the stream is read; all that it had said was read before."""
        player.lost = True
        self.training.lose(player)

    def bury(self, player: Player) -> None:
        player.buried = True
        player.reading = None
        player.slots.clear()
        if player.arena is not None:
            os.close(player.arena._fd)
            player.arena = None
        self.training.bury(player)

    def close(self, *, remove: bool) -> None:
        """It ends as it was told to."""
        if self.alive:
            self._end()
            self.training.release(remove_arena=remove)

    def die(self) -> None:
        """It is killed, and its workers end with it; until then they scribble."""
        if self.alive:
            for player in self.players:
                if not player.buried:
                    player.scribble()
            self._end()

    def _end(self) -> None:
        self.alive = False
        self.world.agents.remove(self)
        self.world.network.die(self.loop._training._links._host)
        arenas = [self.training._arena, *(player.arena for player in self.players if not player.buried)]
        for arena in arenas:
            if arena is not None:
                fcntl.flock(arena._fd, fcntl.LOCK_UN)
                os.close(arena._fd)
        for player in self.players:
            player.alive, player.lost, player.buried = False, True, True
        for sock in (self.loop._wake, self.loop._woken):
            sock.close()
        self.loop._selector.close()


class Coordinator:
    """The interpreter of the machine, played."""

    def __init__(self, world: World, attempt: int) -> None:
        self.world = world
        self.attempt = attempt
        self.state = machine.State()
        self.outgoing: dict[int, deque[m.Command]] = {}
        self.connected: dict[int, Agent] = {}
        self.heard: deque[e.Event] = deque()
        self.answers: deque[Callable[[], e.Event]] = deque()
        self.exits: list[e.Exited] = []
        self.returning: list[int] = []
        self.pausing: list[e.Pause] = []
        self.parent: Base | None = None
        self.told_epoch = 0
        self.started: set[e.StartProcess] = set()
        self.found = {agent.node: agent.generation for agent in world.agents}

    def begin(self) -> None:
        world = self.world
        self.handle(e.Begin(world.least, world.most, self.places(), world.over, world.standby))

    def places(self) -> dict[int, e.Place]:
        """What the runtime says of nodes; agents that are lost are no longer found."""
        world = self.world
        return {n: e.Place(world.room[n], n, self.found.get(n)) for n in sorted(world.up)}

    def options(self) -> list[Callable[[], None]]:
        options: list[Callable[[], None]] = []
        for node, agent in self.connected.items():
            if not agent.alive:
                options.append(lambda n=node: self.miss(n))
                continue
            if self.outgoing.get(node):
                options += [lambda n=node: self.tell(n)] * 2
            if agent.loop._outbox or agent.training._events:
                options += [lambda n=node: self.listen(n)] * 2
        if self.heard:
            options += [lambda: self.handle(self.heard.popleft())] * 3
        if self.answers:
            options.append(lambda: self.handle(self.answers.popleft()()))
        if self.exits:
            options.append(lambda: self.handle(self.exits.pop(0)))
        if self.returning:
            options.append(lambda: self.handle(e.Returned(self.returning.pop(0))))
        if self.pausing:
            options.append(self.pause)
        return options

    @property
    def patient(self) -> bool:
        """Nodes that are there have answered: whoever is missing may be given up."""
        return all(agent.alive for agent in self.connected.values()) and (
            self.state.holders <= self.state.greeted
        )

    def tell(self, node: int) -> None:
        queue = self.outgoing[node]
        commands = [queue.popleft() for _ in range(self.world.rng.randint(1, len(queue)))]
        try:
            self.connected[node].loop.tell(self.attempt, commands)
        except Superseded:
            self.superseded()

    def listen(self, node: int) -> None:
        loop = self.connected[node].loop
        loop._publish()
        try:
            events, _ = loop.listen(self.attempt, 0.0)
        except Superseded:
            self.superseded()
            return
        self.heard += [e.Heard(node, event) for event in events]

    def pause(self) -> None:
        """Time passes until a round's pause is over."""
        pause = self.pausing.pop(0)
        self.world.now_s += pause.seconds
        self.handle(e.PauseOver(pause.epoch))

    def superseded(self) -> None:
        """A newer attempt has spoken: this one is over, and says no more."""
        assert self is not self.world.coordinator, "the newest coordinator was told that it is superseded"
        self.world.zombies.remove(self)

    def miss(self, node: int) -> None:
        """The runtime sees that an agent has ended."""
        self.found.pop(node, None)
        del self.connected[node]
        self.outgoing.pop(node, None)
        self.handle(e.NodeLost(node, "killed by SIGKILL"))

    def handle(self, event: e.Event) -> None:
        told = event.event if isinstance(event, e.Heard) else event
        if not isinstance(told, m.Ready | m.Lost | m.Greeted | m.Described):
            self.world.note(f"[{self.attempt}] {event}")
        self.state, actions = machine.transition(self.state, event, self.attempt)
        for action in actions:
            self.do(action)
        if self.state.phase is Phase.ENDED and self is not self.world.coordinator:
            self.world.zombies.remove(self)

    def do(self, action: e.Action) -> None:
        world = self.world
        match action:
            case e.StartProcess(node, role, rank, generation):
                assert action not in self.started, f"{action} for the second time"
                self.started.add(action)
                if role == "agent":
                    found = [a for a in world.agents if (a.node, a.generation) == (node, generation)]
                    self.connected[node] = found[0] if found else world.start_agent(node, generation)
                elif node in self.connected:
                    world.starting.append((self.connected[node], role, rank, generation, self.attempt))
            case e.Tell(node, command):
                assert node in self.connected, f"{command} for a node that is not connected"
                self.outgoing.setdefault(node, deque()).append(command)
                world.on_command(self, node, command)
            case e.Abandon(node):
                self.outgoing.pop(node, None)
                self.connected.pop(node, None)
                self.found.pop(node, None)
                for agent in [a for a in world.agents if a.node == node]:
                    if self is world.coordinator:
                        agent.die()
            case e.Recover(node):
                if world.chance(0.7):
                    self.returning.append(node)
            case e.Pause():
                self.pausing.append(action)
            case e.Identify():
                prepare = m.Prepare(
                    place_id=world.place,
                    seed=0,
                    batch_size=BATCH,
                    microbatches=world.microbatches,
                    shuffle=True,
                )
                self.answers.append(lambda: e.Identified(prepare))
            case e.ChooseBase(epoch, found_in_memory, bad, _):
                self.answers.append(lambda: self.choose(epoch, found_in_memory, bad))
            case e.RecordBase(base):
                self.answers.append(lambda: self.record(base))
            case e.CommitCheckpoint(parts):
                self.answers.append(lambda: self.commit(parts))
            case e.Note(_, text):
                world.note(f"[{self.attempt}] note: {text}")

    # -- the storage --------------------------------------------------------------------------------------

    def choose(self, epoch: int, states: tuple[m.Found, ...], bad: tuple[str, ...]) -> e.Event:
        world = self.world
        standing = [f for f in states if world.stands(f.attempt, f.step)]
        found = max(standing, key=lambda f: (f.step, f.attempt), default=None)
        best = world.newest_checkpoint(bad)
        if found is not None and (best is None or found.step >= world.checkpoints[best].step):
            assert found.fingerprint == FINGERPRINT
            return e.BaseChosen(epoch, Base(step=found.step, attempt=found.attempt), None, in_memory=True)
        if best is None:
            return e.BaseChosen(epoch, None, None, in_memory=False)
        checkpoint = world.checkpoints[best]
        return e.BaseChosen(
            epoch, Base(step=checkpoint.step, attempt=checkpoint.attempt), best, in_memory=False
        )

    def record(self, base: Base | None) -> e.Event:
        world = self.world
        if self is world.coordinator:  # else its record counts for nothing: a newer one will be made
            chain = catalog.extend(base, world.lines)
            assert chain is not None, f"{base} is on no line of {world.lines}"
            world.lines[self.attempt] = chain
        return e.Based(
            m.Plan(
                attempt=self.attempt,
                epoch=0,
                url="memory://run",
                steps=world.steps,
                checkpoint_every=world.every,
                validate_every=world.validate_every,
                nonce=f"{self.attempt:08x}",
                in_flight=IN_FLIGHT,
            )
        )

    def commit(self, parts: tuple[m.CheckpointWritten, ...]) -> e.Event:
        """Put a checkpoint together from the shares of all writers."""
        world, first = self.world, parts[0]
        assert {(each.directory, each.step) for each in parts} == {(first.directory, first.step)}
        whole = np.full((2, LENGTH), np.nan, np.float32)
        for number in range(len(parts)):
            step, low, high, pieces = world.stored[first.directory, number]
            assert step == first.step
            whole[:, low:high] = pieces
        state = (whole[0], whole[1])
        assert same(state, reference(first.step, world.microbatches, world.callbacks)[0]), (
            "a checkpoint mixes states"
        )
        if self is not world.coordinator:
            return e.CommitFailed(first.step, Superseded("a newer attempt has begun"))
        if world.chance(world.odds.commit_fails):
            return e.CommitFailed(first.step, StorageError("503 slow down"))
        world.checkpoints[first.directory] = Checkpoint(
            first.step, self.attempt, state, first.metrics, first.counters
        )
        return e.Committed(first.step, "digest")


class World:
    """A run of a job: machines, agents, coordinators, and what is done to them."""

    def __init__(self, seed: int, place: str, odds: Odds) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.odds = odds
        self.place = place
        self.num_nodes = rng.randint(1, odds.nodes)
        self.microbatches = rng.randint(max(2, self.num_nodes), 6)
        self.most = rng.randint(1, min(4, self.microbatches))
        self.least = rng.randint(1, self.most)
        self.over = rng.randint(1, self.num_nodes)
        self.room = {node: rng.randint(1, 4) for node in range(self.num_nodes)}
        self.least = min(self.least, sum(self.room.values()))
        self.steps = rng.randint(1, 8)
        self.every = rng.choice([None, 1, 2, 3])
        self.validate_every = rng.choice([None, 1, 2])
        self.validation = rng.choice([0, 3, 9])
        self.standby = rng.choice([0, 0, 1, 2])
        stop_after = (None, None, 1, 2)[seed // 2 % 4]
        asked = Callbacks(self.validation, self.validate_every, stop_after)
        self.callbacks = asked if seed % 2 else None
        self.left = odds.disturbances
        self.up = {*self.room}  # machines that are there
        self.network = Network(rng, odds.fetch_fails)
        PlayedExchange.networks[place] = self.network
        self.agents: list[Agent] = []
        self.generations: Counter[int] = Counter()
        self.starting: list[tuple[Agent, str, int, int, int]] = []
        self.zombies: list[Coordinator] = []
        self.players = 0
        self.deaths: Counter[str] = Counter()
        self.stored: dict[tuple[str, int], Any] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.damaged: set[str] = set()
        self.lines: dict[int, Any] = {}
        self.raised: set[tuple[int, int]] = set()
        self.visible = -1
        self.log: deque[str] = deque(maxlen=150)
        self.happened: Counter[str] = Counter()
        self.now_s = 0.0  # only pauses take time
        self.attempt = 1
        self.coordinator = Coordinator(self, 1)
        self.coordinator.begin()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def note(self, text: str) -> None:
        self.log.append(text[:260])

    def raises(self, step: int, item: int) -> bool:
        if (step, item) in self.raised or not self.chance(self.odds.raising):
            return False
        self.raised.add((step, item))
        return True

    # -- machines and processes ---------------------------------------------------------------------------

    def start_agent(self, node: int, generation: int) -> Agent:
        self.generations[node] += 1
        host = f"{self.place}/{node}/{self.generations[node]}"
        loop = AgentLoop("unused", host=host)
        loop._wake.setblocking(False)
        loop._woken.setblocking(False)
        agent = Agent(self, node, generation, loop)
        self.agents.append(agent)
        if node not in self.up:
            agent.die()
        return agent

    def start_player(self) -> None:
        agent, role, rank, generation, parent = self.starting.pop(self.rng.randrange(len(self.starting)))
        if not agent.alive:
            return
        self.players += 1
        process = ProcessId((1 << 23) + self.players, 1)
        player = Player(self, agent, parent, self.players, role, rank, generation, process)
        agent.players.append(player)
        agent.training.join(player)

    # -- the run ------------------------------------------------------------------------------------------

    def run(self) -> machine.State:
        """Let things happen until an attempt ends well, attempts that fail being followed by others."""
        for _ in range(MAX_TURNS):
            if self.coordinator.state.phase is Phase.ENDED:
                if self.coordinator.state.status is not Status.FAILED:
                    return self.finish()
                self.restart()
            self.turn()
        raise AssertionError(f"it never ends: {self.coordinator.state}")

    def finish(self) -> machine.State:
        state = self.coordinator.state
        stored = max((c.step for c in self.checkpoints.values()), default=-1)
        self.end_attempt(remove=stored >= self.visible)
        return state

    def end_attempt(self, *, remove: bool) -> None:
        for agent in [*self.agents]:
            agent.close(remove=remove)
        self.starting.clear()
        self.zombies.clear()

    def restart(self) -> None:
        """The attempt failed for want of infrastructure: another one begins with what memory has kept."""
        error = self.coordinator.state.error
        assert isinstance(error, InfrastructureError | StorageError), repr(error)
        if isinstance(error, InfrastructureError) and (
            "no node is left" in str(error) or "is gone" in str(error)
        ):
            holders = self.coordinator.state.holders.intersection(self.holders())
            assert not holders, f"given up ({error}) although {holders} hold step {self.visible}"
        self.note(f"attempt {self.attempt} failed: {error!r}")
        self.end_attempt(remove=False)
        self.forget()
        if self.num_nodes == 1 and self.up:
            with suppress(FileNotFoundError):
                arena = Arena.attach(arena_path(self.place, 0))
                commit = arena.committed()
                if commit is not None and self.stands(commit.attempt, commit.step):
                    self.visible = max(self.visible, commit.step)
                os.close(arena._fd)
        self.up = {*self.room}
        self.succeed()

    def succeed(self) -> None:
        self.attempt += 1
        assert self.attempt < 60
        self.deaths.clear()
        self.coordinator = Coordinator(self, self.attempt)
        self.coordinator.begin()

    def turn(self) -> None:
        """Let one of the things happen that can."""
        if self.left > 0 and self.chance(self.odds.disturbance):
            self.disturb()
        options: list[Callable[[], None]] = []
        for agent in self.agents:
            options += agent.options()
        for coordinator in (self.coordinator, *self.zombies):
            options += coordinator.options()
        if self.starting:
            options.append(self.start_player)
        options += [lambda t=t: self.network.carry(t) for t in self.network.possible()]
        if options:
            self.rng.choice(options)()
        else:
            self.idle()
        self.observe()

    def idle(self) -> None:
        """Nothing is under way: only time passes, and somebody does something about it."""
        coordinator = self.coordinator
        if len(self.up) < self.num_nodes:
            self.up = {*self.room}
            coordinator.handle(e.Available(coordinator.places()))
        elif (
            coordinator.state.phase is Phase.JOINING and not coordinator.state.waited and coordinator.patient
        ):
            coordinator.handle(e.Waited())
        elif coordinator.state.down:
            coordinator.handle(e.Returned(min(coordinator.state.down)))
        elif coordinator.state.phase is Phase.JOINING and coordinator.state.least > 1:
            coordinator.handle(e.Scaled(1, coordinator.state.most))
        elif coordinator.state.draining:
            self.lose_machine(min(coordinator.state.draining))
        else:
            states = [(a.node, a.training._phase, a.committed()) for a in self.agents]
            transfers = [(t.key, t.exchange.host, t.peer) for t in self.network.transfers]
            raise AssertionError(f"it hangs: {states}, {transfers}, {coordinator.state}")

    # -- disturbances -------------------------------------------------------------------------------------

    def disturb(self) -> None:
        kinds = ("worker", "agent", "crowd", "machine", "coordinator", "zombie", "scale", "drain", "signal")
        kind = self.rng.choices(kinds, [getattr(self.odds, kind) for kind in kinds])[0]
        if getattr(self, f"_{kind}")():
            self.left -= 1
            self.happened[kind] += 1

    def _worker(self) -> bool:
        """A worker or writer, as long as the job is not to blame for it."""
        players = [
            player
            for agent in self.agents
            for player in agent.players
            if player.alive
            and (player.ready or self.deaths[player.role] < 2)
            and agent.kills[self.step_of(agent)] < 2
        ]
        if not players:
            return False
        player = self.rng.choice(players)
        agent = player.agent
        self.note(f"{player.role} {player.rank} of node {agent.node} is killed in {agent.training._phase}")
        player.alive = False
        self.deaths[player.role] += not player.ready
        if player.role == "worker":
            agent.kills[self.step_of(agent)] += 1
        for coordinator in (self.coordinator, *self.zombies):
            if coordinator.attempt == player.parent and self.chance(0.7):
                exited = e.Exited(agent.node, player.role, player.rank, player.generation, "SIGKILL")
                coordinator.exits.append(exited)
        return True

    def step_of(self, agent: Agent) -> int:
        commit = agent.committed()
        return -1 if commit is None else commit.step

    def _agent(self) -> bool:
        if not self.agents:
            return False
        agent = self.rng.choice(self.agents)
        self.note(f"the agent of node {agent.node} is killed in {agent.training._phase}")
        agent.die()
        self.forget()
        return True

    def _crowd(self) -> bool:
        """All agents but one at once."""
        if len(self.agents) < 2:
            return False
        left = self.rng.choice(self.agents)
        self.note(f"all agents but that of node {left.node} are killed")
        for agent in [*self.agents]:
            if agent is not left:
                agent.die()
        self.forget()
        return True

    def _machine(self) -> bool:
        if len(self.up) < 2 and self.num_nodes > 1:
            return False
        self.lose_machine(self.rng.choice(sorted(self.up)))
        return True

    def lose_machine(self, node: int) -> None:
        """A machine goes, with its memory; soon or later another one comes in its place."""
        self.note(f"the machine of node {node} is lost")
        for agent in [a for a in self.agents if a.node == node]:
            agent.die()
        for ending in ("", ".parts", ".steps"):
            with suppress(FileNotFoundError):
                os.unlink(arena_path(self.place, node) + ending)
        self.forget()
        if self.chance(0.5):
            self.up.discard(node)
            if self.coordinator.state.phase is not Phase.ENDED:
                for gone in [n for n in self.coordinator.connected if n == node]:
                    del self.coordinator.connected[gone]
                    self.coordinator.outgoing.pop(gone, None)
                self.coordinator.handle(e.Available(self.coordinator.places()))

    def _coordinator(self) -> bool:
        """The coordinator is killed, and the next one finds the agents at work."""
        self.note(f"coordinator {self.attempt} is killed in {self.coordinator.state.phase}")
        self.succeed()
        return True

    def _zombie(self) -> bool:
        """The coordinator is taken for dead, and is not."""
        self.note(f"coordinator {self.attempt} becomes a zombie in {self.coordinator.state.phase}")
        self.zombies.append(self.coordinator)
        self.succeed()
        return True

    def _scale(self) -> bool:
        most = self.rng.randint(1, min(5, self.microbatches))
        self.coordinator.handle(e.Scaled(self.rng.randint(1, most), most))
        return True

    def _drain(self) -> bool:
        """A notice, by the runtime or by a process of the node; the machine may be taken away afterwards."""
        node = self.rng.choice([*self.room])
        self.note(f"node {node} is drained")
        self.coordinator.handle(e.Draining(node, "a notice", self.rng.choice([None, 5.0])))
        return True

    def _signal(self) -> bool:
        left = self.rng.choice([None, 0.0, 30.0])
        self.coordinator.handle(e.Signalled(Status.PREEMPTED, left))
        return True

    # -- what must hold -----------------------------------------------------------------------------------

    def stands(self, attempt: int, step: int) -> bool:
        newest = max(self.lines, default=None)
        return catalog.is_valid(attempt, step, None if newest is None else self.lines[newest], newest)

    def newest_checkpoint(self, bad: tuple[str, ...] = ()) -> str | None:
        valid = [d for d, c in self.checkpoints.items() if d not in bad and self.stands(c.attempt, c.step)]
        return max(valid, key=lambda d: (self.checkpoints[d].step, self.checkpoints[d].attempt), default=None)

    def steps_held(self) -> dict[int, int]:
        """Node -> step of this run's line that a living agent's memory holds."""
        commits = {agent.node: agent.committed() for agent in self.agents if not agent.let_go}
        return {n: c.step for n, c in commits.items() if c is not None and self.stands(c.attempt, c.step)}

    def holders(self) -> list[int]:
        """Nodes that live and have what was visible."""
        return [node for node, step in self.steps_held().items() if step >= self.visible >= 0]

    def forget(self) -> None:
        """After agents were lost: what nobody has any more cannot be asked for (B)."""
        if self.visible >= 0 and not self.holders():
            best = self.newest_checkpoint(tuple(self.damaged))
            stored = -1 if best is None else self.checkpoints[best].step
            self.visible = max([stored, *self.steps_held().values()])

    def on_command(self, coordinator: Coordinator, node: int, command: m.Command) -> None:
        if coordinator is not self.coordinator:
            return
        if isinstance(command, m.Close):
            coordinator.connected[node].let_go = True
        elif isinstance(command, m.Train) and command.plan.epoch != coordinator.told_epoch:
            coordinator.told_epoch = command.plan.epoch
            step = coordinator.state.step
            assert step >= self.visible, f"goes on from step {step}, but step {self.visible} was visible (B)"
        elif isinstance(command, m.Restore):
            step = self.checkpoints[command.directory].step
            held = {n: s for n, s in self.steps_held().items() if s >= step}
            assert not held, f"a checkpoint of step {step} is read, but nodes hold {held} (C)"

    def observe(self) -> None:
        """After every event: each step is committed once, in order, with the right bits."""
        for agent in self.agents:
            commit = agent.committed()
            last = agent.last
            if commit is None or (last is not None and commit.sequence == last.sequence):
                continue
            agent.last = commit
            self.note(f"node {agent.node} committed {commit}")
            own = commit.attempt == agent.loop._attempt  # else it is a copy, made before this attempt
            if own and last is not None and (commit.attempt, commit.epoch) == (last.attempt, last.epoch):
                assert (commit.sequence, commit.step) == (last.sequence + 1, last.step + 1)
            arena = agent.training._arena
            params, slot = (arena.buffers[commit.buffer][name][:LENGTH] for name in ("params", "slots/m"))
            state, metrics = reference(commit.step, self.microbatches, self.callbacks)
            assert same((params, slot), state), f"step {commit.step} of node {agent.node} is wrong (A)"
            aux = arena.aux(commit.buffer)["metrics"]
            assert all(aux.get(name) == value for name, value in metrics.items()), "its metrics are wrong"
            self.see()

    def see(self) -> None:
        """What all members have committed is what the user sees."""
        coordinator = self.coordinator
        state = coordinator.state
        if state.phase not in AT_WORK:
            return
        connected = [coordinator.connected.get(node) for node in state.members]
        if all(agent is not None and agent.alive for agent in connected):
            held = self.steps_held()
            self.visible = max(self.visible, min(held.get(node, -1) for node in state.members))

    @property
    def last_step(self) -> int:
        """The step after which the run is done: the last, or where a callback ends it."""
        ends = None if self.callbacks is None else self.callbacks.stop_after
        return self.steps if ends is None else min(self.steps, ends * PER_EPOCH)

    def check_done(self, state: machine.State) -> None:
        """The run is done: all steps, the last one evaluated and in a checkpoint."""
        assert state.status is Status.DONE, state
        last = self.last_step
        assert state.step == last
        assert self.newest_checkpoint() is not None
        assert self.checkpoints[self.newest_checkpoint() or ""].step == last
        if self.validation and state.metrics:
            params = reference(last, self.microbatches, self.callbacks)[0][0]
            items = [evaluated(params, i) for i in range(-(-self.validation // BATCH))]
            total = total_of(items)
            assert state.metrics == {"val_loss": float(total[0, 0] / total[0, 1])}


def told(world: World, error: BaseException) -> None:
    """Add to an error what is needed to reproduce and understand it."""
    error.add_note("\n".join([f"seed {world.seed}, attempt {world.attempt}:", *world.log]))
