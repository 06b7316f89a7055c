"""The benchmark of TensorFlow's files runs, at a size so small that its figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / "bench" / "tensorflow_files.py"


def test_the_benchmark_of_tensorflows_files_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--mbytes", "1", "--rounds", "1", "--dir", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ours_mbytes_per_s"] > 0
    assert found["write_mbytes_per_s"] > 0
    assert 0.9 < found["mbytes"] < 1.2
    assert not [*tmp_path.iterdir()]
