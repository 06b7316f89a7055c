"""`holdfast status` tells in words what happened to a run, what it cost, and what comes next."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from typing import TYPE_CHECKING, Any

from tests.integration.harness import COUNTER, TINY, Progress, alive, journal, wait_for

if TYPE_CHECKING:
    import psutil

    from tests.conftest import Reference
    from tests.integration.harness import Place, Started

SOON = TINY.replace("import Checkpoints, Job", "import Checkpoints, Job, RestartPolicy").replace(
    "        checkpoints=",
    "        restart=RestartPolicy(backoff_s=BACKOFF, max_backoff_s=BACKOFF),\n        checkpoints=",
)
"""The tiny job with a wait before restarts that the test chooses."""

KEYS = {
    "time",
    "attempt",
    "class",
    "what",
    "cause",
    "action",
    "node",
    "process",
    "step",
    "detection_s",
    "recovery_s",
    "steps_lost",
}
AGAIN = "run the same command again to go on"


def job(place: Place, backoff_s: float = 0.05) -> str:
    place.file("soon.py", SOON.replace("BACKOFF", str(backoff_s)))
    return "soon.py"


def begun(
    place: Place, *, steps: int = 100_000, backoff_s: float = 0.05, **more: Any
) -> tuple[Started, Progress]:
    """A run that has made some steps, and will not end by itself."""
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.002, "every": 1000, "progress": progress}
    run = place.begin(job(place, backoff_s), steps=steps, settings=settings, **more)
    run.until(lambda: progress.steps > 20, "training")
    return run, progress


def status(place: Place, run_dir: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = place.cli("status", run_dir, "--json").expect(0).result
    assert all(set(each) == KEYS for each in found["disturbances"])
    return found


def words(place: Place, run_dir: str = "run") -> str:
    """What status prints, with every number N, and times of day left out."""
    text = place.cli("status", run_dir).expect(0).stdout
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", text)
    text = re.sub(r"\d+(\.\d+)? (ms|s)\b", "N s", text)
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "N", text)


def coordinator(run: Started) -> psutil.Process:
    """The child of the command that leads."""
    (found,) = [each for each in alive(run.driver.children()) if "orchestrator" in each.cmdline()]
    return found


def told(place: Place, condition: Any, what: str) -> dict[str, Any]:
    """The status as soon as `condition` holds of it."""
    found: list[dict[str, Any]] = []

    def holds() -> bool:
        found.append(status(place))
        return bool(condition(found[-1]))

    wait_for(holds, what, 30.0, 0.2)
    return found[-1]


def stop(run: Started) -> dict[str, Any]:
    os.kill(run.popen.pid, signal.SIGINT)
    return run.wait(30).expect(130).result


def recovered(count: int) -> Any:
    def holds(result: dict[str, Any]) -> bool:
        done = [each["recovery_s"] is not None for each in result["disturbances"]]
        return len(done) >= count and all(done)

    return holds


def test_a_killed_worker(place: Place) -> None:
    run, _ = begun(place)
    run.processes("worker")[0].kill()
    result = told(place, recovered(1), "the step after the death")
    (death,) = result["disturbances"]
    assert (death["class"], death["cause"], death["action"]) == (
        "worker death",
        "killed by SIGKILL",
        "replaced",
    )
    assert re.fullmatch(r"worker \d was killed by SIGKILL in (gradient|update) after step \d+", death["what"])
    assert 0 <= death["detection_s"] < 1
    assert 0 < death["recovery_s"] < 5
    assert (result["worker_deaths"], result["restarts"], result["restarts_left"]) == (1, 0, 10)
    assert (result["steps_lost"], death["steps_lost"]) == (0, 0)
    told(place, lambda r: r["next"] == "running on 1 node with 2 workers", "its successor")
    time.sleep(3)
    assert 0 < status(place)["goodput"] <= 1
    text = words(place)
    assert re.search(
        r"^worker death: worker N was killed by SIGKILL in \w+ after step N; noticed within N s, replaced, "
        r"next step N s later, no step lost$",
        text,
        re.MULTILINE,
    ), text
    assert re.search(r"^goodput N %, N restarts left$", text, re.MULTILINE), text
    assert "next: running on N node with N workers" in text
    outcome = stop(run)
    assert outcome["disturbances"] == status(place)["disturbances"]
    assert outcome["next"] == AGAIN
    lines = run.outcome().stderr.splitlines()
    assert any(re.fullmatch(r"worker \d was killed by SIGKILL and is replaced", line) for line in lines), (
        lines
    )


def test_a_killed_agent_of_the_only_node(place: Place) -> None:
    run, _ = begun(place)
    run.processes("agent")[0].kill()
    result = told(place, recovered(1), "the step after the restart")
    (loss,) = result["disturbances"]
    assert loss["what"] == "node 0 was lost: its agent was killed by SIGKILL"
    assert loss["class"] == "infrastructure"
    assert re.fullmatch(r"restarted (at once|after 0\.\d s) \(restart 1\)", loss["action"])
    assert (result["restarts"], result["steps_lost"]) == (1, 0)
    stop(run)
    assert re.search(
        r"^restarting in 0\.\d s \(restart 1 of 10\): the agent of node 0 was killed by SIGKILL$",
        run.outcome().stderr,
        re.MULTILINE,
    ), str(run.outcome())


def test_a_killed_agent_of_one_of_two_nodes(place: Place) -> None:
    run, _ = begun(place, more=["--nodes", "2"])
    run.processes("agent")[0].kill()
    result = told(place, recovered(1), "the step of the other node")
    (loss,) = result["disturbances"]
    assert re.fullmatch(r"node \d was lost: its agent was killed by SIGKILL", loss["what"])
    assert re.fullmatch(r"started again (at once|after \d\.\d s) \(restart 1\)", loss["action"])
    assert (result["restarts"], result["steps_lost"]) == (0, 0), "the others went on"
    told(place, lambda r: r["next"] == "running on 2 nodes with 2 workers", "both nodes")
    stop(run)
    assert re.search(
        r"^node \d is lost, its agent was killed by SIGKILL: the others go on$",
        run.outcome().stderr,
        re.MULTILINE,
    ), str(run.outcome())


def test_a_killed_coordinator(place: Place) -> None:
    run, progress = begun(place)
    coordinator(run).kill()
    result = told(place, recovered(1), "the step under the next coordinator")
    (death,) = result["disturbances"]
    assert death["what"] == "the coordinator was killed by SIGKILL"
    assert death["action"] == "succeeded by another one at once (restart 1)"
    assert (result["attempt"], result["restarts"]) == (2, 1)
    assert result["restarts_left"] in (9, 10), "every 100 steps earn one back"
    before = progress.steps
    run.until(lambda: progress.steps > before + 5, "training")
    stop(run)
    lines = run.outcome().stderr.splitlines()
    assert "the coordinator was killed by SIGKILL" in lines
    assert "another coordinator takes over at once, and training goes on meanwhile (restart 1 of 10)" in lines
    assert not any("restarting in" in line for line in lines), lines


def test_everything_killed_and_run_again(place: Place, reference: Reference) -> None:
    run, _ = begun(place, steps=400)
    run.processes("worker")[0].kill()
    told(place, recovered(1), "the step after the death")
    run.kill_everything()
    place.assert_no_process()
    result = status(place)
    assert (result["status"], result["failure"]) == ("failed", "infrastructure")
    assert result["error"] == "it was killed, with its coordinator, or could not write of its end"
    assert result["next"] == AGAIN
    assert (result["worker_deaths"], len(result["disturbances"])) == (1, 1), "nothing was forgotten"
    text = words(place)
    assert "infrastructure: it was killed, with its coordinator, or could not write of its end\n" in text
    assert f"next: {AGAIN}\n" in text
    done = place.run("soon.py", steps=400, settings={"every": 1000}).done()
    assert done["state_digest"] == reference(steps=400)["state_digest"]
    assert [each["what"] for each in done["disturbances"]][1:] == ["the run was killed"]
    killed = done["disturbances"][1]
    assert killed["detection_s"] is None, "nobody was there to notice"
    assert 0 < killed["recovery_s"] < 60
    assert re.fullmatch(r"its last sign of life was \d+ s before", killed["cause"])
    assert (done["restarts"], done["restarts_left"], done["worker_deaths"]) == (1, 10, 1)
    assert done["next"] is None


def test_steps_since_the_checkpoint_are_counted_as_lost_with_the_memory(place: Place) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.005, "every": 20, "progress": progress}
    run = place.begin(job(place), steps=400, settings=settings)
    run.until(lambda: progress.steps > 95, "training")
    run.kill_everything()
    known = status(place)["step"]
    place.forget_memory()
    done = place.run("soon.py", steps=400, settings={"every": 20})
    result = done.done()
    assert result["steps_lost"] == known % 20, str(done)
    assert result["disturbances"][-1]["steps_lost"] == known % 20
    if known % 20:
        assert f"{known % 20} steps since then are lost and trained again" in done.stderr


def test_sigterm(place: Place) -> None:
    run, _ = begun(place)
    os.kill(run.popen.pid, signal.SIGTERM)
    run.wait(30).expect(75)
    result = status(place)
    assert (result["status"], result["next"], result["failure"]) == ("preempted", AGAIN, None)
    (notice,) = result["disturbances"]
    assert (notice["class"], notice["what"]) == ("preemption", "stopping at the next step, with a checkpoint")
    assert result["restarts_left"] == 10
    assert f"next: {AGAIN}\n" in words(place)


def test_a_users_error(place: Place) -> None:
    place.file("counter.py", COUNTER)
    outcome = place.run("counter.py", settings={"at": 6}, as_json=False).expect(1)
    assert outcome.stderr.index("Traceback") < outcome.stderr.index("holdfast: error:")
    result = status(place)
    assert (result["status"], result["failure"]) == ("failed", "user error")
    assert result["next"] == "mend the job, then run the same command again to go on"
    assert re.search(r"raised twice in step 6, microbatch \d: \w+: .+$", result["error"]), result["error"]
    again = result["disturbances"][0]
    assert again["class"] == "user error"
    assert re.fullmatch(r"step 6, microbatch \d raised and is done once more: .*", again["what"])
    assert result["restarts_left"] == 10
    assert "next: mend the job" in words(place)


UNREADABLE = TINY.replace(
    "            if delay_s:",
    """            with open("asked", "ab") as file:
                file.write(b".")
                file.flush()
                if FIRST <= file.tell() < LAST:
                    raise OSError(5, "Input/output error", "part-7.parquet, row group 3")
            if delay_s:""",
).replace("        seed=seed,", '        seed=seed,\n        on_data_error="WHAT",')


def unreadable(place: Place, first: int, last: int, what: str = "fail") -> str:
    """A job whose reads from the first to before the last one fail; a file counts them."""
    text = UNREADABLE.replace("FIRST", str(first)).replace("LAST", str(last)).replace("WHAT", what)
    place.file("unreadable.py", text)
    return "unreadable.py"


def test_data_that_can_be_read_in_the_end(place: Place, reference: Reference) -> None:
    outcome = place.run(unreadable(place, 30, 32), workers=1, steps=60)
    result = outcome.done()
    assert result["state_digest"] == reference()["state_digest"]
    assert [each["class"] for each in result["disturbances"]] == ["data error"] * 2
    assert re.search(
        r"step \d+, microbatch \d could not be read and is read again: OSError: .*Input/output error: "
        r"'part-7\.parquet, row group 3'",
        result["disturbances"][0]["what"],
    )


def test_data_that_cannot_be_read(place: Place) -> None:
    outcome = place.run(unreadable(place, 30, 10**9), workers=1, steps=60, as_json=False).expect(1)
    assert "Traceback" not in outcome.stderr, str(outcome)
    result = status(place)
    assert (result["status"], result["failure"]) == ("failed", "data error")
    assert re.fullmatch(
        r"the data could not be read, which was tried 4 times: OSError: .*'part-7\.parquet, row group 3' "
        r"\(in step \d+, microbatch \d\)",
        result["error"],
    )
    assert 'on_data_error="skip"' in result["next"]
    assert len([each for each in result["disturbances"] if each["class"] == "data error"]) == 3


def test_data_that_cannot_be_read_is_skipped_and_put_on_record_if_the_job_says_so(
    place: Place, reference: Reference
) -> None:
    outcome = place.run(unreadable(place, 30, 34, "skip"), workers=1, steps=60)
    result = outcome.done()
    assert result["state_digest"] != reference()["state_digest"]
    skipped = [each["what"] for each in result["disturbances"] if "is left out" in each["what"]]
    assert len(skipped) == 1
    assert "row group 3" in skipped[0]
    journal = b"".join(path.read_bytes() for path in (place.root / "run" / "journal").iterdir())
    assert b'"skipped":true' in journal


def test_a_crash_loop(place: Place) -> None:
    run = place.begin(job(place), steps=50)

    def kill_agents() -> bool:
        for agent in run.processes("agent"):
            agent.kill()
        return not run.running()

    wait_for(kill_agents, "the circuit to open", 60.0, 0.02)
    outcome = run.wait().expect(1)
    result = outcome.result
    assert re.match(
        r"stopped, because this is a crash loop: 3 restarts brought no step beyond 0 \(tried after 0\.\d s, "
        r"because the agent of node 0 was killed by SIGKILL; after .*\), and then: the agent of node 0 was "
        "killed by SIGKILL",
        result["error"],
    ), result["error"]
    assert result["next"] == "look at what was tried, and mend it; then run the same command again to go on"
    again = status(place)
    assert (again["status"], again["error"], again["next"]) == ("failed", result["error"], result["next"])
    assert again["restarts_left"] == 7
    assert len(again["disturbances"]) == 4
    done = place.run("soon.py", steps=50).done()
    assert done["step"] == 50, "a person who runs it again has a reason to"
    assert done["restarts_left"] == 7, "and spends nothing"


def test_a_coordinator_that_dies_of_the_jobs_file_is_not_started_for_ever(place: Place) -> None:
    place.file("deadly.py", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    outcome = place.run("deadly.py", steps=50).expect(1)
    lines = [
        line for line in outcome.stderr.splitlines() if line.startswith(("the coordinator", "holdfast:"))
    ]
    assert lines == [
        *["the coordinator was killed by SIGSEGV"] * 3,
        "holdfast: error: the coordinator died 3 times in a row before it could begin (the last: killed by "
        "SIGSEGV): look at what the job's file does when it is loaded",
    ], str(outcome)
    assert outcome.result["status"] == "failed"


def test_waiting_for_a_restart(place: Place) -> None:
    run, _ = begun(place, backoff_s=100_000.0)
    run.processes("agent")[0].kill()
    result = told(place, lambda r: r["next"].startswith("waiting"), "the wait")
    assert re.fullmatch(
        r"waiting \d+ s before restart 1 of 10: the agent of node 0 was killed by SIGKILL", result["next"]
    )
    assert result["status"] == "running"
    assert stop(run)["status"] == "interrupted"
    assert status(place)["next"] == AGAIN


def test_the_ledger_is_right_whenever_the_coordinator_is_killed(place: Place) -> None:
    run, progress = begun(place)
    for times in range(1, 4):
        workers = run.processes("worker")
        workers[0].kill()
        time.sleep(0.05 * times)
        coordinator(run).kill()
        told(place, lambda r, t=times: r["attempt"] == t + 1 and recovered(1)(r), "the next coordinator")
        before = progress.steps
        run.until(lambda b=before: progress.steps > b + 10, "training")  # type: ignore[misc]
    result = stop(run)
    assert result["worker_deaths"] == 3, json.dumps(result["disturbances"], indent=1)
    assert result["restarts"] == 3
    assert [each["what"] for each in result["disturbances"]].count(
        "the coordinator was killed by SIGKILL"
    ) == 3
    assert result["steps_lost"] == 0


def test_memory_of_yesterdays_runs_is_removed_when_another_one_starts(place: Place) -> None:
    run, _ = begun(place)
    run.kill_everything()
    old = place.memory()
    kinds = [re.match(r"\.log-[a-z]+|", path.suffix)[0] or path.suffix for path in old]  # type: ignore[index]
    assert kinds == ["", ".log-agent", ".log-worker", ".log-worker", ".log-writer", ".steps"]
    for path in old:
        assert path.stat().st_mode & 0o777 == 0o600
        assert time.time() - path.stat().st_mtime < 60
    place.run("tiny.py", "other", steps=10).done()
    assert place.memory() == old, "it may be resumed"
    then = time.time() - 25 * 3600
    for path in old:
        os.utime(path, (then, then))
    place.run("tiny.py", "other-again", steps=10).done()
    assert place.memory() == []
    place.assert_nothing_left(sockets=False)


def test_details_are_in_the_journal_with_the_times_of_a_clock_that_nobody_sets(place: Place) -> None:
    result = place.run(steps=30).done()
    assert result["disturbances"] == []
    lines = journal(place.root / "run")
    assert [line["kind"] for line in lines][:1] == ["began"]
    assert [line["kind"] for line in lines][-1:] == ["end"]
    times = [line["t"] for line in lines]
    assert times == sorted(times)
