"""The machine of an attempt: every event in every phase, and any order of events."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import events as e
from orchestrator.ending import MAX_FINAL_FAILURES
from orchestrator.events import Heard, Place, Status
from orchestrator.machine import Phase, State, transition
from orchestrator.nodes import MAX_START_DEATHS
from storage.checkpoint import Part
from storage.errors import (
    ConfigurationError,
    CorruptCheckpoint,
    InfrastructureError,
    StorageError,
    Superseded,
    UserCodeError,
)
from storage.manifest import Base
from workers import messages as m

ATTEMPT = 2
DIRECTORY = "checkpoints/step-000000000005-a00000001-0123456789abcdef"
OTHER = "checkpoints/step-000000000004-a00000001-0123456789abcdef"
DESCRIPTION: dict[str, Any] = {"arrays": [], "fingerprint": {}}
PREPARE = m.Prepare(place_id="p", seed=0, batch_size=8, microbatches=4, shuffle=True)
PLAN = m.Plan(attempt=ATTEMPT, epoch=0, url="u", steps=9, checkpoint_every=1, validate_every=None)
BASE = Base(step=5, attempt=1)
ONE = {0: Place(4)}
TWO = {0: Place(1), 1: Place(1)}
ROOMY = {0: Place(4), 1: Place(4)}
THREE = {0: Place(1), 1: Place(1), 2: Place(1)}
FOUND = m.Found(1, 5, {})


def written(step: int = 5, epoch: int = 1, directory: str = DIRECTORY, seconds: float = 0.1) -> Any:
    return m.CheckpointWritten(step, directory, Part({}, (), {}), {}, {}, seconds, epoch)


def started(role: str, rank: int, generation: int = 0, node: int = 0) -> e.StartProcess:
    return e.StartProcess(node, role, rank, generation)


EXAMPLES: dict[type, list[Any]] = {
    e.Begin: [e.Begin(1, 2, ONE)],
    e.Available: [e.Available(ONE), e.Available({}), e.Available(THREE)],
    e.Scaled: [e.Scaled(1, 1), e.Scaled(2, 3)],
    e.Exited: [
        e.Exited(0, "worker", 1, 0, "killed by SIGKILL"),
        e.Exited(0, "writer", 0, 0, "exit status 1"),
    ],
    e.NodeLost: [e.NodeLost(0, "silent"), e.NodeLost(1, "killed")],
    e.Returned: [e.Returned(0), e.Returned(1)],
    e.Draining: [e.Draining(0, "spot", 30.0), e.Draining(1, "spot")],
    e.Waited: [e.Waited()],
    e.PauseOver: [e.PauseOver(1), e.PauseOver(2)],
    e.Identified: [e.Identified(PREPARE)],
    e.BaseChosen: [
        e.BaseChosen(1, None, None, in_memory=False),
        e.BaseChosen(1, BASE, DIRECTORY, in_memory=False),
        e.BaseChosen(1, BASE, None, in_memory=True),
    ],
    e.Based: [e.Based(PLAN)],
    e.Committed: [e.Committed(5, "digest")],
    e.CommitFailed: [
        e.CommitFailed(5, StorageError("503")),
        e.CommitFailed(5, Superseded("attempt 3 is newer")),
    ],
    e.Signalled: [
        e.Signalled(Status.PREEMPTED),
        e.Signalled(Status.PREEMPTED, 0.0),
        e.Signalled(Status.INTERRUPTED),
    ],
    e.Broken: [e.Broken(InfrastructureError("the storage is gone"))],
    m.Greeted: [m.Greeted((), ATTEMPT), m.Greeted((m.Process("worker", 0, 0, 7, True),), 1)],
    m.Ready: [m.Ready("worker", 0, 7), m.Ready("writer", 0, 8), m.Ready("worker", 1, 9, 1)],
    m.Described: [m.Described(DESCRIPTION), m.Described({"arrays": [1], "fingerprint": {}})],
    m.Missed: [m.Missed(m.Lost("worker", 0, 7, True, 3, "update"))],
    m.Lost: [m.Lost("worker", 0, 7, True, 3, "update"), m.Lost("writer", 0, 8, False, 0, "idle")],
    m.Noticed: [m.Noticed("SIGTERM to worker")],
    m.Prepared: [m.Prepared(None, 100, 1), m.Prepared(FOUND, 100, 1), m.Prepared(FOUND, 100, 2)],
    m.Started: [m.Started(5, 1), m.Started(5, 2)],
    m.RestoreFailed: [
        m.RestoreFailed(DIRECTORY, CorruptCheckpoint("bad bytes"), 1),
        m.RestoreFailed(DIRECTORY, StorageError("503"), 1),
    ],
    m.PeerFailed: [m.PeerFailed("h:1", InfrastructureError("refused"), 1)],
    m.CheckpointSkipped: [m.CheckpointSkipped(5, "the writer is being replaced", 1)],
    m.CheckpointWritten: [written(), written(epoch=2)],
    m.CheckpointFailed: [m.CheckpointFailed(5, StorageError("503"), 1)],
    m.Evaluated: [m.Evaluated(5, {"val_loss": 0.5})],
    m.EpochEnded: [
        m.EpochEnded(0, {"loss": 0.5}, stopped=False),
        m.EpochEnded(1, {"loss": 0.4}, stopped=True),
    ],
    m.Failed: [m.Failed(UserCodeError("Traceback\nboom"))],
    m.Retried: [m.Retried("step 5, microbatch 1", "ValueError: x")],
    m.Unreadable: [
        m.Unreadable("step 5, microbatch 1", "OSError: x", skipped=False),
        m.Unreadable("step 5, microbatch 1", "OSError: x", skipped=True),
    ],
    m.Missed: [m.Missed(m.Lost("worker", 0, 7, True, 3, "update"))],
    m.Recovered: [m.Recovered(6, 0.01)],
    m.Diverged: [m.Diverged(5, 1, float("nan"), False, "ab"), m.Diverged(5, None, 1.0, True, "ab")],
    m.Doubted: [m.Doubted(0, 4711, "step 5, microbatch 1")],
    m.Finished: [m.Finished(9, True, 1), m.Finished(6, False, 1)],
}

AT_WORK: tuple[type, ...] = (m.CheckpointSkipped, m.CheckpointWritten, m.CheckpointFailed, m.Finished)
ONLY_THEN: dict[type, tuple[Phase, ...]] = {
    e.Begin: (Phase.JOINING,),
    e.Identified: (Phase.JOINING,),
    e.BaseChosen: (Phase.PREPARING, Phase.STARTING),
    e.Based: (Phase.PREPARING, Phase.STARTING),
    m.Prepared: (Phase.PREPARING,),
    m.Started: (Phase.STARTING,),
    m.RestoreFailed: (Phase.STARTING,),
    **dict.fromkeys(AT_WORK, (Phase.TRAINING, Phase.STOPPING)),
}
"""Everything else can happen in every phase."""

LIVE = (Phase.JOINING, Phase.PREPARING, Phase.STARTING, Phase.TRAINING, Phase.STOPPING)


def turn(event: Any, state: State, node: int = 0) -> tuple[State, list[Any]]:
    """One transition; what agents report comes from `node`."""
    return transition(
        state, event if isinstance(event, typing.get_args(e.Event)) else Heard(node, event), ATTEMPT
    )


def after(*events: Any, state: State | None = None, node: int = 0) -> tuple[State, list[Any]]:
    """The state after the events, and the actions of the last of them."""
    actions: list[Any] = []
    state = state or State()
    for event in events:
        state, actions = turn(event, state, node)
    return state, actions


def tells(actions: list[Any], node: int | None = None) -> list[Any]:
    return [a.command for a in actions if isinstance(a, e.Tell) and node in (None, a.node)]


def of(actions: list[Any], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def joined(
    places: dict[int, Place], workers: int, least: int = 1, over: int | None = None, standby: int = 0
) -> State:
    """All nodes are greeted, know the job, and their workers are ready: the first round has begun."""
    state, _ = after(e.Begin(least, workers, places, len(places) if over is None else over, standby))
    state, _ = after(e.Identified(PREPARE), state=state)
    for node in sorted(state.nodes):
        state, _ = after(m.Greeted((), ATTEMPT), m.Described(DESCRIPTION), state=state, node=node)
        state, _ = after(m.Ready("writer", node, 100 + node), state=state, node=node)
    for rank, node in state.workers.items():
        state, _ = after(m.Ready("worker", rank, 200 + rank), state=state, node=node)
    return state


def at_rest(state: State, found: dict[int, m.Found] | None = None) -> tuple[State, list[Any]]:
    """All members have come to rest, with what they have in memory."""
    actions: list[Any] = []
    for node in state.members:
        prepared = m.Prepared((found or {}).get(node), 100, state.epoch, f"host{node}:1")
        state, actions = after(prepared, state=state, node=node)
    return state, actions


def trains(state: State) -> State:
    """From the first round, with nothing in memory, to training."""
    state, _ = at_rest(state)
    state, _ = after(e.BaseChosen(state.epoch, None, None, in_memory=False), state=state)
    for node in sorted(state.members, key=lambda n: (n != state.lead, n)):
        state, _ = after(m.Started(0, state.epoch), state=state, node=node)
    return after(e.Based(PLAN), state=state)[0]


def state_in(phase: Phase) -> State:
    """A state with one node; where there are members, it is one and the epoch is 1."""
    match phase:
        case Phase.JOINING:
            return after(e.Begin(1, 2, ONE))[0]
        case Phase.PREPARING:
            return at_rest(joined(ONE, 2), {0: FOUND})[0]
        case Phase.STARTING:
            state, _ = at_rest(joined(ONE, 2))
            return after(e.BaseChosen(1, BASE, DIRECTORY, in_memory=False), state=state)[0]
        case Phase.TRAINING:
            return trains(joined(ONE, 2))
        case Phase.STOPPING:
            return after(e.Signalled(Status.PREEMPTED), state=trains(joined(ONE, 2)))[0]
        case _:
            return after(e.Broken(InfrastructureError("gone")), state=state_in(Phase.JOINING))[0]


CASES = [
    pytest.param(phase, event, id=f"{phase.value}-{type(event).__name__}-{i}")
    for phase in LIVE
    for events in EXAMPLES.values()
    for i, event in enumerate(events)
]


def test_the_examples_of_this_file_are_all_events_there_are() -> None:
    assert set(EXAMPLES) | {Heard} == {*typing.get_args(e.Event), *typing.get_args(m.Event)}


@pytest.mark.parametrize(("phase", "event"), CASES)
def test_what_can_happen_in_a_phase_is_handled_and_the_rest_raises(phase: Phase, event: Any) -> None:
    state = state_in(phase)
    assert state.phase is phase
    before = dataclasses.replace(state, generations=dict(state.generations), metrics=dict(state.metrics))
    legal = phase in ONLY_THEN.get(type(event), LIVE)
    by_agent = not isinstance(event, typing.get_args(e.Event))
    if by_agent and (not state.members or getattr(event, "epoch", state.epoch) != state.epoch):
        legal = True  # late, or of nobody's: without effect
    if isinstance(event, m.Finished) and not event.done and phase is Phase.TRAINING:
        legal = False  # nobody told it to stop
    if legal:
        _, actions = turn(event, state)
        assert all(isinstance(action, typing.get_args(e.Action)) for action in actions)
    else:
        with pytest.raises(ValueError, match=f"{type(event).__name__}.*{phase.value}"):
            turn(event, state)
    assert state == before, "a state is never changed, only replaced"


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_after_the_end_nothing_has_an_effect(kind: type) -> None:
    state = state_in(Phase.ENDED)
    for event in EXAMPLES[kind]:
        assert turn(event, state) == (state, [])


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.STARTING, Phase.TRAINING, Phase.STOPPING])
@pytest.mark.parametrize("epoch", [0, 7])
def test_what_is_of_another_epoch_has_no_effect(phase: Phase, epoch: int) -> None:
    """Whatever the phase: it was said before the round began, or to an earlier coordinator."""
    state = state_in(phase)
    for events in EXAMPLES.values():
        for event in events:
            if isinstance(event, typing.get_args(m.Event)) and hasattr(event, "epoch"):
                assert turn(dataclasses.replace(event, epoch=epoch), state) == (state, [])


@pytest.mark.parametrize("phase", LIVE)
def test_what_an_unknown_node_says_has_no_effect(phase: Phase) -> None:
    state = state_in(phase)
    for events in EXAMPLES.values():
        for event in events:
            if isinstance(event, typing.get_args(m.Event)):
                assert turn(event, state, node=9) == (state, [])


# -- any order of events ---------------------------------------------------------------------------------


@st.composite
def any_event(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from([*EXAMPLES]))
    event = draw(st.sampled_from(EXAMPLES[kind]))
    if isinstance(event, e.Begin):
        return e.Waited()
    if isinstance(event, e.PauseOver):
        return e.PauseOver(draw(st.integers(1, 4)))
    if not isinstance(event, typing.get_args(m.Event)):
        return event
    changes = {}
    if hasattr(event, "epoch"):
        changes["epoch"] = draw(st.integers(1, 4))
    if hasattr(event, "generation"):
        changes["generation"] = draw(st.integers(0, 2))
    if hasattr(event, "rank"):
        changes["rank"] = draw(st.integers(0, 2))
    return Heard(draw(st.integers(0, 2)), dataclasses.replace(event, **changes))


STATES = [
    *(state_in(phase) for phase in Phase),
    joined(TWO, 2),
    joined(THREE, 3),
    trains(joined(TWO, 2)),
    trains(joined(THREE, 3)),
    trains(joined(ROOMY, 2, standby=1)),
]


class Checks:
    """What must hold whatever happens."""

    def __init__(self, state: State) -> None:
        self.trained: Counter[tuple[int, int]] = Counter()  # (node, epoch)
        self.records = 1 if state.plan is not None or state.recording else 0
        self.started: set[e.StartProcess] = set()

    def turn(self, before: State, state: State, actions: list[Any]) -> None:
        ended = state.phase is Phase.ENDED
        assert ended or state.error is None
        assert ended or (state.status is Status.RUNNING) == (state.asked is None)
        assert not ended or state.status is not Status.RUNNING, "an end has a status"
        assert state.status is not Status.FAILED or state.error is not None
        assert state.status is not Status.DONE or state.error is None
        assert state.epoch >= before.epoch
        assert state.awaited <= {*state.members}
        assert {*state.workers.values()} <= state.nodes | before.nodes
        assert state.greeted <= state.nodes
        assert state.described <= state.nodes
        known = before.nodes | state.nodes
        for action in actions:
            match action:
                case e.Tell(node, command):
                    assert node in known, f"{command} for node {node}, which is not known"
                    if isinstance(command, m.Train):
                        self.trained[node, command.plan.epoch] += 1
                        assert self.trained[node, command.plan.epoch] == 1, "sent off twice in a round"
                    if isinstance(command, m.Prepare):
                        assert command.epoch > before.epoch
                case e.StartProcess(node, role, rank, generation):
                    assert not ended, "a process was started at the end"
                    assert node in state.nodes
                    assert state.generations[role, rank] == generation
                    assert action not in self.started, "the same process was started twice"
                    self.started.add(action)
                case e.RecordBase():
                    self.records += 1
                    assert self.records == 1, "a second base record"
        told = Counter(a.node for a in of(actions, e.Tell) if isinstance(a.command, m.Train))
        if told:
            plans = [c.plan for c in tells(actions) if isinstance(c, m.Train)]
            assert len({plan.epoch for plan in plans}) == 1
            assert all(plan == plans[0] for plan in plans), "not all are sent off with one plan"
            if len(plans) > 1:
                assert [member.node for member in plans[0].members] == sorted(told)
                ends = [member.high for member in plans[0].members]
                assert [member.low for member in plans[0].members] == [0, *ends[:-1]]
                assert ends[-1] == PREPARE.microbatches
        settled = [a.node for a in of(actions, e.Tell) if isinstance(a.command, m.Settled)]
        assert not settled or sorted(settled) == sorted(before.members), "not settled for all members"


@given(events=st.lists(any_event(), max_size=50), first=st.sampled_from(STATES))
@settings(max_examples=600, deadline=None)
def test_any_order_of_events_keeps_the_state_sound(events: list[Any], first: State) -> None:
    state, checks = first, Checks(first)
    for event in events:
        try:
            new, actions = turn(event, state)
        except ValueError as error:
            assert "cannot happen while" in str(error)  # noqa: PT017 any other is a defect
            continue
        checks.turn(state, new, actions)
        state = new


@given(data=st.data(), first=st.sampled_from(STATES))
@settings(max_examples=300, deadline=None)
def test_answers_that_fit_lead_to_training_whatever_comes_between(data: st.DataObject, first: State) -> None:
    """From any state that can go on: whoever is awaited answers, in any order."""
    state, checks = first, Checks(first)
    answers: list[Any] = []

    def take(turned: tuple[State, list[Any]]) -> None:
        nonlocal state
        checks.turn(state, *turned)
        state, actions = turned
        for action in actions:
            match action:
                case e.Tell(node, m.Greet()):
                    answers.extend(
                        [Heard(node, m.Greeted((), ATTEMPT)), Heard(node, m.Described(DESCRIPTION))]
                    )
                case e.Tell(node, m.Prepare(epoch=epoch)):
                    found = m.Found(ATTEMPT, state.step, {}, epoch) if node in state.holders else None
                    answers.append(Heard(node, m.Prepared(found, 1, epoch, f"h{node}:1")))
                case e.Tell(node, m.Initialise() | m.Restore() | m.Adopt() | m.Copy() | m.Replay()):
                    answers.append(Heard(node, m.Started(state.step, state.epoch)))
                case e.StartProcess(node, role, rank, generation) if role != "agent":
                    answers.append(Heard(node, m.Ready(role, rank, 5, generation)))
                case e.ChooseBase(epoch):
                    answers.append(e.BaseChosen(epoch, None, None, in_memory=False))
                case e.RecordBase():
                    answers.append(e.Based(PLAN))
                case e.Pause(epoch):
                    answers.append(e.PauseOver(epoch))

    if first.phase is not Phase.TRAINING:
        state = State()
        checks = Checks(state)
        take(turn(e.Begin(1, data.draw(st.integers(1, 3)), THREE, data.draw(st.integers(1, 3))), state))
        answers.append(e.Identified(PREPARE))
    between: list[Any] = [
        e.Scaled(1, 1), e.Scaled(1, 3), e.NodeLost(1, "x"), e.NodeLost(2, "x"), e.Returned(1), e.Returned(2),
        e.Draining(2, "spot"),
    ]  # fmt: skip
    for _ in range(400):
        if between and data.draw(st.integers(0, 9)) == 0:
            event = between.pop(data.draw(st.integers(0, len(between) - 1)))
            if isinstance(event, e.NodeLost) and {event.node} >= state.holders:
                continue  # the end of the attempt
            if isinstance(event, e.NodeLost):
                answers = [a for a in answers if not (isinstance(a, Heard) and a.node == event.node)]
            take(turn(event, state))
        elif answers:
            take(turn(answers.pop(data.draw(st.integers(0, len(answers) - 1))), state))
        elif state.phase is Phase.JOINING and not state.waited:
            take(turn(e.Waited(), state))
        else:
            break
        if state.phase is Phase.ENDED:
            assert isinstance(state.error, InfrastructureError)  # the member with the state was lost early
            return
    assert not answers
    assert state.phase is Phase.TRAINING


# -- the way to training ---------------------------------------------------------------------------------


def test_begin_starts_agent_writer_and_workers_once() -> None:
    _, actions = after(e.Begin(1, 3, ONE))
    assert of(actions, e.StartProcess) == [
        started("agent", 0),
        started("writer", 0),
        started("worker", 0),
        started("worker", 1),
        started("worker", 2),
    ]
    assert tells(actions) == [m.Greet(ATTEMPT, 0)]


def test_as_many_nodes_are_used_as_are_asked_for_or_needed() -> None:
    state, _ = after(e.Begin(1, 3, {0: Place(8), 1: Place(8)}, 1))
    assert set(state.workers.values()) == {0}
    state, _ = after(e.Begin(1, 3, {0: Place(8), 1: Place(8)}, 2))
    assert sorted(state.workers.values()) == [0, 0, 1]
    state, _ = after(e.Begin(1, 3, {0: Place(2), 1: Place(2)}, 1))
    assert sorted(state.workers.values()) == [0, 0, 1]


def test_what_there_is_no_room_for_is_told_and_started_when_there_is() -> None:
    state, actions = after(e.Begin(1, 4, {0: Place(1)}))
    assert [note.kind for note in of(actions, e.Note)] == ["resources"]
    state, actions = after(e.Available({0: Place(1), 1: Place(3)}), state=state)
    assert started("worker", 1, node=1) in actions
    assert len(state.workers) == 4
    assert any("room for all 4" in note.text for note in of(actions, e.Note))


def test_workers_that_stand_by_are_started_beside_those_that_compute() -> None:
    _, actions = after(e.Begin(1, 2, {0: Place(4)}, 1, 1))
    assert [a.rank for a in of(actions, e.StartProcess) if a.role == "worker"] == [0, 1, 2]
    assert tells(actions) == [m.Greet(ATTEMPT, 0), m.Activate(2)]
    assert not of(actions, e.Note)


def test_where_there_is_room_for_nobody_to_stand_by_that_is_told_once() -> None:
    state, actions = after(e.Begin(1, 4, {0: Place(4)}, 1, 1))
    assert [note.text for note in of(actions, e.Note)] == ["there is room for 0 of 1 workers to stand by"]
    _, actions = after(e.Available({0: Place(4, 1)}), state=state)
    assert not of(actions, e.Note)


def test_who_stands_by_has_no_microbatches_and_is_missed_by_no_round() -> None:
    state = trains(joined(ROOMY, 2, standby=1))
    assert [*state.workers.values()] == [0, 0, 1, 1]
    assert state.shares == (1, 1)
    for node, rank in ((0, 0), (0, 1)):
        state, actions = after(m.Lost("worker", rank, 200 + rank, True, 3, "update"), state=state, node=node)
        assert of(actions, e.StartProcess) == [started("worker", rank, 1, node)]
        assert state.phase is Phase.TRAINING
    state, actions = after(m.Ready("worker", 0, 300, 1), m.Ready("worker", 1, 301, 1), state=state)
    assert (state.phase, state.shares) == (Phase.TRAINING, (1, 1))


def test_a_node_is_told_how_many_compute_when_that_changes_and_when_it_is_started_again() -> None:
    state, actions = after(e.Scaled(1, 4), state=trains(joined(ROOMY, 2, standby=1)))
    assert tells(actions) == [m.Activate(2), m.Activate(2)]
    assert [(a.node, a.rank) for a in of(actions, e.StartProcess)] == [(0, 4), (1, 5)]
    state, actions = after(e.Scaled(1, 2), state=state)
    assert [c for c in tells(actions) if not isinstance(c, m.Dismiss)] == [m.Activate(1), m.Activate(1)]
    assert sorted(c.rank for c in tells(actions) if isinstance(c, m.Dismiss)) == [4, 5]
    state, _ = after(e.NodeLost(1, "silent"), state=state)
    state, actions = after(e.Returned(1), state=state)
    assert tells(actions, 1) == [m.Greet(ATTEMPT, 1), m.Activate(1)]


def test_the_first_round_waits_for_all_nodes_or_until_nobody_waits_any_more() -> None:
    state, _ = after(e.Begin(1, 2, TWO, 2), e.Identified(PREPARE))
    state, _ = after(m.Greeted((), ATTEMPT), m.Described(DESCRIPTION), m.Ready("worker", 0, 7), state=state)
    assert state.phase is Phase.JOINING
    state, actions = after(e.Waited(), state=state)
    assert state.phase is Phase.PREPARING
    assert [type(command) for command in tells(actions, 0)] == [m.Prepare]
    assert not tells(actions, 1)


def test_the_first_round_waits_for_the_fewest_workers_that_were_asked_for() -> None:
    state, _ = after(e.Begin(2, 2, ONE), e.Identified(PREPARE), e.Waited())
    state, _ = after(m.Greeted((), ATTEMPT), m.Described(DESCRIPTION), m.Ready("worker", 0, 7), state=state)
    assert state.phase is Phase.JOINING
    assert after(m.Ready("worker", 1, 8), state=state)[0].phase is Phase.PREPARING


def test_nodes_that_load_different_jobs_end_the_attempt() -> None:
    state, _ = after(e.Begin(1, 2, TWO, 2))
    state, _ = after(m.Described(DESCRIPTION), state=state, node=0)
    state, _ = after(m.Described({"arrays": [1], "fingerprint": {}}), state=state, node=1)
    assert isinstance(state.error, ConfigurationError)


def test_the_newest_state_in_memory_is_adopted_where_it_is_and_copied_from_there() -> None:
    newer = m.Found(1, 6, {})
    state, actions = at_rest(joined(THREE, 3), {0: FOUND, 1: newer, 2: newer})
    (choice,) = of(actions, e.ChooseBase)
    assert choice.found_in_memory == (FOUND, newer, newer)
    chosen = e.BaseChosen(1, Base(step=6, attempt=1), None, in_memory=True)
    state, actions = after(chosen, state=state)
    assert of(actions, e.Tell) == [e.Tell(1, m.Adopt())]
    state, actions = after(m.Started(6, 1), state=state, node=1)
    assert of(actions, e.Tell) == [e.Tell(0, m.Copy("host1:1", 6, 1)), e.Tell(2, m.Adopt())]
    state, actions = after(m.Started(6, 1), state=state, node=0)
    assert actions == []
    state, actions = after(m.Started(6, 1), state=state, node=2)
    assert actions == [e.RecordBase(Base(step=6, attempt=1))]
    state, actions = after(e.Based(PLAN), state=state)
    assert [type(command) for command in tells(actions)] == [m.Train] * 3


def test_a_copy_of_what_this_attempt_has_made_is_of_this_attempt() -> None:
    state, _ = at_rest(joined(TWO, 2))
    state, _ = after(e.BaseChosen(1, None, None, in_memory=False), state=state)
    _, actions = after(m.Started(0, 1), state=state, node=0)
    assert tells(actions, 1) == [m.Copy("host0:1", 0, ATTEMPT)]


def test_a_restore_waits_for_a_writer_and_is_told_once() -> None:
    state, _ = after(e.Begin(1, 1, ONE), e.Identified(PREPARE), m.Greeted((), ATTEMPT))
    state, _ = after(m.Described(DESCRIPTION), m.Ready("worker", 0, 7), m.Prepared(None, 9, 1), state=state)
    waiting, actions = after(e.BaseChosen(1, BASE, DIRECTORY, in_memory=False), state=state)
    assert tells(actions) == []
    ready, actions = after(m.Ready("writer", 0, 8), state=waiting)
    assert tells(actions) == [m.Restore(DIRECTORY)]
    exited, _ = after(e.Exited(0, "writer", 0, 0, "killed"), state=ready)
    assert tells(after(m.Ready("writer", 0, 9, 1), state=exited)[1]) == [], "it is told once"


def test_a_damaged_checkpoint_is_left_out_of_the_next_choice_and_told() -> None:
    state, actions = after(
        m.RestoreFailed(DIRECTORY, CorruptCheckpoint("bad bytes"), 1), state=state_in(Phase.STARTING)
    )
    assert [(c.bad, c.reason) for c in of(actions, e.ChooseBase)] == [((DIRECTORY,), "bad bytes")]
    assert any("bad bytes" in note.text for note in of(actions, e.Note))
    again, actions = after(e.BaseChosen(1, Base(step=4, attempt=1), OTHER, in_memory=False), state=state)
    assert tells(actions) == [m.Restore(OTHER)]
    again, _ = after(m.RestoreFailed(OTHER, CorruptCheckpoint("too"), 1), state=again)
    assert again.bad == (DIRECTORY, OTHER)


def test_a_storage_that_fails_is_no_reason_to_give_a_checkpoint_up() -> None:
    state, _ = after(m.RestoreFailed(DIRECTORY, StorageError("503"), 1), state=state_in(Phase.STARTING))
    assert state.status is Status.FAILED
    assert isinstance(state.error, StorageError)
    assert state.bad == ()


def test_an_answer_for_a_round_that_was_overtaken_is_not_used() -> None:
    state, _ = at_rest(joined(TWO, 2))
    state, _ = after(e.NodeLost(1, "x"), state=state)
    assert state.epoch == 2
    assert after(e.BaseChosen(1, BASE, DIRECTORY, in_memory=False), state=state) == (state, [])


def test_a_restored_step_is_known_to_be_stored_on_every_node() -> None:
    """Else a node that copied it would begin a checkpoint of it, which no other node takes part in."""
    state, _ = at_rest(joined(TWO, 2))
    state, _ = after(e.BaseChosen(1, BASE, DIRECTORY, in_memory=False), state=state)
    state, _ = after(m.Started(5, 1), state=state, node=0)
    state, _ = after(m.Started(5, 1), state=state, node=1)
    _, actions = after(e.Based(PLAN), state=state)
    assert [command.plan.stored_step for command in tells(actions)] == [5, 5]


# -- succession ------------------------------------------------------------------------------------------


def found_at_work(*processes: m.Process, told: int = 0) -> tuple[State, list[Any]]:
    state, _actions = after(e.Begin(1, 1, {0: Place(4, 0, alive=3)}), e.Identified(PREPARE))
    return after(m.Described(DESCRIPTION), m.Greeted(processes, ATTEMPT, told), state=state)


def test_an_agent_that_is_found_at_work_keeps_its_processes() -> None:
    _, actions = after(e.Begin(1, 1, {0: Place(4, 0, alive=3)}))
    assert of(actions, e.StartProcess) == [started("agent", 0, 3)], "the others are asked for first"
    state, actions = found_at_work(m.Process("worker", 0, 2, 7, True), m.Process("writer", 0, 1, 8, False))
    assert of(actions, e.StartProcess) == []
    assert state.generations == {("agent", 0): 3, ("worker", 0): 2, ("writer", 0): 1}
    assert state.ready == {("worker", 0)}
    assert state.phase is Phase.PREPARING


def test_what_a_found_agent_lacks_is_started_and_what_it_has_too_many_leaves() -> None:
    _, actions = found_at_work(m.Process("worker", 4, 2, 7, True))
    assert of(actions, e.StartProcess) == [started("writer", 0), started("worker", 0)]
    assert tells(actions) == [m.Dismiss(4)]


def test_only_the_answer_to_our_own_greeting_counts() -> None:
    state, _ = after(e.Begin(1, 1, {0: Place(4, 0, alive=3)}))
    assert after(m.Greeted((), 1), state=state) == (state, [])
    early = m.Lost("worker", 0, 7, True, 3, "update")
    assert after(early, state=state) == (state, []), "of processes that it will not name"


def test_epochs_go_on_where_those_of_the_predecessor_ended() -> None:
    """Else what an agent reports of one would be taken for a report of the other."""
    _, actions = found_at_work(m.Process("worker", 0, 2, 7, True), told=6)
    assert [command.epoch for command in tells(actions) if isinstance(command, m.Prepare)] == [7]


def test_all_agents_found_at_work_are_asked_for_their_state_before_any_is_let_go() -> None:
    places = {0: Place(4), 1: Place(1, 1, alive=0)}
    state, actions = after(e.Begin(1, 1, places))
    assert tells(actions) == [m.Greet(ATTEMPT, node) for node in sorted(state.nodes)]
    assert 1 in state.nodes
    state, _ = after(e.Identified(PREPARE), state=state)
    for node in sorted(state.nodes):
        state, _ = after(m.Described(DESCRIPTION), m.Greeted((), ATTEMPT), state=state, node=node)
    for rank, node in state.workers.items():
        state, _ = after(m.Ready("worker", rank, 7), state=state, node=node)
    assert 1 in state.members


# -- deaths ----------------------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced_once_however_many_see_it() -> None:
    state = trains(joined(ONE, 2))
    lost = m.Lost("worker", 1, 7, True, 3, "update")
    for generation in (1, 2, 3):
        state, actions = after(e.Exited(0, "worker", 1, generation - 1, "killed"), state=state)
        assert of(actions, e.StartProcess) == [started("worker", 1, generation)]
        assert [note.kind for note in of(actions, e.Note)] == ["replaced"], "the ledger counts these"
        late = dataclasses.replace(lost, generation=generation - 1)
        state, actions = after(late, state=state)
        assert of(actions, e.StartProcess) == []
        assert [note.kind for note in of(actions, e.Note)] == ["lost"]
        state, _ = after(m.Ready("worker", 1, 9, generation), state=state)
    assert state.phase is Phase.TRAINING


def test_a_process_of_a_rank_that_is_on_another_node_by_now_is_not_replaced() -> None:
    state = trains(joined(TWO, 2))
    assert after(e.Exited(0, "worker", 1, 0, "killed"), state=state) == (state, [])
    _, actions = after(m.Lost("worker", 1, 7, False, 3, "idle"), state=state, node=0)
    assert not of(actions, e.StartProcess)


def test_deaths_in_training_are_free_however_many() -> None:
    state = trains(joined(ONE, 2))
    for generation in range(100):
        state, _ = after(
            e.Exited(0, "worker", 1, generation, "killed"),
            m.Ready("worker", 1, 9, generation + 1),
            state=state,
        )
    assert state.phase is Phase.TRAINING


def test_workers_that_all_die_while_they_load_the_job_end_the_attempt_naming_that() -> None:
    state, _ = after(e.Begin(1, 2, ONE))
    for i in range(2 * MAX_START_DEATHS):
        assert state.phase is Phase.JOINING
        state, _ = after(e.Exited(0, "worker", i % 2, i // 2, "killed by SIGSEGV"), state=state)
    assert isinstance(state.error, UserCodeError)
    assert "SIGSEGV" in str(state.error)


def test_a_writer_that_never_gets_ready_is_given_up_one_day() -> None:
    """Else a broken installation starts processes for ever, and the last checkpoint is waited for in vain."""
    state = trains(joined(ONE, 1))
    for generation in range(1000):
        state, _ = after(e.Exited(0, "writer", 0, generation, "exit status 1"), state=state)
    assert isinstance(state.error, InfrastructureError)


def test_a_worker_that_was_dismissed_before_it_was_ready_leaves_when_it_is() -> None:
    state = trains(joined(ONE, 1))
    state, actions = after(e.Scaled(1, 2), state=state)
    assert of(actions, e.StartProcess) == [started("worker", 1)]
    state, actions = after(e.Scaled(1, 1), state=state)
    assert tells(actions) == [m.Dismiss(1)]
    _, actions = after(m.Ready("worker", 1, 9), state=state)
    assert tells(actions) == [m.Dismiss(1)]


# -- nodes that are lost, come and go --------------------------------------------------------------------


def test_a_lost_node_costs_a_round_of_the_others_and_is_started_again_if_the_policy_says_so() -> None:
    state, actions = after(e.NodeLost(1, "silent"), state=trains(joined(TWO, 2)))
    assert e.Abandon(1) in actions
    assert [recover.node for recover in of(actions, e.Recover)] == [1]
    assert (state.phase, state.members, state.epoch) == (Phase.PREPARING, (0,), 2)
    state, actions = after(e.Returned(1), state=state)
    assert started("agent", 1, 1, node=1) in actions


def test_the_last_node_takes_the_attempt_with_it() -> None:
    state, actions = after(e.NodeLost(0, "silent"), state=trains(joined(ONE, 1)))
    assert isinstance(state.error, InfrastructureError)
    assert of(actions, e.Abandon) == [e.Abandon(0)]
    assert not of(actions, e.Recover), "the job is restarted, not the node"


def next_round(state: State, found: dict[int, m.Found]) -> tuple[State, list[Any]]:
    """Another node is lost or comes; the members are at rest with what they have found."""
    return at_rest(state, found)


def test_who_is_a_step_behind_makes_it_again_with_the_sums_of_who_is_ahead() -> None:
    state, _ = after(e.NodeLost(2, "silent"), state=trains(joined(THREE, 3)))
    ahead, behind = m.Found(ATTEMPT, 4, {}, 1), m.Found(ATTEMPT, 3, {}, 1)
    state, actions = next_round(state, {0: behind, 1: ahead})
    assert of(actions, e.Tell) == [e.Tell(1, m.Adopt())]
    _, actions = after(m.Started(4, 2), state=state, node=1)
    assert of(actions, e.Tell) == [e.Tell(0, m.Replay("host1:1", 1, 3))]


def test_who_is_further_behind_or_of_another_line_copies() -> None:
    for other in (m.Found(ATTEMPT, 2, {}, 1), m.Found(1, 3, {}, 1), None):
        state, _ = after(e.NodeLost(2, "silent"), state=trains(joined(THREE, 3)))
        found = {1: m.Found(ATTEMPT, 4, {}, 1)} | ({} if other is None else {0: other})
        state, _ = next_round(state, found)
        _, actions = after(m.Started(4, 2), state=state, node=1)
        assert of(actions, e.Tell) == [e.Tell(0, m.Copy("host1:1", 4, ATTEMPT))]


def test_at_step_zero_nobody_is_a_step_behind() -> None:
    state, _ = after(e.NodeLost(2, "silent"), state=trains(joined(THREE, 3)))
    state, _ = next_round(state, {1: m.Found(ATTEMPT, 0, {}, 1)})
    _, actions = after(m.Started(0, 2), state=state, node=1)
    assert of(actions, e.Tell) == [e.Tell(0, m.Copy("host1:1", 0, ATTEMPT))]


def test_a_node_without_workers_copies_rather_than_making_the_step_again() -> None:
    state = trains(joined(THREE, 3))
    state, _ = after(e.Exited(0, "worker", 0, 0, "killed"), e.NodeLost(2, "silent"), state=state)
    state, _ = next_round(state, {0: m.Found(ATTEMPT, 3, {}, 1), 1: m.Found(ATTEMPT, 4, {}, 1)})
    _, actions = after(m.Started(4, 2), state=state, node=1)
    assert of(actions, e.Tell) == [e.Tell(0, m.Copy("host1:1", 4, ATTEMPT))]


def test_the_only_node_with_the_state_stays_until_another_has_it() -> None:
    """A drained node, a joining one, and one that is lost on the way: none of it loses the state."""
    state = trains(joined({0: Place(1)}, 1))
    places = {0: Place(1), 1: Place(1), 2: Place(1)}
    state, _ = after(e.Available(places), e.Scaled(1, 2), e.Draining(0, "spot"), state=state)
    for rank, node in state.workers.items():
        state, _ = after(m.Greeted((), ATTEMPT), m.Described(DESCRIPTION), state=state, node=node)
        ready = m.Ready("worker", rank, 9, state.generations["worker", rank])
        state, actions = after(ready, state=state, node=node)
    assert 0 in state.members
    joining = next(node for node in state.members if node != 0)
    state, actions = after(e.NodeLost(joining, "killed"), state=state)
    assert m.Close(remove=True) not in tells(actions, 0)
    assert state.phase is not Phase.ENDED
    assert 0 in state.members


def test_a_drained_node_is_let_go_once_the_others_have_the_state() -> None:
    state = trains(joined(TWO, 2))
    state, actions = after(e.Draining(0, "spot"), state=state)
    assert m.Close(remove=True) in tells(actions, 0)
    assert state.members == (1,)
    assert after(e.Draining(0, "spot"), state=state) == (state, []), "one notice is enough"


def test_the_notice_of_the_last_node_stops_the_attempt() -> None:
    state, _ = after(m.Noticed("SIGTERM to worker 0"), state=trains(joined(ONE, 1)))
    assert (state.phase, state.status) == (Phase.STOPPING, Status.PREEMPTED)


def test_memory_of_a_node_that_returned_is_no_state_to_go_on_from() -> None:
    """The others have gone on without it, and nobody knows how far."""
    state, _ = after(e.NodeLost(1, "silent"), state=trains(joined(TWO, 2)))
    state, _ = at_rest(state, {0: m.Found(ATTEMPT, 3, {}, 1)})
    state, _ = after(m.Started(3, 2), state=state, node=0)
    assert state.phase is Phase.TRAINING
    state, _ = after(e.Returned(1), state=state)
    state, _ = after(m.Greeted((), ATTEMPT), m.Described(DESCRIPTION), state=state, node=1)
    state, _ = after(m.Ready("worker", 1, 9, 1), state=state, node=1)
    assert state.members == (0, 1)
    state, _ = after(e.NodeLost(0, "silent"), state=state)
    state, _ = at_rest(state, {1: m.Found(ATTEMPT, 2, {}, 1)})
    assert isinstance(state.error, InfrastructureError)


def test_a_node_that_is_wanted_again_starts_anew() -> None:
    """What it was told before, to end, is not for its new agent."""
    state, _ = after(e.Scaled(1, 1), state=trains(joined(TWO, 2)))
    assert state.nodes == {0}
    _, actions = after(e.Scaled(1, 2), state=state)
    assert actions.index(e.Abandon(1)) < actions.index(started("agent", 1, 1, node=1))


def test_a_peer_that_cannot_be_read_from_is_a_reason_for_another_round() -> None:
    state, _actions = after(
        m.PeerFailed("h:1", InfrastructureError("refused"), 1), state=trains(joined(TWO, 2)), node=1
    )
    assert (state.phase, state.epoch) == (Phase.PREPARING, 2)
    again = m.PeerFailed("h:1", InfrastructureError("refused"), 1)
    assert after(again, state=state, node=0) == (state, []), "the other one's complaint is late"


def in_vain(state: State, step: int, *nodes: int) -> tuple[State, list[Any]]:
    """The first node cannot reach its peer; in the round that follows the nodes hold a step."""
    refused = m.PeerFailed("h:1", InfrastructureError("refused"), state.epoch)
    state, _ = after(refused, state=state, node=nodes[0])
    return at_rest(state, dict.fromkeys(nodes, m.Found(ATTEMPT, step, {}, 1)))


def goes_on(state: State, step: int) -> State:
    """The pause of a round is over, and its lead holds the state."""
    state, actions = after(e.PauseOver(state.epoch), state=state)
    assert tells(actions) == [m.Adopt()]
    return after(m.Started(step, state.epoch), state=state, node=state.lead or 0)[0]


def test_rounds_that_follow_each_other_without_a_step_pause_for_ever_longer() -> None:
    state, pauses = trains(joined(TWO, 2)), []
    for _ in range(10):
        state, actions = in_vain(state, 0, 0, 1)
        assert tells(actions) == [], "the members stay at rest"
        (pause,) = of(actions, e.Pause)
        assert pause.epoch == state.epoch
        pauses.append(pause.seconds)
        state = goes_on(state, 0)
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 3.2, 3.2, 3.2])


def test_a_round_after_a_committed_step_starts_at_once_and_pauses_are_short_again() -> None:
    state = trains(joined(TWO, 2))
    for _ in range(5):
        state = goes_on(in_vain(state, 0, 0, 1)[0], 0)
    state, actions = in_vain(state, 1, 0, 1)
    assert tells(actions) == [m.Adopt()]
    state, _ = after(m.Started(1, state.epoch), state=state, node=0)
    _, actions = in_vain(state, 1, 0, 1)
    assert [pause.seconds for pause in of(actions, e.Pause)] == [0.05]


def test_nodes_that_cannot_reach_each_other_from_the_beginning_pause_too() -> None:
    state, _ = at_rest(joined(TWO, 2))
    state, _ = after(e.BaseChosen(1, None, None, in_memory=False), m.Started(0, 1), state=state)
    state, actions = in_vain(state, 0, 1, 0)
    assert [pause.seconds for pause in of(actions, e.Pause)] == [0.05]
    assert of(after(e.PauseOver(state.epoch), state=state)[1], e.ChooseBase)


def test_the_end_of_an_older_pause_or_of_one_that_has_not_begun_has_no_effect() -> None:
    state, _ = in_vain(trains(joined(TWO, 2)), 0, 0, 1)
    assert after(e.PauseOver(state.epoch - 1), state=state) == (state, [])
    refused = m.PeerFailed("h:1", InfrastructureError("refused"), state.epoch + 1)
    state, _ = after(refused, state=goes_on(state, 0), node=1)
    assert after(e.PauseOver(state.epoch), state=state) == (state, []), "they are not at rest yet"


def test_the_loss_of_a_member_ends_the_pause() -> None:
    state, _ = in_vain(trains(joined(TWO, 2)), 0, 0, 1)
    state, _ = after(e.NodeLost(1, "silent"), state=state)
    _, actions = at_rest(state, {0: m.Found(ATTEMPT, 0, {}, 1)})
    assert tells(actions) == [m.Adopt()], "whoever is left has nobody to reach"


def test_a_signal_ends_the_pause() -> None:
    paused, _ = in_vain(trains(joined(TWO, 2)), 0, 0, 1)
    state, actions = after(e.Signalled(Status.PREEMPTED, 30.0), state=paused)
    assert tells(actions) == [m.Adopt()]
    assert after(e.PauseOver(state.epoch), state=state) == (state, []), "it was over before"


# -- checkpoints -----------------------------------------------------------------------------------------


def test_a_checkpoint_is_committed_when_every_member_has_written_its_share() -> None:
    state, actions = after(written(), state=trains(joined(TWO, 2)), node=1)
    assert actions == []
    state, actions = after(written(), state=state, node=0)
    assert actions == [e.CommitCheckpoint((written(), written()))]
    done, actions = after(e.Committed(5, "digest"), state=state)
    assert of(actions, e.Tell) == [e.Tell(node, m.Settled(5, committed=True)) for node in (0, 1)]
    assert done.state_digest == "digest"
    _, actions = after(e.CommitFailed(5, StorageError("503")), state=state)
    assert tells(actions) == [m.Settled(5, committed=False, tries=1)] * 2


def test_the_commit_of_an_older_epoch_does_not_lose_shares_of_the_next_checkpoint() -> None:
    state, _ = after(written(6), state=trains(joined(TWO, 2)), node=1)
    state, _ = after(e.Committed(5, "digest"), state=state)
    _, actions = after(written(6), state=state, node=0)
    assert len(of(actions, e.CommitCheckpoint)) == 1


def test_a_share_of_what_is_stored_by_now_is_not_needed() -> None:
    state, _ = after(e.Committed(5, "digest"), state=trains(joined(TWO, 2)))
    state, _ = after(written(5), state=state, node=0)
    assert after(written(5), state=state, node=1) == (state, [])


def test_what_one_node_skips_is_given_up_by_all() -> None:
    state, _ = after(written(), state=trains(joined(TWO, 2)), node=1)
    state, actions = after(m.CheckpointSkipped(5, "busy", 1), state=state, node=0)
    assert tells(actions) == [m.Settled(5, committed=False)] * 2
    assert state.written == {}


def test_nodes_that_fail_at_one_try_are_one_failure() -> None:
    state = trains(joined(THREE, 3))
    failed = m.CheckpointFailed(9, StorageError("503"), 1)
    for node in (0, 1, 2):
        state, _ = after(failed, state=state, node=node)
    assert (state.phase, state.failures) == (Phase.TRAINING, 1)
    state, actions = after(dataclasses.replace(failed, tries=1), state=state, node=2)
    assert tells(actions) == [m.Settled(9, committed=False, tries=2)] * 3


def test_failures_of_checkpoints_of_different_steps_never_end_training() -> None:
    state = trains(joined(ONE, 1))
    for step in range(100):
        state, _ = after(m.CheckpointFailed(step, StorageError("503"), 1), state=state)
    assert state.phase is Phase.TRAINING


def test_the_last_checkpoint_is_tried_three_times() -> None:
    state = trains(joined(ONE, 1))
    for tries in range(MAX_FINAL_FAILURES):
        assert state.phase is Phase.TRAINING
        state, _ = after(m.CheckpointFailed(9, StorageError("503"), 1, tries), state=state)
    assert isinstance(state.error, StorageError)


@pytest.mark.parametrize("error", [Superseded("newer"), ConfigurationError("no permission")])
def test_what_trying_again_cannot_mend_ends_the_attempt_at_once(error: Exception) -> None:
    state, actions = after(e.CommitFailed(5, error), state=trains(joined(ONE, 1)))
    assert state.error is error
    assert tells(actions) == []


# -- stops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.PREEMPTED, Status.INTERRUPTED])
def test_a_signal_in_training_stops_with_a_checkpoint(status: Status) -> None:
    state, actions = after(e.Signalled(status), state=trains(joined(ONE, 1)))
    assert tells(actions) == [m.Stop(checkpoint=True)]
    done, _ = after(m.Finished(6, False, 1), state=state)
    assert (done.phase, done.status, done.step) == (Phase.ENDED, status, 6)
    last, _ = after(m.Finished(9, True, 1), state=state)
    assert last.status is Status.DONE, "the last step was done before the stop"


def test_several_nodes_stop_at_the_same_step_by_a_round() -> None:
    state, actions = after(e.Signalled(Status.PREEMPTED), state=trains(joined(TWO, 2)))
    assert state.phase is Phase.PREPARING
    state, _ = at_rest(state, dict.fromkeys((0, 1), m.Found(ATTEMPT, 3, {}, 1)))
    state, _ = after(m.Started(3, 2), state=state, node=0)
    state, actions = after(m.Started(3, 2), state=state, node=1)
    assert [command.stop for command in tells(actions)] == [m.Stop(checkpoint=True)] * 2
    assert state.phase is Phase.STOPPING
    state, _ = after(m.Finished(3, False, 2), state=state, node=1)
    assert state.phase is Phase.STOPPING
    assert after(m.Finished(3, False, 2), state=state, node=0)[0].status is Status.PREEMPTED


def test_there_is_no_checkpoint_if_it_takes_longer_than_is_left() -> None:
    state, _ = after(written(seconds=10.0), state=trains(joined(ONE, 1)))
    for left_s, fits in ((5.0, False), (16.0, True), (None, True)):
        _, actions = after(e.Signalled(Status.PREEMPTED, left_s), state=state)
        assert tells(actions) == [m.Stop(checkpoint=fits)]


def test_no_time_at_all_leaves_no_checkpoint_and_nobody_is_told_of_one() -> None:
    _, actions = after(e.Signalled(Status.INTERRUPTED, 0.0), state=trains(joined(ONE, 1)))
    assert tells(actions) == [m.Stop(checkpoint=False)]
    (note,) = [each for each in actions if isinstance(each, e.Note)]
    assert note.text == "interrupted: stopping at the next step, without a checkpoint"


@pytest.mark.parametrize("phase", [Phase.JOINING, Phase.PREPARING, Phase.STARTING])
def test_a_signal_before_training_ends_at_once(phase: Phase) -> None:
    state, actions = after(e.Signalled(Status.PREEMPTED), state=state_in(phase))
    assert (state.phase, state.status, actions) == (Phase.ENDED, Status.PREEMPTED, [])


def test_a_second_notice_changes_nothing_but_a_second_ctrl_c_ends_at_once() -> None:
    stopping = state_in(Phase.STOPPING)
    assert after(e.Signalled(Status.PREEMPTED), state=stopping) == (stopping, [])
    state, _ = after(e.Signalled(Status.INTERRUPTED), state=stopping)
    assert (state.phase, state.status) == (Phase.ENDED, Status.INTERRUPTED)


@pytest.mark.parametrize("event", [e.Broken(InfrastructureError("gone")), e.NodeLost(0, "killed")])
def test_a_node_that_fails_while_it_is_being_stopped_does_not_turn_the_stop_into_a_restart(
    event: Any,
) -> None:
    """Invariant F: the process that was asked to stop does so."""
    state, _ = after(event, state=state_in(Phase.STOPPING))
    assert state.phase is Phase.ENDED
    assert state.status is Status.PREEMPTED
