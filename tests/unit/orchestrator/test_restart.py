"""What is restarted, how often, how fast, and in which words; and the totals that decide it, kept as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.restart import COORDINATOR, JOB, Restart, decide, tokens_left
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
    assert "restart 1 of 10" in decision.reason
    assert decision.number == 1


@pytest.mark.parametrize(
    ("failure", "word"),
    [
        (errors.ConfigurationError("bad setting"), "configuration"),
        (errors.SharedMemoryTooSmall("too small"), "configuration"),
        (errors.UserCodeError("Traceback\nZeroDivisionError: x"), "user"),
        (errors.DataError("file x cannot be read"), "data error"),
        (errors.DivergenceError("the loss is NaN"), "divergence"),
        (errors.CrashLoop("stopped"), "stopped"),
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
    assert "all 3 restarts are used up" in decision.reason
    assert not decision.looping
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
    assert tokens_left(policy, [], 10**9) == 2
    assert tokens_left(policy, history(10**9), 10**9) == 1


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


# -- what of, and who waits -------------------------------------------------------------------------------


def test_the_circuit_says_what_was_tried() -> None:
    tried = [Restart(50, JOB, delay, f"cause {i}") for i, delay in enumerate((0.5, 1.25, 3.0))]
    decision = decide(POLICY, tried, 50, BROKEN, 0)
    assert decision.looping
    assert decision.reason == (
        "stopped, because this is a crash loop: 3 restarts brought no step beyond 50 (tried after 0.5 s, "
        "because cause 0; after 1.2 s, because cause 1; after 3.0 s, because cause 2), and then: the agent "
        "of this node is gone"
    )


def test_nodes_that_are_replaced_while_others_go_on_do_not_open_the_circuit() -> None:
    nodes = [Restart(50, "node 1") for _ in range(5)]
    assert decide(POLICY, nodes, 50, BROKEN, 0).restart
    assert decide(POLICY, nodes, 50, BROKEN, 0, of="node 1").restart
    spent = decide(POLICY, nodes * 2, 50, BROKEN, 0, of="node 1")
    assert not spent.restart
    assert spent.reason.startswith("node 1 is not started again (all 10 restarts are used up)")


def test_a_coordinator_that_is_killed_again_and_again_without_a_step_opens_it() -> None:
    killed = [Restart(50, COORDINATOR), Restart(50, JOB), Restart(50, COORDINATOR)]
    assert decide(POLICY, killed, 50, BROKEN, 0, of=COORDINATOR).looping
    assert decide(POLICY, killed, 51, BROKEN, 0, of=COORDINATOR).restart


def test_a_person_who_runs_the_command_again_closes_the_circuit_but_gets_no_tokens() -> None:
    tried = history(50, 50, 50)
    assert decide(POLICY, tried, 50, BROKEN, 0).looping
    again = decide(POLICY, tried, 50, BROKEN, 0, since=3)
    assert again.restart
    assert again.number == 4


@given(
    steps=st.lists(st.integers(0, 500), max_size=9),
    jitter=st.floats(0, 1, exclude_max=True),
    of=st.sampled_from([COORDINATOR, "node 0", JOB]),
)
def test_nobody_waits_where_that_would_hold_nobody_up(steps: list[int], jitter: float, of: str) -> None:
    steps = sorted(steps)
    decision = decide(POLICY, history(*steps), 1000, BROKEN, jitter, of=of, held_up=False)
    assert decision.restart
    assert decision.delay_s == 0
    assert "at once" in decision.reason


def test_waits_for_one_node_do_not_grow_by_the_failures_of_another() -> None:
    mixed = [Restart(10, "node 1"), Restart(20, "node 1"), Restart(30, "node 2"), Restart(40, "node 1")]
    assert decide(POLICY, mixed, 50, BROKEN, 1.0, of="node 1").delay_s == 8
    assert decide(POLICY, mixed, 50, BROKEN, 1.0, of="node 2").delay_s == 2
    assert decide(POLICY, mixed, 50, BROKEN, 1.0).delay_s == 1
    assert decide(POLICY, mixed, 1050, BROKEN, 1.0, of="node 1").delay_s == 1, "it has trained long since"


@given(
    steps=st.lists(st.integers(0, 2000), max_size=30),
    more=st.integers(0, 2000),
    most=st.integers(0, 12),
    refill=st.integers(1, 200),
)
def test_tokens_are_never_more_than_the_policy_has_and_each_restart_costs_one(
    steps: list[int], more: int, most: int, refill: int
) -> None:
    policy = RestartPolicy(max_restarts=most, refill_steps=refill)
    steps = sorted(steps)
    highest = max(steps, default=0)
    before = tokens_left(policy, history(*steps), highest)
    assert before <= most
    assert tokens_left(policy, history(*steps, highest), highest) == before - 1
    later = tokens_left(policy, history(*steps), highest + more)
    assert before <= later <= most
    assert later - before <= -(-more // refill), "no more than one for every so many steps"
    again = tokens_left(policy, history(*[s // 2 for s in steps]), highest)
    assert again <= most


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
