"""States and runs that the tests of storage share."""

import numpy as np

from storage.checkpoint import commit, directory_name, write_part
from storage.layout import Layout, StateArray
from storage.run_directory import RunDirectory
from storage.shards import plan

SMALL = Layout.of({"dense/kernel": (64, 128), "dense/bias": (128,), "scale": ()})
ARRAYS = (StateArray("params", SMALL), StateArray("slots/adam_m", SMALL), StateArray("slots/adam_v", SMALL))


def buffers(arrays, seed=0):
    """Random content, zeros in the padding."""
    rng = np.random.default_rng(seed)
    flat = {}
    for array in arrays:
        values = np.zeros(array.padded_length, array.dtype)
        raw = rng.standard_normal(array.length, np.float32) * 100
        values[: array.length] = raw.astype(array.dtype)
        flat[array.name] = values
    return flat


def empty(arrays):
    """Buffers to restore into, full of something else."""
    return {array.name: np.full(array.padded_length, 7, array.dtype) for array in arrays}


def new_run(store):
    """A run directory with an identity."""
    run = RunDirectory(store)
    run.create_identity({"seed": 0})
    return run


def save(
    run, attempt, step, arrays=ARRAYS, flat=None, num_writers=1, parent=None, compression=None, **kwargs
):
    """One committed checkpoint; returns its directory and manifest."""
    flat = flat or buffers(arrays, step)
    directory = directory_name(step, attempt.number, attempt.nonce)
    shards = plan(arrays, num_writers, **kwargs)
    parts = [
        write_part(
            run.store,
            directory,
            arrays,
            flat,
            [s for s in shards if s.writer == writer],
            compression=compression,
        )
        for writer in range(num_writers)
    ]
    manifest = commit(
        run,
        attempt,
        directory,
        arrays,
        parts,
        step=step,
        parent=parent,
        counters={"epoch": 1},
        metrics={"loss": 0.5},
        fingerprint={"numpy": np.__version__},
        compression=compression,
    )
    return directory, manifest
