"""Metrics of a run that is killed with all its processes and resumed: every step once, by one command."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pyarrow.parquet as pq

from orchestrator.metrics import read_metrics

if TYPE_CHECKING:
    from pathlib import Path

JOB = """
import time
from dataclasses import replace

from orchestrator import Checkpoints
from orchestrator.examples.quadratic import Quadratic, job as base


class Slow(Quadratic):
    def loss_and_grad(self, *arguments, **named):
        time.sleep(0.01)
        return super().loss_and_grad(*arguments, **named)


def job():
    return replace(base(), model=lambda: Slow(0.01), steps=400, checkpoints=Checkpoints(every_steps=90))
"""


def holdfast(*words: str) -> str:
    command = [sys.executable, "-m", "orchestrator", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_step_is_lost_or_doubled_by_a_kill_of_everything(tmp_path: Path) -> None:
    file, run = tmp_path / "slow_job.py", tmp_path / "run"
    file.write_text(JOB)
    words = ["run", str(file), "--run-dir", str(run), "--workers", "1", "--runtime", "process"]
    started = subprocess.Popen([sys.executable, "-m", "orchestrator", *words], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(run.glob("metrics/*.parquet")):  # and the node has made steps since
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.2)
        time.sleep(0.5)
    finally:
        everybody = [*psutil.Process(started.pid).children(recursive=True), psutil.Process(started.pid)]
        for process in reversed(everybody):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.wait(10)
    stored = pq.read_table(run / "metrics")["step"].to_pylist()
    assert 0 < len(stored) < 400
    holdfast(*words)
    table = read_metrics(str(run))
    assert table["step"].to_pylist() == list(range(1, 401))
    assert table["loss"].null_count == 0
    assert set(table["attempt"].to_pylist()) == {1, 2}
    assert [r["step"] for r in json.loads(holdfast("metrics", str(run), "--json"))] == list(range(1, 401))
    assert [r["step"] for r in json.loads(holdfast("metrics", str(run), "--last", "--json"))] == [400]
    rows = list(csv.DictReader(io.StringIO(holdfast("metrics", str(run), "--csv"))))
    assert [row["loss"] for row in rows] == [
        repr(loss).removesuffix(".0") for loss in table["loss"].to_pylist()
    ]
    picture = tmp_path / "curves.png"
    holdfast("metrics", str(run), "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
