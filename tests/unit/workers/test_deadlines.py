"""Deadlines: generous at first, then adapted to what was measured, and patient with what is merely slow."""

from __future__ import annotations

import random

import pytest

from workers.deadlines import (
    ASLEEP_S,
    FIRST_ITEMS,
    FIRST_S,
    LEAST_OTHERWISE_S,
    LEAST_S,
    PATIENCE,
    SLOWEST_STORAGE,
    START_S,
    STORE_S,
    TIMES_TYPICAL,
    Deadlines,
)


class Clocked:
    """Deadlines with a clock that only the test moves."""

    def __init__(
        self, worker_timeout_s: float | None = None, checkpoint_timeout_s: float | None = None
    ) -> None:
        self.deadlines = Deadlines()
        self.deadlines.configure(worker_timeout_s, checkpoint_timeout_s)
        self.now = 1000.0

    def work(self, *seconds: float, worker: int = 1, phase: str = "gradient") -> None:
        """Items, one after the other."""
        self.deadlines.begin()
        self.deadlines.given(worker, phase, 0, self.now)
        for i, each in enumerate(seconds):
            self.now += each
            last = i + 1 == len(seconds)
            self.deadlines.finished(worker, None if last else i + 1, self.now)

    def allowed_s(self, worker: int = 1, phase: str = "gradient", item: int = 0) -> float:
        """How long an item that is given out now may take, to a thousandth, as the agent would find out."""
        self.deadlines.given(worker, phase, item, self.now)
        wait_s = self.deadlines.wait_s(self.now, 1e9)
        while not self.deadlines.overdue(self.now + wait_s):
            later = self.deadlines.wait_s(self.now, 1e9)
            assert later > wait_s, "the loop would spin"
            wait_s = later
        assert not self.deadlines.overdue(self.now + wait_s - 1e-3)
        self.deadlines.gave_up(worker, None, self.now)
        return wait_s


@pytest.mark.parametrize("phase", ["gradient", "update"])
def test_the_first_items_of_a_worker_may_take_long(phase: str) -> None:
    clock = Clocked()
    for _ in range(FIRST_ITEMS):
        assert clock.allowed_s(phase=phase) == pytest.approx(FIRST_S)
        clock.work(0.01, phase=phase)
    clock.work(*[0.01] * 20, phase=phase)
    least = LEAST_S.get(phase, LEAST_OTHERWISE_S)
    assert clock.allowed_s(phase=phase) == pytest.approx(least)
    assert clock.allowed_s(worker=2, phase=phase) == pytest.approx(FIRST_S), "a successor is new too"


def test_later_items_may_take_a_multiple_of_the_typical_time() -> None:
    clock = Clocked()
    clock.work(*[3.0] * 20)
    assert clock.allowed_s() == pytest.approx(TIMES_TYPICAL * 3)


def test_neither_slow_first_items_nor_single_ones_make_it_patient() -> None:
    clock = Clocked()
    clock.work(55.0, 40.0, 30.0, *[1.0] * 13, 50.0, *[1.0] * 15)
    assert clock.allowed_s() == pytest.approx(TIMES_TYPICAL)


def test_work_that_becomes_slow_is_followed() -> None:
    clock = Clocked()
    clock.work(*[0.1] * 40)
    clock.work(*[4.0] * 32)
    assert clock.allowed_s() == pytest.approx(TIMES_TYPICAL * 4)


def test_phases_are_told_apart() -> None:
    clock = Clocked()
    clock.work(*[2.0] * 16)
    clock.work(*[0.001] * 16, phase="update")
    assert clock.allowed_s() == pytest.approx(20)
    assert clock.allowed_s(phase="update") == pytest.approx(LEAST_OTHERWISE_S)


def test_a_setting_overrides_all_of_it() -> None:
    clock = Clocked(worker_timeout_s=0.5)
    assert clock.allowed_s() == pytest.approx(0.5)
    clock.work(*[3.0] * 20)
    assert clock.allowed_s() == pytest.approx(0.5)


def test_an_item_that_was_missed_gets_longer_with_each_worker() -> None:
    """A storage that hangs for a minute must not look like a microbatch that kills workers."""
    clock = Clocked()
    clock.work(*[0.01] * 20)
    for allowed_s in (LEAST_S["gradient"], FIRST_S, PATIENCE * FIRST_S):
        assert clock.allowed_s(item=3) == pytest.approx(allowed_s)
        clock.deadlines.given(1, "gradient", 3, clock.now)
        clock.deadlines.missed(1)
    assert clock.allowed_s(item=4) == pytest.approx(LEAST_S["gradient"])
    clock.deadlines.begin()
    assert clock.allowed_s(item=3) == pytest.approx(LEAST_S["gradient"])


def test_each_item_has_a_deadline_of_its_own_and_idle_workers_have_none() -> None:
    clock = Clocked(worker_timeout_s=2)
    clock.work(*[1.9] * 5)
    assert clock.deadlines.overdue(clock.now + 1e6) == []
    clock.deadlines.given(1, "gradient", 0, clock.now)
    clock.deadlines.given(1, "gradient", 7, clock.now + 1.5)  # more work does not make the first item newer
    ((worker, cause),) = clock.deadlines.overdue(clock.now + 2.1)
    assert worker == 1
    assert cause == "it did not answer within 2 s"


def test_who_raises_is_not_late() -> None:
    clock = Clocked(worker_timeout_s=2)
    clock.deadlines.given(1, "gradient", 0, clock.now)
    clock.deadlines.gave_up(1, 1, clock.now + 1)
    assert clock.deadlines.overdue(clock.now + 2.5) == []
    clock.deadlines.gave_up(1, None, clock.now + 2.6)
    assert clock.deadlines.overdue(clock.now + 1e6) == []


def test_late_ones_are_named_until_they_are_superseded() -> None:
    clock = Clocked(worker_timeout_s=2)
    clock.deadlines.given(1, "gradient", 0, clock.now)
    clock.deadlines.given(2, "gradient", 1, clock.now)
    assert [worker for worker, _ in clock.deadlines.overdue(clock.now + 3)] == [1, 2]
    clock.deadlines.missed(1)
    clock.deadlines.forget(1)
    assert [worker for worker, _ in clock.deadlines.overdue(clock.now + 3)] == [2]
    clock.deadlines.finished(2, None, clock.now + 3)
    assert clock.deadlines.overdue(clock.now + 3) == []
    assert clock.deadlines.wait_s(clock.now + 3, 1.0) == 1.0


def test_the_time_in_which_the_agent_itself_was_stopped_counts_against_nobody() -> None:
    """Ctrl-Z stops the whole group, and a suspended machine everything."""
    clock = Clocked(worker_timeout_s=10)
    clock.deadlines.look(clock.now)
    clock.deadlines.given(1, "gradient", 0, clock.now)
    clock.deadlines.look(clock.now + 1)
    clock.deadlines.look(clock.now + 1 + 3600)
    assert clock.deadlines.overdue(clock.now + 3605) == []
    for second in range(3602, 3611):
        clock.deadlines.look(clock.now + second)
        assert clock.deadlines.overdue(clock.now + second) == [] or second == 3610
    assert clock.deadlines.overdue(clock.now + 3611)


def test_short_gaps_do_count() -> None:
    clock = Clocked(worker_timeout_s=10)
    clock.deadlines.given(1, "gradient", 0, clock.now)
    for second in range(11):
        clock.deadlines.look(clock.now + second * 0.9 * ASLEEP_S)
    assert clock.deadlines.overdue(clock.now + 10 * 0.9 * ASLEEP_S)


def test_who_loads_must_give_signs_of_life() -> None:
    clock = Clocked()
    clock.deadlines.starts(5, clock.now)
    clock.deadlines.starts(5, clock.now + START_S - 1)
    assert clock.deadlines.overdue(clock.now + START_S + 1) == []
    assert clock.deadlines.overdue(clock.now + 2 * START_S)
    clock.deadlines.forget(5)
    assert clock.deadlines.overdue(clock.now + 1e6) == []


def stored_within(clock: Clocked, nbytes: int) -> float:
    """How long storing so many bytes may take now; it takes no time."""
    clock.deadlines.stores(9, nbytes, clock.now)
    while not clock.deadlines.overdue(clock.now + (wait_s := clock.deadlines.wait_s(clock.now, 1e9))):
        pass
    clock.deadlines.forget(9)
    return wait_s


def test_a_writer_may_take_as_long_as_slow_storage_does() -> None:
    clock = Clocked()
    assert stored_within(clock, 1000) == pytest.approx(STORE_S)
    large = 2 * int(SLOWEST_STORAGE * STORE_S)
    assert stored_within(clock, large) == pytest.approx(2 * STORE_S)
    clock.deadlines.stores(9, large, clock.now)
    clock.deadlines.stored(9, clock.now + 50)
    assert stored_within(clock, large) == pytest.approx(500)
    assert stored_within(clock, 1000) == pytest.approx(STORE_S)


def test_a_checkpoint_that_was_given_up_may_take_longer_the_next_time() -> None:
    clock = Clocked()
    clock.deadlines.stores(9, 1, clock.now)
    clock.deadlines.missed(9)
    assert stored_within(clock, 1) == pytest.approx(PATIENCE * STORE_S)
    clock.deadlines.stores(9, 1, clock.now)
    clock.deadlines.stored(9, clock.now + 1)
    assert stored_within(clock, 1) == pytest.approx(STORE_S)


def test_a_setting_overrides_it_for_writers() -> None:
    assert stored_within(Clocked(checkpoint_timeout_s=7), 1 << 40) == pytest.approx(7)


def test_no_deadline_is_ever_slept_through() -> None:
    """Whatever happened before, an agent that waits as long as it is told finds every late worker in time."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    clock = Clocked()
    due: dict[int, float] = {}
    for _ in range(3000):
        worker = rng.randrange(6)
        if worker not in due:
            clock.deadlines.given(worker, "gradient", worker, clock.now)
        else:
            clock.deadlines.finished(worker, worker if rng.random() < 0.5 else None, clock.now)
        watch = clock.deadlines._watches.get(worker)
        due.pop(worker, None)
        if watch is not None:
            due[worker] = watch.since + watch.allowed_s
        clock.now += min(clock.deadlines.wait_s(clock.now, 1.0), rng.expovariate(1.0))
        late = {number for number, _ in clock.deadlines.overdue(clock.now)}
        assert late == {number for number, end in due.items() if end <= clock.now}
        assert clock.now <= min(due.values(), default=clock.now) + 1e-6
        for number in late:
            clock.deadlines.missed(number)
            clock.deadlines.forget(number)
            del due[number]
