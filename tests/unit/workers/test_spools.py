"""An agent reads what its processes print: no line twice, none left out, whoever is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.channel import address_for
from workers.lines import record
from workers.output import spool_path
from workers.processes import ProcessId
from workers.spools import CHUNK, KEPT, TOO_MUCH, Spools

ADDRESS = address_for("abc-0-0")


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(tmp_path))
    return tmp_path


def spool(rank: int = 0, pid: int | None = None) -> Path:
    process = ProcessId.current() if pid is None else ProcessId(pid, 1)
    return Path(spool_path(ADDRESS, "worker", rank, 0, process))


def write(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def say(path: Path, *texts: object) -> None:
    write(path, b"".join(record(5.0, "stdout", str(text)) for text in texts))


def texts(spools: Spools) -> list[str]:
    return [line.text for line in spools.take()]


def serving(attempt: int = 1) -> Spools:
    spools = Spools(ADDRESS)
    spools.serve(attempt)
    return spools


def test_lines_come_once_with_who_and_when(memory: Path) -> None:
    spools = serving(2)
    say(spool(rank=3), "a", "b")
    line, _ = spools.take()
    assert (line.role, line.rank, line.attempt, line.time_s) == ("worker", 3, 2, 5.0)
    assert (line.stream, line.text, line.pid) == ("stdout", "a", os.getpid())
    assert texts(spools) == []
    say(spool(rank=3), "c")
    assert texts(spools) == ["c"]
    spools.close(remove=True)
    assert [*memory.iterdir()] == []


def test_another_attempt_is_given_what_is_kept_again_as_of_its_own_time(memory: Path) -> None:
    spools = serving(1)
    say(spool(), "a")
    assert texts(spools) == ["a"]
    say(spool(), "b")
    spools.serve(2)
    say(spool(), "c")
    told = [(line.text, line.attempt, line.again) for line in spools.take()]
    assert told == [("a", 1, True), ("b", 1, False), ("c", 2, False)]


def test_a_successor_finds_the_files_beside_the_arena(memory: Path) -> None:
    arena = str(memory / "holdfast-run")
    first = serving(1)
    first.belong_to(arena)
    path = spool()
    say(path, "a")
    assert texts(first) == ["a"]
    assert not path.exists()
    (adopted,) = memory.iterdir()
    say(adopted, "b")
    second = Spools(address_for("other-0-0"))
    second.serve(3)
    second.belong_to(arena)
    assert [(line.text, line.attempt) for line in second.take()] == [("a", 1), ("b", 1)]
    say(adopted, "c")
    assert [(line.text, line.attempt) for line in second.take()] == [("c", 3)]


def test_files_of_an_agent_are_renamed_when_it_has_an_arena(memory: Path) -> None:
    spools = serving()
    say(spool(), "early")
    assert texts(spools) == ["early"]
    spools.belong_to(str(memory / "holdfast-run.1"))
    (path,) = memory.iterdir()
    assert path.name.startswith("holdfast-run.1.log-worker-0-0-")
    say(path, "late")
    assert texts(spools) == ["late"]


def test_files_of_other_agents_and_arenas_are_not_touched(memory: Path) -> None:
    (memory / "holdfast-abc-0-01.log-worker-0-0-1-1").write_bytes(record(1.0, "stdout", "theirs"))
    (memory / "holdfast-run.1.log-worker-0-0-1-1").write_bytes(record(1.0, "stdout", "theirs"))
    (memory / "holdfast-run.log-nonsense").write_bytes(record(1.0, "stdout", "nonsense"))
    spools = serving()
    spools.belong_to(str(memory / "holdfast-run"))
    assert texts(spools) == []
    spools.close(remove=True)
    assert len([*memory.iterdir()]) == 3


def test_raw_text_is_shown_once_and_last_words_need_no_newline(memory: Path) -> None:
    shown: list[str] = []
    spools = Spools(ADDRESS, shown.append)
    spools.serve(1)
    write(spool(), b"Fatal: one\nSegmentation fau")
    assert texts(spools) == ["Fatal: one"]
    write(spool(), b"lt")
    assert texts(spools) == []
    assert texts(spools) == ["Segmentation fault"]
    spools.serve(2)
    assert [*texts(spools), *texts(spools)] == ["Fatal: one", "Segmentation fault"]
    assert shown == ["Fatal: one\n", "Segmentation fault\n"]


def test_lines_without_a_newline_between_are_told_apart(memory: Path) -> None:
    spools = serving()
    say(spool(), "a")
    write(spool(), b"raw" + record(1.0, "stderr", "b"))
    lines = spools.take()
    assert [line.text for line in lines] == ["a", "raw", "b"]
    assert len({line.at for line in lines}) == 3


def test_a_secret_in_raw_text_is_hidden(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2hunter2")
    spools = serving()
    write(spool(), b"token hunter2hunter2\n")
    assert texts(spools) == ["token ***"]


def test_memory_is_given_back_and_the_end_is_kept(memory: Path) -> None:
    spools = serving()
    path = spool()
    for start in range(0, 40_000, 2000):
        say(path, *range(start, start + 2000))
        while texts(spools):
            pass
    size, used = path.stat().st_size, path.stat().st_blocks * 512
    assert size > 15 * KEPT
    assert used < 4 * KEPT
    spools.serve(2)
    kept = [int(line.text) for line in spools.take()]
    assert kept == [*range(kept[0], 40_000)]
    assert KEPT / 40 < len(kept) < 40_000
    successor = serving(3)
    again = [*(int(line.text) for line in successor.take())]
    assert again == [*range(again[0], 40_000)]


def test_more_than_can_be_handed_on_is_left_out_and_said(memory: Path) -> None:
    spools = serving()
    path = spool()
    write(path, b"x" * 60 + b"\n" + (b"y" * 63 + b"\n") * (TOO_MUCH // 64 + 1000))
    said = texts(spools)
    assert "bytes are left out here" in said[0]
    assert set(said[1:]) == {"y" * 63}
    assert len(said) <= CHUNK // 64 + 1
    say(path, "end")
    assert texts(spools) == ["end"]


def test_the_file_of_a_process_that_has_ended_goes(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spools = serving()
    path = spool(pid=2**22)
    say(path, "gone")
    assert texts(spools) == ["gone"]
    monkeypatch.setattr("workers.spools.ENDED_S", 0.0)
    spools.take()
    assert not path.exists()


PROGRAM = """
import os, subprocess, sys, threading
from workers.output import keep_output
output = keep_output(sys.argv[1].replace("@", "\\0"), "worker", 1, 2)
print("out", 1)
print("part", end=""); print("ial")
print("err", file=sys.stderr)
sys.stderr.writelines(["a\\n", "b\\n"])
os.write(1, b"raw\\n")
subprocess.run(["echo", "child"], check=True)
subprocess.run(["echo", "handed"], check=True, stdout=sys.stdout)
print("value of", os.environ["MY_SECRET"])
output.show("shown only\\n")
print("no newline at the end", end="")
if sys.argv[2] == "raise":
    raise ValueError("told by the interpreter")
if sys.argv[2] == "crash":
    import faulthandler
    faulthandler.enable()
    sys.stdout.flush()
    faulthandler._sigsegv()
"""


def ran(how: str, expected: int) -> tuple[str, list[str]]:
    environment = {**os.environ, "MY_SECRET": "hunter2hunter2"}
    command = [sys.executable, "-c", PROGRAM, ADDRESS.replace("\0", "@"), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == expected, done.stderr
    spools = serving()
    return done.stdout + done.stderr, [f"{line.stream}: {line.text}" for line in spools.take()]


def test_what_a_process_prints_is_shown_and_kept(memory: Path) -> None:
    shown, kept = ran("", 0)
    assert kept == [
        *("stdout: out 1", "stdout: partial", "stderr: err", "stderr: a", "stderr: b", "raw: raw"),
        *("raw: child", "raw: handed", "stdout: value of ***", "stdout: no newline at the end"),
    ]
    assert shown.splitlines() == [
        *("out 1", "partial", "value of ***", "no newline at the enderr", "a", "b", "shown only")
    ]


def test_the_traceback_of_a_process_is_kept(memory: Path) -> None:
    shown, kept = ran("raise", 1)
    assert "ValueError: told by the interpreter" in shown
    assert "stderr: ValueError: told by the interpreter" in kept


def test_the_last_words_of_a_crash_are_kept(memory: Path) -> None:
    _, kept = ran("crash", -11)
    assert "raw: Fatal Python error: Segmentation fault" in kept
