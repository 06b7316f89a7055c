"""A dataset larger than its cache takes no more memory than the cache, and what is being read."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

ROWS, WIDTH, GROUP = 400_000, 250, 8_000
"""400 MB of float32, in row groups of 8 MB."""
CACHE_MB = 32
ROOM_MB = 64
"""For the row groups that are being decoded, as read, as Arrow has them and as arrays, by two threads."""

PROGRAM = """
import json, resource, sys
import numpy as np
from workers.data import ParquetDataset
from workers.schedule import batch_indices

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

cache_mb = float(sys.argv[2])
dataset = ParquetDataset(
    sys.argv[1], columns="x", cache_mb=cache_mb, shuffle_within="row_groups", window=2
)
dataset.take(np.array([0]))
before, total, count = peak_mb(), 0.0, 0
for step in range(len(dataset) // 1000):
    indices = batch_indices(len(dataset), 1000, 0, step, shuffle=True, order=dataset.order)
    (x,) = dataset.take(indices)
    dataset.prefetch(batch_indices(len(dataset), 1000, 0, step + 1, shuffle=True, order=dataset.order))
    total, count = total + float(x[:, 0].sum()), count + len(x)
print(json.dumps({"grown_mb": peak_mb() - before, "total": total, "count": count}))
"""


def test_peak_memory_is_bounded_by_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    kind = pa.list_(pa.float32(), WIDTH)
    expected = 0.0
    with pq.ParquetWriter(path, pa.schema({"x": kind}), compression="none", use_dictionary=False) as writer:
        for low in range(0, ROWS, GROUP):
            values = np.full((GROUP, WIDTH), low, np.float32)
            expected += low * GROUP
            columns = [pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind)]
            writer.write_table(pa.table(columns, names=["x"]), row_group_size=GROUP)
    assert path.stat().st_size > 400e6
    command = [sys.executable, "-c", PROGRAM, str(path), str(CACHE_MB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["count"], found["total"]) == (ROWS, expected)
    assert found["grown_mb"] < CACHE_MB + ROOM_MB
