"""Nodes and their processes: what is started where, and what follows when one of them ends. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator import ending, reports, rounds
from orchestrator.events import Abandon, Action, Identify, Note, Place, Recover, StartProcess, Status, Tell
from orchestrator.failures import GONE, died
from orchestrator.membership import assign, staff
from orchestrator.state import Phase, failed, tell, then, without
from storage.errors import HoldfastError, InfrastructureError, UserCodeError
from workers import messages as m
from workers.task import mismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.events import NodeLost
    from orchestrator.state import State, Turn

MAX_START_DEATHS = 3
"""Times that each worker may die while it loads the job, before loading it is what must be killing them."""


def place(state: State, attempt: int) -> Turn:
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
    used = {*state.workers.values(), *holders}
    active, staffed = staff(state.most, state.standby, room, state.over, used)
    ranks = assign(staffed, state.workers)
    wanted = {*ranks.values()}
    actions: list[Action] = _room_notes(state, active, staffed)
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
    for node in sorted(wanted) if state.standby else ():
        if node in fresh or active[node] != state.active.get(node):
            actions.append(Tell(node, m.Activate(active[node])))
    placed = replace(state, greeted=state.greeted - {*fresh}, generations=generations)
    for rank, node in ranks.items():
        if state.workers.get(rank) == node:
            continue
        worker = ("worker", rank)
        generations[worker] = generations.get(worker, -1) + 1
        ready -= {worker}
        if not unheard(placed, node):  # else see Greeted
            actions.append(StartProcess(node, *worker, generations[worker]))
    placed = replace(
        placed,
        workers=ranks,
        active=active,
        nodes=state.nodes | {*fresh},
        described=state.described - {*fresh},
        ready=ready,
        holders=holders,
        lacking=state.most - sum(active.values()),
    )
    return then(actions, rounds.settle(placed, attempt))


def unheard(state: State, node: int) -> bool:
    """Whether an agent was found at work that has not said yet which processes it has."""
    found = state.generations["agent", node] == state.places[node].alive
    return found and node not in state.greeted


def _room_notes(state: State, active: Mapping[int, int], staffed: Mapping[int, int]) -> list[Action]:
    """What the user is told where there is not room for all workers, or is again."""
    workers = sum(active.values())
    notes = _room_to_compute(state, workers)
    room, wanted = sum(staffed.values()) - workers, state.standby * sum(map(bool, active.values()))
    if room < wanted and (not state.active or room != len(state.workers) - sum(state.active.values())):
        text = f"there is room for {room} of {wanted} workers to stand by"
        notes.append(Note("resources", text, {"standby": room, "wanted": wanted}))
    return notes


def _room_to_compute(state: State, workers: int) -> list[Action]:
    fields = {"workers": workers, "wanted": state.most}
    if workers >= state.most:
        text = f"there is room for all {state.most} workers again"
        return [Note("resources", text, fields)] if state.lacking else []
    if state.most - workers == state.lacking:
        return []
    waits = "the job waits for more" if workers < state.least and not state.epoch else "the job uses these"
    return [Note("resources", f"there is room for {workers} of {state.most} workers: {waits}", fields)]


def places_changed(state: State, places: Mapping[int, Place], attempt: int) -> Turn:
    """Nodes have come or gone. One that is gone without a word is lost."""
    gone = [node for node in sorted(state.nodes) if node not in places]
    actions: list[Action] = []
    state = replace(state, places=dict(places), down=state.down & places.keys())
    for node in gone:
        state, more = node_lost(state, node, "is gone with its machine", attempt)
        actions += more
        if state.phase is Phase.ENDED:
            return state, actions
    return then(actions, place(state, attempt))


def scaled(state: State, least: int, most: int, attempt: int) -> Turn:
    """A person wants another number of workers."""
    note = Note("scaled", f"{_range(least, most)} wanted", {"least": least, "most": most})
    return then([note], place(replace(state, least=least, most=most), attempt))


def _range(least: int, most: int) -> str:
    if least == most:
        return "1 worker is" if most == 1 else f"{most} workers are"
    return f"{least} to {most} workers are"


def agent_greeted(state: State, node: int, processes: tuple[m.Process, ...], attempt: int) -> Turn:
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
    return then(actions, rounds.settle(state, attempt))


def job_described(state: State, node: int, description: dict[str, Any], attempt: int) -> Turn:
    """A node's first worker has loaded the job; on all nodes it must be the same one."""
    described = replace(state, described=state.described | {node})
    if state.description is None:
        return replace(described, description=description), [Identify(description)]
    if (error := mismatch(state.description, description, f"a worker of node {node}")) is not None:
        return failed(state, error), []
    return rounds.settle(described, attempt)


def process_ready(
    state: State, node: int, role: str, rank: int, pid: int, generation: int, attempt: int
) -> Turn:
    """A worker has loaded the job, or a writer is there."""
    key = (role, rank)
    if state.generations.get(key) != generation:
        return state, []
    if role == "worker" and state.workers.get(rank) != node:
        return state, tell([node], m.Dismiss(rank))  # it was not ready yet when it was told to leave
    fields = {"role": role, "rank": rank, "pid": pid, "node": node}
    note = Note("ready", f"{role} {rank} is ready (process {pid})", fields)
    state = replace(state, ready=state.ready | {key}, start_deaths={**state.start_deaths, role: 0})
    if role == "writer" and state.phase is Phase.STARTING and node == state.lead and state.awaited == {node}:
        state, actions = rounds.restore(state)
        return state, [note, *actions]
    return then([note], rounds.settle(state, attempt))


def process_lost(state: State, node: int, event: m.Lost) -> Turn:
    """An agent has seen the end of a worker or writer, or has superseded it."""
    about = reports.of_process(node, event)
    text = (
        f"{event.role} {event.rank} (process {event.pid}) is gone, in {event.phase} after step {event.step}"
    )
    if event.cause:
        text, about = f"{text}: {event.cause} and was killed", {**about, "cause": event.cause}
    cause = event.cause or GONE
    state, actions = process_ended(state, node, event.role, event.rank, event.generation, cause)
    return state, [*actions, Note("lost", text, about)] if event.ready else actions


def process_ended(
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
        return failed(state, _cannot_start(role, deaths, cause)), []
    changed = replace(
        state,
        generations={**state.generations, key: generation + 1},
        ready=state.ready - {key},
        start_deaths={**state.start_deaths, role: deaths},
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


def node_lost(state: State, node: int, cause: str, attempt: int, event: NodeLost | None = None) -> Turn:
    """A node is gone: the others go on without it. The last one takes the attempt with it."""
    if node not in state.nodes:
        return state, []
    left = without(state, node)
    error = InfrastructureError(f"the agent of node {node} {cause}")
    trained = state.epoch > 0
    fields: dict[str, Any] = {"node": node, "cause": f"its agent {cause}"}
    if event is not None:
        fields |= {"detection_s": event.detection_s, "detail": event.detail}
    if not left.nodes or (trained and not [n for n in state.members if n != node]):
        return failed(left, error), [Abandon(node), Note("node-lost", "", {**fields, "last": True})]
    note = Note("node-lost", f"node {node} is lost, its agent {cause}: the others go on", fields)
    actions: list[Action] = [Abandon(node), note]
    if node in state.places:
        left = replace(left, down=left.down | {node})
        actions.append(Recover(node, error))
    return then(actions, place(left, attempt))


def node_draining(state: State, node: int, reason: str, seconds_left: float | None, attempt: int) -> Turn:
    """A node will be taken away: its work goes to others, or the run stops with it."""
    if node in state.draining or node not in state.places:
        return state, []  # one notice is enough
    note = Note("draining", f"node {node} is about to be taken away: {reason}", {"node": node})
    drained = replace(state, draining=state.draining | {node})
    others = [n for n in state.places if n not in drained.draining and n not in state.down]
    if not others:
        return then([note], ending.signalled(drained, Status.PREEMPTED, seconds_left, attempt))
    return then([note], place(drained, attempt))
