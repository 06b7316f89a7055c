"""How the black-box tests start, watch, kill and judge runs of the command `holdfast`.

Nothing here imports Holdfast: runs are seen through the command line, the documented files of a run
directory, the processes of the machine and the shared memory directory, as a user would see them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

KEYS = {
    "run_dir",
    "status",
    "error",
    "step",
    "attempt",
    "loss",
    "metrics",
    "state_digest",
    "digest_step",
    "restarts",
    "worker_deaths",
    "steps_lost",
    "steps_per_s",
    "failure",
    "silent_s",
    "next",
    "restarts_left",
    "goodput",
    "disturbances",
}
"""The keys of the object that `--json` prints: these and no others."""

MICROBATCHES = 5
"""Of the tiny job: odd, and its batch of 33 does not divide by it, so ragged cuts and trees are used."""

LIMIT_S = 120.0
"""For one command; a loaded machine needs a tenth of it."""

ROOT = Path(__file__).resolve().parents[2]

TINY = '''
import time

import numpy as np

from orchestrator import Checkpoints, Job
from workers import nn
from workers.data import ArrayDataset


def job(
    hidden: int = 16,
    batch: int = 33,
    microbatches: int = 5,
    steps: int = 60,
    every: int = 20,
    seed: int = 0,
    shift: float = 0.0,
    delay_s: float = 0.0,
    load_s: float = 0.0,
    progress: str = "",
    timeout_s: float | None = None,
    store_timeout_s: float | None = None,
) -> Job:
    def model():
        m = nn.Sequential(
            [nn.Input((16,)), nn.Dense(hidden, activation="relu"), nn.Dropout(0.2), nn.Dense(4)]
        )
        loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
        m.compile(nn.optimizers.Adam(1e-3), loss, ["accuracy"])
        return m

    class Paced(ArrayDataset):
        """Slow enough to be killed in mid-run; leaves one byte behind for every microbatch it served."""

        def take(self, indices):
            if delay_s:
                time.sleep(delay_s)
            if progress:
                with open(progress, "ab") as file:
                    file.write(b".")
            return super().take(indices)

    def data():
        time.sleep(load_s)
        rng = np.random.default_rng(42)
        y = rng.integers(0, 4, 250)
        x = rng.standard_normal((250, 16)) + 0.5 * y[:, None] + shift
        return Paced(x.astype(np.float32), y)

    return Job(
        model=model,
        data=data,
        batch_size=batch,
        microbatches=microbatches,
        steps=steps,
        seed=seed,
        worker_timeout_s=timeout_s,
        checkpoints=Checkpoints(every_steps=every, keep=3, timeout_s=store_timeout_s),
    )
'''

COUNTER = '''
import os
import signal
from pathlib import Path

import numpy as np

from orchestrator import Checkpoints, Job
from storage.layout import Layout
from workers import nn
from workers.data import ArrayDataset

FLAG = Path(__file__).with_suffix(".raised")


class Counter:
    """Its parameter is the number of the step (each update adds 1), so it can misbehave at a chosen one."""

    def __init__(self, at, once):
        self.at, self.once = at, once
        self.layout = Layout.of({"count": (1,)})
        self.optimizer = nn.optimizers.SGD(1.0)
        self.metrics = ("loss",)

    def init(self, params, streams):
        params[:] = 0

    def loss_and_grad(self, params, batch, streams, out):
        if params[0] == self.at and not (self.once and FLAG.exists()):
            FLAG.touch()
            raise ZeroDivisionError("the gradient fell over")
        out[:1] = -len(batch[0])
        return np.array([[float(params[0]) * len(batch[0]), len(batch[0])]])

    def evaluate(self, params, batch):
        return np.array([[0.0, len(batch[0])]])

    def config(self):
        return {"kind": "counter"}


def job(at: int = -1, once: bool = False, steps: int = 12) -> Job:
    return Job(
        model=lambda: Counter(at, once),
        data=lambda: ArrayDataset(np.ones((40, 1), np.float32)),
        batch_size=8,
        microbatches=4,
        steps=steps,
        checkpoints=Checkpoints(every_steps=5, keep=3),
    )
'''


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one command ended."""

    command: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"\n$ {' '.join(self.command)}\nexit code {self.code} after {self.seconds:.1f} s"
            f"\n--- standard output ---\n{self.stdout[-6000:]}"
            f"\n--- standard error ---\n{self.stderr[-12000:]}"
        )

    def expect(self, code: int = 0) -> Outcome:
        """Itself, if the exit code is `code`."""
        assert self.code == code, f"expected exit code {code}{self}"
        return self

    @property
    def json(self) -> Any:
        """The one JSON value that standard output holds, and nothing else."""
        try:
            return json.loads(self.stdout)
        except ValueError as exc:
            raise AssertionError(f"standard output is not one JSON value: {exc}{self}") from exc

    @property
    def result(self) -> dict[str, Any]:
        """The documented JSON object of a run."""
        found = self.json
        assert isinstance(found, dict), f"not a JSON object{self}"
        assert set(found) == KEYS, (
            f"missing keys {sorted(KEYS - set(found))}, unexpected keys {sorted(set(found) - KEYS)}{self}"
        )
        return found

    def done(self) -> dict[str, Any]:
        """The result of a run that must have reached its end."""
        result = self.expect(0).result
        assert result["status"] == "done", f"status is not done{self}"
        assert result["error"] is None, f"error is not null{self}"
        assert re.fullmatch(r"[0-9a-f]{32,}", str(result["state_digest"])), f"no digest{self}"
        return result

    def one_clear_line(self, code: int, *needles: str) -> str:
        """The only line on standard error, which must hold each of `needles` (regular expressions)."""
        self.expect(code)
        assert "Traceback" not in self.stdout + self.stderr, f"a traceback was shown{self}"
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, f"expected one line on standard error, found {len(lines)}{self}"
        for needle in needles:
            assert re.search(needle, lines[0], re.IGNORECASE), f"the line does not name {needle!r}{self}"
        return lines[0]


@dataclass(frozen=True, slots=True)
class Saved:
    """One try at a checkpoint, as the documented names in a run directory show it."""

    step: int
    attempt: int
    path: Path

    @property
    def complete(self) -> bool:
        """Whether its manifest, the commit, is there."""
        return (self.path / "manifest.json").exists()


def saved(run_dir: Path) -> list[Saved]:
    """The checkpoint directories of a run, by (step, attempt)."""
    try:
        names = os.listdir(run_dir / "checkpoints")
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = (re.fullmatch(r"step-(\d{12})-a(\d{8})-\w+", name) for name in names)
    found = [Saved(int(m[1]), int(m[2]), run_dir / "checkpoints" / m[0]) for m in matches if m]
    return sorted(found, key=lambda each: (each.step, each.attempt))


def latest(run_dir: Path) -> Saved:
    """The newest complete checkpoint of a run that has one."""
    complete = [each for each in saved(run_dir) if each.complete]
    assert complete, f"no complete checkpoint in {run_dir}: {saved(run_dir)}"
    return complete[-1]


def journal(run_dir: Path) -> list[dict[str, Any]]:
    """All that the attempts have written down, in order."""
    files = sorted((run_dir / "journal").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def arrays(run_dir: Path) -> dict[str, Any]:
    """Every state array of the newest checkpoint, read by nothing but zarr."""
    import zarr

    group: Any = zarr.open_group(str(latest(run_dir).path), mode="r")
    found = {"params": group["params"][:]}
    if "slots" in group:
        found |= {f"slots/{name}": array[:] for name, array in group["slots"].arrays()}
    return found


def variable(checkpoint: Path, name: str) -> Any:
    """One named variable, read by nothing but zarr: the array's attributes say where it lies."""
    import zarr

    array: Any = zarr.open_group(str(checkpoint), mode="r")["params"]
    table: dict[str, Any] = dict(array.attrs)
    while name not in table:  # the table may stand under a key of its own
        inner = [value for value in table.values() if isinstance(value, dict)]
        assert len(inner) == 1, f"no entry for {name!r} in the attributes {dict(array.attrs)}"
        table = inner[0]
    entry = table[name]
    offset, shape = entry["offset"], tuple(entry["shape"])
    size = 1
    for length in shape:
        size *= length
    return array[offset : offset + size].reshape(shape)


KILLS = {"killed": 0}
"""What tests have killed in this session: processes, and whole runs or nodes at once."""


def signal_all(processes: Iterable[psutil.Process], number: int) -> int:
    """Send the signal to those still alive; how many there were."""
    count = _send_all(processes, number)
    KILLS["killed"] += count if number == signal.SIGKILL else 0
    return count


def kill_at_once(processes: Sequence[psutil.Process]) -> int:
    """SIGKILL for those still alive, stopped before, so that none sees another die; how many there were."""
    count = _send_all(processes, signal.SIGSTOP)
    _send_all(processes, signal.SIGKILL)
    return count


def _send_all(processes: Iterable[psutil.Process], number: int) -> int:
    count = 0
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                process.send_signal(number)
                count += 1
        except psutil.NoSuchProcess:
            pass
    return count


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def describe(processes: Iterable[psutil.Process]) -> str:
    """One line for each process that still can tell."""
    lines = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            lines.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())[:150]}")
    return "\n".join(lines)


def is_role(process: psutil.Process, role: str) -> bool:
    """Whether the process is a worker, an agent or a writer, on either runtime."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    if line and line[0].startswith("ray::Holdfast"):
        return str(line[0]).startswith(f"ray::Holdfast{role.capitalize()}")
    return "workers.main" in line and role in line[line.index("workers.main") + 1 :][:1]


def node_of(process: psutil.Process) -> int | None:
    """The node that a process of the process runtime belongs to; None if to none."""
    try:
        found = re.search(r"@holdfast-[0-9a-f]+-(\d+)-\d+", " ".join(process.cmdline()))
    except psutil.Error:
        return None
    return int(found[1]) if found else None


def wait_for(
    condition: Callable[[], object], what: str, timeout_s: float = 60.0, poll_s: float = 0.005
) -> None:
    """Return as soon as `condition` holds; fail, saying what was waited for, after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(poll_s)


class Place:
    """A corner of the machine for some runs: job files, run directories, shared memory, sockets.

    `close` ends what is left of them; `leftovers` tells what should not be there.
    """

    def __init__(
        self, root: Path, extra_env: Mapping[str, str] | None = None, shm: Path | None = None
    ) -> None:
        self.root = root
        self.tmp = Path(tempfile.mkdtemp(prefix="hf-"))  # short: the path of a socket has 107 characters
        base = Path("/dev/shm") if Path("/dev/shm").is_dir() else self.tmp
        self.own_shm = shm is None
        self.shm = shm or Path(tempfile.mkdtemp(prefix="pytest-hf-", dir=base))
        self.mark = self.tmp.name
        hidden = ("HOLDFAST_", "RAY_", "PYTEST_")
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        self.env |= {
            "TMPDIR": str(self.tmp),
            "HOLDFAST_SHM_DIR": str(self.shm),
            "BLACKBOX_MARK": self.mark,  # inherited by all processes of the runs: how strays are found
            "PYTHONFAULTHANDLER": "1",  # a run that hangs is ended by SIGABRT and shows its stacks
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.env |= extra_env or {}
        self.started: list[Started] = []
        self.file("tiny.py", TINY)

    def file(self, name: str, text: str) -> Path:
        """A job file of this place."""
        path = self.root / name
        path.write_text(text)
        return path

    def command(
        self,
        job: str = "tiny.py",
        run_dir: str | Path = "run",
        *,
        workers: int | str = 2,
        runtime: str = "process",
        steps: int | None = None,
        settings: Mapping[str, object] | None = None,
        more: Sequence[str] = (),
        as_json: bool = True,
    ) -> list[str]:
        """The arguments of `holdfast run`."""
        words = ["run", job, "--run-dir", str(run_dir), "--workers", str(workers), "--runtime", runtime]
        words += ["--steps", str(steps)] if steps is not None else []
        for name, value in (settings or {}).items():
            words += ["--set", f"{name}={value}"]
        return [*words, *more, *(["--json"] if as_json else [])]

    def start(
        self, words: Sequence[str], env: Mapping[str, str] | None = None, faults: Sequence[Any] = ()
    ) -> Started:
        """Start `holdfast` with these arguments."""
        given = self.env | (dict(env) if env else {})
        if faults:
            given["HOLDFAST_FAULTS"] = json.dumps(list(faults))
            KILLS["killed"] += sum("kill" in fault for fault in faults)
        run = Started(self, [sys.executable, "-m", "orchestrator", *words], given)
        self.started.append(run)
        return run

    def cli(self, *words: str, timeout_s: float = LIMIT_S) -> Outcome:
        """Run `holdfast` with these arguments to its end."""
        return self.start(words).wait(timeout_s)

    def run(
        self, *args: Any, faults: Sequence[Any] = (), timeout_s: float = LIMIT_S, **kwargs: Any
    ) -> Outcome:
        """Run `holdfast run` to its end; arguments as those of `command`."""
        return self.start(self.command(*args, **kwargs), faults=faults).wait(timeout_s)

    def begin(self, *args: Any, faults: Sequence[Any] = (), **kwargs: Any) -> Started:
        """Start `holdfast run`; arguments as those of `command`."""
        return self.start(self.command(*args, **kwargs), faults=faults)

    def python(self, script: str, *, stdin: str | None = None, timeout_s: float = LIMIT_S) -> Outcome:
        """Run a Python file of this place, or a program given on standard input (as a notebook has none)."""
        run = Started(self, [sys.executable, script], self.env, stdin)
        self.started.append(run)
        return run.wait(timeout_s)

    def strays(self) -> list[psutil.Process]:
        """The living processes of all runs of this place that the kernel can tell by their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("BLACKBOX_MARK") == self.mark:
                    found.append(process)
            except psutil.Error:
                pass
        return alive(found)

    def memory(self) -> list[Path]:
        """The shared memory files of this place."""
        return sorted(self.shm.glob("holdfast-*"))

    def node_memory(self, node: int) -> list[Path]:
        """The shared memory files of one node of the process runtime."""
        mine = rf"holdfast-[0-9a-f-]+{re.escape(f'.{node}') if node else ''}(\.parts|\.steps)?"
        return [path for path in self.memory() if re.fullmatch(mine, path.name)]

    def forget_memory(self) -> None:
        """Remove the shared memory files, as a reboot does."""
        for path in self.memory():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert not self.memory()

    def sockets(self) -> list[Path]:
        """The sockets in the temporary directory of this place, Ray's own excepted."""
        found = []
        for path in self.tmp.rglob("*"):
            try:
                if stat.S_ISSOCK(path.lstat().st_mode) and "session_" not in str(path):
                    found.append(path)
            except FileNotFoundError:
                pass
        return found

    def assert_no_process(self) -> None:
        """All processes of the runs are gone, or go within a few seconds."""
        deadline = time.monotonic() + 10
        while (left := self.strays()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"processes outlived the run:\n{describe(left)}"

    def assert_nothing_left(self, sockets: bool = True) -> None:
        """No process, shared memory file or socket outlives a run that reached its end.

        `sockets=False` where a killed process, which can remove nothing, may have left its own.
        """
        self.assert_no_process()
        assert not self.memory(), f"shared memory outlived the run: {self.memory()}"
        assert not sockets or not self.sockets(), f"sockets outlived the run: {self.sockets()}"

    def close(self) -> list[str]:
        """End and remove everything; descriptions of the processes that had to be ended."""
        for run in self.started:
            if run.popen.poll() is None:
                run.kill_everything()
            run.popen.wait(10)
        deadline = time.monotonic() + 10
        while (left := self.strays()) and time.monotonic() < deadline:
            time.sleep(0.05)
        text = describe(left)
        _send_all(left, signal.SIGKILL)
        if self.own_shm:
            shutil.rmtree(self.shm, ignore_errors=True)
        shutil.rmtree(self.tmp, ignore_errors=True)
        return [text] if text else []


class Started:
    """A command that runs, in a session of its own, with its output going to files."""

    def __init__(
        self, place: Place, command: list[str], env: dict[str, str], stdin: str | None = None
    ) -> None:
        self.place = place
        self.line = command
        number = len(place.started)
        self.out = place.root / f"stdout-{number:03}.txt"
        self.err = place.root / f"stderr-{number:03}.txt"
        if stdin is not None:
            given = place.root / f"stdin-{number:03}.txt"
            given.write_text(stdin)
        self.began = time.monotonic()
        with (
            self.out.open("wb") as out,
            self.err.open("wb") as err,
            open(given if stdin is not None else os.devnull, "rb") as source,
        ):
            self.popen = subprocess.Popen(
                command,
                cwd=place.root,
                env=env,
                stdin=source,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.driver = psutil.Process(self.popen.pid)

    def outcome(self) -> Outcome:
        """What there is so far."""
        return Outcome(
            tuple(self.line),
            -1000 if self.popen.returncode is None else self.popen.returncode,
            self.out.read_text(errors="replace"),
            self.err.read_text(errors="replace"),
            time.monotonic() - self.began,
        )

    def wait(self, timeout_s: float = LIMIT_S) -> Outcome:
        """Its outcome; a command that does not end in time is made to show its stacks, and the test fails."""
        try:
            self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            tree = self.tree()
            listing = describe(tree)
            signal_all(tree, signal.SIGABRT)
            time.sleep(1)
            self.kill_everything()
            pytest.fail(f"not at its end after {timeout_s:.0f} s; its processes:\n{listing}{self.outcome()}")
        return self.outcome()

    def running(self) -> bool:
        """Whether the command is still at work."""
        return self.popen.poll() is None

    def until(
        self, condition: Callable[[], object], what: str, timeout_s: float = 60.0, poll_s: float = 0.005
    ) -> None:
        """Return as soon as `condition` holds; fail if the run ends first."""

        def held() -> bool:
            if condition():
                return True
            assert self.running(), f"the run ended before {what}{self.outcome()}"
            return False

        try:
            wait_for(held, what, timeout_s, poll_s)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\nits processes:\n{describe(self.tree())}{self.outcome()}") from None

    def tree(self) -> list[psutil.Process]:
        """The driver and all its descendants, re-parented ones included."""
        found = {self.driver.pid: self.driver}
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {each.pid: each for each in self.driver.children(recursive=True)}
        found |= {each.pid: each for each in self.place.strays()}
        return alive(found.values())

    def processes(self, role: str) -> list[psutil.Process]:
        """Its living workers, agents or writers, under the process runtime."""
        return [each for each in self.tree() if is_role(each, role)]

    def node(self, node: int) -> list[psutil.Process]:
        """The living processes of one node, under the process runtime."""
        return [each for each in self.tree() if node_of(each) == node]

    def kill_nodes(self, *nodes: int) -> None:
        """SIGKILL for all processes of some nodes at once; what was in their memory is gone too."""
        struck = [each for node in nodes for each in self.node(node)]
        assert {node_of(each) for each in struck} == {*nodes}, f"nodes {nodes} expected{self.outcome()}"
        kill_at_once(struck)
        for node in nodes:
            for path in self.place.node_memory(node):
                path.unlink(missing_ok=True)
        KILLS["killed"] += len(nodes)

    def stopped(self, role: str) -> list[psutil.Process]:
        """Processes that have stopped themselves; `driver` are the supervisor and the coordinator."""
        found = []
        for each in self.tree():
            mine = is_role(each, role) if role != "driver" else node_of(each) is None
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [each] if mine and each.status() == psutil.STATUS_STOPPED else []
        return found

    def said(self) -> str:
        """Its standard error so far."""
        return self.err.read_text(errors="replace")

    def kill_everything(self, known: Iterable[psutil.Process] = ()) -> None:
        """SIGKILL for the whole tree at one moment, as far as there is one; `known` go first."""
        KILLS["killed"] += 1
        _send_all(known, signal.SIGKILL)
        frozen: dict[int, psutil.Process] = {}
        while new := [each for each in self.tree() if each.pid not in frozen]:
            _send_all(new, signal.SIGSTOP)  # nobody may notice a death and start a replacement meanwhile
            frozen |= {each.pid: each for each in new}
        _send_all(frozen.values(), signal.SIGKILL)
        self.popen.wait(10)
        wait_for(lambda: not alive(frozen.values()), "killed processes to be gone", 10)


class Progress:
    """How many microbatches the tiny job has served, told by the bytes its dataset wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def microbatches(self) -> int:
        """Counted since the file was last cleared."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def steps(self) -> float:
        """The same in steps: true up to the work in flight and the work redone."""
        return self.microbatches / MICROBATCHES

    def clear(self) -> None:
        """Start counting anew."""
        self.path.unlink(missing_ok=True)
