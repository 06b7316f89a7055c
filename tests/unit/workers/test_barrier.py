"""The barrier gives each item to one live worker, loses none, and lets nobody write where others may read."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.barrier import Assignment, Barrier


class BarrierMachine(RuleBasedStateMachine):
    """A node's workers that join, finish, raise, are let go, die and are found dead, in any order."""

    @initialize(microbatches=st.integers(1, 6), spare=st.integers(1, 3))
    def open(self, microbatches: int, spare: int) -> None:
        self.num_items = microbatches
        self.num_slots = microbatches + spare
        self.barrier = Barrier(self.num_slots)
        self.queues: dict[int, list[int]] = {}  # live worker -> unfinished items, in order
        self.slots: dict[tuple[int, int], int] = {}  # (live worker, item) -> slot it was told to write
        self.retiring: dict[int, set[int]] = {}  # dead or superseded worker -> slots that it may still write
        self.accepted: dict[int, int] = {}  # item -> slot, of the last phase with slots
        self.undone: set[int] = set()
        self.abandoned = False
        self.leaving: set[int] = set()  # dismissed, and not done yet
        self.use_slots = False
        self.deaths: Counter[int] = Counter()
        self.errors: Counter[int] = Counter()
        self.raised_on: dict[int, int] = {}  # item -> worker that it raised on last
        self.next_worker = 0

    # -- what the model keeps ---------------------------------------------------------------------------

    def take(self, assignments: list[Assignment]) -> None:
        for assignment in assignments:
            assert assignment.items, "an empty assignment"
            assert assignment.worker in self.queues, "work was given to one that is not there"
            assert assignment.worker not in self.leaving, "work was given to one that is to leave"
            assert len(assignment.slots) == (len(assignment.items) if self.use_slots else 0)
            for item in assignment.items:
                assert item in self.undone, "work that is done was given out"
                assert all(item not in queue for queue in self.queues.values()), "an item has two workers"
                sole = len(self.staying()) == 1
                assert sole or self.raised_on.get(item) != assignment.worker, "it raised on this one"
                self.queues[assignment.worker].append(item)
            for item, slot in zip(assignment.items, assignment.slots, strict=False):
                assert slot not in self.written(), "a slot was given out that another may write or read"
                self.slots[assignment.worker, item] = slot
        workers = [assignment.worker for assignment in assignments]
        assert len(workers) == len(set(workers))

    def written(self) -> list[int]:
        """Slots that may be written, or hold an accepted result; each may be there once."""
        may_write = [slot for slots in self.retiring.values() for slot in slots]
        return [*self.slots.values(), *may_write, *self.accepted.values()]

    def waiting(self) -> set[int]:
        return self.undone - {item for queue in self.queues.values() for item in queue}

    def staying(self) -> list[int]:
        return [worker for worker in self.queues if worker not in self.leaving]

    def loads(self) -> dict[int, int]:
        return {worker: len(self.queues[worker]) for worker in self.staying()}

    # -- what can happen --------------------------------------------------------------------------------

    @precondition(lambda self: not self.undone and not self.retiring)
    @rule(data=st.data(), use_slots=st.booleans())
    def begin(self, data: st.DataObject, use_slots: bool) -> None:
        count = data.draw(st.integers(0, self.num_items))
        self.use_slots = use_slots
        self.undone = set(range(count))
        self.abandoned = False
        self.deaths.clear()
        self.errors.clear()
        self.raised_on.clear()
        if use_slots:
            self.accepted = {}
        assignments = self.barrier.begin(range(count), use_slots=use_slots)
        self.take(assignments)
        if self.staying():
            sizes = [*self.loads().values()]
            assert max(sizes) - min(sizes) <= 1, "unequal shares"

    @precondition(lambda self: len(self.queues) < 8)
    @rule()
    def join(self) -> None:
        worker, self.next_worker = self.next_worker, self.next_worker + 1
        self.queues[worker] = []
        self.take(self.barrier.join(worker))

    @precondition(lambda self: any(self.queues.values()))
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w, queue in self.queues.items() if queue]))
        item = self.queues[worker].pop(0)
        self.undone.discard(item)
        if self.use_slots:
            self.accepted[item] = self.slots.pop((worker, item))
        assert self.barrier.done(worker, item)
        assert not self.barrier.done(worker, item), "the same result was accepted twice"
        self.leave(worker)

    @rule(data=st.data(), item=st.integers(0, 6))
    def done_by_somebody_else(self, data: st.DataObject, item: int) -> None:
        """Late or wrong messages change nothing."""
        worker = data.draw(st.integers(0, self.next_worker))
        if item not in self.queues.get(worker, ()):
            assert not self.barrier.done(worker, item)
            assert self.barrier.failed(worker, item) == (0, [])

    @precondition(lambda self: any(self.queues.values()))
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w, queue in self.queues.items() if queue]))
        item = self.queues[worker].pop(0)
        self.slots.pop((worker, item), None)
        self.errors[item] += 1
        times, assignments = self.barrier.failed(worker, item)
        assert times == self.errors[item]
        self.raised_on[item] = worker
        self.take(assignments)
        self.leave(worker)

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def dismiss(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.queues)))
        self.leaving.add(worker)
        assert self.barrier.dismiss(worker) == (not self.queues[worker])
        self.leave(worker)

    def leave(self, worker: int) -> None:
        if worker in self.leaving and not self.queues[worker]:
            self.barrier.leave(worker)
            del self.queues[worker]
            self.leaving.remove(worker)

    @rule(worker=st.integers(0, 9))
    def dismiss_somebody_else(self, worker: int) -> None:
        if worker not in self.queues:
            assert self.barrier.dismiss(worker)

    @precondition(lambda self: self.undone and not any(self.queues.values()) and not self.retiring)
    @rule()
    def abandon(self) -> None:
        """Nobody is at work: the phase can be given up, and its slots are used again in time."""
        assert self.barrier.idle
        self.barrier.abandon()
        self.undone = set()
        self.abandoned = True

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def lost(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.queues)))
        queue = self.queues.pop(worker)
        self.leaving.discard(worker)
        self.retiring[worker] = {self.slots.pop((worker, item)) for item in queue if self.use_slots}
        if queue:
            self.deaths[queue[0]] += 1
        before = self.loads()
        blamed, deaths, assignments = self.barrier.lost(worker)
        assert blamed == (queue[0] if queue else None)
        assert deaths == (self.deaths[queue[0]] if queue else 0)
        self.take(assignments)
        self.goes_to_the_idlest(before, assignments)

    @precondition(lambda self: self.retiring)
    @rule(data=st.data())
    def gone(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.retiring)))
        del self.retiring[worker]
        before = self.loads()
        assignments = self.barrier.gone(worker)
        self.take(assignments)
        self.goes_to_the_idlest(before, assignments)

    def goes_to_the_idlest(self, before: dict[int, int], assignments: list[Assignment]) -> None:
        if self.errors:
            return  # not to whom it raised on, however idle
        given = {assignment.worker: len(assignment.items) for assignment in assignments}
        assert max(given.values(), default=0) - min(given.values(), default=0) <= 1
        left_out = [load for worker, load in before.items() if worker not in given]
        if given and left_out:
            assert max(before[worker] for worker in given) <= min(left_out)

    # -- what always holds ------------------------------------------------------------------------------

    @invariant()
    def every_slot_has_one_use(self) -> None:
        used = self.written()
        assert len(used) == len(set(used))
        assert set(used) <= set(range(self.num_slots))

    @invariant()
    def nothing_waits_that_somebody_could_do(self) -> None:
        free = self.num_slots - len(self.written())
        if self.waiting() and self.staying():
            assert self.use_slots
            assert free == 0

    @invariant()
    def complete_means_all_done_and_nobody_left_who_could_write(self) -> None:
        assert self.barrier.complete == (not self.undone and not self.retiring)
        assert self.barrier.idle == (not any(self.queues.values()) and not self.retiring)
        assert set(self.barrier.members) == set(self.staying())
        assert all((worker in self.barrier) == (worker in self.queues) for worker in range(10))
        assert self.barrier.slots == self.accepted

    @invariant()
    def everybody_is_at_the_first_of_its_items(self) -> None:
        for worker in range(self.next_worker + 1):
            assert self.barrier.current(worker) == next(iter(self.queues.get(worker, [])), None)

    def teardown(self) -> None:
        """Whatever happened, the phase comes to its end once workers live and the dead are found dead."""
        if not hasattr(self, "barrier"):
            return
        self.join()
        while self.retiring:
            worker = next(iter(self.retiring))
            del self.retiring[worker]
            self.take(self.barrier.gone(worker))
        for _ in range(100):
            busy = [worker for worker, queue in self.queues.items() if queue]
            if not busy:
                break
            item = self.queues[busy[0]].pop(0)
            self.undone.discard(item)
            if self.use_slots:
                self.accepted[item] = self.slots.pop((busy[0], item))
            assert self.barrier.done(busy[0], item)
            self.leave(busy[0])
        assert self.barrier.complete, f"items {self.undone} are lost"
        if self.use_slots and not self.abandoned:
            assert sorted(self.barrier.slots) == list(range(len(self.barrier.slots)))


TestBarrier = BarrierMachine.TestCase
TestBarrier.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)


def test_items_are_shared_evenly_and_in_order() -> None:
    barrier = Barrier(8)
    for worker in (10, 11, 12):
        barrier.join(worker)
    assignments = barrier.begin(range(7), use_slots=True)
    assert sorted(len(assignment.items) for assignment in assignments) == [2, 2, 3]
    assert [item for assignment in assignments for item in assignment.items] == list(range(7))


def test_a_lost_item_is_redone_at_once_in_the_spare_slot() -> None:
    barrier = Barrier(3)
    barrier.join(1)
    barrier.join(2)
    first, second = barrier.begin(range(2), use_slots=True)
    _, _, (again,) = barrier.lost(first.worker)
    assert (again.worker, again.items) == (second.worker, first.items)
    assert again.slots[0] not in first.slots + second.slots


def test_without_a_spare_slot_lost_work_waits_for_the_end_of_the_process() -> None:
    barrier = Barrier(2)
    barrier.join(1)
    barrier.join(2)
    first, second = barrier.begin(range(2), use_slots=True)
    assert barrier.lost(first.worker)[2] == []
    barrier.done(second.worker, second.items[0])
    assert not barrier.complete
    (again,) = barrier.gone(first.worker)
    assert again == Assignment(second.worker, first.items, first.slots)


def test_the_slots_of_a_step_are_kept_until_the_next_gradient() -> None:
    """The update between reads them; so does nothing else write them."""
    barrier = Barrier(3)
    barrier.join(1)
    (gradient,) = barrier.begin(range(2), use_slots=True)
    for item in gradient.items:
        barrier.done(1, item)
    kept = dict(barrier.slots)
    barrier.begin(range(2), use_slots=False)
    for item in range(2):
        barrier.done(1, item)
    assert barrier.slots == kept
    barrier.begin(range(1), use_slots=True)
    assert barrier.slots == {}


def test_an_idle_worker_that_dies_is_blamed_on_no_item() -> None:
    barrier = Barrier(2)
    barrier.join(1)
    barrier.begin(range(0), use_slots=True)
    assert barrier.lost(1) == (None, 0, [])


def test_three_deaths_on_one_item_are_counted_and_a_new_phase_counts_anew() -> None:
    barrier = Barrier(2)
    for phase in range(2):
        barrier.join(100 * phase)
        barrier.begin(range(1), use_slots=True)
        for death in range(3):
            worker = 100 * phase + death
            item, deaths, _ = barrier.lost(worker)
            assert (item, deaths) == (0, death + 1)
            barrier.gone(worker)
            barrier.join(worker + 1)
        barrier.done(100 * phase + 3, 0)
        barrier.lost(100 * phase + 3)
        barrier.gone(100 * phase + 3)


def test_a_phase_cannot_begin_while_a_superseded_worker_may_still_write() -> None:
    barrier = Barrier(2)
    barrier.join(1)
    barrier.lost(1)
    with pytest.raises(AssertionError):
        barrier.begin(range(1), use_slots=True)


def test_an_item_that_raised_and_had_to_wait_for_a_slot_is_tried_by_another_worker() -> None:
    """Two tries on one worker could not tell a fault of the host from one of the job."""
    barrier = Barrier(3)
    for worker in (1, 2, 3, 4):
        barrier.join(worker)
    owner = {a.items[0]: a.worker for a in barrier.begin(range(2), use_slots=True)}
    _, _, (again,) = barrier.lost(owner[1])  # takes the spare slot
    assert barrier.lost(again.worker)[2] == []  # no slot is left for item 1
    _, assignments = barrier.failed(owner[0], 0)  # its slot goes to item 1, and item 0 waits
    assert [a.items for a in assignments] == [(1,)]
    (later,) = barrier.gone(again.worker)
    assert later.items == (0,)
    assert later.worker != owner[0]


def test_an_item_under_review_goes_to_another_worker_and_slot_and_keeps_the_others() -> None:
    barrier = Barrier(4)
    barrier.join(1)
    barrier.join(2)
    for assignment in barrier.begin(range(3), use_slots=True):
        for item in assignment.items:
            barrier.done(assignment.worker, item)
    before, maker = dict(barrier.slots), barrier.makers[1]
    (again,) = barrier.review(1)
    assert (again.worker, again.items) == (3 - maker, (1,))
    assert again.slots[0] not in before.values()
    barrier.done(again.worker, 1)
    assert barrier.reviewed(1) == (before[1], again.slots[0])
    barrier.accept(1)
    assert barrier.slots == before | {1: again.slots[0]}
    (third,) = barrier.review(1)
    assert (third.worker, third.slots) == (maker, (before[1],))
    barrier.done(third.worker, 1)
    slots = [slot for a in barrier.begin(range(4), use_slots=True) for slot in a.slots]
    assert sorted(slots) == [0, 1, 2, 3], "a slot was lost"


def test_a_worker_that_was_dismissed_at_work_and_dies_leaves_its_work_to_others() -> None:
    barrier = Barrier(4)
    barrier.join(1)
    barrier.join(2)
    first, second = barrier.begin(range(2), use_slots=True)
    assert not barrier.dismiss(first.worker)
    assert first.worker not in barrier.members
    assert first.worker in barrier
    _, _, (again,) = barrier.lost(first.worker)
    assert (again.worker, again.items) == (second.worker, first.items)


def test_a_dismissed_worker_that_dies_at_its_last_item_is_superseded_as_any_other() -> None:
    barrier = Barrier(3)
    barrier.join(1)
    barrier.join(2)
    barrier.begin(range(2), use_slots=True)
    assert not barrier.dismiss(1)
    assert barrier.members == (2,)
    assert 1 in barrier
    item, deaths, (again,) = barrier.lost(1)
    assert (item, deaths, again.worker) == (0, 1, 2)
    assert not barrier.complete


def test_what_nobody_works_on_can_be_abandoned_and_its_slots_are_not_lost() -> None:
    barrier = Barrier(3)
    for _ in range(20):
        barrier.join(1)
        (work,) = barrier.begin(range(2), use_slots=True)
        barrier.done(1, work.items[0])
        barrier.lost(1)
        assert not barrier.idle
        barrier.gone(1)
        assert barrier.idle
        assert not barrier.complete
        barrier.abandon()
        assert barrier.complete


def test_a_phase_that_is_given_up_leaves_nothing_to_wait_for():
    barrier = Barrier(num_slots=4)
    for worker in (1, 2, 3):
        barrier.join(worker)
    given = barrier.begin(range(5), use_slots=False)
    for item in next(each.items for each in given if each.worker == 3):
        barrier.done(3, item)
    assert sorted(barrier.cancel()) == [1, 2]
    assert barrier.complete
    assert not barrier.done(1, 0), "its result is not wanted any more"
    assert sum(len(each.items) for each in barrier.begin(range(3), use_slots=True)) == 3
