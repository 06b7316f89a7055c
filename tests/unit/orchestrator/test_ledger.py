"""The ledger is what the journal adds up to: whoever reads it, whenever everything was killed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import ledger as books
from orchestrator.ledger import LISTED, Ledger, Meter, Pace
from orchestrator.restart import JOB, Restart
from orchestrator.totals import Totals


def entry(kind: str, t: float = 0.0, text: str = "", **fields: Any) -> dict[str, Any]:
    time = f"2026-01-01T00:{int(t) // 60:02}:{int(t) % 60:02}.{int(t * 1000) % 1000:03}+00:00"
    return {"kind": kind, "text": text, "time": time, "t": t, **fields}


def began(
    attempt: int, t: float = 0.0, after: str = books.NEW, command: str = "a", **more: Any
) -> dict[str, Any]:
    fields = {
        "attempt": attempt,
        "invocation": command,
        "boot": "b",
        "after": after,
        "restart": after != books.NEW,
    }
    return entry("began", t, **{**fields, **more})


def killed(t: float, rank: int = 0, generation: int = 0) -> list[dict[str, Any]]:
    """The three entries of a worker's death."""
    about = {"role": "worker", "rank": rank, "generation": generation}
    return [
        entry("replaced", t, **about, node=0, ready=True, cause="killed by SIGKILL"),
        entry("lost", t, **about, node=0, step=12, phase="gradient", detection_s=0.0004),
    ]


def after(*entries: dict[str, Any]) -> Ledger:
    ledger = Ledger()
    for each in entries:
        ledger = ledger.after(each)
    return ledger


def test_a_workers_death_is_one_disturbance_with_its_cause_costs_and_moment() -> None:
    ledger = after(began(1), *killed(5.0), entry("recovered", 5.0, step=13, seconds=0.05))
    (found,) = ledger.disturbances
    assert found.what == "worker 0 was killed by SIGKILL in gradient after step 12"
    assert found.to_json() == {
        "time": "2026-01-01T00:00:05.000+00:00",
        "attempt": 1,
        "class": "worker death",
        "what": "worker 0 was killed by SIGKILL in gradient after step 12",
        "cause": "killed by SIGKILL",
        "action": "replaced",
        "node": 0,
        "process": "worker 0",
        "step": 0,
        "detection_s": 0.0004,
        "recovery_s": 0.05,
        "steps_lost": 0,
    }
    assert (ledger.worker_deaths, ledger.restarts, ledger.highest_step) == (1, 0, 13)


def test_a_death_that_an_agent_remembers_counts_once() -> None:
    about = {"role": "worker", "rank": 0, "generation": 0, "node": 0, "step": 12, "phase": "update"}
    missed = entry("missed", 9.0, **about, pid=77, cause="it is gone", ready=False)
    successor = began(2, 8.0, books.COORDINATOR_KILLED, died_at=7.5, cause="killed by SIGKILL")
    unknown = after(began(1), successor, missed, missed)
    assert unknown.worker_deaths == 1
    assert unknown.disturbances[-1].what == "worker 0 is gone in update after step 12"
    replaced, lost = killed(5.0)
    assert after(began(1), replaced, {**lost, "pid": 77}, successor, missed).worker_deaths == 1
    assert after(began(1), replaced, successor, missed).worker_deaths == 1, "all that was written of it"
    assert after(began(1), replaced, {**lost, "pid": 5}, successor, missed).worker_deaths == 2


def test_a_cause_that_is_learnt_later_is_filled_in() -> None:
    about = {"role": "worker", "rank": 1, "generation": 3}
    ledger = after(
        began(1),
        entry("replaced", 1, **about, node=0, cause="it is gone"),
        entry("lost", 1, **about, node=0, step=12, phase="update"),
        entry("ended", 2, **about, cause="killed by SIGSEGV"),
    )
    assert ledger.disturbances[0].what == "worker 1 was killed by SIGSEGV in update after step 12"


def test_why_a_hung_worker_was_killed_is_not_that_it_was_killed() -> None:
    about = {"role": "worker", "rank": 1, "generation": 3}
    ledger = after(
        began(1),
        entry("replaced", 1, **about, node=0, cause="it did not answer within 5 s"),
        entry("ended", 2, **about, cause="killed by SIGKILL"),
    )
    assert ledger.disturbances[0].what == "worker 1 did not answer within 5 s and was killed"


def test_a_lost_node_recovers_by_the_clock_of_the_coordinator() -> None:
    ledger = after(
        began(1),
        entry("node-lost", 3.0, node=1, cause="its agent was killed by SIGKILL", detection_s=0.001),
        entry("granted", 3.0, of="node 1", highest_step=7, delay_s=0.5, cause="x", number=1),
        entry("recovered", 3.25, step=9, seconds=0.01),
    )
    (found,) = ledger.disturbances
    assert found.what == "node 1 was lost: its agent was killed by SIGKILL"
    assert found.action == "started again after 0.5 s (restart 1)"
    assert (found.detection_s, found.recovery_s, found.kind) == (0.001, 0.25, "infrastructure")
    assert ledger.granted == (Restart(7, "node 1", 0.5, "x"),)
    assert ledger.calm


def test_a_restart_of_the_job_spans_two_attempts() -> None:
    ledger = after(
        began(1),
        entry("end", 9.0, status="failed", step=50, **{"class": "infrastructure", "cause": "it broke"}),
        entry("granted", 9.0, of=JOB, highest_step=50, delay_s=1.5, cause="it broke", number=1),
        began(2, 10.5, books.AGAIN),
        entry("based", 11.0, step=40, steps_lost=10),
        entry("recovered", 12.0, step=41, seconds=0.2),
    )
    (found,) = ledger.disturbances
    assert (found.what, found.steps_lost, found.recovery_s) == ("the job failed: it broke", 10, 3.0)
    assert (ledger.restarts, ledger.steps_lost, ledger.highest_step, ledger.reached) == (1, 10, 50, 41)


def test_steps_are_lost_once() -> None:
    """An attempt that goes on from memory, below the highest step ever, has lost nothing anew."""
    ledger = after(began(1), entry("checkpoint", 1, step=150), entry("based", 2, step=100, steps_lost=50))
    assert ledger.reached == 100
    assert ledger.at_step(110).reached == 110
    assert ledger.at_step(110).highest_step == 150


def test_a_successor_knows_when_its_predecessor_died() -> None:
    ledger = after(
        began(1),
        began(2, 5.0, books.COORDINATOR_KILLED, died_at=4.5, cause="killed by SIGKILL", detection_s=0.0),
        entry("granted", 5.0, of="the coordinator", highest_step=3, delay_s=0.0, number=1, coordinators=1),
        entry("recovered", 5.25, step=41, seconds=0.2),
    )
    (found,) = ledger.disturbances
    assert found.what == "the coordinator was killed by SIGKILL"
    assert (found.recovery_s, found.action) == (0.75, "succeeded by another one at once (restart 1)")
    assert ledger.coordinators == 1


def test_a_person_who_runs_the_command_again_begins_a_row_and_spends_nothing() -> None:
    grant = entry("granted", 1, of=JOB, highest_step=5, delay_s=0.0, cause="x", number=1)
    first = after(began(1), grant, grant)
    assert (first.since, len(first.granted)) == (0, 2)
    again = first.after(began(2, 9, books.RUN_KILLED, command="b"))
    assert (again.since, len(again.granted), again.restarts) == (2, 2, 1)
    assert again.disturbances[-1].what == "the run was killed"
    assert again.after(began(3, 9, books.AGAIN, command="b")).since == 2


def test_preemption_is_reported_and_costs_nothing() -> None:
    text = "preempted: stopping at the next step, with a checkpoint"
    ledger = after(began(1), entry("stopping", 5, text=text, status="preempted"))
    assert [each.kind for each in ledger.disturbances] == ["preemption"]
    assert ledger.granted == ()
    assert after(began(1), entry("stopping", 5, text="interrupted", status="interrupted")).disturbances == ()


def test_the_list_of_disturbances_is_bounded_and_counts_go_on() -> None:
    ledger = after(began(1), *(e for i in range(LISTED + 20) for e in killed(float(i), generation=i)))
    assert ledger.worker_deaths == LISTED + 20
    assert (len(ledger.disturbances), ledger.earlier) == (LISTED, 20)


KINDS = sorted(books._EFFECTS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=3,
)
NAMES = ["kind", "t", "time", "text", "role", "rank", "node", "generation", "cause", "step", "seconds", "of"]
NAMES += [
    "after",
    "attempt",
    "invocation",
    "boot",
    "restart",
    "highest_step",
    "delay_s",
    "number",
    "steps_lost",
]


@given(
    lines=st.lists(
        st.builds(
            lambda kind, rest: {**rest, "kind": kind},
            st.sampled_from(KINDS) | JSON,
            st.dictionaries(st.sampled_from(NAMES), JSON),
        ),
        max_size=8,
    )
)
def test_a_journal_of_nonsense_is_read_without_an_error(lines: list[dict[str, Any]]) -> None:
    """It may come from anyone; what can be made of it is made of it."""
    ledger = Ledger().after_all(lines)
    json.dumps([each.to_json() for each in ledger.disturbances])
    assert ledger.steps_lost >= 0
    assert Totals.from_json(json.loads(json.dumps(ledger.totals.to_json()))) == ledger.totals


GOOD = st.sampled_from(
    [
        *killed(3.0),
        entry("recovered", 3.5, step=20, seconds=0.1),
        entry("node-lost", 4.0, node=1, cause="its agent was killed"),
        entry("granted", 4.0, of="node 1", highest_step=20, delay_s=0.1, cause="x", number=1),
        entry("checkpoint", 5.0, step=30),
        entry("based", 5.0, step=10, steps_lost=20),
        entry("end", 6.0, status="failed", step=50, **{"class": "infrastructure", "cause": "x"}),
        began(2, 7.0, books.AGAIN),
        began(3, 7.0, books.RUN_KILLED, command="b"),
    ]
)


@given(lines=st.lists(GOOD, max_size=20), cut=st.integers(0, 20))
def test_reading_what_was_written_gives_what_the_writer_had(lines: list[dict[str, Any]], cut: int) -> None:
    """Whenever it was killed: a journal is a prefix of what happened, and its ledger that of the prefix."""
    written = json.loads(json.dumps(lines[:cut]))
    live = after(*lines[:cut])
    assert Ledger().after_all(written) == live
    rest = live.after_all(lines[cut:])
    assert rest.worker_deaths >= live.worker_deaths
    assert rest.steps_lost >= live.steps_lost
    assert rest.highest_step >= live.highest_step
    assert rest.granted[: len(live.granted)] == live.granted


def test_a_sign_of_life_fills_in_for_journals_that_are_missing() -> None:
    totals = Totals(restarts=3, worker_deaths=2, steps_lost=5, highest_step=90, budgeted=(10, 20))
    ledger = Ledger().at_least(totals, 80)
    assert ledger.totals == totals
    assert ledger.reached == 80
    more = after(began(1), *killed(1.0), *killed(2.0, generation=1), *killed(3.0, generation=2))
    assert more.at_least(totals, 80).worker_deaths == 3


# -- pace --------------------------------------------------------------------------------------------------


def test_goodput_is_the_pace_over_the_whole_time_over_that_between_disturbances() -> None:
    meter = Meter(Pace(), 0)
    for second in range(11):  # 10 s at 10 steps/s
        meter.look(float(second), second * 10, calm=True)
    meter.look(15.0, 100, calm=False)  # 5 s without a step
    for second in range(6):
        meter.look(16.0 + second, 110 + second * 10, calm=True)
    pace = meter.pace
    assert (pace.whole_s, pace.steps) == (21.0, 160)
    assert pace.undisturbed_steps_per_s == pytest.approx(10.0)
    assert pace.goodput == pytest.approx(160 / 21 / 10)


def test_steps_that_are_trained_again_do_not_count() -> None:
    meter = Meter(Pace(), 100)
    meter.look(0.0, 50, calm=True)
    meter.look(10.0, 100, calm=True)
    meter.look(20.0, 150, calm=True)
    assert meter.pace.steps == 50


def test_waiting_for_a_restart_counts_and_absence_does_not() -> None:
    meter = Meter(Pace(), 0)
    meter.look(0.0, 0, calm=True)
    meter.look(10.0, 100, calm=True)
    meter.look(20.0, 100, calm=False)
    assert meter.pace.whole_s == 20.0
    again = Meter(Pace.from_json(json.loads(json.dumps(meter.pace.to_json()))), 100)
    again.begin(1000.0)
    again.look(1002.0, 100, calm=True)
    assert again.pace.whole_s == 22.0


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 50), st.booleans()), max_size=30),
)
def test_a_goodput_is_between_nothing_and_one(looks: list[tuple[float, int, bool]]) -> None:
    meter, now, step = Meter(Pace(), 0), 0.0, 0
    for seconds, steps, calm in looks:
        now, step = now + seconds, step + steps
        meter.look(now, step, calm=calm)
    goodput = meter.pace.goodput
    assert goodput is None or 0 <= goodput <= 1
    assert meter.pace.calm_s <= meter.pace.whole_s + 1e-6


@pytest.mark.parametrize("value", [None, 3, "x", [], {"whole_s": "1"}, {"whole_s": -1.0}])
def test_a_pace_that_is_none_is_none(value: object) -> None:
    assert Pace.from_json(value) == Pace()
