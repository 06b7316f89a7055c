"""Times reading a V2 checkpoint of TensorFlow, every checksum verified, beside TensorFlow's own reader.

    python tests/bench/tensorflow_files.py [--peer-python PYTHON] [--mbytes N] [--rounds N] [--dir DIR]

PYTHON is an interpreter that has TensorFlow (`.venv-peers-tf/bin/python`); without it, ours alone is timed.
The two take turns, each in a process of its own, which reads all tensors once to warm up, and then is timed.
The files are in the page cache: what is compared is the work of the readers, not the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

LIMIT_S = 600
TARGET = 0.5
"""Of TensorFlow's speed, at least."""


def written(path: str, mbytes: float) -> float:
    """Write layers of a few megabytes each, with two moments and biases, as Keras 2 would; seconds taken."""
    from storage.formats.tensor_bundle import write_bundle

    rng = np.random.default_rng(0)
    side = 1024 if mbytes > 50 else 64
    count = max(1, round(mbytes * 1e6 / (3 * 4 * side * (side + 1))))
    tensors: dict[str, Any] = {}
    for i in range(count):
        for j, shape in enumerate([(side, side), (side,)]):
            name = ("kernel", "bias")[j]
            values = rng.standard_normal(shape, np.float32)
            tensors[f"layer_with_weights-{i}/{name}/.ATTRIBUTES/VARIABLE_VALUE"] = values
            for k in (1, 2):
                number = 4 * i + 2 * j + k
                tensors[f"optimizer/_variables/{number}/.ATTRIBUTES/VARIABLE_VALUE"] = values * k
    begin = time.perf_counter()
    write_bundle(path, tensors)
    return time.perf_counter() - begin


def read(path: str, library: str) -> float:
    """Seconds to open a checkpoint and read all of its tensors, after doing so once."""
    if library == "tensorflow":
        import tensorflow

        load = tensorflow.train.load_checkpoint
    else:
        from workers import nn

        load = nn.train.load_checkpoint

    def once() -> float:
        begin = time.perf_counter()
        reader = load(path)
        arrays = [reader.get_tensor(name) for name in reader.get_variable_to_shape_map()]
        taken = time.perf_counter() - begin
        assert arrays
        return taken

    once()
    return once()


def in_process(python: str, path: str, library: str) -> float:
    """`read` by another interpreter."""
    command = [python, __file__, "--read", path, "--library", library]
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{library} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(mbytes: float, rounds: int, peer_python: str | None, place: str) -> dict[str, Any]:
    """Speeds in MB/s, medians of the rounds, and that of ours relative to TensorFlow's."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        path = f"{directory}/ckpt"
        write_s = written(path, mbytes)
        size = sum(file.stat().st_size for file in Path(directory).iterdir()) / 1e6
        taken: dict[str, list[float]] = {}
        for _ in range(rounds):
            taken.setdefault("ours", []).append(in_process(sys.executable, path, "ours"))
            if peer_python is not None:
                taken.setdefault("tensorflow", []).append(in_process(peer_python, path, "tensorflow"))
    found: dict[str, Any] = {"mbytes": size, "write_mbytes_per_s": size / write_s}
    found |= {f"{name}_mbytes_per_s": size / statistics.median(each) for name, each in taken.items()}
    if "tensorflow" in taken:
        found["ratio"] = found["ours_mbytes_per_s"] / found["tensorflow_mbytes_per_s"]
    return found


def main() -> int:
    """Measure, and print a table; 1 if ours is slower than the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--mbytes", type=float, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", default=None, help="where the files are put")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read is not None:
        print(json.dumps(read(args.read, args.library)))
        return 0
    found = measure(args.mbytes, args.rounds, args.peer_python, args.dir)
    if args.json:
        print(json.dumps(found))
    else:
        print(f"| reading {found['mbytes']:.0f} MB | MB/s |\n|---|---|")
        for name in ("ours", "tensorflow"):
            if f"{name}_mbytes_per_s" in found:
                print(f"| {name} | {found[f'{name}_mbytes_per_s']:.0f} |")
        print(f"\nWritten by ours with fsync at {found['write_mbytes_per_s']:.0f} MB/s.")
        if "ratio" in found:
            print(f"Ours reads at {found['ratio']:.2f} of TensorFlow's speed (at least {TARGET} is wanted).")
    return int(found.get("ratio", TARGET) < TARGET)


if __name__ == "__main__":
    sys.exit(main())
