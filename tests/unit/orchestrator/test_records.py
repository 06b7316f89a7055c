"""What must not be forgotten is stored at once, by a thread, in an order that a kill cannot spoil."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import records
from orchestrator.events import Note
from orchestrator.history import read_ledger
from orchestrator.ledger import Ledger, Meter, Pace
from orchestrator.records import Records
from storage.errors import StorageError
from storage.run_directory import RunDirectory
from storage.testing import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGN = {"step": 3, "totals": Ledger().totals.to_json()}
DEATH = Note("replaced", "worker 0 is gone", {"role": "worker", "rank": 0, "node": 0, "cause": "it is gone"})


class Watcher:
    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note) -> None:
        self.notes.append(note)


@pytest.fixture
def run() -> RunDirectory:
    return RunDirectory(MemoryStore())


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def book(run: RunDirectory, watcher: Watcher) -> Iterator[Records]:
    book = Records(run, watcher, Ledger(), Meter(Pace(), 0))
    book.open(run.claim_attempt(), lambda: dict(SIGN))
    yield book
    book.stop()


def kinds(run: RunDirectory) -> list[str]:
    return [line["kind"] for line in run.journal()]


def until(condition: Any, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_an_important_note_is_durable_within_moments_and_others_wait(
    book: Records, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LOOK_S", 60.0)
    book.follow(lambda: dict(SIGN), bool)
    small = book.note(Note("ready", "worker 0 is ready", {}))
    time.sleep(0.2)
    assert not book.durable(small)
    began = time.monotonic()
    number = book.note(DEATH)
    until(lambda: book.durable(number))
    assert time.monotonic() - began < 1.0
    assert book.durable(small), "what came before is stored with it"
    assert kinds(run) == ["ready", "replaced"]
    ledger, damaged = read_ledger(run, run.newest_beat())
    assert ledger == book.ledger.at_least(ledger.totals, 3)
    assert damaged == []


def test_noting_does_not_wait_for_the_storage(
    book: Records, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, release = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        stuck.set()
        release.wait(30)

    monkeypatch.setattr(run, "write_journal", slow)
    book.follow(lambda: dict(SIGN), bool)
    number = book.note(DEATH)
    assert stuck.wait(10)
    began = time.monotonic()
    for _ in range(100):
        book.note(DEATH)
    assert time.monotonic() - began < 1.0
    assert not book.durable(number)
    release.set()
    until(lambda: book.durable(number))


def test_a_storage_that_fails_is_complained_about_and_holds_nobody_up(
    book: Records, run: RunDirectory, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(run, "write_journal", fail)
    number = book.note(DEATH)
    book.keep()
    assert book.durable(number), "what waits for it goes on"
    assert "the disk is full" in watcher.notes[-1].text
    monkeypatch.undo()
    book.keep()
    assert kinds(run) == ["replaced"], "what could not be stored is stored later"


def test_the_journal_is_stored_before_the_sign_of_life(
    book: Records, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise StorageError("killed here")

    monkeypatch.setattr(run, "beat", fail)
    book.note(DEATH)
    book.keep()
    ledger, _ = read_ledger(run, None)
    assert ledger.worker_deaths == 1


def test_a_new_attempt_has_a_journal_of_its_own(book: Records, run: RunDirectory) -> None:
    book.note(DEATH)
    book.keep()
    book.open(run.claim_attempt(), lambda: dict(SIGN))
    book.note(DEATH)
    book.keep()
    assert len(run.journals()) == 2
    assert [len(run.read_journal(key)) for key in run.journals()] == [1, 1]
    assert read_ledger(run, None)[0].worker_deaths == 2


def test_the_journal_of_a_long_attempt_stays_small(book: Records, run: RunDirectory) -> None:
    for step in range(1200):
        book.note(Note("checkpoint", f"checkpoint of step {step} committed", {"step": step}))
    book.note(DEATH)
    for _ in range(5):
        book.note(Note("checkpoint-skipped", "skipped", {"step": 1}))
    book.keep()
    lines = run.journal()
    assert [line["kind"] for line in lines].count("checkpoint") == 500
    assert lines[-1]["times"] == 5, "one entry for each row of them"
    assert read_ledger(run, None)[0].highest_step == 1199


def test_a_damaged_journal_costs_what_it_told_and_not_the_run(book: Records, run: RunDirectory) -> None:
    book.note(DEATH)
    book.keep()
    run.store.write(run.journals()[0], (b'{"kind": "repl',))
    book.open(run.claim_attempt(), lambda: dict(SIGN))
    book.note(DEATH)
    book.keep()
    ledger, damaged = read_ledger(run, None)
    assert ledger.worker_deaths == 1
    assert len(damaged) == 1
