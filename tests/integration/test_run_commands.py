"""`holdfast list`, `stop`, `kill`, `resume`, `clone` and `status --watch`: to look after runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from orchestrator.relaunch import awaited
from storage.run_directory import RunDirectory
from storage.store import open_store
from tests.integration.harness import Progress, Started, latest, saved

if TYPE_CHECKING:
    from tests.integration.harness import Place


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


def test_a_clone_is_a_run_of_its_own_with_other_settings(place: Place) -> None:
    place.run("tiny.py", steps=40).done()
    longer = place.cli("clone", "run", "longer", "--steps", "80", "--json").done()
    assert (longer["step"], status(place)["step"]) == (80, 40)
    assert longer["state_digest"] == place.run("tiny.py", "whole", steps=80).done()["state_digest"]
    place.cli("clone", "run", "longer").expect(2)
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
    run = begun(place, steps=40)
    place.cli("resume", "run").one_clear_line(4, "is being trained")
    watched = place.cli("status", "run", "--watch").expect(0).stdout
    assert watched.count("run directory") > 1
    assert "done at step 40" in watched
    run.wait().done()
    place.assert_nothing_left()
