"""One attempt at a job, as a machine: (state, event) -> (state, actions). Pure.

The coordinator interprets the actions and feeds back what came of them as further events. PROTOCOL.md has the
same in prose. Every transition begins here: which event can happen when, and what it leads to, in `nodes`,
`rounds` or `ending`; `state` has what they share.

Nodes come together in *rounds*. A round brings its members to one step and sends them off with a common plan;
it begins an epoch of its own, and what belongs to an older one takes no effect. The first round of an attempt
decides from where the run goes on; later ones follow when a node is lost, joins, or has to leave.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from orchestrator import ending, nodes, reports, rounds
from orchestrator.events import (
    Available,
    BaseChosen,
    Based,
    Begin,
    Broken,
    CommitFailed,
    Committed,
    Draining,
    Event,
    Exited,
    Heard,
    Identified,
    NodeLost,
    PauseOver,
    Returned,
    Scaled,
    Signalled,
    Waited,
)
from orchestrator.state import Phase, State, Turn, failed, illegal
from workers import messages as m

__all__ = ["Phase", "State", "transition"]


def transition(state: State, event: Event, attempt: int) -> Turn:
    """What follows from an event. Raises ValueError, changing nothing, if it cannot happen in this phase."""
    if state.phase is Phase.ENDED:
        return state, []
    _check_legal(state, event)
    match event:
        case Begin(least, most, places, over, standby):
            begun = replace(state, least=least, most=most, places=places, over=over, standby=standby)
            return nodes.place(begun, attempt)
        case Available(places):
            return nodes.places_changed(state, places, attempt)
        case Scaled(least, most):
            return nodes.scaled(state, least, most, attempt)
        case Heard(node, reported):
            return _heard(state, node, reported, attempt)
        case Exited(node, role, rank, generation, cause, detail):
            return nodes.process_ended(state, node, role, rank, generation, cause, detail)
        case NodeLost(node, cause):
            return nodes.node_lost(state, node, cause, attempt, event)
        case Returned(node):
            return nodes.place(replace(state, down=state.down - {node}), attempt)
        case Draining(node, reason, seconds_left):
            return nodes.node_draining(state, node, reason, seconds_left, attempt)
        case Waited():
            return rounds.settle(replace(state, waited=True), attempt)
        case PauseOver(epoch):
            return rounds.pause_over(state, epoch)
        case Identified(prepare):
            return rounds.settle(replace(state, prepare=prepare), attempt)
        case BaseChosen():
            return rounds.bring(state, event)
        case Based(plan):
            return rounds.base_recorded(state, plan, attempt)
        case Committed(step, digest):
            return ending.committed(state, step, digest)
        case CommitFailed(step, error):
            return ending.checkpoint_failed(state, step, error)
        case Signalled(status, seconds_left):
            return ending.signalled(state, status, seconds_left, attempt)
        case Broken(error):
            return failed(state, error), []
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
            raise illegal(state, kind)  # nobody told it to stop
        if isinstance(kind, m.Evaluated) and state.phase not in _AT_WORK:
            return  # it had begun before the round did
    if state.phase not in _WHEN.get(type(kind), tuple(Phase)):
        raise illegal(state, kind)


def _heard(state: State, node: int, event: m.Event, attempt: int) -> Turn:
    """What the agent of a node reports. What is said by nobody's agent, or for an older epoch, is dropped."""
    if node not in state.nodes:
        return state, []
    if getattr(event, "epoch", state.epoch) != state.epoch:
        return state, []
    if nodes.unheard(state, node) and isinstance(event, m.Ready | m.Lost):
        return state, []  # what it will answer to our greeting holds this, too
    match event:
        case m.Greeted(processes, greeted_by, told):
            if greeted_by != attempt:
                return state, []
            state = replace(state, older_epoch=max(told, state.older_epoch))
            return nodes.agent_greeted(state, node, processes, attempt)
        case m.Described(description):
            return nodes.job_described(state, node, description, attempt)
        case m.Ready(role, rank, pid, generation):
            return nodes.process_ready(state, node, role, rank, pid, generation, attempt)
        case m.Lost():
            return nodes.process_lost(state, node, event)
        case m.Noticed(reason, seconds_left):
            return nodes.node_draining(state, node, reason, seconds_left, attempt)
        case m.Failed(error):
            return failed(state, error), []
        case m.Diverged():
            return ending.diverged(state, event, attempt)
        case m.EpochEnded():
            return ending.epoch_ended(state, event)
        case m.Missed() | m.Retried() | m.Doubted() | m.Unreadable() | m.Recovered():
            return state, reports.noted(node, event)
    if node not in state.members:
        return state, []
    match event:
        case m.Prepared():
            return rounds.member_prepared(state, node, event)
        case m.Started(step):
            return rounds.member_started(state, node, step, attempt)
        case m.RestoreFailed(directory, error):
            return rounds.fall_back(state, directory, error, attempt)
        case m.PeerFailed(address, error):
            return rounds.fetch_failed(state, node, address, error, attempt)
        case m.CheckpointSkipped(step, reason):
            return ending.share_skipped(state, step, reason)
        case m.CheckpointWritten():
            return ending.share_written(state, node, event)
        case m.CheckpointFailed(step, error, _, tries):
            if step == state.failed_step and tries < state.failures:
                return state, []  # another node has failed at the same try before
            return ending.checkpoint_failed(state, step, error)
        case m.Evaluated(step, metrics):
            return replace(state, metrics=metrics), [reports.evaluated(step, metrics)]
        case m.Finished(step, done):
            return ending.member_finished(state, node, step, done=done)
        case _:
            assert_never(event)
