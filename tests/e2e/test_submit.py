"""Runs that are submitted to a cluster, disturbed there, and end in the bits of an undisturbed one."""

from __future__ import annotations

import json
import signal
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.submitting import LIMIT_S, STEPS, Submitting, tiny_wheel
from tests.integration.harness import Outcome, kill_at_once, signal_all, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Reference

pytestmark = [pytest.mark.timeout(600)]


@pytest.fixture
def digest(reference: Reference) -> str:
    """The state of an undisturbed run with one worker, under the other runtime."""
    return str(reference(steps=STEPS)["state_digest"])


def test_a_submitted_run_ends_in_the_same_digest_and_is_found_by_the_address(
    user: Submitting, digest: str
) -> None:
    url = user.new_url()
    outcome = user.place.start(user.words(url, 2, "--name", "first")).wait(LIMIT_S)
    assert outcome.done()["state_digest"] == digest
    assert "submitted as holdfast-" in outcome.stderr
    assert "checkpoint of step 20 committed" in outcome.stderr, f"no log of the job{outcome}"
    address = user.cluster.address
    assert user.status(f"{address}#first")["state_digest"] == digest
    listed = user.cli("list", address, "--json").expect(0).json
    assert ("first", "done", url) in {(each["name"], each["status"], each["run_dir"]) for each in listed}
    _assert_secret_is_nowhere(user, outcome)


def _assert_secret_is_nowhere(user: Submitting, outcome: Outcome) -> None:
    """Not in what was printed, Ray's files, what its job server tells, nor the run's objects."""
    canary = user.secret
    assert canary not in outcome.stdout + outcome.stderr + " ".join(outcome.command)
    request = urllib.request.Request(f"{user.cluster.address}/api/jobs/")
    request.add_header("Authorization", f"Bearer {user.cluster.token}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        jobs = answer.read().decode()
    assert "holdfast_run_dir" in jobs
    assert canary not in jobs
    files = [path for path in user.cluster.tmp.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("job-driver" in path.name for path in files), "Ray keeps its logs elsewhere"
    found = [path for path in files if canary.encode() in path.read_bytes()]
    assert not found
    run_dir = json.loads(outcome.stdout)["run_dir"]
    script = user.place.file(
        "grep.py",
        "import sys, fsspec\n"
        "canary = sys.stdin.read().encode()\n"
        f"fs, root = fsspec.core.url_to_fs({run_dir!r})\n"
        "files = fs.find(root)\n"
        "print(len(files), [each for each in files if canary in fs.cat(each)])\n",
    )
    count, _, hits = user.place.python(script.name, stdin=canary).stdout.partition(" ")
    assert int(count) > 10
    assert hits.strip() == "[]"


def test_killed_workers_cost_no_step(user: Submitting, digest: str) -> None:
    started = user.begin(user.new_url())
    workers = user.cluster.workers()
    assert len(workers) >= 2
    signal_all(workers, signal.SIGKILL)
    result = started.wait(LIMIT_S).done()
    assert result["worker_deaths"] >= 2
    assert (result["steps_lost"], result["restarts"], result["state_digest"]) == (0, 0, digest)


def test_a_killed_coordinator_is_relaunched_with_nobody_there(user: Submitting, digest: str) -> None:
    """Who submitted it has gone; `holdfast run` itself is killed, which no coordinator survives."""
    url = user.new_url()
    told = user.cli(*user.words(url, 2, "--detach")).expect(0).json
    assert told["run_dir"] == url
    user.progress.clear()
    wait_for(lambda: user.progress.steps > 30, "training", LIMIT_S)
    assert kill_at_once(user.coordinators()) == 2
    wait_for(lambda: user.status(url)["status"] == "done", "the end", LIMIT_S, 1.0)
    result = user.status(url)
    assert (result["attempt"], result["steps_lost"], result["state_digest"]) == (2, 0, digest)


def test_a_killed_job_is_submitted_again(user: Submitting, digest: str) -> None:
    """The driver of the job dies, with the coordinator."""
    started = user.begin(user.new_url())
    assert user.kill_job() == 3
    outcome = started.wait(LIMIT_S)
    result = outcome.done()
    assert "submitted again as" in outcome.stderr, str(outcome)
    assert (result["attempt"], result["steps_lost"], result["state_digest"]) == (2, 0, digest)


def test_a_run_goes_on_without_its_supervisor_and_is_not_submitted_twice(
    user: Submitting, digest: str
) -> None:
    """Ray has the job down as failed; the run directory knows better."""
    started = user.begin(user.new_url())
    assert signal_all(user.supervisors(), signal.SIGKILL) == 1
    outcome = started.wait(LIMIT_S)
    result = outcome.done()
    assert "the run goes on" in outcome.stderr, str(outcome)
    assert "submitted again" not in outcome.stderr, str(outcome)
    assert (result["attempt"], result["state_digest"]) == (1, digest)


def test_a_lost_node_costs_no_step(user: Submitting, digest: str) -> None:
    user.cluster.add_node("second")
    try:
        started = user.begin(user.new_url(), 2, "--nodes", "2")
        assert user.cluster.workers("second"), "no worker is on the second node"
        user.cluster.kill("second")
        result = started.wait(LIMIT_S).done()
    finally:
        user.cluster.kill("second")
    assert (result["steps_lost"], result["state_digest"]) == (0, digest)


def test_a_run_whose_coordinator_went_with_its_node_is_submitted_again(user: Submitting, digest: str) -> None:
    """The coordinator is placed by a label, on the node that is lost; another with that label is added."""
    label = ("--on-demand", "ray.io/market-type=spot", "--no-package")
    user.cluster.add_node("labelled")
    try:
        started = user.begin(user.new_url(), 2, *label)
        where = {each.environ()["HOLDFAST_E2E_CLUSTER_NODE"] for each in user.supervisors()}
        assert where == {"labelled"}
        user.cluster.kill("labelled")
        user.cluster.add_node("replacement")
        outcome = started.wait(LIMIT_S)
    finally:
        user.cluster.kill("labelled")
        user.cluster.kill("replacement")
    assert outcome.done()["state_digest"] == digest
    assert "submitted again as" in outcome.stderr, str(outcome)


def test_coordinator_and_workers_are_placed_by_label_and_relaunched_there(
    user: Submitting, digest: str
) -> None:
    """Both nodes unpack the package to one place, each anew; what is started again has to find it there."""
    labels = ("--on-demand", "ray.io/market-type=on-demand", "--spot", "ray.io/market-type=spot")
    user.cluster.add_node("spot")
    try:
        started = user.begin(user.new_url(), 2, *labels, "--autoscale")
        everywhere, there = user.cluster.workers(), user.cluster.workers("spot")
        where = {each.environ()["HOLDFAST_E2E_CLUSTER_NODE"] for each in user.supervisors()}
        assert kill_at_once(user.coordinators()) == 2
        result = started.wait(LIMIT_S).done()
    finally:
        user.cluster.kill("spot")
    assert where == {"head"}
    assert len(there) == len(everywhere) >= 2
    assert (result["attempt"], result["steps_lost"], result["state_digest"]) == (2, 0, digest)


def test_a_cluster_that_is_killed_and_started_again_goes_on(user: Submitting, digest: str) -> None:
    url = user.new_url()
    user.edit("    def model():\n", "    def model():\n        print('of the job', flush=True)\n")
    started = user.begin(url)
    wait_for(lambda: "of the job" in user.cli("logs", url, "--rank", "1").stdout, "the logs", 60, 1.0)
    user.cluster.kill()
    gone = [user.cli("logs", url, "--rank", rank).expect(0).stdout for rank in "01"]
    user.cluster.start()
    outcome = started.wait(LIMIT_S)
    result = outcome.done()
    assert all("of the job" in each for each in gone)
    assert "submitted again as" in outcome.stderr, str(outcome)
    assert (result["attempt"], result["state_digest"]) == (2, digest)


def test_a_stop_while_the_cluster_is_away_ends_the_submitter(user: Submitting, digest: str) -> None:
    url = user.new_url()
    started = user.begin(url)
    user.cluster.kill()
    try:
        wait_for(lambda: "waiting for it up to" in started.err.read_text(), "the loss to be seen", 60, 0.2)
        assert "nothing to stop" in user.cli("stop", url).expect(0).stderr
        stopped = started.wait(LIMIT_S).expect(130)
    finally:
        user.cluster.start()
    assert "submitted again as" not in stopped.stderr
    result = user.place.start(user.words(url)).wait(LIMIT_S).done()
    assert (result["attempt"], result["state_digest"]) == (2, digest)


def test_packages_that_cannot_be_installed_are_the_users_affair(user: Submitting) -> None:
    requirements = user.place.file("requirements.txt", "--no-index\nno-such-package-of-anybody\n")
    words = user.words(user.new_url(), 1, "--pip", str(requirements))
    outcome = user.place.start(words).wait(LIMIT_S).expect(1)
    assert "runtime_env" in outcome.stderr, str(outcome)
    assert "submitted again" not in outcome.stderr, str(outcome)


def test_a_second_submit_is_refused_and_a_stopped_run_goes_on_with_more_workers(
    user: Submitting, digest: str
) -> None:
    url = user.new_url()
    started = user.begin(url, 2, "--name", "stopped")
    refused = user.cli(*user.words(url)).expect(4)
    assert "is RUNNING" in refused.stderr, str(refused)
    stopped = user.cli("stop", f"{user.cluster.address}#stopped", "--json").expect(0).result
    assert stopped["status"] == "interrupted"
    assert 0 < stopped["step"] < STEPS
    assert started.wait(LIMIT_S).expect(130).result["step"] == stopped["step"]
    wait_for(lambda: not user.supervisors(), "the end of the job", 30, 0.2)
    result = user.place.start(user.words(url, 3)).wait(LIMIT_S).done()
    assert (result["attempt"], result["steps_lost"], result["state_digest"]) == (2, 0, digest)


def test_a_run_is_left_scaled_killed_resumed_and_cloned_by_its_address(
    user: Submitting, digest: str, reference: Reference
) -> None:
    url = user.new_url()
    started = user.begin(url, 2, "--name", "by-address", "--set", "delay_s=0.1")
    where = f"{user.cluster.address}#by-address"
    started.popen.send_signal(signal.SIGINT)
    left = started.wait(30).expect(130).stderr
    assert "the run goes on without you" in left
    assert f"holdfast stop '{user.cluster.address}#holdfast-" in left.splitlines()[-1]
    user.cli("scale", where, "3").expect(0)
    wait_for(lambda: len(user.cluster.workers()) >= 3, "the third worker", 60, 0.2)
    assert "is RUNNING" in user.cli("resume", where, "--step", "20").one_clear_line(4)
    killed = user.cli("kill", where, "--json").expect(0).result
    assert (killed["status"], user.supervisors()) == ("interrupted", [])
    step = str(user.cli("ckpt", "ls", where, "--json").expect(0).json[0]["step"])
    resumed = user.cli("resume", where, "--step", step, "--set", "delay_s=0", "--json").done()
    assert resumed["state_digest"] == digest
    new = user.new_url()
    cloned = user.cli("clone", where, new, "--steps", "260", "--set", "delay_s=0", "--json").done()
    assert (cloned["run_dir"], cloned["step"]) == (new, 260)
    assert cloned["state_digest"] == reference(steps=260)["state_digest"]
    assert user.status(url)["step"] == STEPS


def test_a_job_that_waits_for_a_node_is_stopped_by_its_address(user: Submitting) -> None:
    words = user.words(user.new_url(), 1, "--name", "waits", "--detach", "--on-demand", "no-such=label")
    user.cli(*words).expect(0)
    where = f"{user.cluster.address}#waits"
    assert "is PENDING" in user.cli("status", where).one_clear_line(2)
    assert "waits for a node" in user.cli("stop", where).expect(0).stderr


def large_file(path: Path) -> None:
    """110 MB that take no room."""
    with path.open("wb") as file:
        file.truncate(110_000_000)


def test_packages_are_installed_for_a_run_and_its_logs_hide_what_is_secret(user: Submitting) -> None:
    large_file(user.place.root / "data.bin")  # which would be too large to send
    user.place.file(".gitignore", "*.bin\n")
    wheel = tiny_wheel(user.place.root, "WORD = 'it came along'\n")
    requirements = user.place.file("requirements.txt", f"{wheel}\n")
    printing = "import os, extra\n        print(extra.WORD, os.environ['AWS_SECRET_ACCESS_KEY'], flush=True)"
    user.edit("    def model():\n", f"    def model():\n        {printing}\n")
    url, more = user.new_url(), ("--name", "pip", "--pip", str(requirements))
    outcome = user.place.start(user.words(url, 2, *more, steps=20)).wait(LIMIT_S)
    outcome.done()
    logs = [user.cli("logs", f"{user.cluster.address}#pip", "--rank", rank).expect(0).stdout for rank in "01"]
    assert all("it came along ***" in each for each in logs), logs
    assert user.secret not in outcome.stderr + "".join(logs) + user.cli("logs", url, "--json").stdout


def test_a_folder_that_is_too_large_to_send_is_named_with_what_is_large_in_it(user: Submitting) -> None:
    large_file(user.place.root / "data.bin")
    outcome = user.cli(*user.words(user.new_url()))
    outcome.one_clear_line(2, "more than the cluster's job server takes.*data.bin \\(110.0 MB\\)")


def test_an_error_in_the_job_is_not_relaunched(user: Submitting) -> None:
    user.edit("    def model():\n", "    def model():\n        raise ValueError('it is broken')\n")
    outcome = user.place.start(user.words(user.new_url())).wait(LIMIT_S).expect(1)
    assert outcome.result["status"] == "failed"
    assert "it is broken" in outcome.stderr, str(outcome)
    assert "submitted again" not in outcome.stderr, str(outcome)


@pytest.mark.parametrize("token", ["missing", "wrong"])
def test_without_the_token_nobody_submits(user: Submitting, tmp_path: Path, token: str) -> None:
    env: dict[str, Any] = dict(user.place.env)
    del env["RAY_AUTH_TOKEN_PATH"]
    env |= {"HOME": str(tmp_path)}
    env |= {"RAY_AUTH_TOKEN": "0" * 64} if token == "wrong" else {"RAY_AUTH_MODE": "disabled"}
    user.place.env = env
    outcome = user.cli(*user.words(user.new_url())).expect(2)
    assert "RAY_AUTH_MODE=token" in outcome.stderr, str(outcome)
    assert "Traceback" not in outcome.stderr, str(outcome)
