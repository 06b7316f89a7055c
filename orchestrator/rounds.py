"""Rounds: who trains together, how all get to one step, and their common plan. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.events import Action, ChooseBase, Note, Pause, RecordBase, Tell
from orchestrator.membership import spans
from orchestrator.state import Phase, failed, illegal, tell, then, without
from storage.errors import CheckpointError, InfrastructureError
from workers import messages as m

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.events import BaseChosen
    from orchestrator.state import State, Turn

FIRST_PAUSE_S = 0.05
"""Seconds that a round pauses if a failed fetch began it, and no step was committed since the one before."""

MAX_DOUBLINGS = 6
"""Times that the pause doubles, with each such round: up to 3.2 s."""


MAX_UNREAD = 2
"""Writers that may die over reading a checkpoint before the attempt is given up."""


def _joinable(state: State) -> tuple[int, ...]:
    """Nodes that know the job and have a worker to compute with."""
    able = {node for rank, node in state.workers.items() if ("worker", rank) in state.ready}
    return tuple(sorted(able & state.described & state.nodes))


def _shares(state: State, members: Iterable[int]) -> tuple[int, ...]:
    ready = [node for rank, node in state.workers.items() if ("worker", rank) in state.ready]
    return tuple(min(ready.count(node), state.active[node]) if node in ready else 0 for node in members)


def settle(state: State, attempt: int) -> Turn:
    """Begin a round if the members are no longer those who should train together."""
    if state.phase is Phase.ENDED or state.prepare is None:
        return state, []
    joinable = _joinable(state)
    if state.phase is Phase.JOINING:
        expected = {*state.workers.values()}
        everyone = expected <= {*joinable} and state.holders <= state.greeted
        there = sum(_shares(state, joinable)) >= state.least and (everyone or state.waited)
        return begin(state, attempt) if joinable and there else (state, [])
    if state.phase in (Phase.PREPARING, Phase.STARTING):
        leave = {*state.members}.difference(_keepers(state))
        return begin(state, attempt) if leave else (state, [])  # who comes meanwhile joins afterwards
    keep = _keepers(state)
    join = [] if state.asked is not None else [node for node in joinable if node not in state.members]
    everyone = all(("worker", rank) in state.ready for rank in state.workers)
    uneven = len(state.members) > 1 and everyone and _shares(state, state.members) != state.shares
    if keep == state.members and not join and not (uneven and state.asked is None):
        return state, []
    return begin(state, attempt)


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


def begin(state: State, attempt: int) -> Turn:
    """Have the members come to rest; nodes that are not among them any more are let go."""
    prepare = state.prepare
    assert prepare is not None
    joinable = _joinable(state)
    members = tuple(sorted({*_keepers(state), *joinable}))
    actions: list[Action] = []
    for node in sorted(state.nodes - {*members} - {*state.workers.values()}):
        actions.append(Tell(node, m.Close(remove=True)))
        state = without(state, node)
    if not members:
        return failed(state, InfrastructureError("no node is left that holds the state")), actions
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
        pausing=False,
        lead=None,
        written={},
        failures=0,
        failed_step=-1,
        finished=frozenset(),
    )
    return begun, actions


def member_prepared(state: State, node: int, event: m.Prepared) -> Turn:
    """A member has come to rest; after the last one it is decided from where the run goes on."""
    if node not in state.awaited:
        return state, []
    found = {**state.found, node: event}
    state = replace(state, found=found, awaited=state.awaited - {node})
    return _at_rest(state) if not state.awaited else (state, [])


def _at_rest(state: State) -> Turn:
    """All members are at rest, and stay so for a while if trying at once has brought nothing before.

    Nodes that live and cannot reach each other would make round after round.
    """
    if state.plan is not None and any(_ours(state, node) > state.step for node in state.holders):
        state = replace(state, vain=0)
    if not (state.pausing and state.vain):
        return _decide(replace(state, pausing=False))
    return state, [Pause(state.epoch, FIRST_PAUSE_S * 2 ** min(state.vain - 1, MAX_DOUBLINGS))]


def pause_over(state: State, epoch: int) -> Turn:
    """The members of a round go on, if they are still waiting for that."""
    if epoch != state.epoch or not state.pausing or state.awaited or state.phase is not Phase.PREPARING:
        return state, []
    return _decide(replace(state, pausing=False))


def _decide(state: State) -> Turn:
    """All members are at rest: from where does the run go on?"""
    if state.plan is not None:  # from where the member is that is ahead
        lead = max(state.holders, key=lambda n: (_ours(state, n), -n), default=None)
        if lead is None or _ours(state, lead) < 0:
            return failed(state, InfrastructureError("no node is left that holds the state")), []
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


def base_recorded(state: State, plan: m.Plan, attempt: int) -> Turn:
    """The base record stands. If a member was lost meanwhile, the round goes on from there."""
    state = replace(state, plan=plan, recording=False)
    if state.awaited or state.pausing:
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


def bring(state: State, chosen: BaseChosen) -> Turn:
    """Bring the chosen state into the memory of a first member."""
    if state.phase is not Phase.PREPARING or chosen.epoch != state.epoch:
        return state, []  # the answer is for a round that has been overtaken
    state = replace(state, base=chosen, stored_step=-1)  # that which was tried before may be bad
    if chosen.in_memory:
        assert chosen.base is not None
        step = chosen.base.step
        at = (chosen.base.attempt, step)
        states = {n: each.found for n, each in state.found.items() if each.found is not None}
        holders = [n for n, found in states.items() if (found.attempt, found.step) == at]
        if not holders:
            raise illegal(state, chosen)  # it is what none of them has found
        fields = {"step": step, "from": "memory"}
        note = Note("resume", f"going on from step {step}, found in shared memory", fields)
        return then([note], _lead(state, holders[0], [m.Adopt()]))
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
    return then([note], restore(begun) if writers else (begun, []))


def restore(state: State) -> Turn:
    """Tell the lead once, and when it has a writer, if it has to read a checkpoint."""
    chosen = state.base
    if state.lead is None or chosen is None or chosen.directory is None or state.plan is not None:
        return state, []
    if state.restoring:
        return state, []
    return replace(state, restoring=True), [Tell(state.lead, m.Restore(chosen.directory))]


def member_started(state: State, node: int, step: int, attempt: int) -> Turn:
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
    return then(actions, _train(state, attempt))


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


def fall_back(state: State, directory: str, error: Exception, attempt: int) -> Turn:
    """A checkpoint could not be read: if it is bad take the one before it, else the storage is to blame."""
    if isinstance(error, InfrastructureError) and state.unread < MAX_UNREAD:
        # Its writer has died, and is being replaced: the next one reads it, as soon as it is ready.
        state = replace(state, restoring=False, unread=state.unread + 1)
        return restore(state) if ("writer", state.lead) in state.ready else (state, [])
    if not isinstance(error, CheckpointError):
        return failed(state, error), []
    bad = (*state.bad, directory)
    note = Note("fall-back", f"{directory} is bad, falling back: {error}", {"directory": directory})
    back = replace(state, phase=Phase.PREPARING, bad=bad, lead=None, awaited=frozenset())
    return back, [note, _choose(back, str(error))]


def fetch_failed(state: State, node: int, address: str, error: Exception, attempt: int) -> Turn:
    """A member could not get what another one has: another round brings together who is there.

    It pauses, unless a step turns out to have been committed since the round before.
    """
    peers = [f"node {n}" for n, found in state.found.items() if found.address == address]
    fields = {"node": node, "address": address, "detail": str(error)}
    note = Note("peer", f"node {node} cannot reach {peers[0] if peers else address}", fields)
    if state.phase is Phase.PREPARING:
        return state, [note]
    begun, actions = begin(replace(state, vain=state.vain + 1), attempt)
    return replace(begun, pausing=True), [note, *actions]


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
    actions = tell(state.members, m.Train(plan, state.asked))
    state = replace(state, phase=phase, shares=shares, holders=frozenset(state.members))
    if state.epoch > 1 or len(members) > 1:
        cut = ", ".join(f"node {member.node} {member.high - member.low}" for member in members)
        text = f"node {members[0].node} trains alone from step {state.step}"
        if len(members) > 1:
            text = f"{len(members)} nodes train together from step {state.step} (microbatches: {cut})"
        text = "" if state.asked else text
        fields = {"epoch": state.epoch, "nodes": list(state.members), "step": state.step}
        actions.append(Note("epoch", text, fields))
    return then(actions, settle(state, attempt))
