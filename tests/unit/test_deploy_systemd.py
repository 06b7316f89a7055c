"""The units for machines of one's own, by systemd's own check and by what must hold of them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from orchestrator.cli import EXIT_CODES
from orchestrator.submission import Submission
from tests.deploying import CLOSE_S, DEPLOY, option_values, text
from workers.deadlines import LEAST_S, STORE_S

if TYPE_CHECKING:
    from pathlib import Path

UNITS = sorted(path.name for path in (DEPLOY / "systemd").glob("*.service"))
HEAD, WORKER, RUN = "holdfast-ray-head.service", "holdfast-ray-worker.service", "holdfast@.service"
PREFIX = "/opt/holdfast/bin"


def service(name: str) -> dict[str, list[str]]:
    """Name -> values, in their order, of what a unit says under [Service]."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in text(f"systemd/{name}").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and line[0] not in "#;":
            key, equals, value = line.partition("=")
            assert equals, f"{name}: {line!r} is not NAME=VALUE"
            found.setdefault(key, []).append(value)
    return found


def environment(name: str) -> dict[str, str]:
    words = [word for line in service(name)["Environment"] for word in shlex.split(line)]
    return dict(word.split("=", 1) for word in words)


def command() -> str:
    """The command of a run, with the values that its file might give."""
    (line,) = service(RUN)["ExecStart"]
    values = {"${JOB}": "train.py", "${RUN_DIR}": "runs/a", "${WORKERS}": "2:4"}
    for variable, value in {**values, "$OPTIONS": environment(RUN)["OPTIONS"]}.items():
        assert variable in line
        line = line.replace(variable, value)
    return line.removeprefix(f"{PREFIX}/")


def test_systemd_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    programs = tmp_path / "bin"  # it looks whether what is to be started is there
    programs.mkdir()
    for program in ("ray", "holdfast", "stop-runs"):
        (programs / program).write_text("#!/bin/sh\n")
        (programs / program).chmod(0o755)
    for name in UNITS:
        unit = text(f"systemd/{name}").replace(PREFIX, str(programs))
        (tmp_path / name).write_text(unit.replace("/usr/local/bin/stop-runs", str(programs / "stop-runs")))
    paths = [str(tmp_path / name.replace("@.", "@train.")) for name in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "holdfast" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


def test_they_are_the_head_the_workers_and_the_runs() -> None:
    assert {HEAD, WORKER, RUN} == {*UNITS}


@pytest.mark.parametrize("name", UNITS)
def test_a_stop_goes_to_the_first_process_alone(name: str) -> None:
    """It tells Holdfast; if Ray's other processes got SIGTERM too, there would be nobody left to tell."""
    assert service(name)["KillMode"] == ["mixed"]


@pytest.mark.parametrize("name", UNITS)
def test_they_run_as_a_system_user_with_a_token_that_is_a_credential(name: str) -> None:
    assert service(name)["User"] == ["holdfast"]
    assert service(name)["LoadCredential"] == ["ray-token:/etc/holdfast/ray-token"]
    assert environment(name)["RAY_AUTH_MODE"] == "token"
    assert environment(name)["RAY_AUTH_TOKEN_PATH"] == "%d/ray-token"
    assert "useradd --system" in text("README.md")


@pytest.mark.parametrize("name", UNITS)
def test_they_can_write_where_ray_and_holdfast_do(name: str) -> None:
    assert service(name)["ProtectSystem"] == ["strict"]
    assert service(name)["ReadWritePaths"] == ["/tmp"]
    assert not {"PrivateTmp", "PrivateDevices", "PrivateIPC"} & service(name).keys()


def test_a_preempted_run_is_started_again_and_a_failed_one_is_not() -> None:
    assert service(RUN)["RestartForceExitStatus"] == [str(EXIT_CODES["preempted"])]
    assert service(RUN)["Restart"] == ["on-abnormal"]  # killed, but not exit codes


def test_a_run_and_a_worker_have_time_for_the_last_step_and_checkpoint() -> None:
    grace_s = option_values(command())["grace_period"]
    assert grace_s >= STORE_S + LEAST_S["gradient"]
    (stop_s,) = service(RUN)["TimeoutStopSec"]
    assert float(stop_s) > grace_s + CLOSE_S
    drain_s = float(environment(WORKER)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    (stop_s,) = service(WORKER)["TimeoutStopSec"]
    assert float(stop_s) > drain_s >= grace_s + CLOSE_S


def test_a_run_is_stopped_before_the_head_of_its_cluster() -> None:
    (after,) = [line for line in text(f"systemd/{RUN}").splitlines() if line.startswith("After=")]
    assert HEAD in after.split()


def test_the_head_is_ready_when_it_answers_and_stops_what_was_submitted_to_it_first() -> None:
    (ready,) = service(HEAD)["ExecStartPost"]
    (start,) = service(HEAD)["ExecStart"]
    (port,) = [word.partition("=")[2] for word in start.split() if word.startswith("--port=")]
    assert f"ray health-check --address 127.0.0.1:{port}" in ready
    (stop,) = service(HEAD)["ExecStop"]
    assert stop.split() == ["-/usr/local/bin/stop-runs", "--retries"]
    submission = Submission(address="http://h", run_dir="s3://b/r", command=("run", "job.py"), name="r")
    assert " --retries " in submission.entrypoint("PACKAGE")
    assert not [word for word in command().split() if "--retries" in word]
    assert "install deploy/stop-runs /usr/local/bin" in text("README.md")
    (stop_s,) = service(HEAD)["TimeoutStopSec"]
    assert float(stop_s) > option_values(command())["grace_period"] + CLOSE_S


@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_what_ray_starts_finds_holdfasts_python(name: str) -> None:
    submission = Submission(address="http://h", run_dir="s3://b/r", command=("run", "job.py"), name="r")
    assert submission.argv("PACKAGE")[0] == "python"
    assert environment(name)["PATH"].split(":")[0] == PREFIX
    assert "install -c constraints.txt '.[s3,submit]'" in text("README.md")  # with Ray's job server


def test_the_head_serves_its_dashboard_to_its_own_machine() -> None:
    (start,) = service(HEAD)["ExecStart"]
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "--num-cpus=0" in start.split()
