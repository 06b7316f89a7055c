"""Lines are stored in parts that grow, read once, and not lost while the storage fails."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import log_writer
from orchestrator.log_writer import EVERY_S, LogWriter
from orchestrator.logs import LogReader
from storage.errors import StorageError
from storage.run_directory import RunDirectory
from storage.store import open_store
from workers.lines import Line
from workers.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LINE = Line(1000.5, 1, "worker", 3, 0, 77, 5, "stdout", "hello", 0)


def lines(numbers: Iterable[int], pid: int = 77) -> list[Line]:
    return [replace(LINE, text=str(n), at=n, pid=pid, time_s=1000 + n) for n in numbers]


def texts(reader: LogReader) -> list[str]:
    return [line["text"] for line in reader.read()]


def reader(path: Path, **wanted: Any) -> LogReader:
    return LogReader(RunDirectory(open_store(str(path))), **wanted)


def writer(path: Path, attempt: int = 1) -> LogWriter:
    return LogWriter(open_store(str(path)), attempt, f"{attempt:08x}", Redactor.of(os.environ))


def test_a_line_has_who_printed_it_and_when(tmp_path: Path) -> None:
    made = writer(tmp_path)
    assert made.take(4, [LINE]) == [LINE]
    made.store(0.0)
    (part,) = (tmp_path / "logs").iterdir()
    assert part.name == "a00000001-00000001-000000.jsonl"
    assert json.loads(part.read_text()) == {
        "time": "1970-01-01T00:16:40.500+00:00",
        "attempt": 1,
        "node": 4,
        "role": "worker",
        "rank": 3,
        "generation": 0,
        "pid": 77,
        "stream": "stdout",
        "text": "hello",
        "started": 5,
        "at": 0,
    }


def test_what_was_told_is_not_told_again(tmp_path: Path) -> None:
    made = writer(tmp_path)
    made.take(0, lines(range(3)))
    assert [line.text for line in made.take(0, lines(range(5)))] == ["3", "4"]
    assert len(made.take(0, lines(range(2), pid=78))) == 2
    made.store(0.0)
    assert len(reader(tmp_path).read()) == 7


def test_a_part_grows_until_it_has_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "PART_BYTES", 900)
    monkeypatch.setattr(log_writer, "PARTS", 3)
    made, follower = writer(tmp_path), reader(tmp_path)
    found = []
    for i in range(20):
        made.take(0, lines([2 * i, 2 * i + 1]))
        made.store(i * EVERY_S)
        found += texts(follower)
    assert found == [str(n) for n in range(40)]
    parts = sorted(path.name[-12:-6] for path in (tmp_path / "logs").iterdir())
    assert len(parts) in (2, 3)
    assert parts[0] > "000000"
    kept = texts(reader(tmp_path))
    assert kept == [str(n) for n in range(40 - len(kept), 40)]


def test_lines_are_stored_every_few_seconds_and_at_the_end(tmp_path: Path) -> None:
    made = writer(tmp_path)
    made.store(0.0, last=True)
    assert not (tmp_path / "logs").exists()
    made.take(0, lines([0]))
    made.store(1.0)
    made.take(0, lines([1]))
    made.store(1.0 + EVERY_S / 2)
    assert texts(reader(tmp_path)) == ["0"]
    made.store(1.0 + EVERY_S / 2, last=True)
    assert texts(reader(tmp_path)) == ["0", "1"]


def test_what_could_not_be_stored_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    made = LogWriter(store, 1, "0" * 8, Redactor())
    with monkeypatch.context() as broken:

        def fail(*_: object) -> int:
            raise StorageError("no space")

        broken.setattr(type(store), "write", fail)
        made.take(0, lines([0, 1]))
        with pytest.raises(StorageError):
            made.store(0.0)
        made.take(0, lines([2]))
        broken.setattr(log_writer, "WAITING_BYTES", 600)
        made.take(0, lines([3]))
    made.store(EVERY_S)
    *kept, gap = texts(reader(tmp_path))
    assert kept == ["1", "2", "3"][-len(kept) :], "the newest, as far as there is room"
    assert 1 <= len(kept) < 4
    assert gap.startswith(f"({4 - len(kept)} lines are left out here")
    made.take(0, lines([4]))
    made.store(2 * EVERY_S)
    assert len(reader(tmp_path).read()) == len(kept) + 2, "that is said once"


def test_a_line_that_two_attempts_stored_is_read_once(tmp_path: Path) -> None:
    first, second = writer(tmp_path), writer(tmp_path, 2)
    first.take(0, lines([0, 1]))
    first.store(0.0)
    second.take(1, [*lines([1]), *(replace(line, attempt=2) for line in lines([2]))])
    second.store(0.0)
    found = reader(tmp_path).read()
    assert [(line["text"], line["attempt"]) for line in found] == [("0", 1), ("1", 1), ("2", 2)]


def test_secrets_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    made = writer(tmp_path)
    made.take(0, [replace(LINE, text="it is hunter2hunter2 at s3://k:s3cr3t@host")])
    made.store(0.0)
    assert texts(reader(tmp_path)) == ["it is *** at s3://k:***@host"]


def test_the_journal_is_the_coordinators_log(tmp_path: Path) -> None:
    run = RunDirectory(open_store(str(tmp_path)))
    run.create_identity({})
    attempt = run.claim_attempt()
    entries = [
        {
            "time": "1970-01-01T00:16:39.000+00:00",
            "t": 1.0,
            "kind": "ready",
            "text": "worker 0 is ready",
            "step": 0,
        },
        {
            "time": "1970-01-01T00:16:50.000+00:00",
            "t": 2.0,
            "kind": "end",
            "text": "",
            "error": "it broke",
            "step": 4,
        },
        {"time": "1970-01-01T00:16:51.000+00:00", "t": 3.0, "kind": "began", "text": ""},
    ]
    made, follower = writer(tmp_path), reader(tmp_path)
    made.take(0, lines([0]))
    made.store(0.0)
    run.write_journal(attempt, entries[:1])
    assert texts(follower) == ["worker 0 is ready", "0"]
    run.write_journal(attempt, entries)
    (last,) = follower.read()
    assert (last["text"], last["role"], last["attempt"], last["step"]) == ("it broke", "coordinator", 1, 4)


def test_of_journals_only_the_newest_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(open_store(str(tmp_path)))
    run.create_identity({})
    entry = {"time": "1970-01-01T00:16:39.000+00:00", "t": 1.0, "kind": "ready", "text": "first"}
    first, second = run.claim_attempt(), run.claim_attempt()
    run.write_journal(first, [entry])
    run.write_journal(second, [{**entry, "text": "second"}])
    follower, read = LogReader(run), list[str]()
    original = run.read_journal
    monkeypatch.setattr(run, "read_journal", lambda key: read.append(key) or original(key))
    assert texts(follower) == ["first", "second"]
    assert texts(follower) == []
    assert [key[:17] for key in read] == ["journal/a00000001", "journal/a00000002", "journal/a00000002"]
    run.write_journal(first, [entry, {**entry, "t": 2.0, "text": "late"}])
    assert texts(follower) == ["late"]


def test_a_damaged_line_is_shown_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    part = tmp_path / "logs" / "a00000007-00000001-000000.jsonl"
    part.write_bytes(b'{"time": 1}\n' + b"[" * 100_000 + b"\n\xff\n")
    (tmp_path / "logs" / "notes.txt").write_text("not a part")
    found = reader(tmp_path).read()
    assert {(line["role"], line["attempt"]) for line in found} == {("damaged", 7)}
    assert len(found) == 3
