"""The machine of an attempt: every event in every phase, and any order of events."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import machine
from orchestrator.machine import Phase, State, Status, transition
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

DIRECTORY = "checkpoints/step-000000000005-a00000001-0123456789abcdef"
PLAN = m.Plan(attempt=2, epoch=0, url="u", steps=9, checkpoint_every=1, validate_every=None, in_flight=2)
BASE = Base(step=5, attempt=1)
WRITTEN = m.CheckpointWritten(5, DIRECTORY, Part({}, (), {}), {}, {}, 0.1)

EXAMPLES: dict[type, list[Any]] = {
    machine.Begin: [machine.Begin(2)],
    m.Described: [m.Described({"arrays": []})],
    machine.Identified: [machine.Identified(m.Prepare("p", 0, 8, 4, True))],
    m.Prepared: [m.Prepared(None, 100), m.Prepared(m.Found(1, 5, {}), 100)],
    machine.BaseChosen: [
        machine.BaseChosen(None, None, in_memory=False),
        machine.BaseChosen(BASE, DIRECTORY, in_memory=False),
        machine.BaseChosen(BASE, None, in_memory=True),
    ],
    m.Started: [m.Started(5)],
    m.RestoreFailed: [
        m.RestoreFailed(DIRECTORY, CorruptCheckpoint("bad bytes")),
        m.RestoreFailed(DIRECTORY, StorageError("503")),
    ],
    machine.Based: [machine.Based(PLAN)],
    m.Ready: [m.Ready("worker", 0, 7), m.Ready("writer", 0, 8)],
    m.Lost: [m.Lost("worker", 0, 7, True, 3, "update"), m.Lost("writer", 0, 8, False, 0, "idle")],
    machine.Exited: [
        machine.Exited("worker", 1, "killed by SIGKILL"),
        machine.Exited("writer", 0, "exit status 1"),
        machine.Exited("agent", 0, "killed by SIGKILL"),
    ],
    m.CheckpointSkipped: [m.CheckpointSkipped(5, "the writer is being replaced")],
    m.CheckpointWritten: [WRITTEN],
    m.CheckpointFailed: [m.CheckpointFailed(5, StorageError("503"))],
    machine.CommitFailed: [
        machine.CommitFailed(5, StorageError("503")),
        machine.CommitFailed(5, Superseded("attempt 3 is newer")),
    ],
    machine.Committed: [machine.Committed(5, "digest")],
    m.Evaluated: [m.Evaluated(5, {"val_loss": 0.5})],
    m.Retried: [m.Retried("step 5, microbatch 1", "ValueError: x")],
    m.Finished: [m.Finished(9, True), m.Finished(6, False)],
    machine.Signalled: [machine.Signalled(Status.PREEMPTED), machine.Signalled(Status.INTERRUPTED)],
    m.Failed: [m.Failed(UserCodeError("Traceback\nboom"))],
    machine.Broken: [machine.Broken(InfrastructureError("the agent is gone"))],
}

ANY_TIME = (m.Ready, m.Lost, machine.Exited, machine.Signalled, m.Failed, machine.Broken)
WHILE_TRAINING = (
    m.CheckpointSkipped,
    m.CheckpointWritten,
    m.CheckpointFailed,
    machine.Committed,
    machine.CommitFailed,
    m.Evaluated,
    m.Finished,
)
LEGAL: dict[Phase, tuple[type, ...]] = {
    Phase.JOINING: (machine.Begin, m.Described, machine.Identified),
    Phase.PREPARING: (m.Prepared, machine.BaseChosen),
    Phase.STARTING: (m.Started, m.RestoreFailed, machine.Based, m.Retried),
    Phase.TRAINING: (*WHILE_TRAINING, m.Retried),
    Phase.STOPPING: (*WHILE_TRAINING, m.Retried),
}


def after(*events: Any, state: State | None = None) -> tuple[State, list[Any]]:
    """The state after the events, and the actions of the last of them."""
    actions: list[Any] = []
    state = state or State()
    for event in events:
        state, actions = transition(state, event, 2, "memory://run")
    return state, actions


def to_training(num_workers: int = 2) -> State:
    events = [EXAMPLES[kind][0] for kind in (m.Described, machine.Identified, m.Prepared)]
    events += [EXAMPLES[machine.BaseChosen][0], m.Started(0), machine.Based(PLAN)]
    return after(machine.Begin(num_workers), m.Ready("worker", 0, 7), m.Ready("writer", 0, 8), *events)[0]


def state_in(phase: Phase) -> State:
    begun, _ = after(machine.Begin(2))
    match phase:
        case Phase.JOINING:
            return begun
        case Phase.PREPARING:
            return after(EXAMPLES[machine.Identified][0], state=begun)[0]
        case Phase.STARTING:
            return after(EXAMPLES[machine.BaseChosen][1], state=state_in(Phase.PREPARING))[0]
        case Phase.TRAINING:
            return to_training()
        case Phase.STOPPING:
            return after(machine.Signalled(Status.PREEMPTED), state=to_training())[0]
        case _:
            return after(EXAMPLES[machine.Broken][0], state=begun)[0]


CASES = [
    pytest.param(phase, event, id=f"{phase.value}-{type(event).__name__}-{i}")
    for phase in LEGAL
    for events in EXAMPLES.values()
    for i, event in enumerate(events)
]


def test_the_examples_of_this_file_are_all_events_there_are() -> None:
    assert set(EXAMPLES) == set(typing.get_args(machine.Event))
    assert set(EXAMPLES) >= set(typing.get_args(m.Event))


@pytest.mark.parametrize(("phase", "event"), CASES)
def test_what_can_happen_in_a_phase_is_handled_and_the_rest_raises(phase: Phase, event: Any) -> None:
    state = state_in(phase)
    assert state.phase is phase
    before = dataclasses.replace(state, generations=dict(state.generations), metrics=dict(state.metrics))
    legal: tuple[Any, ...] = (*LEGAL[phase], *ANY_TIME)
    unasked = phase is Phase.TRAINING and event == m.Finished(6, False)  # nobody told it to stop
    if isinstance(event, legal) and not unasked:
        _, actions = transition(state, event, 2, "memory://run")
        assert all(isinstance(action, typing.get_args(machine.Action)) for action in actions)
    else:
        with pytest.raises(ValueError, match=f"{type(event).__name__}.*{phase.value}"):
            transition(state, event, 2, "memory://run")
    assert state == before, "a state is never changed, only replaced"


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_after_the_end_nothing_has_an_effect(kind: type) -> None:
    state = state_in(Phase.ENDED)
    for event in EXAMPLES[kind]:
        assert transition(state, event, 2, "memory://run") == (state, [])


EVENTS: st.SearchStrategy[Any] = st.sampled_from([event for events in EXAMPLES.values() for event in events])


@given(events=st.lists(EVENTS, max_size=40), phase=st.sampled_from(Phase))
@settings(max_examples=400)
def test_any_order_of_events_keeps_the_state_sound(events: list[Any], phase: Phase) -> None:
    state = state_in(phase)
    for event in events:
        try:
            state, actions = transition(state, event, 2, "memory://run")
        except ValueError:
            continue
        ended = state.phase is Phase.ENDED
        assert ended or state.error is None
        assert ended or state.status is Status.RUNNING or state.phase is Phase.STOPPING
        assert not ended or state.status is not Status.RUNNING, "an end has a status"
        assert state.status is not Status.FAILED or state.error is not None
        assert state.status is not Status.DONE or state.error is None
        starts = [action for action in actions if isinstance(action, machine.StartProcess)]
        assert not (ended and starts), "a process was started at the end"
        for start in starts:
            assert state.generations[start.role, start.rank] == start.generation


# -- the way to training ---------------------------------------------------------------------------------


def tells(actions: list[Any]) -> list[Any]:
    return [action.command for action in actions if isinstance(action, machine.Tell)]


def test_begin_starts_agent_writer_and_workers_once() -> None:
    _, actions = after(machine.Begin(3))
    assert [(a.role, a.rank, a.generation) for a in actions] == [
        ("agent", 0, 0),
        ("writer", 0, 0),
        ("worker", 0, 0),
        ("worker", 1, 0),
        ("worker", 2, 0),
    ]


def test_a_restore_waits_for_the_writer() -> None:
    preparing = state_in(Phase.PREPARING)
    chosen = EXAMPLES[machine.BaseChosen][1]
    waiting, actions = after(chosen, state=preparing)
    assert tells(actions) == []
    ready, actions = after(m.Ready("writer", 0, 8), state=waiting)
    assert tells(actions) == [m.Restore(2, "memory://run", DIRECTORY)]
    assert tells(after(m.Ready("writer", 0, 9), state=ready)[1]) == [], "it is told once"


def test_a_restore_does_not_count_on_a_writer_that_has_died() -> None:
    preparing, _ = after(
        m.Ready("writer", 0, 8), machine.Exited("writer", 0, "died"), state=state_in(Phase.PREPARING)
    )
    assert tells(after(EXAMPLES[machine.BaseChosen][1], state=preparing)[1]) == []


def test_a_damaged_checkpoint_is_left_out_of_the_next_choice_and_told() -> None:
    preparing, _ = after(
        m.Ready("writer", 0, 8), m.Prepared(m.Found(1, 3, {}), 9), state=state_in(Phase.PREPARING)
    )
    starting, _ = after(EXAMPLES[machine.BaseChosen][1], state=preparing)
    state, actions = after(EXAMPLES[m.RestoreFailed][0], state=starting)
    assert any(isinstance(a, machine.ChooseBase) and a.bad == (DIRECTORY,) and a.reason for a in actions)
    assert any(isinstance(a, machine.Note) and "bad bytes" in a.text for a in actions)
    again, _ = after(
        machine.BaseChosen(BASE, DIRECTORY[:-1] + "0", in_memory=False),
        m.RestoreFailed(DIRECTORY[:-1] + "0", CorruptCheckpoint("too")),
        state=state,
    )
    assert again.bad == (DIRECTORY, DIRECTORY[:-1] + "0")


def test_a_storage_that_fails_is_no_reason_to_give_a_checkpoint_up() -> None:
    state, _ = after(EXAMPLES[m.RestoreFailed][1], state=state_in(Phase.STARTING))
    assert state.status is Status.FAILED
    assert isinstance(state.error, StorageError)
    assert state.bad == ()


# -- deaths ----------------------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced_by_the_next_generation() -> None:
    state = to_training()
    for generation in (1, 2, 3):
        state, _ = after(
            machine.Exited("worker", 1, "killed by SIGKILL"), m.Ready("worker", 1, 9), state=state
        )
        assert state.generations["worker", 1] == generation
    assert state.worker_deaths == 3
    assert state.phase is Phase.TRAINING


def test_deaths_in_training_are_free_however_many() -> None:
    state = to_training()
    for _ in range(100):
        state, _ = after(machine.Exited("worker", 1, "killed"), m.Ready("worker", 1, 9), state=state)
    assert state.phase is Phase.TRAINING
    assert state.worker_deaths == 100


def test_workers_that_all_die_while_they_load_the_job_end_the_attempt_naming_that() -> None:
    state, _ = after(machine.Begin(2))
    for i in range(2 * machine.MAX_START_DEATHS):
        assert state.phase is Phase.JOINING
        state, _ = after(machine.Exited("worker", i % 2, "killed by SIGSEGV"), state=state)
    assert isinstance(state.error, UserCodeError)
    assert "SIGSEGV" in str(state.error)


def test_the_death_of_a_worker_that_had_loaded_the_job_is_not_counted_as_one_while_loading() -> None:
    """One worker that trained is killed, then its replacement twice: two deaths while loading, not three."""
    state = to_training(num_workers=1)
    killed = machine.Exited("worker", 0, "killed by SIGKILL")
    state, _ = after(m.Lost("worker", 0, 7, True, 3, "gradient"), killed, state=state)
    for _ in range(machine.MAX_START_DEATHS - 1):
        assert state.phase is Phase.TRAINING
        state, _ = after(m.Lost("worker", 0, 8, False, 3, "gradient"), killed, state=state)
    assert state.phase is Phase.TRAINING
    state, _ = after(killed, state=state)
    assert isinstance(state.error, UserCodeError)


def test_a_dead_writer_is_replaced_and_a_dead_agent_ends_the_attempt() -> None:
    state, actions = after(machine.Exited("writer", 0, "exit status 1"), state=to_training())
    assert machine.StartProcess("writer", 0, 1) in actions
    assert ("writer", 0) not in state.ready
    assert state.worker_deaths == 0
    state, _ = after(machine.Exited("agent", 0, "killed by SIGKILL"), state=state)
    assert isinstance(state.error, InfrastructureError)


def test_a_writer_that_never_gets_ready_is_given_up_one_day() -> None:
    """Else a broken installation starts processes for ever, and the last checkpoint is waited for in vain."""
    state = to_training()
    for _ in range(1000):
        state, _ = after(machine.Exited("writer", 0, "exit status 1"), state=state)
    assert state.phase is Phase.ENDED


# -- checkpoints -----------------------------------------------------------------------------------------


def test_a_checkpoint_is_settled_when_it_is_committed_and_when_it_is_given_up() -> None:
    state, actions = after(WRITTEN, state=to_training())
    assert actions == [machine.CommitCheckpoint(WRITTEN)]
    done, actions = after(machine.Committed(5, "digest"), state=state)
    assert tells(actions) == [m.Settled(5, True)]
    assert done.state_digest == "digest"
    _, actions = after(machine.CommitFailed(5, StorageError("503")), state=state)
    assert tells(actions) == [m.Settled(5, False)]


def test_failures_of_checkpoints_of_different_steps_never_end_training() -> None:
    state = to_training()
    for step in range(100):
        state, _ = after(m.CheckpointFailed(step, StorageError("503")), state=state)
    assert state.phase is Phase.TRAINING


def test_the_last_checkpoint_is_tried_three_times() -> None:
    state = to_training()
    for _ in range(machine.MAX_FINAL_FAILURES):
        assert state.phase is Phase.TRAINING
        state, _ = after(m.CheckpointFailed(9, StorageError("503")), state=state)
    assert isinstance(state.error, StorageError)


@pytest.mark.parametrize("error", [Superseded("newer"), ConfigurationError("no permission")])
def test_what_trying_again_cannot_mend_ends_the_attempt_at_once(error: Exception) -> None:
    state, actions = after(machine.CommitFailed(5, error), state=to_training())
    assert state.error is error
    assert tells(actions) == []


# -- stops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.PREEMPTED, Status.INTERRUPTED])
def test_a_signal_in_training_stops_with_a_checkpoint(status: Status) -> None:
    state, actions = after(machine.Signalled(status), state=to_training())
    assert tells(actions) == [m.Stop(checkpoint=True)]
    done, _ = after(m.Finished(6, False), state=state)
    assert (done.phase, done.status, done.step) == (Phase.ENDED, status, 6)
    last, _ = after(m.Finished(9, True), state=state)
    assert last.status is Status.DONE, "the last step was done before the stop"


@pytest.mark.parametrize("phase", [Phase.JOINING, Phase.PREPARING, Phase.STARTING])
def test_a_signal_before_training_ends_at_once(phase: Phase) -> None:
    state, actions = after(machine.Signalled(Status.PREEMPTED), state=state_in(phase))
    assert (state.phase, state.status, actions) == (Phase.ENDED, Status.PREEMPTED, [])


def test_a_second_notice_changes_nothing_but_a_second_ctrl_c_ends_at_once() -> None:
    stopping = state_in(Phase.STOPPING)
    assert after(machine.Signalled(Status.PREEMPTED), state=stopping) == (stopping, [])
    state, _ = after(machine.Signalled(Status.INTERRUPTED), state=stopping)
    assert (state.phase, state.status) == (Phase.ENDED, Status.INTERRUPTED)


@pytest.mark.parametrize(
    "event", [machine.Broken(InfrastructureError("gone")), machine.Exited("agent", 0, "killed")]
)
def test_a_node_that_fails_while_it_is_being_stopped_does_not_turn_the_stop_into_a_restart(
    event: Any,
) -> None:
    """Invariant F: the process that was asked to stop does so."""
    state, _ = after(event, state=state_in(Phase.STOPPING))
    assert state.phase is Phase.ENDED
    assert state.status is Status.PREEMPTED
