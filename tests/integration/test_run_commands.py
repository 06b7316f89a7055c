"""`holdfast list`, `stop`, `kill`, `resume`, `clone` and `status --watch`: to look after runs."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from orchestrator.relaunch import awaited
from storage.run_directory import RunDirectory
from storage.store import open_store
from tests.integration.harness import LIMIT_S, Progress, Started, latest, saved

if TYPE_CHECKING:
    from tests.integration.harness import Place


FAILS = """
from orchestrator import Job

def model():
    raise RuntimeError("no model today")

job = Job(model=model, data=list, batch_size=4, microbatches=2, steps=5)
"""

NOT_FINITE = """
import numpy as np
from orchestrator import Job
from workers import nn
from workers.data import ArrayDataset

def model():
    m = nn.Sequential([nn.Input((3,)), nn.Dense(2)])
    m.compile("sgd", nn.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
    return m

def data():
    return ArrayDataset(np.full((8, 3), np.nan, np.float32), np.zeros(8, np.int64))

job = Job(model=model, data=data, batch_size=4, microbatches=2, steps=5, on_divergence="ignore")
"""


def begun(place: Place, name: str = "run", **options: Any) -> Started:
    """A slow run that has come beyond step 3."""
    progress = Progress(place.root / f"{name}-progress")
    run = place.begin("tiny.py", name, settings={"delay_s": 0.02, "progress": progress}, **options)
    run.until(lambda: progress.steps > 4, "it trains")
    return run


def steps_of(place: Place, run: str = "run") -> list[int]:
    return [each.step for each in saved(place.root / run)]


def status(place: Place, run: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = place.cli("status", run, "--json").expect(0).json
    return found


def test_a_run_is_stopped_with_a_checkpoint_and_resumed_to_the_same_digest(place: Place) -> None:
    whole = place.run("tiny.py", "whole").done()
    run = begun(place)
    stopped = place.cli("stop", "run", "--json").expect(0).json
    assert stopped["status"] == "interrupted"
    assert run.wait().expect(130).json["status"] == "interrupted"
    assert latest(place.root / "run").step == stopped["step"] > 3
    resumed = place.cli("resume", "run", "--workers", "1", "--set", "delay_s=0", "--json").done()
    assert resumed["state_digest"] == whole["state_digest"]
    assert place.cli("stop", "run", "--json").expect(0).json["status"] == "done"
    place.assert_nothing_left()


def test_a_run_whose_cluster_is_gone_is_told_as_silent_and_goes_on_here(place: Place) -> None:
    whole = place.run("tiny.py", "whole").done()
    begun(place).kill_everything()
    run = RunDirectory(open_store(str(place.root / "run")))
    attempt, last = run.claim_attempt(), run.newest_beat()
    then = datetime.now(UTC) - timedelta(hours=2, minutes=3)
    run.beat(attempt, {**last, "host": "gone", "boot_id": "x", "time": then.isoformat()})

    told = status(place)
    assert (told["status"], told["silent_s"]) == ("running", 7380.0)
    line = f"next: process {last['pid']} on gone has given no sign of life for 2:03:00: if it is gone, run or"
    assert line in place.cli("status", "run").expect(0).stdout
    listed = place.cli("list", ".").expect(0).stdout
    assert "running, silent for 2:03:00" in listed, listed
    text = "has given no sign of life for 15 s: if it is gone, nothing is left to stop"
    place.cli("stop", "run").one_clear_line(75, f"process {last['pid']} on gone, which trains", text)
    resumed = place.cli("resume", "run", "--set", "delay_s=0", "--json").done()
    assert (resumed["state_digest"], resumed["silent_s"]) == (whole["state_digest"], None)


def test_a_run_is_killed_without_a_checkpoint_even_if_its_coordinator_hangs(place: Place) -> None:
    for hangs in (False, True):
        run = begun(place, f"run-{hangs}")
        if hangs:
            psutil.Process(run.popen.pid).children()[0].suspend()
        place.cli("kill", f"run-{hangs}", "--timeout", "5").expect(0)
        assert run.wait().code != 0
        assert steps_of(place, f"run-{hangs}") in ([], [0], [20])
    place.forget_memory()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_submitted_run_that_waits_for_its_restart_is_stopped_by_its_directory(
    place: Place, how: str
) -> None:
    progress = Progress(place.root / "progress")
    words = place.command(run_dir=place.root / "run", settings={"delay_s": 0.02, "progress": progress})
    supervise = [sys.executable, "-m", "orchestrator.supervision", "--retries", "10", "--"]
    supervisor = Started(place, [*supervise, *words], place.env)
    place.started.append(supervisor)
    supervisor.until(lambda: progress.steps > 30, "it trains")
    run = RunDirectory(open_store(str(place.root / "run")))
    children = supervisor.driver.children(recursive=True)
    for child in children:
        child.kill()
    supervisor.until(lambda: awaited(run), "it waits")
    supervisor.driver.suspend()  # for longer than it was going to
    stands = status(place)
    assert (stands["status"], stands["error"]) == ("running", None)
    assert "before restart 1 of 10: the run was killed by signal 9" in stands["next"]
    place.cli("resume", "run").one_clear_line(4, "about to be started again", "holdfast stop")
    stopping = place.start([how, "run", "--json"])
    stopping.until(lambda: run.requested("stop"), "it is asked to stop")
    supervisor.driver.resume()
    assert stopping.wait().expect(0).json["status"] == "failed"
    assert "stopped while waiting" in supervisor.wait().expect(130).stderr
    assert "nothing to stop" in place.cli(how, "run").expect(0).stderr
    assert status(place)["attempt"] == 1
    resumed = place.cli("resume", "run", "--set", "delay_s=0", "--json").done()
    assert resumed["steps_lost"] == 0
    place.assert_nothing_left(sockets=False)


def test_a_run_goes_on_from_an_earlier_checkpoint(place: Place) -> None:
    first = place.run("tiny.py", steps=60, settings={"delay_s": 0.005}).done()
    assert steps_of(place) == [20, 40, 60]
    place.cli("resume", "run", "--step", "30").one_clear_line(2, "no checkpoint of step 30", "20, 40, 60")
    again = place.cli("resume", "run", "--step", "20", "--json").done()
    assert again["state_digest"] == first["state_digest"]
    assert again["attempt"] > first["attempt"] + 1
    place.assert_nothing_left()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--workers", "abc"], ["'abc'"]),
        (["--workers", "6"], ["5 microbatches"]),
        (["--steps", "0"], ["steps=0"]),
        (["--set", "bogus=1"], ["no parameter 'bogus'"]),
        (["--set", "hidden=wide"], ["hidden=wide"]),
        (["--set", "seed=7"], ["seed"]),
    ],
)
def test_what_is_refused_changes_nothing(place: Place, words: list[str], parts: list[str]) -> None:
    place.run("tiny.py", steps=40).done()
    before = place.cli("ckpt", "ls", "run", "--json").expect(0).json
    for command in (["resume", "run", "--step", "20"], ["clone", "run", "other", "--step", "20"]):
        place.cli(*command, *words).one_clear_line(2, *parts)
        refused = place.cli(*command, *words, "--json").expect(2).json
        assert (refused["status"], refused["run_dir"]) == ("failed", "run")
    assert place.cli("ckpt", "ls", "run", "--json").expect(0).json == before
    assert not (place.root / "other").exists()
    place.cli("clone", "run", "run").one_clear_line(2, "the run itself")
    place.cli("stop", "run", "--timeout", "-1").one_clear_line(2, "--timeout")


def test_what_is_given_to_resume_takes_the_place_of_what_was_given_then(place: Place) -> None:
    settings = place.root / "night.toml"
    settings.write_text('workers = 2\nruntime = "process"\n[set]\nhidden = 8\n')
    place.cli("run", "tiny.py", "--run-dir", "run", "--config", "night.toml", "--steps", "20").expect(0)
    settings.unlink()  # all it said is on record
    resumed = place.cli("resume", "run", "--set", "steps=30", "--json").done()
    assert (resumed["step"], resumed["attempt"]) == (30, 2)
    again = place.cli("resume", "run", "--steps", "40", "--workers", "1").expect(0).stderr.splitlines()
    words = next(line for line in again if line.startswith("holdfast run ")).split()
    assert [words.count(each) for each in ("--run-dir", "--steps", "--workers")] == [1, 1, 1]
    assert not any("night" in word for word in words)


def test_a_copy_of_a_run_is_told_from_one_that_was_never_started(place: Place) -> None:
    first = place.run("tiny.py", steps=20).done()
    place.cli("ckpt", "cp", "run", "copy").expect(0)
    copied = status(place, "copy")
    assert (copied["status"], copied["step"], copied["error"]) == ("interrupted", 20, None)
    assert copied["state_digest"] == first["state_digest"]
    assert place.cli("clone", "run", "clone", "--json").done()["step"] == 20
    cloned = status(place, "clone")
    assert (cloned["status"], cloned["step"], cloned["loss"]) == ("done", 20, first["loss"])
    assert place.cli("resume", "clone", "--steps", "30", "--json").done()["restarts"] == 0
    place.file("save.py", "import numpy as np, storage\nstorage.save('saved', {'a': np.ones(3)}, step=1)\n")
    place.python("save.py").expect(0)
    place.cli("status", "saved").one_clear_line(2, "not that of a training run")


def test_a_clone_is_a_run_of_its_own_with_other_settings(place: Place) -> None:
    place.run("tiny.py", steps=40).done()
    longer = place.cli("clone", "run", "longer", "--steps", "80", "--json").done()
    assert (longer["step"], status(place)["step"]) == (80, 40)
    assert longer["state_digest"] == place.run("tiny.py", "whole", steps=80).done()["state_digest"]
    place.cli("clone", "run", "longer").expect(2)
    elsewhere = place.root / "elsewhere"
    elsewhere.mkdir()  # names are as the user sees them, whatever folder the run was started in
    words = [sys.executable, "-m", "orchestrator", "clone", "../run", "other", "--step", "20"]
    subprocess.run(words, cwd=elsewhere, env=place.env, check=True, timeout=LIMIT_S, capture_output=True)
    assert status(place, "elsewhere/other")["status"] == "done"
    place.assert_nothing_left()


def test_runs_are_listed_with_how_they_stand(place: Place) -> None:
    place.run("tiny.py", "runs/one", steps=20).done()
    place.run("tiny.py", "runs/two", settings={"batch": 0}).expect(2)
    (place.root / "runs" / "something").mkdir()
    found = place.cli("list", "runs", "--json").expect(0).json
    assert [(each["name"], each["status"], each["step"]) for each in found] == [("one", "done", 20)]
    lines = place.cli("list", "runs").expect(0).stdout.splitlines()
    assert lines[0].split() == ["RUN", "STATUS", "STEP", "LOSS", "RESTARTS", "DEATHS"]
    assert lines[1].split()[:3] == ["one", "done", "20"]
    (place.root / "runs" / "torn").mkdir()
    (place.root / "runs" / "torn" / "run.json").write_text('{"x":')
    place.file("fails.py", FAILS)
    place.run("fails.py", "runs/fails").expect(1)
    found = {each["name"]: each for each in place.cli("list", "runs", "--json").expect(0).json}
    assert found.keys() == {"one", "torn", "fails"}
    assert "damaged" in found["torn"]["error"]
    assert (found["fails"]["status"], found["fails"]["failure"]) == ("failed", "user error")
    assert "no runs" in place.cli("list", "runs/something").expect(0).stderr
    place.cli("list", "nowhere").one_clear_line(2, "there is no directory nowhere")
    place.cli("list", f"file://{place.root}/nowhere").one_clear_line(2, "there is no directory")
    place.file("a-file", "text")
    place.cli("list", "a-file").one_clear_line(2, "a-file")
    assert "no runs" in place.cli("list", "memory://nowhere").expect(0).stderr
    failed = place.cli("list", "nowhere", "--json").expect(2).json
    assert failed.keys() == {"status", "error"}
    assert failed["error"].startswith("there is no directory nowhere")


def test_a_living_run_is_watched_to_its_end_and_not_resumed(place: Place) -> None:
    run = begun(place, steps=200)
    place.cli("resume", "run").one_clear_line(4, "is being trained")
    watched = place.cli("status", "run", "--watch").expect(0).stdout
    assert watched.count("run directory") > 1
    assert "done at step 200" in watched
    run.wait().done()
    place.assert_nothing_left()


def test_a_run_whose_loss_is_not_finite_is_looked_at_as_any_other(place: Place) -> None:
    place.file("nan.py", NOT_FINITE)
    place.run("nan.py", "runs/nan").done()
    assert status(place, "runs/nan")["loss"] is None
    assert "loss nan" in place.cli("status", "runs/nan").expect(0).stdout
    assert place.cli("kill", "runs/nan", "--json").expect(0).json["status"] == "done"
    assert place.cli("list", "runs", "--json").expect(0).json[0]["loss"] is None
    place.cli("report", "runs/nan", "--out", "report.html").expect(0)


def test_what_a_run_directory_says_makes_a_terminal_do_nothing(place: Place) -> None:
    place.run("tiny.py", "runs/one", steps=20).done()
    beat = next((place.root / "runs" / "one" / "attempts").glob("*.alive.json"))
    sign = json.loads(beat.read_text())
    beat.write_text(
        json.dumps(sign | {"status": "failed", "error": "boo\x1b[2J", "metrics": {"a\x1b[31m": 1.0}})
    )
    (place.root / "runs" / "one").rename(place.root / "runs" / "o\x1b[1mne")
    for words in (["status", "runs/o\x1b[1mne"], ["list", "runs"]):
        assert "\x1b" not in place.cli(*words).expect(0).stdout


@pytest.mark.parametrize("damage", ["garbage{\n", '{"t":[1],"kind":{"a":1},"text":"hi"}\n', "[]\n"])
def test_a_damaged_journal_is_told_of_and_holds_nobody_up(place: Place, damage: str) -> None:
    place.run("tiny.py", steps=20).done()
    place.cli("resume", "run", "--steps", "30").expect(0)
    journal = max((place.root / "run" / "journal").iterdir())
    journal.write_text(journal.read_text() + damage)
    shown = place.cli("logs", "run").expect(0).stdout
    assert "checkpoint of step 20 committed" in shown
    assert ("is damaged: line" in shown) is not damage.endswith('"hi"}\n')
    assert place.cli("resume", "run", "--steps", "40", "--json").done()["step"] == 40
