"""Every failure has a class, in words, and something that a person can do about it."""

from __future__ import annotations

import inspect

import pytest

from orchestrator import events as e
from orchestrator.failures import GONE, Kind, can_restart, classify, classify_event, died, in_short, remedy
from storage import errors
from workers import messages as m

ERRORS = [
    (errors.ConfigurationError, Kind.CONFIGURATION),
    (errors.IdentityMismatch, Kind.CONFIGURATION),
    (errors.MissingExtra, Kind.CONFIGURATION),
    (errors.SharedMemoryTooSmall, Kind.CONFIGURATION),
    (errors.StorageError, Kind.INFRASTRUCTURE),
    (errors.ObjectMissing, Kind.INFRASTRUCTURE),
    (errors.InfrastructureError, Kind.INFRASTRUCTURE),
    (errors.CrashLoop, Kind.INFRASTRUCTURE),
    (errors.UserCodeError, Kind.USER_ERROR),
    (errors.DataError, Kind.DATA_ERROR),
    (errors.DivergenceError, Kind.DIVERGENCE),
    (errors.CheckpointError, Kind.DAMAGE),
    (errors.CorruptCheckpoint, Kind.DAMAGE),
    (errors.IncompatibleCheckpoint, Kind.DAMAGE),
    (errors.Superseded, Kind.SUPERSEDED),
    (errors.RunAlive, Kind.SUPERSEDED),
    (errors.HoldfastError, Kind.INTERNAL),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS)
def test_every_error_has_a_class(error: type[Exception], kind: Kind) -> None:
    assert classify(error("what")) is kind


def test_no_error_was_forgotten() -> None:
    ours = {each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, Exception)}
    assert {error for error, _ in ERRORS} == ours


@pytest.mark.parametrize("error", [RuntimeError("x"), AssertionError(), KeyError("k")])
def test_what_nobody_raises_on_purpose_is_an_internal_error(error: Exception) -> None:
    assert classify(error) is Kind.INTERNAL


EVENTS = [
    (e.Signalled(e.Status.PREEMPTED), Kind.PREEMPTION),
    (e.Draining(1, "Ray drains it"), Kind.PREEMPTION),
    (e.Heard(0, m.Noticed("SIGTERM")), Kind.PREEMPTION),
    (e.Exited(0, "worker", 1, 0, "killed by SIGKILL"), Kind.WORKER_DEATH),
    (e.Heard(0, m.Lost("worker", 1, 7, True, 3, "gradient")), Kind.WORKER_DEATH),
    (e.Exited(0, "writer", 0, 0, "killed by SIGKILL"), Kind.INFRASTRUCTURE),
    (e.Heard(0, m.Lost("writer", 0, 7, True, 3, "gradient")), Kind.INFRASTRUCTURE),
    (e.NodeLost(1, "was killed by SIGKILL"), Kind.INFRASTRUCTURE),
    (e.Heard(0, m.Retried("step 3, microbatch 1", "ZeroDivisionError")), Kind.USER_ERROR),
    (e.Heard(0, m.Unreadable("step 3, microbatch 1", "OSError", False)), Kind.DATA_ERROR),
    (e.Heard(0, m.Failed(errors.UserCodeError("x"))), Kind.USER_ERROR),
    (e.Heard(0, m.Started(3)), None),
    (e.Waited(), None),
]


@pytest.mark.parametrize(("event", "kind"), EVENTS, ids=str)
def test_events_have_the_classes_of_the_table(event: e.Event, kind: Kind | None) -> None:
    assert classify_event(event) is kind


def test_only_the_infrastructure_is_restarted_and_everything_has_a_remedy() -> None:
    mended = {error for error, _ in ERRORS if can_restart(error("what"))}
    assert mended == {errors.StorageError, errors.ObjectMissing, errors.InfrastructureError}
    for kind in Kind:
        assert remedy(kind)
        assert "\n" not in remedy(kind)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("killed by SIGKILL", "worker 1 was killed by SIGKILL"),
        ("exit status 3", "worker 1 ended (exit status 3)"),
        ("it did not answer within 5 s", "worker 1 did not answer within 5 s and was killed"),
        (GONE, "worker 1 is gone"),
        ("", "worker 1 is gone"),
    ],
)
def test_ends_of_processes_read_as_sentences(cause: str, words: str) -> None:
    assert f"worker 1 {died(cause)}" == words


def test_an_error_in_short_is_the_last_line_of_a_traceback() -> None:
    assert (
        in_short(errors.UserCodeError("Traceback:\n  file\nZeroDivisionError: x\n")) == "ZeroDivisionError: x"
    )
    assert in_short(AssertionError()) == "AssertionError"
