"""What faults cost: time to the next committed step, the undisturbed run's overhead, goodput."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import HERE, LIMIT_S, killer, train

from orchestrator.chaos import KINDS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from training import Run

Rows = list[tuple[str, str]]

REFERENCE = Path(os.environ.get("REFERENCE_DATA", HERE.parent.parent.parent / "shared"))

BARE = '''
"""Put on PYTHONPATH by the benchmark of overhead: no CRCs, and next to no heartbeats."""
import importlib.abc, importlib.util, sys

CHANGES = {
    "workers.state": {"crc32c": lambda data: 0},
    "orchestrator.coordinator": {"PLACES_S": 1e9, "POLL_S": 20.0},
    "orchestrator.records": {"BEAT_S": 1e6, "LOOK_S": 1e6},
    "orchestrator.runtime": {"HEARTBEAT_S": 20.0, "DEAD_S": 600.0},
}

class Loader(importlib.abc.Loader):
    def __init__(self, loader, changes): self.loader, self.changes = loader, changes
    def create_module(self, spec): return self.loader.create_module(spec)
    def exec_module(self, module):
        self.loader.exec_module(module)
        for name, value in self.changes.items():
            assert hasattr(module, name), (module, name)
            setattr(module, name, value)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in CHANGES: return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)):
                spec.loader = Loader(spec.loader, CHANGES[name])
                return spec

sys.meta_path.insert(0, Finder())
'''


def recovery(place: Path, options: argparse.Namespace) -> Rows:
    """kill -9 of one of two workers, at random moments: time to the next committed step."""
    kills = 2 if options.tiny else 25
    run = train(place, disturb=killer(kills), steps=1500 if options.tiny else 14000)
    return [*_recovery_rows(run), *(() if options.tiny else _ray_train(options))]


def recovery_on_ray(place: Path, options: argparse.Namespace) -> Rows:
    """The same with Ray actors."""
    if options.tiny:
        return [("not measured", "tiny")]
    return _recovery_rows(train(place, runtime="ray", disturb=killer(15, 4.0), options=CPUS, steps=32000))


CPUS = ("--cpus-per-worker", "0.5", "--address", "local")


def _recovery_rows(run: Run) -> Rows:
    times = sorted(_until_commit_ms(run))
    quantile = times[int(0.95 * (len(times) - 1))]
    what = f"kill to the next committed step, median of {len(times)} (under 100 ms)"
    return [
        (what, f"{statistics.median(times):.1f} ms"),
        ("95th percentile (under 300 ms), highest", f"{quantile:.1f} ms, {max(times):.1f} ms"),
        ("steps lost, worker deaths", f"{run.result['steps_lost']}, {run.result['worker_deaths']}"),
    ]


def _until_commit_ms(run: Run) -> Iterator[float]:
    commits = sorted(committed for _, _, committed in run.steps)
    for killed in run.kills_ns:
        after = [c for c in commits if c > killed]
        if after:
            yield (after[0] - killed) / 1e6


def _ray_train(options: argparse.Namespace) -> Rows:
    """Ray Train v2 on this machine, in the same run."""
    script = REFERENCE / "peers" / "ray_train_recovery.py"
    if not options.peer_python or not script.is_file():
        return [("Ray Train v2", "not measured: no --peer-python, or no peer script")]
    done = subprocess.run(
        [options.peer_python, str(script)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        found[row.get("metric", "error")] = row.get("value", row.get("error"))
    if "gap_s" not in found:
        why = done.stderr.strip().rpartition("\n")[2]
        return [("Ray Train v2", f"failed: {found.get('error')}: {why}")]
    return [
        ("Ray Train v2: kill to the next step", f"{found['gap_s']:.1f} s"),
        ("Ray Train v2: steps lost, with a checkpoint every 50", f"{found['steps_lost']:.0f}"),
    ]


def node_crash(place: Path, options: argparse.Namespace) -> Rows:
    """A node of two of a Ray cluster on one machine crashes: time until the other one trains on alone."""
    if options.tiny:
        return [("not measured", "tiny")]
    found = [_crash(place) for _ in range(5)]
    return [
        (
            "crash to the first step of the next epoch, median of 5 (highest)",
            _median_and_highest([f[0] for f in found]),
        ),
        ("detection to that step (under 3 s)", _median_and_highest([f[1] for f in found])),
        ("steps lost", str(sum(f[2] for f in found))),
    ]


def _crash(place: Path) -> tuple[float, float, int]:
    """Seconds from a crash to the first step of the next epoch, those after detection, and steps lost.

    The step that was under way does not count: the survivor may hold all parts of it already.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        victim = cluster.add_node(num_cpus=2)

        def crash(process: subprocess.Popen[str], run_dir: Path) -> list[int]:
            while _step(run_dir) < 300 and process.poll() is None:
                time.sleep(0.1)
            killed = time.monotonic_ns()
            cluster.remove_node(victim, allow_graceful=False)
            return [killed]

        more = ("--nodes", "2", "--address", cluster.address)
        run = train(place, runtime="ray", disturb=crash, options=more, steps=4000)
    finally:
        cluster.shutdown()
    entries = _journal(Path(run.result["run_dir"]))
    detected = next(entry["t"] for entry in entries if entry["kind"] == "node-lost")
    alone = next(entry["t"] for entry in entries if entry["kind"] == "epoch" and entry["t"] > detected)
    resumed = min(committed / 1e9 for _, _, committed in run.steps if committed / 1e9 > alone)
    return resumed - run.kills_ns[0] / 1e9, resumed - detected, run.result["steps_lost"]


def _median_and_highest(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({max(seconds):.2f} s)"


def _step(run_dir: Path) -> int:
    beats = sorted(run_dir.glob("attempts/*.alive.json"))
    try:
        return int(json.loads(beats[-1].read_text())["step"])
    except (IndexError, OSError, ValueError):
        return -1


def _journal(run_dir: Path) -> list[dict[str, Any]]:
    """The entries of a run's journals, by their `t`: seconds on the same clock as the trace of steps."""
    lines = [line for path in run_dir.glob("journal/*.jsonl") for line in path.read_text().splitlines()]
    return sorted(map(json.loads, lines), key=lambda entry: entry["t"])


def fault_kinds(place: Path, options: argparse.Namespace) -> Rows:
    """`holdfast chaos` with one kind of fault at a time: median time to the next committed step (highest)."""
    rows = []
    for kind in ("worker", "stop") if options.tiny else KINDS:
        quick = kind in ("worker", "stop", "writer")  # the others end what takes seconds to start anew
        every_s, count = ("2", 10) if quick else ("8", 8)
        count = 1 if options.tiny else count
        command = [sys.executable, "-m", "orchestrator", "chaos", str(HERE / "jobs.py"), "--json"]
        command += ["--faults", kind, "--every", every_s, "--count", str(count), "--seed", "1"]
        command += ["--run-dir", str(place / f"kind-{kind}"), "--set", "every=300"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        found = json.loads(done.stdout)
        times = found["recovery_ms"]
        rows.append(
            (KINDS[kind], f"{times['p50']:.0f} ms ({times['max']:.0f} ms), {found['steps_lost']} steps lost")
        )
    return rows


def overhead(place: Path, options: argparse.Namespace) -> Rows:
    """The undisturbed run against the same code without checkpoints, heartbeats and CRCs.

    A pair is two runs of each, in the order that a machine growing slower or faster does not tell apart.
    """
    pairs, steps, every = (1, 60, 20) if options.tiny else (10, 6000, 1000)
    bare = place / "bare"
    bare.mkdir(exist_ok=True)
    (bare / "sitecustomize.py").write_text(BARE)
    without = {"PYTHONPATH": os.pathsep.join([str(bare), *sys.path[1:2]])}
    ratios = []
    for i in range(pairs):
        nanoseconds = {True: 0, False: 0}
        for is_bare in (True, False, False, True) if i % 2 else (False, True, True, False):
            settings: dict[str, Any] = {} if is_bare else {"every": every}
            run = train(place, steps=steps, environment=without if is_bare else None, **settings)
            commits = [committed for _, _, committed in run.steps][steps // 6 :]
            nanoseconds[is_bare] += commits[-1] - commits[0]
        ratios.append(nanoseconds[False] / nanoseconds[True] - 1)
    return [
        (
            f"what checkpoints every {every} steps, heartbeats and CRCs add, median of {pairs} (under 3 %)",
            f"{statistics.median(ratios):.1%}",
        ),
        ("lowest and highest pair", f"{min(ratios):.1%}, {max(ratios):.1%}"),
    ]


def goodput(place: Path, options: argparse.Namespace) -> Rows:
    """A worker of two killed every 10 s for 2 minutes: steps per second, of those of the undisturbed run."""
    if options.tiny:
        return [("not measured", "tiny")]
    quiet = train(place, steps=12000, every=1000)
    steps = int(_rate(quiet) * 125)
    run = train(place, disturb=killer(12, 10.0), steps=steps, every=1000)
    again = train(place, steps=12000, every=1000)
    undisturbed = (_rate(quiet) + _rate(again)) / 2
    return [
        ("goodput (over 95 %)", f"{_rate(run) / undisturbed:.1%}"),
        ("kills, seconds", f"{len(run.kills_ns)}, {(run.steps[-1][2] - run.steps[0][2]) / 1e9:.0f}"),
        ("undisturbed: before, after", f"{_rate(quiet):.0f} steps/s, {_rate(again):.0f} steps/s"),
    ]


def _rate(run: Run) -> float:
    commits = [committed for _, _, committed in run.steps]
    return (len(commits) - 1) / (commits[-1] - commits[0]) * 1e9
