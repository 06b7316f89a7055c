"""The NumPy core: steps beside PyTorch's, Adam beside the memory, and what a step of other models takes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from training import HERE, LIMIT_S, train

from workers.arithmetic import settle_arithmetic
from workers.rng import Purpose, Streams
from workers.schedule import blocks
from workers.updates import BLOCK, update_block

if TYPE_CHECKING:
    import argparse

Rows = list[tuple[str, str]]

SCRIPT = (
    Path(os.environ.get("REFERENCE_DATA", HERE.parent.parent.parent / "shared")) / "peers" / "torch_ddp.py"
)


def steps(place: Path, options: argparse.Namespace) -> Rows:
    """784-H-10 with dropout and Adam: one worker beside PyTorch on one thread, two beside DDP over gloo."""
    rows: Rows = []
    for workers, limits in ((1, {64: 1.3, 512: 1.3}), (2, {64: 0.7, 512: 0.9})):
        for batch, limit in limits.items():
            for hidden in (512, 4096):
                rows.append(_beside_torch(place, options, workers, batch, hidden, limit))
    return rows


def _beside_torch(
    place: Path, options: argparse.Namespace, workers: int, batch: int, hidden: int, limit: float
) -> tuple[str, str]:
    """Medians of steps, in pairs that alternate; the ratio is that of the pairs."""
    pairs = 1 if options.tiny else 3
    count = 20 if options.tiny else max(60, 400_000 // (hidden * max(batch // 64, 1)))
    settings = {"hidden": hidden, "batch_size": batch, "microbatches": workers, "steps": count}
    ours, theirs = [], []
    for _ in range(pairs):
        ours.append(statistics.median(train(place, workers=workers, **settings).intervals_ms(count // 5)))
        if options.peer_python and SCRIPT.is_file() and not options.tiny:
            command = [options.peer_python, str(SCRIPT), "--workers", str(workers)]
            command += ["--batch", str(batch // workers), "--hidden", str(hidden), "--steps", str(count)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
            found = [json.loads(line) for line in done.stdout.splitlines()]
            theirs.append(float(next(row["value"] for row in found if row.get("stat") == "median")))
    what = (
        f"{workers} worker{'s' * (workers > 1)}, batch {batch}, hidden {hidden} (at most {limit} of PyTorch)"
    )
    if not theirs:
        return what, f"{statistics.median(ours):.2f} ms; PyTorch not measured"
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return what, f"{ratio:.2f} ({statistics.median(ours):.2f} ms, {statistics.median(theirs):.2f} ms)"


def adam(place: Path, options: argparse.Namespace) -> Rows:
    """An update of Adam, beside a copy of as many bytes as it reads and writes."""
    from workers import nn

    settle_arithmetic()
    length = 500_000 if options.tiny else 50_000_000
    rng = np.random.default_rng(0)
    old, new = ([rng.random(length, dtype=np.float32) for _ in range(3)] for _ in range(2))
    grad, scratch = rng.random(length, dtype=np.float32), np.empty(BLOCK, np.float32)
    optimizer = nn.optimizers.Adam()
    source, target = (np.ones(7 * length // 2, np.float32) for _ in range(2))
    updates, copies = [], []
    for step in range(3 if options.tiny else 9):
        began = time.perf_counter()
        for low, high in blocks(0, length, BLOCK):
            ends, state = (low, high), (old[0], old[1:])
            update_block(
                optimizer, step, ends, state, (new[0], new[1:]), grad[low:high], np.float32(1), scratch, None
            )
        updates.append(time.perf_counter() - began)
        began = time.perf_counter()
        np.copyto(target, source)
        copies.append(time.perf_counter() - began)
    update, copy = statistics.median(updates[1:]), statistics.median(copies[1:])
    return [
        (f"Adam of {length:,} parameters", f"{update * 1e3:.0f} ms"),
        ("a copy that reads and writes as many bytes", f"{copy * 1e3:.0f} ms"),
        ("ratio (at most 1.5)", f"{update / copy:.2f}"),
    ]


def models(place: Path, options: argparse.Namespace) -> Rows:
    """A step's gradient of other models on one thread, and what is allocated in it once all is warm."""
    settle_arithmetic()
    rows: Rows = []
    for name, (model, batch) in {
        "LeNet, batch 64": _lenet(),
        "transformer, batch 32": _transformer(),
    }.items():
        engine = model.engine()
        params = np.zeros(engine.layout.length, np.float32)
        engine.init(params, Streams(0, purpose=Purpose.INIT))
        out = np.zeros_like(params)
        times = []
        for step in range(4 if options.tiny else 40):
            began = time.perf_counter()
            engine.loss_and_grad(params, batch, Streams(0, step), out)
            times.append(time.perf_counter() - began)
        tracemalloc.start()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        engine.loss_and_grad(params, batch, Streams(0, 99), out)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        rows.append((f"{name}: {len(params):,} parameters", f"{statistics.median(times[2:]) * 1e3:.1f} ms"))
        rows.append((f"{name}: most that is allocated at once in a step", f"{peak / 1e3:.0f} kB"))
    return rows


def _lenet() -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
    from workers import nn

    model = nn.Sequential(
        [
            nn.Input((28, 28, 1)),
            nn.Conv2D(6, 5, padding="same", activation="relu"),
            nn.MaxPooling2D(),
            nn.Conv2D(16, 5, activation="relu"),
            nn.MaxPooling2D(),
            nn.Flatten(),
            nn.Dense(120, activation="relu"),
            nn.Dense(84, activation="relu"),
            nn.Dense(10),
        ]
    )
    model.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    return model, (rng.random((64, 28, 28, 1), dtype=np.float32), rng.integers(0, 10, 64))


def _transformer(width: int = 128, length: int = 64, words: int = 1000) -> tuple[Any, Any]:
    """Two layers, with the norm first (Xiong et al., ICML 2020)."""
    from workers import nn

    inputs = nn.Input((length,), dtype="int32")
    x = nn.layers.Embedding(words, width)(inputs)
    for _ in range(2):
        y = nn.layers.LayerNormalization()(x)
        x = x + nn.layers.MultiHeadAttention(4, width // 4)(y, y)
        y = nn.Dense(4 * width, activation="gelu")(nn.layers.LayerNormalization()(x))
        x = x + nn.Dense(width)(y)
    model = nn.Model(inputs, nn.Dense(words)(nn.layers.LayerNormalization()(x)))
    model.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, words, (32, length))
    return model, (tokens, np.roll(tokens, -1, axis=1))
