"""Runs of `tests/bench/jobs.py` to be timed: started, disturbed, and read from the trace of their steps."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from storage.errors import HoldfastError
from storage.run_directory import RunDirectory
from storage.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HERE = Path(__file__).resolve().parent
LIMIT_S = 300


@dataclass
class Run:
    """A finished run: its result, and when each step was dispatched and committed (ns, monotonic)."""

    result: dict[str, Any]
    started_ns: int
    steps: list[tuple[int, int, int]]
    kills_ns: list[int] = field(default_factory=list)

    def intervals_ms(self, skip: int) -> list[float]:
        """Time from commit to commit, without the first `skip` steps."""
        commits = [committed for _, _, committed in self.steps][skip:]
        return [(b - a) / 1e6 for a, b in itertools.pairwise(commits)]

    def pauses_ms(self) -> dict[int, float]:
        """Step -> time from its commit to the dispatch of the next."""
        pairs = itertools.pairwise(self.steps)
        return {step: (dispatched - committed) / 1e6 for (step, _, committed), (_, dispatched, _) in pairs}


def train(
    place: Path,
    *,
    runtime: str = "process",
    workers: int = 2,
    disturb: Callable[[subprocess.Popen[str], Path], list[int]] | None = None,
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> Run:
    """Train tests/bench/jobs.py in a new directory; `disturb` kills and returns when (ns, monotonic)."""
    run_dir = Path(tempfile.mkdtemp(dir=place))
    trace = run_dir / "trace"
    command = [sys.executable, "-m", "orchestrator", "run", str(HERE / "jobs.py"), "--json"]
    command += ["--run-dir", str(run_dir / "run"), "--workers", str(workers), "--runtime", runtime]
    command += options
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    started = time.monotonic_ns()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {}), "HOLDFAST_TRACE": str(trace)},
    )
    kills_ns = disturb(process, run_dir / "run") if disturb is not None else []
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        raise
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{err}")
    steps = [tuple(map(int, line.split())) for line in trace.read_text().splitlines()]
    return Run(json.loads(out), started, steps, kills_ns)  # type: ignore[arg-type]


def killer(kills: int, pause_s: float = 1.0) -> Callable[[subprocess.Popen[str], Path], list[int]]:
    """Kills one of two or more live workers every `pause_s` or so, at random moments."""

    def disturb(process: subprocess.Popen[str], run_dir: Path) -> list[int]:
        times: list[int] = []
        rng = random.Random(0)
        while len(times) < kills and process.poll() is None:
            time.sleep(pause_s * (0.8 + 0.4 * rng.random()))
            ready = [w for w in workers_of(run_dir) if time.time() - w.create_time() > 0.7]
            if len(ready) < 2:
                continue
            victim = rng.choice(ready)
            times.append(time.monotonic_ns())
            os.kill(victim.pid, signal.SIGKILL)
        return times

    return disturb


def workers_of(run_dir: Path) -> list[psutil.Process]:
    """The live workers of the run, on either runtime: those that map its memory."""
    try:
        run = RunDirectory(open_store(str(run_dir)))
        identity = run.identity()
    except HoldfastError:
        return []
    if identity is None:
        return []
    place = run.place(identity)
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            is_worker = "workers.main worker" in line or "ray::HoldfastWorker" in line
            if is_worker and any(place in each.path for each in process.memory_maps()):
                found.append(process)
        except psutil.Error:
            continue
    return found
