"""What is restarted, how often, how fast, and in which words; and the totals that decide it, kept as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.restart import Restart, decide
from orchestrator.spec import RestartPolicy
from orchestrator.totals import Totals
from storage import errors

BROKEN = errors.InfrastructureError("the agent of this node is gone")
POLICY = RestartPolicy()


def history(*steps: int) -> list[Restart]:
    return [Restart(step) for step in steps]


@pytest.mark.parametrize("kind", [errors.InfrastructureError, errors.StorageError, errors.ObjectMissing])
def test_failures_of_the_infrastructure_are_restarted_and_say_so(kind: type[Exception]) -> None:
    decision = decide(POLICY, [], 5, kind("what happened"), 0.5)
    assert decision.restart
    assert "what happened" in decision.reason
    assert "9 restarts left" in decision.reason


@pytest.mark.parametrize(
    ("failure", "word"),
    [
        (errors.ConfigurationError("bad setting"), "configuration"),
        (errors.SharedMemoryTooSmall("too small"), "configuration"),
        (errors.UserCodeError("Traceback\nZeroDivisionError: x"), "user"),
        (errors.CheckpointError("all bad"), "all bad"),
        (errors.Superseded("a newer attempt"), "newer attempt"),
        (errors.RunAlive("alive"), "alive"),
        (RuntimeError("a bug"), "internal"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_what_a_restart_cannot_mend_is_not_restarted(failure: Exception, word: str) -> None:
    decision = decide(POLICY, [], 5, failure, 0.0)
    assert not decision.restart
    assert word in decision.reason
    assert "\n" not in decision.reason


@pytest.mark.parametrize("failure", [errors.Superseded("a newer attempt"), errors.CheckpointError("all bad")])
def test_the_user_is_not_blamed_for_what_is_not_the_users_code(failure: Exception) -> None:
    assert "user error" not in decide(POLICY, [], 5, failure, 0.0).reason


def test_three_restarts_without_a_new_highest_step_open_the_circuit() -> None:
    assert decide(POLICY, history(50, 50), 50, BROKEN, 0).restart
    decision = decide(POLICY, history(50, 50, 50), 50, BROKEN, 0)
    assert not decision.restart
    assert "50" in decision.reason
    assert "the agent of this node is gone" in decision.reason
    assert decide(POLICY, history(50, 50, 50), 51, BROKEN, 0).restart, "one step is progress"


def test_a_job_that_never_trained_a_step_is_given_up_after_three_restarts() -> None:
    assert decide(POLICY, history(0, 0), 0, BROKEN, 0).restart
    assert not decide(POLICY, history(0, 0, 0), 0, BROKEN, 0).restart


def test_restarts_are_used_up_where_steps_earn_none_back() -> None:
    policy = RestartPolicy(max_restarts=3, refill_steps=1000)
    assert decide(policy, history(1, 2), 3, BROKEN, 0).restart
    decision = decide(policy, history(1, 2, 3), 4, BROKEN, 0)
    assert not decision.restart
    assert "3 restarts" in decision.reason
    assert not decide(RestartPolicy(max_restarts=0), [], 4, BROKEN, 0).restart


def test_every_hundred_steps_beyond_the_highest_earn_a_restart_back() -> None:
    policy = RestartPolicy(max_restarts=1, refill_steps=100)
    assert not decide(policy, history(10), 109, BROKEN, 0).restart
    assert decide(policy, history(10), 110, BROKEN, 0).restart
    assert not decide(policy, history(10, 110), 209, BROKEN, 0).restart


def test_steps_between_restarts_add_up_to_the_restart_that_they_earn() -> None:
    """A failure every 60 steps is slower than one restart earned every 100, but not by as much as ten."""
    steps = [60 * (i + 1) for i in range(11)]  # 600 steps earn 6 restarts beside the 10 in hand
    assert decide(POLICY, history(*steps[:10]), steps[10], BROKEN, 0).restart


def test_no_more_restarts_are_saved_up_than_the_policy_has() -> None:
    policy = RestartPolicy(max_restarts=2, refill_steps=1)
    assert "1 restarts left" in decide(policy, [], 10**9, BROKEN, 0).reason


@given(
    fruitless=st.integers(0, 30),
    jitter=st.floats(0, 1, exclude_max=True),
    backoff=st.floats(0, 1e6),
    limit=st.floats(0, 1e6),
)
def test_waits_double_up_to_the_limit_with_full_jitter(
    fruitless: int, jitter: float, backoff: float, limit: float
) -> None:
    policy = RestartPolicy(max_restarts=100, crash_loop=100, backoff_s=backoff, max_backoff_s=limit)
    decision = decide(policy, history(*[7] * fruitless), 7, BROKEN, jitter)
    assert decision.restart
    assert decision.delay_s == pytest.approx(min(limit, backoff * 2**fruitless) * jitter)


def test_a_very_patient_policy_does_not_overflow() -> None:
    policy = RestartPolicy(max_restarts=5000, crash_loop=5000)
    decision = decide(policy, history(*[7] * 1100), 7, BROKEN, 1.0)
    assert decision.delay_s == policy.max_backoff_s


@given(
    steps=st.lists(st.integers(0, 500), max_size=15),
    more=st.integers(0, 500),
    policy=st.builds(
        RestartPolicy,
        max_restarts=st.integers(0, 12),
        refill_steps=st.integers(1, 200),
        crash_loop=st.integers(1, 6),
    ),
)
def test_decisions_are_total_and_more_progress_never_hurts(
    steps: list[int], more: int, policy: RestartPolicy
) -> None:
    steps = sorted(steps)
    highest = max(steps, default=0)
    now = decide(policy, history(*steps), highest, BROKEN, 0.5)
    later = decide(policy, history(*steps), highest + more, BROKEN, 0.5)
    assert now.reason
    assert later.restart or not now.restart
    assert 0 <= later.delay_s <= max(now.delay_s, policy.backoff_s)


# -- totals ----------------------------------------------------------------------------------------------

TOTALS = st.builds(
    Totals,
    restarts=st.integers(0, 99),
    worker_deaths=st.integers(0, 99),
    steps_lost=st.integers(0, 10**6),
    highest_step=st.integers(0, 10**12),
    budgeted=st.lists(st.integers(0, 10**12), max_size=5).map(tuple),
)


@given(totals=TOTALS)
def test_totals_survive_the_way_through_json(totals: Totals) -> None:
    again = Totals.from_json(json.loads(json.dumps(totals.to_json())))
    assert again == totals
    assert [restart.highest_step for restart in again.history] == list(totals.budgeted)


def test_a_run_without_totals_starts_counting_at_zero() -> None:
    assert Totals.from_json(None) == Totals()
    assert Totals().history == []
