"""One attempt at a job, as a machine: (state, event) -> (state, actions). Pure.

The coordinator interprets the actions and feeds back what came of them as further events. PROTOCOL.md has the
same in prose.

Nodes come together in *rounds*. A round brings its members to one step and sends them off with a common plan;
it begins an epoch of its own, and what belongs to an older one takes no effect. The first round of an attempt
decides from where the run goes on; later ones follow when a node is lost, joins, or has to leave.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from orchestrator.events import (
    Abandon,
    Action,
    Available,
    BaseChosen,
    Based,
    Begin,
    Broken,
    ChooseBase,
    CommitCheckpoint,
    CommitFailed,
    Committed,
    Draining,
    Event,
    Exited,
    Heard,
    Identified,
    Identify,
    NodeLost,
    Note,
    Place,
    RecordBase,
    RecordDivergence,
    Recover,
    Returned,
    Scaled,
    Signalled,
    StartProcess,
    Status,
    Tell,
    Waited,
)
from orchestrator.failures import GONE, died
from orchestrator.membership import assign, choose, spans
from storage.catalog import divergence_key
from storage.errors import (
    CheckpointError,
    DivergenceError,
    HoldfastError,
    InfrastructureError,
    StorageError,
    UserCodeError,
)
from workers import messages as m
from workers.task import mismatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_START_DEATHS = 3
"""Times that each worker may die while it loads the job, before loading it is what must be killing them."""

MAX_FINAL_FAILURES = 3
"""Tries at the last checkpoint."""

CHECKPOINT_MARGIN = 1.5
"""A checkpoint fits into the time that is left if this many times as long as the last one does."""


class Phase(Enum):
    """Where an attempt is."""

    JOINING = "joining"
    PREPARING = "preparing"
    STARTING = "starting"
    TRAINING = "training"
    STOPPING = "stopping"
    ENDED = "ended"


Key: TypeAlias = tuple[str, int]
"""Role and rank of a process; the rank of an agent or writer is the number of its node."""


@dataclass(frozen=True, slots=True)
class State:
    """One attempt; `phase` ENDED comes with a status, and with the error if it failed."""

    phase: Phase = Phase.JOINING
    status: Status = Status.RUNNING
    error: Exception | None = None
    least: int = 1
    most: int = 1
    over: int = 1  # nodes at least, if there are so many
    # Nodes and processes
    places: Mapping[int, Place] = field(default_factory=dict)
    down: frozenset[int] = frozenset()  # lost, and not returned
    draining: frozenset[int] = frozenset()
    nodes: frozenset[int] = frozenset()  # whose agent was started, or was found
    greeted: frozenset[int] = frozenset()
    described: frozenset[int] = frozenset()
    workers: Mapping[int, int] = field(default_factory=dict)  # rank -> node
    generations: Mapping[Key, int] = field(default_factory=dict)
    ready: frozenset[Key] = frozenset()
    lacking: int = 0  # workers that there is no room for
    start_deaths: Mapping[str, int] = field(default_factory=dict)
    worker_deaths: int = 0
    description: dict[str, Any] | None = None
    prepare: m.Prepare | None = None
    waited: bool = False
    # The round
    epoch: int = 0
    older_epoch: int = 0  # the highest that an agent was told of by an earlier coordinator
    members: tuple[int, ...] = ()
    shares: tuple[int, ...] = ()  # ready workers of each member when it was sent off
    awaited: frozenset[int] = frozenset()
    found: Mapping[int, m.Prepared] = field(default_factory=dict)
    lead: int | None = None  # the member that the others copy from
    holders: frozenset[int] = frozenset()  # nodes found at work, later those that were sent off together
    base: BaseChosen | None = None
    bad: tuple[str, ...] = ()
    restoring: bool = False  # the lead was told to read a checkpoint
    recording: bool = False  # the base record is being written
    plan: m.Plan | None = None  # of the whole attempt: its base is on record
    # Training
    written: Mapping[int, m.CheckpointWritten] = field(default_factory=dict)
    stored_step: int = -1
    checkpoint_s: float = 0.0
    failures: int = 0
    failed_step: int = -1
    finished: frozenset[int] = frozenset()
    asked: m.Stop | None = None
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    state_digest: str | None = None


Turn: TypeAlias = tuple[State, list[Action]]


def transition(state: State, event: Event, attempt: int) -> Turn:
    """What follows from an event. Raises ValueError, changing nothing, if it cannot happen in this phase."""
    if state.phase is Phase.ENDED:
        return state, []
    _check_legal(state, event)
    match event:
        case Begin(least, most, places, over):
            return _place(replace(state, least=least, most=most, places=places, over=over), attempt)
        case Available(places):
            return _available(state, places, attempt)
        case Scaled(least, most):
            note = Note("scaled", f"{_range(least, most)} wanted", {"least": least, "most": most})
            return _then([note], _place(replace(state, least=least, most=most), attempt))
        case Heard(node, reported):
            return _heard(state, node, reported, attempt)
        case Exited(node, role, rank, generation, cause, detail):
            return _replaced(state, node, role, rank, generation, cause, detail)
        case NodeLost(node, cause):
            return _node_lost(state, node, cause, attempt, event)
        case Returned(node):
            return _place(replace(state, down=state.down - {node}), attempt)
        case Draining(node, reason, seconds_left):
            return _draining(state, node, reason, seconds_left, attempt)
        case Waited():
            return _settle(replace(state, waited=True), attempt)
        case Identified(prepare):
            return _settle(replace(state, prepare=prepare), attempt)
        case BaseChosen():
            return _bring(state, event)
        case Based(plan):
            return _based(state, plan, attempt)
        case Committed(step, digest):
            text = f"checkpoint of step {step} committed"
            note = Note("checkpoint", text, {"step": step, "state_digest": digest})
            settled = replace(state, state_digest=digest, stored_step=step, written=_but(state.written, step))
            return settled, [note, *_tell(state.members, m.Settled(step, committed=True))]
        case CommitFailed(step, error):
            return _checkpoint_failed(state, step, error)
        case Signalled(status, seconds_left):
            return _signalled(state, status, seconds_left, attempt)
        case Broken(error):
            return _failed(state, error), []
        case _:
            assert_never(event)


_AT_WORK = (Phase.TRAINING, Phase.STOPPING)

_WHEN: dict[type, tuple[Phase, ...]] = {
    Begin: (Phase.JOINING,),
    Identified: (Phase.JOINING,),
    BaseChosen: (Phase.PREPARING, Phase.STARTING),
    Based: (Phase.PREPARING, Phase.STARTING),
    m.Evaluated: _AT_WORK,
    m.CheckpointSkipped: _AT_WORK,
    m.CheckpointWritten: _AT_WORK,
    m.CheckpointFailed: _AT_WORK,
    m.Finished: _AT_WORK,
    m.Prepared: (Phase.PREPARING,),
    m.Started: (Phase.STARTING,),
    m.RestoreFailed: (Phase.STARTING,),
}
"""In which phases an event can happen; what is not listed can in all of them."""


def _check_legal(state: State, event: Event) -> None:
    """Raise ValueError for what nobody can have said; what an older epoch says is not illegal but late."""
    kind: object = event
    if isinstance(event, Heard):
        kind = event.event
        if event.node not in state.members or getattr(kind, "epoch", state.epoch) != state.epoch:
            return
        if isinstance(kind, m.Finished) and not kind.done and state.asked is None:
            raise _illegal(state, kind)  # nobody told it to stop
        if isinstance(kind, m.Evaluated) and state.phase not in _AT_WORK:
            return  # it had begun before the round did
    if state.phase not in _WHEN.get(type(kind), tuple(Phase)):
        raise _illegal(state, kind)


def _illegal(state: State, event: object) -> ValueError:
    return ValueError(f"{type(event).__name__} cannot happen while {state.phase.value}")


def _then(first: list[Action], turn: Turn) -> Turn:
    """A turn whose actions come after others."""
    return turn[0], [*first, *turn[1]]


def _tell(nodes: Iterable[int], command: m.Command) -> list[Action]:
    return [Tell(node, command) for node in nodes]


def _failed(state: State, error: Exception) -> State:
    """The end by an error; who was asked to stop and loses infrastructure or storage has stopped."""
    if state.asked is not None and isinstance(error, InfrastructureError | StorageError):
        return replace(state, phase=Phase.ENDED, error=error)
    return replace(state, phase=Phase.ENDED, status=Status.FAILED, error=error)


def _range(least: int, most: int) -> str:
    if least == most:
        return "1 worker is" if most == 1 else f"{most} workers are"
    return f"{least} to {most} workers are"


# -- nodes and processes -----------------------------------------------------------------------------------


def _place(state: State, attempt: int) -> Turn:
    """Start workers where they are wanted, and the nodes for them; dismiss those that are too many.

    A node that nobody is wanted on any more keeps its workers until a round lets it go.
    """
    room = {
        node: place.workers
        for node, place in state.places.items()
        if node not in state.down and node not in state.draining
    }
    found = {  # at work, with the state perhaps
        node
        for node, place in state.places.items()
        if place.alive is not None and ("agent", node) not in state.generations
    }
    holders = state.holders | found
    room = choose(state.most, room, state.over, {*state.workers.values(), *holders})
    ranks = assign(state.most, room, state.workers)
    wanted = {*ranks.values()}
    actions: list[Action] = _room_notes(state, len(ranks))
    for rank, node in state.workers.items():
        if ranks.get(rank) != node and node in wanted:
            actions.append(Tell(node, m.Dismiss(rank)))
    generations, ready = dict(state.generations), state.ready
    fresh = sorted((wanted | found) - state.nodes)
    for node in fresh:
        agent, writer = ("agent", node), ("writer", node)
        alive = state.places[node].alive
        if agent in generations:
            actions.append(Abandon(node))  # it may not have ended yet, nor heard that it should
        for key in (agent, writer):
            generations[key] = generations.get(key, -1) + 1
            ready -= {key}
        if alive is not None:
            generations[agent] = max(alive, generations[agent])
        actions += [StartProcess(node, *agent, generations[agent]), Tell(node, m.Greet(attempt, node))]
        if generations[agent] != alive:
            actions.append(StartProcess(node, *writer, generations[writer]))
    placed = replace(state, greeted=state.greeted - {*fresh}, generations=generations)
    for rank, node in ranks.items():
        if state.workers.get(rank) == node:
            continue
        worker = ("worker", rank)
        generations[worker] = generations.get(worker, -1) + 1
        ready -= {worker}
        if not _unheard(placed, node):  # else see Greeted
            actions.append(StartProcess(node, *worker, generations[worker]))
    placed = replace(
        placed,
        workers=ranks,
        nodes=state.nodes | {*fresh},
        described=state.described - {*fresh},
        ready=ready,
        holders=holders,
        lacking=state.most - len(ranks),
    )
    return _then(actions, _settle(placed, attempt))


def _unheard(state: State, node: int) -> bool:
    """Whether an agent was found at work that has not said yet which processes it has."""
    found = state.generations["agent", node] == state.places[node].alive
    return found and node not in state.greeted


def _room_notes(state: State, workers: int) -> list[Action]:
    """What the user is told where there is not room for all workers, or is again."""
    fields = {"workers": workers, "wanted": state.most}
    if workers >= state.most:
        text = f"there is room for all {state.most} workers again"
        return [Note("resources", text, fields)] if state.lacking else []
    if state.most - workers == state.lacking:
        return []
    waits = "the job waits for more" if workers < state.least and not state.epoch else "the job uses these"
    return [Note("resources", f"there is room for {workers} of {state.most} workers: {waits}", fields)]


def _available(state: State, places: Mapping[int, Place], attempt: int) -> Turn:
    """Nodes have come or gone. One that is gone without a word is lost."""
    gone = [node for node in sorted(state.nodes) if node not in places]
    actions: list[Action] = []
    state = replace(state, places=dict(places), down=state.down & places.keys())
    for node in gone:
        state, more = _node_lost(state, node, "is gone with its machine", attempt)
        actions += more
        if state.phase is Phase.ENDED:
            return state, actions
    return _then(actions, _place(state, attempt))


def _heard(state: State, node: int, event: m.Event, attempt: int) -> Turn:
    """What the agent of a node reports. What is said by nobody's agent, or for an older epoch, is dropped."""
    if node not in state.nodes:
        return state, []
    if getattr(event, "epoch", state.epoch) != state.epoch:
        return state, []
    if _unheard(state, node) and isinstance(event, m.Ready | m.Lost):
        return state, []  # what it will answer to our greeting holds this, too
    match event:
        case m.Greeted(processes, greeted_by, told):
            if greeted_by != attempt:
                return state, []
            state = replace(state, older_epoch=max(told, state.older_epoch))
            return _greeted(state, node, processes, attempt)
        case m.Described(description):
            return _described(state, node, description, attempt)
        case m.Ready(role, rank, pid, generation):
            return _ready(state, node, role, rank, pid, generation, attempt)
        case m.Lost(role, rank, pid, ready, step, phase, generation, cause, detection_s):
            fields = {"role": role, "rank": rank, "pid": pid, "node": node, "step": step, "phase": phase}
            fields |= {"generation": generation, "detection_s": detection_s}
            text = f"{role} {rank} (process {pid}) is gone, in {phase} after step {step}"
            if cause:
                text, fields = f"{text}: {cause} and was killed", {**fields, "cause": cause}
            state, actions = _replaced(state, node, role, rank, generation, cause or GONE)
            return state, [*actions, Note("lost", text, fields)] if ready else actions
        case m.Missed(lost):
            fields = {"role": lost.role, "rank": lost.rank, "generation": lost.generation, "node": node}
            fields |= {"pid": lost.pid, "phase": lost.phase, "detection_s": lost.detection_s}
            fields |= {"cause": lost.cause or GONE, "step": lost.step, "ready": False}
            text = f"{lost.role} {lost.rank} {died(lost.cause)}, as its agent remembers"
            return state, [Note("missed", text, fields)] if lost.ready else []
        case m.Noticed(reason, seconds_left):
            return _draining(state, node, reason, seconds_left, attempt)
        case m.Failed(error):
            return _failed(state, error), []
        case m.Retried(name, message):
            text = f"{name} raised and is done once more: {message}"
            return state, [Note("retried", text, {"item": name, "node": node})]
        case m.Diverged():
            return _diverged(state, event, attempt)
        case m.Doubted(rank, pid, name):
            text = (
                f"worker {rank} (process {pid}) computed {name} with other bits than another worker: it is "
                "not trusted any more and replaced; if this happens again, look at the memory of the machine"
            )
            return state, [Note("faulty", text, {"rank": rank, "pid": pid, "node": node, "item": name})]
        case m.Unreadable(name, message, skipped):
            what = "is left out" if skipped else "could not be read and is read again"
            note = Note("data-error", f"{name} {what}: {message}", {"item": name, "skipped": skipped})
            return state, [note]
        case m.Recovered(step, seconds):
            fields = {"node": node, "step": step, "seconds": round(seconds, 4)}
            return state, [Note("recovered", "", fields)]
    if node not in state.members:
        return state, []
    match event:
        case m.Prepared():
            return _prepared(state, node, event)
        case m.Started(step):
            return _started(state, node, step, attempt)
        case m.RestoreFailed(directory, error):
            return _fall_back(state, directory, error, attempt)
        case m.PeerFailed(address, error):
            return _peer_failed(state, node, address, error, attempt)
        case m.CheckpointSkipped(step, reason):
            return _skipped(state, step, reason)
        case m.CheckpointWritten():
            return _written(state, node, event)
        case m.CheckpointFailed(step, error, _, tries):
            if step == state.failed_step and tries < state.failures:
                return state, []  # another node has failed at the same try before
            return _checkpoint_failed(state, step, error)
        case m.Evaluated(step, metrics):
            text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            note = Note("evaluated", f"step {step}: {text}", {"step": step, "metrics": metrics})
            return replace(state, metrics=metrics), [note]
        case m.Finished(step, done):
            return _finished(state, node, step, done=done)
        case _:
            assert_never(event)


def _diverged(state: State, event: m.Diverged, attempt: int) -> Turn:
    """The same microbatch gave the same bits twice: more workers and restarts will not help."""
    what = f"loss {event.loss:.4g}, gradient {'' if event.finite else 'not '}finite"
    if event.microbatch is None:
        where, why = f"step {event.step}", "every microbatch is finite, their sum is not"
    else:
        where, why = f"step {event.step}, microbatch {event.microbatch}", "the same bits when computed again"
    text = (
        f"training diverges at {where} ({what}; {why}): try a lower learning rate, look at the samples of "
        'this batch, or give the job on_divergence="ignore" to train on; the record is '
        f"{divergence_key(event.step, attempt)}"
    )
    fields = {
        "step": event.step,
        "microbatch": event.microbatch,
        "loss": event.loss,
        "gradient_finite": event.finite,
        "gradient_blake3": event.digest,
    }
    failed = _failed(state, DivergenceError(text))
    return failed, [Note("divergence", text, fields), RecordDivergence(event)]


def _greeted(state: State, node: int, processes: tuple[m.Process, ...], attempt: int) -> Turn:
    """An agent answers. What is connected to one that was found is taken over, what it lacks is started."""
    generations, ready = dict(state.generations), {*state.ready}
    theirs = {(process.role, process.rank): process for process in processes}
    actions: list[Action] = []
    if generations["agent", node] == state.places[node].alive:
        fields = {"node": node}
        actions.append(Note("found", f"the agent of node {node} was found at work", fields))
        mine = [("writer", node), *(("worker", r) for r, n in state.workers.items() if n == node)]
        for key in mine:
            if key in theirs:
                generations[key] = theirs[key].generation
            else:
                actions.append(StartProcess(node, *key, generations[key]))
        gone = [rank for role, rank in theirs if role == "worker" and (role, rank) not in mine]
        actions += [Tell(node, m.Dismiss(rank)) for rank in gone]
    for key, process in theirs.items():
        if process.ready and generations.get(key) == process.generation:
            ready.add(key)
    greeted = state.greeted | {node}
    state = replace(state, greeted=greeted, generations=generations, ready=frozenset(ready))
    return _then(actions, _settle(state, attempt))


def _described(state: State, node: int, description: dict[str, Any], attempt: int) -> Turn:
    """A node's first worker has loaded the job; on all nodes it must be the same one."""
    described = replace(state, described=state.described | {node})
    if state.description is None:
        return replace(described, description=description), [Identify(description)]
    if (error := mismatch(state.description, description, f"a worker of node {node}")) is not None:
        return _failed(state, error), []
    return _settle(described, attempt)


def _ready(state: State, node: int, role: str, rank: int, pid: int, generation: int, attempt: int) -> Turn:
    key = (role, rank)
    if state.generations.get(key) != generation:
        return state, []
    if role == "worker" and state.workers.get(rank) != node:
        return state, _tell([node], m.Dismiss(rank))  # it was not ready yet when it was told to leave
    fields = {"role": role, "rank": rank, "pid": pid, "node": node}
    note = Note("ready", f"{role} {rank} is ready (process {pid})", fields)
    state = replace(state, ready=state.ready | {key}, start_deaths={**state.start_deaths, role: 0})
    if role == "writer" and state.phase is Phase.STARTING and node == state.lead and state.awaited == {node}:
        state, actions = _restore(state)
        return state, [note, *actions]
    return _then([note], _settle(state, attempt))


def _replaced(
    state: State, node: int, role: str, rank: int, generation: int, cause: str, detail: str = ""
) -> Turn:
    """A worker or writer ended, as its agent or the runtime or both have seen: it is replaced once."""
    key = (role, rank)
    home = state.workers.get(rank) if role == "worker" else rank
    about = {"role": role, "rank": rank, "generation": generation, "cause": cause, "detail": detail}
    if state.generations.get(key) == generation + 1 and cause != GONE:
        return state, [Note("ended", f"{role} {rank} {died(cause)}", about)]  # why, as one learns later
    if state.generations.get(key) != generation or node != home or node not in state.nodes:
        return state, []
    deaths = state.start_deaths.get(role, 0) + (key not in state.ready)
    many = max(1, sum(other == role for other, _ in state.generations))
    if deaths >= MAX_START_DEATHS * many:
        return _failed(state, _cannot_start(role, deaths, cause)), []
    changed = replace(
        state,
        generations={**state.generations, key: generation + 1},
        ready=state.ready - {key},
        start_deaths={**state.start_deaths, role: deaths},
        worker_deaths=state.worker_deaths + (role == "worker"),
    )
    fields = {**about, "node": node, "ready": key in state.ready}
    note = Note("replaced", f"{role} {rank} {died(cause)} and is replaced", fields)
    return changed, [note, StartProcess(node, role, rank, generation + 1)]


def _cannot_start(role: str, deaths: int, cause: str) -> HoldfastError:
    if role == "writer":
        return InfrastructureError(f"the writer died {deaths} times in a row before it was ready: {cause}")
    return UserCodeError(
        f"workers die while they load the job, {deaths} times in a row (the last: {cause}): look at the "
        "model and data functions, and at the memory that they need"
    )


def _node_lost(state: State, node: int, cause: str, attempt: int, event: NodeLost | None = None) -> Turn:
    """A node is gone: the others go on without it. The last one takes the attempt with it."""
    if node not in state.nodes:
        return state, []
    left = _without(state, node)
    error = InfrastructureError(f"the agent of node {node} {cause}")
    trained = state.epoch > 0
    fields: dict[str, Any] = {"node": node, "cause": f"its agent {cause}"}
    if event is not None:
        fields |= {"detection_s": event.detection_s, "detail": event.detail}
    if not left.nodes or (trained and not [n for n in state.members if n != node]):
        return _failed(left, error), [Abandon(node), Note("node-lost", "", {**fields, "last": True})]
    note = Note("node-lost", f"node {node} is lost, its agent {cause}: the others go on", fields)
    actions: list[Action] = [Abandon(node), note]
    if node in state.places:
        left = replace(left, down=left.down | {node})
        actions.append(Recover(node, error))
    return _then(actions, _place(left, attempt))


def _without(state: State, node: int) -> State:
    """The state without a node and its processes."""
    ranks = {rank for rank, other in state.workers.items() if other == node}
    gone = {("agent", node), ("writer", node), *(("worker", rank) for rank in ranks)}
    return replace(
        state,
        nodes=state.nodes - {node},
        greeted=state.greeted - {node},
        described=state.described - {node},
        workers={rank: other for rank, other in state.workers.items() if other != node},
        ready=state.ready - gone,
        holders=state.holders - {node},
    )


def _draining(state: State, node: int, reason: str, seconds_left: float | None, attempt: int) -> Turn:
    """A node will be taken away: its work goes to others, or the run stops with it."""
    if node in state.draining or node not in state.places:
        return state, []  # one notice is enough
    note = Note("draining", f"node {node} is about to be taken away: {reason}", {"node": node})
    drained = replace(state, draining=state.draining | {node})
    others = [n for n in state.places if n not in drained.draining and n not in state.down]
    if not others:
        return _then([note], _signalled(drained, Status.PREEMPTED, seconds_left, attempt))
    return _then([note], _place(drained, attempt))


# -- rounds ------------------------------------------------------------------------------------------------


def _joinable(state: State) -> tuple[int, ...]:
    """Nodes that know the job and have a worker to compute with."""
    able = {node for rank, node in state.workers.items() if ("worker", rank) in state.ready}
    return tuple(sorted(able & state.described & state.nodes))


def _shares(state: State, members: Iterable[int]) -> tuple[int, ...]:
    ready = [node for rank, node in state.workers.items() if ("worker", rank) in state.ready]
    return tuple(ready.count(node) for node in members)


def _settle(state: State, attempt: int) -> Turn:
    """Begin a round if the members are no longer those who should train together."""
    if state.phase is Phase.ENDED or state.prepare is None:
        return state, []
    joinable = _joinable(state)
    if state.phase is Phase.JOINING:
        expected = {*state.workers.values()}
        everyone = expected <= {*joinable} and state.holders <= state.greeted
        there = sum(_shares(state, joinable)) >= state.least and (everyone or state.waited)
        return _round(state, attempt) if joinable and there else (state, [])
    if state.phase in (Phase.PREPARING, Phase.STARTING):
        leave = {*state.members}.difference(_keepers(state))
        return _round(state, attempt) if leave else (state, [])  # who comes meanwhile joins afterwards
    keep = _keepers(state)
    join = [] if state.asked is not None else [node for node in joinable if node not in state.members]
    everyone = all(("worker", rank) in state.ready for rank in state.workers)
    uneven = len(state.members) > 1 and everyone and _shares(state, state.members) != state.shares
    if keep == state.members and not join and not (uneven and state.asked is None):
        return state, []
    return _round(state, attempt)


def _keepers(state: State) -> tuple[int, ...]:
    """Members that stay: those with workers on them, or all as long as none of these holds the state.

    Before the first round the nodes that were found at work are kept, as any of them may be the one ahead.
    """
    if state.plan is None:
        return tuple(sorted({*state.members, *state.holders} & state.nodes & state.described))
    alive = tuple(node for node in state.members if node in state.nodes)
    wanted = {*state.workers.values()}
    stay = tuple(node for node in alive if node in wanted)
    return stay if state.holders.intersection(stay) else alive


def _round(state: State, attempt: int) -> Turn:
    """Have the members come to rest; nodes that are not among them any more are let go."""
    prepare = state.prepare
    assert prepare is not None
    joinable = _joinable(state)
    members = tuple(sorted({*_keepers(state), *joinable}))
    actions: list[Action] = []
    for node in sorted(state.nodes - {*members} - {*state.workers.values()}):
        actions.append(Tell(node, m.Close(remove=True)))
        state = _without(state, node)
    if not members:
        return _failed(state, InfrastructureError("no node is left that holds the state")), actions
    # Agents that an earlier coordinator has left report of its epochs, too: none of ours has their numbers.
    epoch = 1 + max(state.epoch, state.older_epoch)
    for node in members:
        own = replace(
            prepare,
            attempt=attempt,
            epoch=epoch,
            slot=state.places[node].slot if node in state.places else 0,
            peers=len(members) > 1,
        )
        actions.append(Tell(node, own))
    begun = replace(
        state,
        phase=Phase.PREPARING,
        epoch=epoch,
        members=members,
        awaited=frozenset(members),
        found={},
        lead=None,
        written={},
        failures=0,
        failed_step=-1,
        finished=frozenset(),
    )
    return begun, actions


def _prepared(state: State, node: int, event: m.Prepared) -> Turn:
    if node not in state.awaited:
        return state, []
    found = {**state.found, node: event}
    state = replace(state, found=found, awaited=state.awaited - {node})
    return _decide(state) if not state.awaited else (state, [])


def _decide(state: State) -> Turn:
    """All members are at rest: from where does the run go on?"""
    if state.plan is not None:  # from where the member is that is ahead
        lead = max(state.holders, key=lambda n: (_ours(state, n), -n), default=None)
        if lead is None or _ours(state, lead) < 0:
            return _failed(state, InfrastructureError("no node is left that holds the state")), []
        return _lead(state, lead, [m.Adopt()])
    if state.recording:
        return state, []  # the base record decides, as soon as it stands
    nbytes = sum(each.nbytes for each in state.found.values())
    where = f" on {len(state.found)} nodes" if len(state.found) > 1 else ""
    text = f"{nbytes / 1e6:.1f} MB of shared memory{where} hold the state"
    return state, [Note("prepared", text, {"nbytes": nbytes}), _choose(state)]


def _choose(state: State, reason: str = "") -> ChooseBase:
    states = tuple(each.found for each in state.found.values() if each.found is not None)
    return ChooseBase(state.epoch, states, state.bad, reason)


def _based(state: State, plan: m.Plan, attempt: int) -> Turn:
    """The base record stands. If a member was lost meanwhile, the round goes on from there."""
    state = replace(state, plan=plan, recording=False)
    if state.awaited:
        return state, []
    return _train(state, attempt) if state.phase is Phase.STARTING else _decide(state)


def _ours(state: State, node: int) -> int:
    """The step that a member holds of this attempt's line; -1 if it holds none."""
    found = state.found[node].found
    if found is None or state.plan is None or state.base is None:
        return -1
    base = state.base.base
    at_base = base is not None and (found.attempt, found.step) == (base.attempt, base.step)
    return found.step if found.attempt == state.plan.attempt or at_base else -1


def _lead(state: State, node: int, commands: list[m.Command]) -> Turn:
    """One member gets the state from where it is; the others will have it from that member."""
    begun = replace(state, phase=Phase.STARTING, lead=node, awaited=frozenset({node}), restoring=False)
    return begun, [Tell(node, command) for command in commands]


def _bring(state: State, chosen: BaseChosen) -> Turn:
    """Bring the chosen state into the memory of a first member."""
    if state.phase is not Phase.PREPARING or chosen.epoch != state.epoch:
        return state, []  # the answer is for a round that has been overtaken
    state = replace(state, base=chosen)
    if chosen.in_memory:
        assert chosen.base is not None
        step = chosen.base.step
        at = (chosen.base.attempt, step)
        states = {n: each.found for n, each in state.found.items() if each.found is not None}
        holders = [n for n, found in states.items() if (found.attempt, found.step) == at]
        if not holders:
            raise _illegal(state, chosen)  # it is what none of them has found
        fields = {"step": step, "from": "memory"}
        note = Note("resume", f"going on from step {step}, found in shared memory", fields)
        return _then([note], _lead(state, holders[0], [m.Adopt()]))
    able = [node for node in state.members if node in state.workers.values()] or [*state.members]
    if chosen.directory is None:
        return _lead(state, able[0], [m.Initialise()])
    writers = [node for node in able if ("writer", node) in state.ready]
    node = writers[0] if writers else able[0]
    assert chosen.base is not None
    step = chosen.base.step
    state = replace(state, stored_step=step)
    fields = {"step": step, "from": chosen.directory}
    note = Note("resume", f"going on from the checkpoint of step {step}", fields)
    begun, _ = _lead(state, node, [])
    return _then([note], _restore(begun) if writers else (begun, []))


def _restore(state: State) -> Turn:
    """Tell the lead once, and when it has a writer, if it has to read a checkpoint."""
    chosen = state.base
    if state.lead is None or chosen is None or chosen.directory is None or state.plan is not None:
        return state, []
    if state.restoring:
        return state, []
    return replace(state, restoring=True), [Tell(state.lead, m.Restore(chosen.directory))]


def _started(state: State, node: int, step: int, attempt: int) -> Turn:
    """A member holds the state. After the first one the others follow; after the last one training begins."""
    if node not in state.awaited:
        return state, []
    awaited = state.awaited - {node}
    if node == state.lead:
        state = replace(state, step=step)
        others = [n for n in state.members if n != node]
        awaited = frozenset(others)
        actions: list[Action] = [Tell(n, _follow(state, n, step, attempt)) for n in others]
    else:
        actions = []
    state = replace(state, awaited=awaited)
    if awaited:
        return state, actions
    if state.plan is None:
        assert state.base is not None
        return replace(state, recording=True), [*actions, RecordBase(state.base.base)]
    return _then(actions, _train(state, attempt))


def _follow(state: State, node: int, step: int, attempt: int) -> m.Command:
    """How a member gets to where the lead is: it is there, makes the one step, or copies the state."""
    assert state.lead is not None
    lead, mine = state.found[state.lead], state.found[node].found
    if mine is not None and lead.found is not None and lead.found.step == step:
        if (mine.attempt, mine.step) == (lead.found.attempt, step):
            return m.Adopt()
        behind = lead.found.attempt == attempt and 0 <= _ours(state, node) == step - 1
        if state.plan is not None and behind and node in _joinable(state):
            return m.Replay(lead.address, lead.found.epoch, mine.step)
    adopted = state.plan is not None or (state.base is not None and state.base.in_memory)
    made_by = lead.found.attempt if adopted and lead.found is not None else attempt
    return m.Copy(lead.address, step, made_by)


def _fall_back(state: State, directory: str, error: Exception, attempt: int) -> Turn:
    """A checkpoint could not be read: if it is bad take the one before it, else the storage is to blame."""
    if not isinstance(error, CheckpointError):
        return _failed(state, error), []
    bad = (*state.bad, directory)
    note = Note("fall-back", f"{directory} is bad, falling back: {error}", {"directory": directory})
    back = replace(state, phase=Phase.PREPARING, bad=bad, lead=None, awaited=frozenset())
    return back, [note, _choose(back, str(error))]


def _peer_failed(state: State, node: int, address: str, error: Exception, attempt: int) -> Turn:
    """A member could not get what another one has: another round brings together who is there."""
    peers = [f"node {n}" for n, found in state.found.items() if found.address == address]
    fields = {"node": node, "address": address, "detail": str(error)}
    note = Note("peer", f"node {node} cannot reach {peers[0] if peers else address}", fields)
    if state.phase is Phase.PREPARING:
        return state, [note]
    return _then([note], _round(state, attempt))


def _train(state: State, attempt: int) -> Turn:
    """Send the members off with a common plan."""
    assert state.plan is not None
    assert state.prepare is not None
    shares = _shares(state, state.members)
    cuts = spans(state.prepare.microbatches, shares if any(shares) else (1,) * len(shares))
    members = tuple(
        m.Member(node, state.found[node].address, low, high)
        for node, (low, high) in zip(state.members, cuts, strict=True)
    )
    plan = replace(
        state.plan,
        epoch=state.epoch,
        members=members if len(members) > 1 else (),
        stored_step=state.stored_step,
    )
    phase = Phase.TRAINING if state.asked is None else Phase.STOPPING
    actions = _tell(state.members, m.Train(plan, state.asked))
    state = replace(state, phase=phase, shares=shares, holders=frozenset(state.members))
    if state.epoch > 1 or len(members) > 1:
        cut = ", ".join(f"node {member.node} {member.high - member.low}" for member in members)
        text = f"node {members[0].node} trains alone from step {state.step}"
        if len(members) > 1:
            text = f"{len(members)} nodes train together from step {state.step} (microbatches: {cut})"
        text = "" if state.asked else text
        fields = {"epoch": state.epoch, "nodes": list(state.members), "step": state.step}
        actions.append(Note("epoch", text, fields))
    return _then(actions, _settle(state, attempt))


# -- checkpoints and the end -------------------------------------------------------------------------------


def _written(state: State, node: int, event: m.CheckpointWritten) -> Turn:
    """A member has stored its share; with the last one the checkpoint is whole."""
    if event.step == state.stored_step:
        return state, []  # it stands already, committed in an older epoch
    written = {**state.written, node: event}
    state = replace(state, written=written, checkpoint_s=max(each.seconds for each in written.values()))
    of_this = [n for n in state.members if n in written and written[n].directory == event.directory]
    if of_this != [*state.members]:
        return state, []
    return state, [CommitCheckpoint(tuple(written[n] for n in state.members))]


def _skipped(state: State, step: int, reason: str) -> Turn:
    """A member did not begin a checkpoint: the others' shares of it are of no use."""
    note = Note("checkpoint-skipped", f"checkpoint of step {step} skipped: {reason}", {"step": step})
    if len(state.members) == 1:
        return state, [note]
    left = replace(state, written=_but(state.written, step))
    return left, [note, *_tell(state.members, m.Settled(step, committed=False))]


def _but(written: Mapping[int, m.CheckpointWritten], step: int) -> dict[int, m.CheckpointWritten]:
    """What was written, except for the checkpoint of one step."""
    return {node: each for node, each in written.items() if each.step != step}


def _checkpoint_failed(state: State, step: int, error: Exception) -> Turn:
    note = Note("checkpoint-failed", f"checkpoint of step {step} given up: {error}", {"step": step})
    # Only the last checkpoint is tried again, so failures of one step are failures of that one.
    failures = state.failures + 1 if step == state.failed_step else 1
    final = isinstance(error, HoldfastError) and error.exit_code in (2, 4)  # no permission, superseded
    if final or failures >= MAX_FINAL_FAILURES:
        return _failed(state, error), [note]
    state = replace(state, failures=failures, failed_step=step, written=_but(state.written, step))
    return state, [note, *_tell(state.members, m.Settled(step, committed=False, tries=failures))]


def _signalled(state: State, status: Status, seconds_left: float | None, attempt: int) -> Turn:
    """Stop, with a checkpoint if there is time for it; a second Ctrl-C does not wait for that."""
    if state.asked is not None and status is Status.PREEMPTED:
        return state, []  # one notice is enough
    if state.asked is not None or state.plan is None:
        return replace(state, phase=Phase.ENDED, status=status), []
    fits = seconds_left is None or state.checkpoint_s * CHECKPOINT_MARGIN <= seconds_left
    how = "with a checkpoint" if fits else f"without a checkpoint, which takes {state.checkpoint_s:.1f} s"
    fields = {"status": status.value}
    note = Note("stopping", f"{status.value}: stopping at the next step, {how}", fields)
    state = replace(state, status=status, asked=m.Stop(checkpoint=fits))
    if state.phase is not Phase.TRAINING:
        return state, [note]  # the members will be told when they are sent off
    if len(state.members) > 1:  # they have to stop at the same step
        return _then([note], _round(state, attempt))
    return replace(state, phase=Phase.STOPPING), [note, *_tell(state.members, m.Stop(checkpoint=fits))]


def _finished(state: State, node: int, step: int, *, done: bool) -> Turn:
    finished = state.finished | {node}
    if finished != {*state.members}:
        return replace(state, finished=finished), []
    status = Status.DONE if done else state.status
    return replace(state, phase=Phase.ENDED, status=status, step=step, finished=finished), []
