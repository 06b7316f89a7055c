"""Times what users wait for, and writes RESULTS.md. Run by hand on a machine that does nothing else.

    python tests/bench/run.py [--only NAME ...] [--peer-python PYTHON] [--dir DIR] [--tiny]

The peers need an environment of their own whose interpreter is `--peer-python`, and the scripts in `peers/`
below the reference data (REFERENCE_DATA); without them the ratios are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import checkpoint as bench_checkpoint  # noqa: E402
import core as bench_core  # noqa: E402
import faults as bench_faults  # noqa: E402
import model_files as bench_models  # noqa: E402
from training import LIMIT_S, Run, train  # noqa: E402, F401

ROOT = HERE.parent.parent
# -- the benchmarks: each returns rows (what, figure) -------------------------------------------------

Rows = list[tuple[str, str]]


def step_time(place: Path, options: argparse.Namespace) -> Rows:
    """784-512-10, global batch 64, 2 microbatches, 2 workers: a step, beside PyTorch DDP over gloo."""
    steps, pairs = (60, 1) if options.tiny else (1500, 5)
    peer = peer_command(options)
    ours, theirs = [], []
    for _ in range(pairs):
        ours.append(statistics.median(train(place, steps=steps).intervals_ms(skip=steps // 5)))
        if peer is not None:
            theirs.append(peer_step_ms(peer))
    rows = [("step, 2 workers", f"{statistics.median(ours):.2f} ms ({_spread(ours)})")]
    if theirs:
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            ("the same in PyTorch DDP over gloo", f"{statistics.median(theirs):.2f} ms ({_spread(theirs)})")
        )
        rows.append(
            ("ratio, pair by pair (at most 0.6)", f"{statistics.median(ratios):.2f} ({_spread(ratios)})")
        )
    else:
        rows.append(
            ("the same in PyTorch DDP over gloo", "not measured: no --peer-python, or no peer script")
        )
    return rows


def checkpoint_stall(place: Path, options: argparse.Namespace) -> Rows:
    """Checkpoints of 600 MB while training: what a checkpointed step's commit delays the next dispatch by."""
    settings = {"hidden": 64, "steps": 60, "every": 20} if options.tiny else STALL
    run = train(place, **settings)
    every = int(settings["every"])
    pauses = run.pauses_ms()
    quiet = [ms for step, ms in pauses.items() if step % every]
    stalls = [pauses[step] - statistics.median(quiet) for step in pauses if step % every == 0]
    intervals = dict(zip([step for step, _, _ in run.steps][1:], run.intervals_ms(0), strict=True))
    busy = [ms for step, ms in intervals.items() if 0 < step % every <= 3 and step > every]
    idle = [ms for step, ms in intervals.items() if step % every > every * 0.7]
    return [
        (
            f"stall by a checkpoint, median of {len(stalls)} (under 20 ms)",
            f"{statistics.median(stalls):.2f} ms",
        ),
        ("highest", f"{max(stalls):.2f} ms"),
        (
            "step right after a checkpoint began, and long after",
            f"{statistics.median(busy):.0f} ms, {statistics.median(idle):.0f} ms",
        ),
    ]


STALL: dict[str, int] = {
    "hidden": 6700,
    "layers": 2,
    "batch_size": 16,
    "microbatches": 2,
    "steps": 190,
    "every": 30,
}
"""50.2 million parameters: 602 MB with Adam's slots."""


def first_step(place: Path, options: argparse.Namespace) -> Rows:
    """From the start of the command to the first committed step."""
    rows = []
    for runtime, limit, repeats in (("process", 3, 5), ("ray", 15, 3)):
        if options.tiny and runtime == "ray":
            continue
        times = []
        for _ in range(1 if options.tiny else repeats):
            run = train(place, runtime=runtime, steps=20)
            times.append((run.steps[0][2] - run.started_ns) / 1e9)
        what = f"first step, {runtime} runtime (within {limit} s)"
        rows.append((what, f"{statistics.median(times):.2f} s ({_spread(times)})"))
    return rows


def _spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def peer_command(options: argparse.Namespace) -> list[str] | None:
    """How the peer is run; None if it cannot be."""
    script = Path(os.environ.get("REFERENCE_DATA", ROOT.parent / "shared")) / "peers" / "torch_ddp.py"
    if options.tiny or not options.peer_python or not script.is_file():
        return None
    return [options.peer_python, str(script), "--workers", "2", "--batch", "32", "--steps", "600"]


def peer_step_ms(command: list[str]) -> float:
    """Median step time that the peer reports."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return float(next(row["value"] for row in rows if row.get("stat") == "median"))


def checkpoint_files(place: Path, options: argparse.Namespace) -> Rows:
    """600 MB of state to the local disk, CRC, BLAKE3 and fsync on, and back into new memory; medians."""
    rounds, params = (1, 240_000) if options.tiny else (5, 50_000_000)
    found = bench_checkpoint.measure(rounds, params, place, options.peer_python)
    return bench_checkpoint.rows(found)


def catalog(place: Path, options: argparse.Namespace) -> Rows:
    """10 TB of state, 4,096 writers, 10,000 checkpoints: what a coordinator computes at its start."""
    return bench_checkpoint.scale_rows()


BENCHMARKS = {
    "step-time": step_time,
    "core-steps": bench_core.steps,
    "core-adam": bench_core.adam,
    "core-models": bench_core.models,
    "recovery": bench_faults.recovery,
    "recovery-ray": bench_faults.recovery_on_ray,
    "node-crash": bench_faults.node_crash,
    "fault-kinds": bench_faults.fault_kinds,
    "overhead": bench_faults.overhead,
    "goodput": bench_faults.goodput,
    "checkpoint-stall": checkpoint_stall,
    "checkpoint": checkpoint_files,
    "model-files": bench_models.native,
    "keras-files": bench_models.of_keras,
    "tensorflow-files": bench_models.of_tensorflow,
    "catalog": catalog,
    "first-step": first_step,
}


def main() -> None:
    """Run the benchmarks and write their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--peer-python", help="interpreter of an environment with PyTorch")
    parser.add_argument("--tensorflow-python", help="interpreter of an environment with TensorFlow")
    parser.add_argument("--dir", help="where to write: the disk that is measured")
    parser.add_argument("--tiny", action="store_true", help="only see that everything runs; writes nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.dir) as folder:
        for name in options.only:
            rows = BENCHMARKS[name](Path(folder), options)
            description = (BENCHMARKS[name].__doc__ or "").strip()
            table = "\n".join(f"| {what} | {figure} |" for what, figure in rows)
            section = f"## {name}\n\n{description}\n\n| what | figure |\n|---|---|\n{table}\n"
            print(section, flush=True)
            if not options.tiny:
                write_results([section])


def write_results(sections: list[str]) -> None:
    """Put the sections into RESULTS.md in place of those of the same name."""
    path = HERE / "RESULTS.md"
    old = path.read_text() if path.exists() else ""
    kept = {m[1]: m[0] for m in re.finditer(r"^## (\S+)\n.*?(?=^## |\Z)", old, re.MULTILINE | re.DOTALL)}
    stamp = f"Measured {datetime.now(UTC):%Y-%m-%d} at {_commit()} on {machine()}.\n"
    for section in sections:
        name = section.split()[1]
        kept[name] = f"{section}\n{stamp}\n"
    head = "# Results\n\nWritten by `make bench`. Absolute figures move with the machine; ratios count.\n\n"
    path.write_text(head + "".join(kept[name] for name in BENCHMARKS if name in kept))


def machine() -> str:
    """Processor, memory and versions."""
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "ray", "zarr"))
    hardware = f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB"
    return f"{hardware}, Python {platform.python_version()}, {versions}"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip() or "no commit"


if __name__ == "__main__":
    main()
