"""The benchmarks run, at sizes so small that their figures mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench" / "run.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "step-time",
        "core-adam",
        "core-models",
        "recovery",
        "overhead",
        "checkpoint-stall",
        "checkpoint",
        "catalog",
        "first-step",
    ],
)
def test_a_benchmark_runs(name: str) -> None:
    command = [sys.executable, str(BENCH), "--tiny", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert f"## {name}" in done.stdout
