"""The benchmark of transports runs, at sizes so small that its figures mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench" / "transport.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--without-ray"], pytest.param([], marks=pytest.mark.ray)])
def test_the_benchmark_of_transports_runs(options: list[str]) -> None:
    command = [sys.executable, str(BENCH), "--tiny", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "## transport" in done.stdout
    assert ("Ray actor calls" in done.stdout) == (not options)
