"""What is submitted, what is refused, and what is made of how a job ended."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import relaunch
from orchestrator.life import own_life
from orchestrator.relaunch import Relaunches, announce, awaited, withdraw
from orchestrator.requests import stop
from orchestrator.submission import (
    NAME,
    RUN_DIR,
    SUBMITTED,
    Job,
    Next,
    Submission,
    check_address,
    check_cluster,
    find_run,
    goes_on,
    is_address,
    judge,
    labels_of,
    names_of,
    next_id,
    submitted_from,
)
from orchestrator.supervision import Supervisor
from storage.errors import ConfigurationError, InfrastructureError, StorageError
from storage.run_directory import RunDirectory
from storage.testing import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = {"RAY_AUTH_MODE": "token"}


def submission(**changes: object) -> Submission:
    command = ("run", "my job.py:job", "--run-dir", "s3://b/r; rm x", "--workers", "2:4")
    plain = {"address": "http://h:1", "run_dir": "s3://b/r; rm x", "command": command, "name": "r"}
    return Submission(**(plain | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("http://localhost:8265/", "http://localhost:8265"),
        ("http://[::1]:8265", "http://[::1]:8265"),
        ("https://ray.example.com/cluster/", "https://ray.example.com/cluster"),
    ],
)
def test_an_address_that_nobody_can_listen_in_on_needs_no_token(address: str, url: str) -> None:
    assert check_address(address, {}, insecure=False) == url


def test_plain_http_to_another_machine_needs_a_token_or_leave() -> None:
    address = "http://10.0.0.7:8265"
    with pytest.raises(ConfigurationError, match=r"RAY_AUTH_MODE=token.*--insecure"):
        check_address(address, {}, insecure=False)
    with pytest.raises(ConfigurationError, match="RAY_AUTH_TOKEN is set, but"):
        check_address(address, {"RAY_AUTH_TOKEN": "x"}, insecure=False)
    assert check_address(address, TOKEN, insecure=False) == address
    assert check_address(address, {}, insecure=True) == address


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "localhost.example.com", "0.0.0.0", "[::]"])
def test_what_only_looks_like_this_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="another machine"):
        check_address(f"http://{host}:8265", {}, insecure=False)


@pytest.mark.parametrize(
    "address", ["auto", "127.0.0.1:6379", "ray://h:1", "http://", "http://h:x", "http://h:1#a", ""]
)
def test_what_is_no_job_server_is_refused_by_name(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"address|integer"):
        check_address(address, TOKEN, insecure=True)


@pytest.mark.parametrize("address", ["10.0.0.7:6379", "ray://head.example.com:10001", "[fe80::1]:6379"])
def test_a_plain_address_of_ray_on_another_machine_needs_a_token_tls_or_leave(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"RAY_AUTH_MODE=token.*--address auto.*--insecure"):
        check_cluster(address, {"RAY_USE_TLS": "0"}, insecure=False)
    check_cluster(address, TOKEN, insecure=False)
    check_cluster(address, {"RAY_USE_TLS": "1"}, insecure=False)
    check_cluster(address, {}, insecure=True)


@pytest.mark.parametrize(
    "address", ["auto", "local", "127.0.0.1:6379", "[::1]:6379", "ray://localhost:10001"]
)
def test_this_machine_and_its_cluster_need_no_token(address: str) -> None:
    check_cluster(address, {}, insecure=False)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_address("https://me:canary@h", {}, insecure=False)
    assert "canary" not in str(caught.value)


def test_the_entrypoint_is_a_list_of_words_for_the_shell() -> None:
    words = shlex.split(submission(retries=3, spot=(("zone", "a b"),)).entrypoint("p.zip"))
    assert words[:5] == ["python", "-m", "orchestrator.supervision", "--retries", "3"]
    assert words[5:7] == ["--environment=p.zip", "--label=zone=a b"]
    assert words[8:] == ["run", "my job.py:job", "--run-dir", "s3://b/r; rm x", "--workers", "2:4"]


def test_variables_are_in_no_part_of_a_job_that_ray_shows() -> None:
    given = submission(env=("TOKEN",), working_dir="/w", pip="r.txt")
    assert given.runtime_env().keys() == {"working_dir", "excludes", "pip"}
    assert given.metadata("1") == {RUN_DIR: "s3://b/r; rm x", NAME: "r", "holdfast_version": "1"}
    assert given.plan()["env"] == ["TOKEN"]


def test_what_is_uploaded_tells_the_run_whence_it_was_submitted() -> None:
    given = submission(env=("TOKEN",), words=("submit", "a b.py"), folder="/home/me")
    uploaded = given.variables({"TOKEN": "canary", "OTHER": "x"})
    assert uploaded.keys() == {"TOKEN", SUBMITTED}
    assert submitted_from(uploaded) == {"command": ["submit", "a b.py"], "folder": "/home/me"}
    assert submitted_from({}) is submitted_from({SUBMITTED: "[]"}) is submitted_from({SUBMITTED: "{"}) is None


def test_a_variable_is_given_by_its_name() -> None:
    assert names_of(["A", "B", "A"], {"A": "1", "B": ""}) == ("A", "B")
    with pytest.raises(ConfigurationError, match=r"--env A=.*name alone") as caught:
        names_of(["A=canary"], {"A": "1"})
    assert "canary" not in str(caught.value)
    for name, why in (("C", "not set"), ("A B", "not the name"), ("RAY_AUTH_TOKEN", "its own")):
        with pytest.raises(ConfigurationError, match=why):
            names_of([name], {"A": "1", "RAY_AUTH_TOKEN": "x"})


def test_labels_are_pairs() -> None:
    assert labels_of("--spot", ["a=b", "c=d=e"]) == (("a", "b"), ("c", "d=e"))
    for text in ("a", "=b", "a=", "a=b,c=d"):
        with pytest.raises(ConfigurationError, match="--spot"):
            labels_of("--spot", [text])


def test_two_submitters_choose_the_same_id_so_that_ray_refuses_one() -> None:
    jobs = [Job("holdfast-ab-1", "r", "n", "FAILED"), Job("holdfast-ab-10", "r", "n", "FAILED")]
    assert next_id("holdfast-ab", []) == "holdfast-ab-1"
    assert next_id("holdfast-ab", [*jobs, Job("holdfast-cd-77", "q", "n", "FAILED")]) == "holdfast-ab-11"


def test_a_run_is_found_by_the_name_it_was_submitted_with() -> None:
    one, again, two = (
        Job(f"j{i}", run, name, "RUNNING") for i, run, name in ((1, "A", "a"), (2, "A", "a"), (3, "B", "b"))
    )
    assert find_run([one, again], "", "http://h") == "A"
    assert find_run([one, again, two], "b", "http://h") == "B"
    assert find_run([one, two], "j1", "http://h") == "A"
    with pytest.raises(ConfigurationError, match=r"are 2 runs at http://h.*of a, b"):
        find_run([one, two], "", "http://h")
    with pytest.raises(ConfigurationError, match=r"is no run 'c'.*of a, b"):
        find_run([one, two], "c", "http://h")
    with pytest.raises(ConfigurationError, match="no run was submitted"):
        find_run([], "", "http://h")


def test_run_directories_are_told_from_job_servers() -> None:
    assert is_address("http://h:1#a")
    assert is_address("https://h")
    assert not is_address("s3://b/r")
    assert not is_address("runs/http")


def job(exit_code: int | None = None, status: str = "FAILED", error: str = "") -> Job:
    return Job("j", "r", "n", status, exit_code, "what Ray says", error)


@pytest.mark.parametrize(
    ("ended", "status", "failure", "end"),
    [
        (job(0, "SUCCEEDED"), "done", None, (Next.END, 0)),
        (job(1), "failed", "user error", (Next.END, 1)),
        (job(2), None, None, (Next.END, 2)),
        (job(4), None, None, (Next.END, 4)),
        (job(75), "failed", "infrastructure", (Next.END, 75)),
        (job(75), None, None, (Next.AGAIN, 75)),  # it could not get as far as a coordinator
        (job(127), None, None, (Next.END, 1)),  # there is no python
        (job(error="RUNTIME_ENV_SETUP_FAILURE"), None, None, (Next.END, 1)),  # no such package
        (job(error="RUNTIME_ENV_SETUP_FAILURE"), "running", None, (Next.AGAIN, 75)),
        (job(error="JOB_SUPERVISOR_ACTOR_DIED"), None, None, (Next.AGAIN, 75)),
        (job(None, "STOPPED"), "preempted", None, (Next.END, 130)),
        # Ray knows only that the job is gone: the run directory says more
        (job(), "done", None, (Next.END, 0)),
        (job(), "interrupted", None, (Next.END, 130)),
        (job(), "failed", "user error", (Next.END, 1)),
        (job(), "failed", "divergence", (Next.END, 1)),
        (job(), "failed", "infrastructure", (Next.AGAIN, 75)),
        (job(), "running", None, (Next.AGAIN, 75)),
        (job(), None, None, (Next.AGAIN, 75)),
        (job(75), "preempted", None, (Next.AGAIN, 75)),
        (job(-9), "running", None, (Next.AGAIN, 75)),
        (job(137), None, None, (Next.AGAIN, 75)),
        (None, "running", None, (Next.AGAIN, 75)),
        (None, "done", None, (Next.END, 0)),
    ],
)
def test_a_job_that_is_gone_is_judged_by_the_run_directory(
    ended: Job | None, status: str | None, failure: str | None, end: tuple[Next, int]
) -> None:
    verdict = judge(ended, status, failure, alive=False)
    assert (verdict.next, verdict.code) == end


def test_a_run_that_gives_signs_of_life_is_not_submitted_again_whatever_ray_says() -> None:
    for gone in (job(), job(-9), None):
        assert judge(gone, "running", None, alive=True).next is Next.WATCH


def test_only_a_supervisor_that_ended_by_itself_knows_that_the_run_has_ended() -> None:
    assert [code for code in (None, 0, 1, 4, 75, 130, -9, 137, 143) if job(code).tells] == [0, 1, 4, 75, 130]


def test_only_failures_from_outside_are_relaunched() -> None:
    assert goes_on(75, stopped=False)
    assert "signal 9" in (goes_on(-9, stopped=False) or "")
    assert goes_on(75, stopped=True) is None
    assert [code for code in (0, 1, 2, 3, 4, 130) if goes_on(code, stopped=False)] == []
    assert [code for code in (0, 1, 2, 3, 4, 130) if goes_on(code, stopped=False, again=True)] == [2]


@pytest.fixture
def plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """A supervisor whose `holdfast run` ends with these exit codes, one after another."""
    monkeypatch.setattr(relaunch, "LOOK_S", 0.01)
    monkeypatch.setattr("random.random", lambda: 0.0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def play(codes: list[int], retries: int = 10) -> tuple[int, int]:
        left = tmp_path / "codes"
        left.write_text(json.dumps(codes))
        script = (
            "import json, os, pathlib\np = pathlib.Path('codes')\nc, *r = json.loads(p.read_text())\n"
            "p.write_text(json.dumps(r))\nos.kill(os.getpid(), -c) if c < 0 else os._exit(c)"
        )
        monkeypatch.chdir(tmp_path)  # where it is made is where it goes on
        supervisor = Supervisor((), RunDirectory(MemoryStore()), retries)
        supervisor._command = [sys.executable, "-S", "-c", script]
        return supervisor.supervise(), len(codes) - len(json.loads(left.read_text()))

    yield play
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_supervisor_relaunches_until_the_run_is_done(plays: object) -> None:
    assert plays([75, -9, 0]) == (0, 3)  # type: ignore[operator]
    assert plays([75, 2, 0]) == (0, 3)  # type: ignore[operator]  # the cluster did not answer for a while


def test_the_supervisor_relaunches_no_error_of_the_user(plays: object) -> None:
    assert plays([75, 1, 0]) == (1, 2)  # type: ignore[operator]
    assert plays([2, 0]) == (2, 1)  # type: ignore[operator]


def test_the_supervisor_gives_up_in_time(plays: object) -> None:
    assert plays([75] * 5, retries=1) == (75, 2)  # type: ignore[operator]
    assert plays([-9] * 9) == (75, 4)  # type: ignore[operator]  # a crash loop: no step was made


def test_a_request_to_stop_ends_the_wait_for_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaunch, "LOOK_S", 0.01)
    run = RunDirectory(MemoryStore())
    run.request("stop", {"checkpoint": True})  # of an earlier time
    relaunches = Relaunches(run, 10)
    assert relaunches.wait(0.05, "killed")
    assert awaited(run)
    run.store.delete(["requests/stop.json"])
    assert not relaunches.is_stopped()
    run.request("stop", {"checkpoint": True})
    began = time.monotonic()
    assert not relaunches.wait(60.0, "killed")
    assert time.monotonic() - began < 10
    assert Relaunches(run, 10).wait(0.0, "killed")
    assert not relaunches.wait(60.0, "killed", lambda: True)
    relaunches.end()
    assert awaited(run) is None


def test_an_old_request_is_not_taken_for_a_new_one_where_the_storage_failed_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunDirectory(MemoryStore())
    run.request("stop", {"checkpoint": True})
    answers, requested = [StorageError("it does not answer")], run.requested

    def failing(name: str) -> dict[str, Any] | None:
        if answers:
            raise answers.pop()
        return requested(name)

    monkeypatch.setattr(run, "requested", failing)
    relaunches = Relaunches(run, 10)
    assert relaunches.wait(0.0, "killed")
    run.request("stop", {"checkpoint": True})
    assert not relaunches.wait(60.0, "killed")


def test_what_others_have_announced_since_stands() -> None:
    run = RunDirectory(MemoryStore())
    ours, theirs = Relaunches(run, 10), Relaunches(run, 10)
    assert ours.wait(0.0, "killed")
    assert theirs.wait(0.0, "lost")
    ours.end()
    assert awaited(run)
    theirs.end()
    assert awaited(run) is None


def test_a_run_that_was_killed_on_another_machine_is_stopped_while_it_waits_for_its_restart() -> None:
    """Its sign of life stays as it was: nobody here can tell that its coordinator is dead."""
    elsewhere = {**own_life(), "host": "elsewhere", "closed": False}
    run = RunDirectory(MemoryStore())
    run.beat(run.claim_attempt(), elsewhere)
    with pytest.raises(InfrastructureError, match="has not ended within"):
        stop(run, checkpoint=True, timeout_s=0.3)
    announce(run, {"until": time.time() + 60, "number": 1, "cause": "killed"}, 10)

    def supervise() -> None:
        while run.requested("stop") == before:
            time.sleep(0.01)
        withdraw(run)

    before = run.requested("stop")
    supervisor = threading.Thread(target=supervise, daemon=True)
    supervisor.start()
    assert awaited(run)
    assert stop(run, checkpoint=True, timeout_s=20.0)
    assert not awaited(run)
    supervisor.join(10)
