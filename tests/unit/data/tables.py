"""Tables for tests, and the files that they are written to."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 100
GROUP = 16


def table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Columns of each kind that can be trained on, and one that cannot."""
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((rows, 6)).astype(np.float32)
    return pa.table(
        {
            "age": rng.integers(0, 90, rows).astype(np.int32),
            "size": rng.standard_normal(rows),
            "flag": rng.integers(0, 2, rows).astype(bool),
            "pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 6),
            "listed": pa.array(pixels.astype(np.float64).tolist()),
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels.reshape(rows, 2, 3)),
            "y": rng.integers(0, 10, rows),
            "w": rng.random(rows).astype(np.float32),
            "name": [f"n{i}" for i in range(rows)],
        }
    )


def parquet(data: pa.Table, **options: Any) -> bytes:
    """A Parquet file in row groups of 16."""
    file = io.BytesIO()
    pq.write_table(data, file, row_group_size=GROUP, **options)
    return file.getvalue()


def arrow(data: pa.Table) -> bytes:
    """An Arrow file in record batches of 16."""
    file = io.BytesIO()
    with pa.ipc.new_file(file, data.schema) as writer:
        writer.write_table(data, max_chunksize=GROUP)
    return file.getvalue()
