"""Times Keras's files, written and read here and by real Keras in the same run, and prints ratios.

    python tests/bench/keras_files.py --peer-python PYTHON [--mb N] [--layers N] [--rounds N] [--dir DIR]

Both sides keep a process of their own, which take turns: each round, both save and load the same model of
`mb` megabytes of weights, compiled with SGD, as .weights.h5 and as .keras. A ratio is ours over Keras's of
the same round. Ours are on disk when a save returns; Keras's are not, so saves are also timed with an fsync.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ("save .weights.h5", "load .weights.h5", "save .keras", "load .keras")
SAVES = ("save .weights.h5", "save .keras")


# -- one side -----------------------------------------------------------------------------------------------


def side(name: str, place: Path, width: int, layers: int) -> None:
    """Make the model, and for each line that comes in print the seconds of each operation."""
    if name == "keras":
        os.environ.setdefault("KERAS_BACKEND", "jax")
        import keras as nn

        dense, load_model = nn.layers.Dense, nn.saving.load_model
    else:
        sys.path.insert(0, str(ROOT))
        from workers import nn  # type: ignore[no-redef]

        dense, load_model = nn.Dense, nn.load_model
    model = nn.Sequential([nn.Input((width,)), *(dense(width) for _ in range(layers))])
    model.compile(nn.optimizers.SGD(0.01), "mse")
    other = nn.Sequential([nn.Input((width,)), *(dense(width) for _ in range(layers))])
    for variable in model.weights:  # drawn now, not while it is timed
        variable.numpy()
    weights, whole = str(place / f"{name}.weights.h5"), str(place / f"{name}.keras")
    operations: dict[str, Callable[[], Any]] = {
        "save .weights.h5": lambda: model.save_weights(weights),
        "load .weights.h5": lambda: other.load_weights(weights),
        "save .keras": lambda: model.save(whole),
        "load .keras": lambda: load_model(whole),
    }
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds: dict[str, float] = {}
        for what, operation in operations.items():
            os.sync()
            begin = time.perf_counter()
            operation()
            seconds[what] = time.perf_counter() - begin
            if what in SAVES:
                with open(weights if "weights" in what else whole, "rb") as file:
                    os.fsync(file.fileno())
                seconds[f"{what}, on disk"] = time.perf_counter() - begin
        print(json.dumps(seconds), flush=True)


# -- both sides ---------------------------------------------------------------------------------------------


class Side:
    """A process that holds a model and does the operations when it is asked to."""

    def __init__(self, python: str, name: str, place: Path, width: int, layers: int) -> None:
        command = [python, __file__, "--side", name, "--dir", str(place)]
        self.process = subprocess.Popen(
            [*command, "--width", str(width), "--layers", str(layers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line("ready")

    def round(self) -> dict[str, float]:
        """The seconds of each operation."""
        assert self.process.stdin is not None
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self._line("{"))
        return found

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def _line(self, start: str) -> str:
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith(start)), None)
        if line is None:
            raise RuntimeError(f"a side ended with {self.process.wait()}")
        return line


def measure(peer: str, place: Path, mb: float, layers: int, rounds: int) -> list[tuple[str, str]]:
    """Rows (what, figure): for each operation both times and the ratio, medians over rounds."""
    width = max(8, int((mb * 1e6 / 4 / layers) ** 0.5))
    sides = [Side(sys.executable, "ours", place, width, layers)]
    try:
        sides.append(Side(peer, "keras", place, width, layers))
        for each in sides:
            each.round()  # not timed: caches, imports
        times = [[each.round() for each in sides] for _ in range(rounds)]
    finally:
        for each in sides:
            each.close()
    rows = []
    for what in (*OPERATIONS, *(f"{save}, on disk" for save in SAVES)):
        ours, theirs = ([each[i][what] for each in times] for i in range(2))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            (
                f"{what}, {width * width * layers * 4 / 1e6:.0f} MB in {layers} layers",
                f"{statistics.median(ours):.3f} s, Keras {statistics.median(theirs):.3f} s, "
                f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            )
        )
    return rows


def main() -> None:
    """Measure, or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter that has Keras 3 and h5py")
    parser.add_argument("--mb", type=float, default=400)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--side", choices=["ours", "keras"], help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side, options.dir, options.width, options.layers)
        return
    if not options.peer_python:
        parser.error("--peer-python is needed: an interpreter that has keras==3.15.1, jax and h5py")
    with tempfile.TemporaryDirectory(prefix="keras-files-", dir=options.dir) as place:
        for what, figure in measure(
            options.peer_python, Path(place), options.mb, options.layers, options.rounds
        ):
            print(f"{what}: {figure}")


if __name__ == "__main__":
    main()
