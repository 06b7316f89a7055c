"""Times saving and restoring a checkpoint beside other libraries in the same run, and a huge run's catalog.

    python tests/bench/checkpoint.py [--peer-python PYTHON] [--rounds N] [--params N] [--dir DIR]

The peers are those of `peers/checkpoint_peers.py` below the reference data (REFERENCE_DATA), run by an
interpreter of their own in the same rounds. `tests/bench/run.py` calls this and keeps the results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from storage import catalog  # noqa: E402
from storage.checkpoint import commit, directory_name, write_part  # noqa: E402
from storage.layout import Layout, StateArray  # noqa: E402
from storage.manifest import ArrayInfo, Base, Manifest, ObjectInfo  # noqa: E402
from storage.reader import restore  # noqa: E402
from storage.run_directory import RunDirectory  # noqa: E402
from storage.shards import check_cover, plan  # noqa: E402
from storage.store import Store, open_store  # noqa: E402

PEERS = ("raw-fsync", "raw", "npz", "safetensors", "zarr", "dcp", "dcp-async", "orbax")
LIMIT_S = 300
ARRAYS = 24


def state(params: int) -> list[StateArray]:
    """Parameters and two Adam slots, each of 24 variables: the state that the peers save."""
    layout = Layout.of({f"v{i:02d}": (params // ARRAYS,) for i in range(ARRAYS)})
    return [StateArray(name, layout) for name in ("params", "slots/adam_m", "slots/adam_v")]


def ours(params: int, place: str) -> None:
    """Print what one save and one restore take, as the peers' script does; run in a process of its own."""
    arrays = state(params)
    rng = np.random.default_rng(0)
    flat = _shared(arrays)
    for array in arrays:
        flat[array.name][: array.length] = rng.standard_normal(array.length, np.float32)
    run = RunDirectory(open_store(f"{place}/run"))
    run.create_identity({})
    attempt = run.claim_attempt()
    run.record_base(attempt, None)
    anonymous = _Peak()

    def cycle(step: int) -> tuple[float, float]:
        """Seconds to save and to restore, as the peers' script takes them; syncs are not timed."""
        directory = directory_name(step, attempt.number, secrets.token_hex(8))
        os.sync()
        begin = time.perf_counter()
        part = write_part(run.store, directory, arrays, flat, plan(arrays, 1))
        manifest = commit(
            run,
            attempt,
            directory,
            arrays,
            [part],
            step=step,
            parent=None,
            counters={},
            metrics={},
            fingerprint={},
        )
        save_s = time.perf_counter() - begin
        os.sync()
        begin = time.perf_counter()
        into = {array.name: np.empty(array.padded_length, array.dtype) for array in arrays}
        restore(run.store, directory, manifest, arrays, into)
        restore_s = time.perf_counter() - begin
        for array in arrays:
            if not np.array_equal(into[array.name], flat[array.name]):
                raise ValueError(f"another {array.name} was restored")
        run.store.delete_directory(directory)
        return save_s, restore_s

    cycle(1)  # not timed, as with the peers that start threads
    anonymous = _Peak()
    with anonymous:
        write_part(run.store, directory_name(2, 1, attempt.nonce), arrays, flat, plan(arrays, 1))
    run.store.delete_directory(directory_name(2, 1, attempt.nonce))
    save_s, restore_s = cycle(3)
    figures = {"save_s": save_s, "restore_s": restore_s, "writer_mib": anonymous.mib}
    for metric, value in figures.items():
        print(json.dumps({"peer": "holdfast", "metric": metric, "value": value}), flush=True)


def _shared(arrays: list[StateArray]) -> dict[str, Any]:
    """Buffers in shared memory, as a node's state is: they are no memory of the writer."""
    import mmap

    found = {}
    for array in arrays:
        memory = mmap.mmap(-1, max(1, array.nbytes))  # anonymous and shared
        found[array.name] = np.frombuffer(memory, array.dtype, array.padded_length)
    return found


class _Peak:
    """The most private memory of this process while it is entered, in MiB, sampled every 2 ms."""

    mib = 0.0

    def __enter__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.mib = max(self.mib, int(line.split()[1]) / 1024)


def measure(
    rounds: int, params: int, place: Path, peer_python: str | None
) -> dict[str, dict[str, list[float]]]:
    """Each of all, once in each round, in another order each time: peer -> metric -> values."""
    found: dict[str, dict[str, list[float]]] = {}
    script = ROOT / os.environ.get("REFERENCE_DATA", "../shared") / "peers" / "checkpoint_peers.py"
    peers = PEERS if peer_python and script.exists() else ()
    for i in range(rounds):
        names = ["holdfast", *peers]
        for name in names[i % len(names) :] + names[: i % len(names)]:
            with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=place) as folder:
                if name == "holdfast":
                    command = [sys.executable, __file__, "--ours", folder, "--params", str(params)]
                else:
                    command = [str(peer_python), str(script), name, "--params", str(params), "--dir", folder]
                done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            for line in done.stdout.splitlines():
                figure = json.loads(line)
                if "metric" in figure:
                    metrics = found.setdefault(figure["peer"], {})
                    metrics.setdefault(figure["metric"], []).append(figure["value"])
            if done.returncode:
                print(f"{name} failed: {done.stdout[-300:]}{done.stderr[-300:]}", file=sys.stderr)
    return found


def rows(found: dict[str, dict[str, list[float]]]) -> list[tuple[str, str]]:
    """Medians, and the ratios that are promised."""
    middle = {
        peer: {metric: statistics.median(values) for metric, values in metrics.items()}
        for peer, metrics in found.items()
    }
    us = middle["holdfast"]
    table = []
    if "raw-fsync" in middle:
        raw = middle["raw-fsync"]
        table += [
            (
                "save: throughput relative to raw files + fsync (at least 0.85)",
                f"{raw['save_s'] / us['save_s']:.2f}",
            ),
            (
                "restore, verified: throughput relative to raw reads (at least 0.8)",
                f"{raw['restore_s'] / us['restore_s']:.2f}",
            ),
        ]
    table.append(("private memory of the writer (under 200 MiB)", f"{us['writer_mib']:.0f} MiB"))
    for peer, metrics in sorted(middle.items(), key=lambda item: item[1]["save_s"]):
        spread = f"{min(found[peer]['save_s']):.2f}-{max(found[peer]['save_s']):.2f}"
        table.append(
            (
                f"{peer}: save (spread), restore",
                f"{metrics['save_s']:.2f} s ({spread}), {metrics['restore_s']:.2f} s",
            )
        )
    return table


# -- scale ------------------------------------------------------------------------------------------------


class ListedStore(Store):
    """A run of many checkpoints that is not there: lists them all, and holds the few small objects."""

    def __init__(self, directories: list[str], sizes: dict[str, int], objects: dict[str, bytes]) -> None:
        super().__init__("scale")
        self._directories, self._sizes, self._objects = directories, sizes, objects

    def list(self, prefix: str = "") -> dict[str, int]:
        if prefix in self._directories:
            return {f"{prefix}/{key}": nbytes for key, nbytes in self._sizes.items()}
        return {key: len(data) for key, data in self._objects.items() if key.startswith(f"{prefix}/")}

    def children(self, prefix: str = "") -> list[str]:
        return self._directories if prefix == catalog.CHECKPOINTS else []

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        return self._objects[key][start:stop]

    def write(self, key: str, buffers: Any) -> int:
        raise NotImplementedError

    def create(self, key: str, data: bytes) -> bool:
        raise NotImplementedError

    def delete(self, keys: Any) -> None:
        raise NotImplementedError

    def delete_directory(self, prefix: str) -> None:
        raise NotImplementedError

    def last_change(self, prefix: str) -> float | None:
        raise NotImplementedError


def scale() -> None:
    """Print what planning and finding the latest take: 10 TB, 4096 writers, 10,000 checkpoints."""
    length = 10**13 // 3 // 4
    layout = Layout.of({f"layer{i:04d}/kernel": (length // 1000,) for i in range(1000)})
    arrays = [StateArray(name, layout) for name in ("params", "slots/adam_m", "slots/adam_v")]
    times = {}
    begin = time.perf_counter()
    shards = plan(arrays, 4096)
    check_cover(arrays, shards)
    times["plan"] = time.perf_counter() - begin

    nonce = "0123456789abcdef"
    objects = {s.key: ObjectInfo((s.stop - s.start) * 4, f"{i:064x}") for i, s in enumerate(shards)}
    manifest = Manifest(
        run_id="r",
        attempt=1,
        nonce=nonce,
        step=10_000,
        parent=None,
        arrays=tuple(ArrayInfo(a.name, a.dtype, a.length, a.layout.fingerprint) for a in arrays),
        objects=objects,
        state_digest="0" * 64,
        counters={},
        metrics={},
        fingerprint={},
        versions={},
    )
    begin = time.perf_counter()
    data, table = manifest.to_bytes()
    times["manifest"] = time.perf_counter() - begin
    directories = [catalog.directory_name(step, 1, nonce) for step in range(1, 10_001)]
    sizes = {key: info.nbytes for key, info in objects.items()} | {"manifest.json": len(data)}
    base = {"format": 1, "attempt": 1, "nonce": nonce, "base": None, "chain": []}
    small = {
        "run.json": json.dumps({"format": 1, "run_id": "r", "place_id": "p"}).encode(),
        catalog.attempt_key(1, nonce): b"{}",
        catalog.attempt_key(1, nonce, ".base"): json.dumps(base).encode(),
        f"{directories[-1]}/manifest.json": data,
        f"{directories[-1]}/objects.json": table or b"",
    }
    run = RunDirectory(ListedStore(directories, sizes, small))
    begin = time.perf_counter()
    latest = run.latest()
    times["latest"] = time.perf_counter() - begin
    assert latest is not None
    assert Base(latest.step, latest.attempt) == Base(10_000, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**times, "shards": len(shards), "peak_mib": peak, "manifest_nbytes": len(data)}))


def scale_rows() -> list[tuple[str, str]]:
    """What `scale` found, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--scale"], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    found = json.loads(done.stdout)
    total = found["plan"] + found["latest"]
    return [
        (
            f"planning {found['shards']} shards and finding the latest of 10,000 (within 2 s)",
            f"{total:.2f} s ({found['plan']:.2f} + {found['latest']:.2f})",
        ),
        ("making the manifest", f"{found['manifest']:.2f} s, {found['manifest_nbytes'] / 1e3:.0f} kB"),
        ("memory of the process (within 500 MiB)", f"{found['peak_mib']:.0f} MiB"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="interpreter of an environment with the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--params", type=int, default=50_000_000, help="float32 parameters")
    parser.add_argument("--dir", type=Path, help="where to write: the disk that is measured")
    parser.add_argument("--ours", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--scale", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        ours(options.params, options.ours)
    elif options.scale:
        scale()
    else:
        place = Path(tempfile.mkdtemp(prefix="bench-", dir=options.dir))
        try:
            found = measure(options.rounds, options.params, place, options.peer_python)
        finally:
            shutil.rmtree(place)
        for what, figure in rows(found) + scale_rows():
            print(f"{what}: {figure}")


if __name__ == "__main__":
    main()
