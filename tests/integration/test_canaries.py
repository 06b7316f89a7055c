"""Canaries: secrets of the environment that a job prints, raises and has in URLs are found nowhere."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

CANARIES = {
    "CANARY_API_KEY": "canary-one-4711",
    "CANARY_TOKEN": "canary-two-4712",
    "DB_PASSWORD": "canary-three-4713",
}

JOB = """
import os

from orchestrator import Checkpoints
from orchestrator.examples.quadratic import job as base
from dataclasses import replace

URL = f"https://me:canary-four-4714@host/x?sig=canary-five-4715&a={os.environ['CANARY_TOKEN']}"


def job(fail: int = 0):
    made = base()

    def model():
        print("the key is", os.environ["CANARY_API_KEY"], URL, flush=True)
        if fail:
            raise RuntimeError(f"no access with {os.environ['DB_PASSWORD']} to {URL}")
        return made.model()

    return replace(made, steps=6, model=model, checkpoints=Checkpoints(every_steps=3))
"""


@pytest.mark.parametrize("fail", [0, 1])
def test_no_canary_is_in_the_run_directory_or_the_output(tmp_path: Path, fail: int) -> None:
    file, run = tmp_path / "canary_job.py", tmp_path / "run"
    file.write_text(JOB)
    command = [sys.executable, "-m", "orchestrator", "run", str(file), "--run-dir", str(run), "--json"]
    command += ["--workers", "1", "--runtime", "process", "--set", f"fail={fail}"]
    done = subprocess.run(
        command, env={**os.environ, **CANARIES}, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == fail, done.stderr.decode()
    assert b"the key is ***" in done.stderr + done.stdout  # it was printed, and hidden
    if fail:
        assert b"no access with ***" in done.stderr
    everything = done.stdout + done.stderr
    files = [path for path in run.rglob("*") if path.is_file()]
    assert files
    everything += b"".join(path.read_bytes() for path in files)
    for secret in (*CANARIES.values(), "canary-four-4714", "canary-five-4715"):
        assert secret.encode() not in everything
        assert base64.b64encode(secret.encode())[:-4] not in everything
