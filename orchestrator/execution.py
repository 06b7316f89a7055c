"""Running a job to its end: one attempt after another, as the restart policy allows."""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator import succession
from orchestrator.coordinator import Coordinator, Observer, Settings
from orchestrator.events import Note, Status
from orchestrator.identity import check_arrays, check_is_training, check_settings
from orchestrator.life import check_beat, lives
from orchestrator.process_runtime import ProcessRuntime
from orchestrator.restart import decide
from orchestrator.result import Result
from orchestrator.spec import Job, check_microbatches, check_workers
from orchestrator.totals import Totals
from storage.errors import (
    ConfigurationError,
    HoldfastError,
    InfrastructureError,
    RunAlive,
    StorageError,
    Superseded,
)
from storage.run_directory import Attempt, RunDirectory
from storage.store import open_store
from workers.arenas import discard_arena
from workers.engine import as_engine
from workers.task import state_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from orchestrator.machine import State
    from orchestrator.runtime import Runtime
    from storage.catalog import Entry

RUNTIMES = ("process", "ray")
SIGN_OF_LIFE_S = 15.0
"""Seconds after which a coordinator elsewhere that gave no sign of life is taken to be gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job, and where and how it is to run."""

    job: Job
    source: bytes
    run_dir: str
    workers: int | tuple[int, int]
    """Workers to train with, or the fewest and the most."""

    runtime: str = "ray"
    nodes: int = 1
    """Nodes to spread the workers over, if there are so many; the process runtime plays them."""

    grace_s: float | None = None
    """Seconds that this process has to end after SIGTERM. None: as long as a checkpoint takes."""

    address: str | None = None
    cpus_per_worker: float = 1.0
    take_over: bool = False

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ConfigurationError(
                f"there is no runtime {self.runtime!r}: give one of {', '.join(RUNTIMES)}"
            )
        if self.nodes < 1:
            raise ConfigurationError(f"--nodes {self.nodes}: give 1 or more")
        if not self.cpus_per_worker >= 0:
            raise ConfigurationError(f"{self.cpus_per_worker} CPUs per worker: give a number of at least 0")


def execute(request: Request, observer: Observer) -> tuple[Result, Exception | None]:
    """Run a job until it is done, stopped, or failed for good; returns the error that ended it, if any.

    Raises HoldfastError for what is refused before the run is touched.
    """
    if request.run_dir.startswith("memory:"):
        raise ConfigurationError(
            f"--run-dir {request.run_dir}: the memory of one process cannot be seen by the others of a run: "
            "give a path or the URL of a storage"
        )
    run = RunDirectory(open_store(request.run_dir))
    with _signals() as signals:
        execution = _Execution(request, run, observer, signals)
        return execution.finished_before() or execution.run()


class _Execution:
    """One request, from the look at what is there to the end of its last attempt."""

    def __init__(self, request: Request, run: RunDirectory, observer: Observer, signals: _Signals) -> None:
        self._request = request
        self._job = request.job
        self._run = run
        self._url = run.store.url
        self._observer = observer
        self._signals = signals
        self._identity = run.identity()
        least, most = request.workers if isinstance(request.workers, tuple) else (request.workers,) * 2
        microbatches = self._job.microbatches or most
        if self._identity is not None:
            check_is_training(self._identity, self._url)
            microbatches = check_settings(self._identity, self._job, self._url)
        check_workers(least, microbatches)
        check_workers(most, microbatches)
        if least > most:
            raise ConfigurationError(f"between {least} and {most} workers: give the lower number first")
        check_microbatches(self._job.batch_size, microbatches)
        self._settings = Settings(
            self._url,
            least,
            most,
            microbatches,
            nodes=request.nodes,
            token=succession.secret(),
            grace_s=request.grace_s,
        )
        beat = run.newest_beat()
        if beat is not None:
            check_beat(beat, self._url)
        if beat is not None and not request.take_over:
            check_not_alive(beat, run, observer)
        self._totals = Totals.from_json(beat["totals"] if beat else None)
        # An attempt that was refused before it trained is no restart, nor is going on with more steps.
        self._is_restart = beat is not None and not (
            beat["status"] == Status.DONE.value or (beat["closed"] and not beat["trained"])
        )

    def finished_before(self) -> tuple[Result, None] | None:
        """The result, if all steps are trained and stored."""
        latest = self._run.latest()
        if latest is not None:  # it may be newer than the last sign of life
            highest = max(self._totals.highest_step, latest.step)
            self._totals = replace(self._totals, highest_step=highest)
        if latest is None or latest.step < self._job.steps:
            return None
        assert self._identity is not None
        check_arrays(self._identity, state_arrays(as_engine(self._job.model())), self._url)
        # The last coordinator may have been killed between the last checkpoint and its own end.
        discard_arena(self._identity["place_id"], latest.step)
        return _finished_before(self._run, latest, self._totals), None

    def run(self) -> tuple[Result, Exception | None]:
        """One attempt after another, as the policy allows."""
        self._totals = replace(self._totals, restarts=self._totals.restarts + self._is_restart)
        if succession.predecessors() and self._is_restart:
            killed = InfrastructureError("the coordinator was killed")
            self._totals, delay_s = self._recover(self._totals, killed)
            if delay_s is None:
                failed = Result(run_dir=self._url, status=Status.FAILED.value, error=str(killed))
                return replace(failed, step=self._totals.highest_step), killed
        result = Result(run_dir=self._url, status=Status.FAILED.value, step=self._totals.highest_step)
        number = 0
        while True:
            try:
                runtime = _runtime(self._request, self._settings.least, self._observer, self._signals)
                attempt = self._run.claim_attempt()
            except _Terminated:
                return replace(result, status=Status.PREEMPTED.value), None
            except HoldfastError as refused:
                if not number:
                    raise
                # It did work before, so it is the place that is in trouble and not the request.
                error: Exception = InfrastructureError(str(refused))
            else:
                number = attempt.number
                coordinator = Coordinator(
                    self._job,
                    self._settings,
                    self._run,
                    attempt,
                    runtime,
                    self._totals,
                    self._observer,
                    self._signals.take,
                    self._recover,
                )
                state = coordinator.run()
                self._totals = coordinator.totals
                result = _result(self._url, attempt, coordinator)
                if state.status is not Status.FAILED:
                    return result, None
                assert state.error is not None
                error = state.error
            if (end := self._wait_to_restart(result, error, number)) is not None:
                return end

    def _recover(self, totals: Totals, error: Exception) -> tuple[Totals, float | None]:
        """Whether a node that was lost is started again, and when: by the same policy as a job."""
        decision = decide(self._job.restart, totals.history, totals.highest_step, error, random.random())
        self._observer.note(Note("recover", decision.reason, {}))
        if not decision.restart:
            return totals, None
        return replace(totals, budgeted=(*totals.budgeted, totals.highest_step)), decision.delay_s

    def _wait_to_restart(
        self, result: Result, error: Exception, number: int
    ) -> tuple[Result, Exception | None] | None:
        """Wait as the policy says; the end, if there is to be no other attempt."""
        totals = self._totals
        decision = decide(self._job.restart, totals.history, totals.highest_step, error, random.random())
        if not decision.restart:
            return replace(result, error=str(error)), error
        self._observer.note(Note("restart", decision.reason, {}))
        budgeted = (*totals.budgeted, totals.highest_step)
        self._totals = replace(totals, restarts=totals.restarts + 1, budgeted=budgeted)
        stopped = self._signals.wait(decision.delay_s)
        if stopped is not None:
            return replace(result, status=stopped.value, error=None), None
        with suppress(StorageError):  # the claim of the next attempt will tell
            if self._run.newest_attempt() > number:
                newer = Superseded(f"a newer attempt has taken {self._url} over: this one stops ({error})")
                return replace(result, error=str(newer)), newer
        return None


def check_not_alive(beat: dict[str, Any], run: RunDirectory, observer: Observer) -> None:
    """Raise RunAlive if the coordinator that gave this sign of life still works.

    On this host that is known at once; of another host its sign of life is watched for a while.
    """
    check_beat(beat, run.store.url)
    if beat["closed"]:
        return
    where = f"process {beat['pid']} on {beat['host']}"
    alive = lives(beat)
    if alive is None:
        observer.note(Note("waiting", f"waiting {SIGN_OF_LIFE_S:.0f} s for a sign of life of {where}", {}))
        deadline = time.monotonic() + SIGN_OF_LIFE_S
        while not alive and time.monotonic() < deadline:
            time.sleep(1.0)
            newest = run.newest_beat() or beat
            alive = (newest["attempt"], newest["counter"]) != (beat["attempt"], beat["counter"])
            alive = alive and not newest["closed"]
    if alive:
        raise RunAlive(
            f"{run.store.url} is being trained by {where}: stop that first, or take it over with --take-over"
        )


def _runtime(request: Request, workers: int, observer: Observer, signals: _Signals) -> Runtime:
    if request.runtime == "process":
        return ProcessRuntime(request.source, request.nodes, succession.invocation(), succession.supervisor())
    from orchestrator.ray_runtime import RayRuntime

    runtime = RayRuntime(
        request.source, request.address, workers, request.cpus_per_worker, succession.invocation()
    )
    try:
        runtime.connect(lambda text: observer.note(Note("ray", text, {})))
    except SystemExit as error:  # while it starts, Ray answers SIGTERM itself
        raise _Terminated from error
    signals.install()  # ray.init sets handlers of its own
    return runtime


def _finished_before(run: RunDirectory, latest: Entry, totals: Totals) -> Result:
    assert latest.manifest is not None
    metrics = dict(latest.manifest.metrics)
    return Result(
        run_dir=run.store.url,
        status=Status.DONE.value,
        step=latest.step,
        attempt=latest.attempt,
        loss=metrics.pop("loss", None),
        metrics=metrics,
        state_digest=latest.manifest.state_digest,
        restarts=totals.restarts,
        worker_deaths=totals.worker_deaths,
        steps_lost=totals.steps_lost,
    )


def _result(url: str, attempt: Attempt, coordinator: Coordinator) -> Result:
    state: State = coordinator.state
    snapshot = coordinator.snapshot
    metrics = {**snapshot.metrics, **state.metrics}
    return Result(
        run_dir=url,
        status=state.status.value,
        error=None if state.error is None else str(state.error),
        step=snapshot.step,
        attempt=attempt.number,
        loss=metrics.pop("loss", None),
        metrics=metrics,
        state_digest=coordinator.state_digest,
        restarts=coordinator.totals.restarts,
        worker_deaths=coordinator.totals.worker_deaths,
        steps_lost=coordinator.totals.steps_lost,
        steps_per_s=snapshot.steps_per_s,
    )


class _Terminated(Exception):
    """SIGTERM came while Ray was starting."""


class _Signals:
    """SIGTERM and SIGINT as something to ask for; only the main thread can receive them."""

    _STATUS: ClassVar = {signal.SIGTERM: Status.PREEMPTED, signal.SIGINT: Status.INTERRUPTED}

    def __init__(self) -> None:
        self._received: list[Status] = []
        self._old: dict[signal.Signals, Any] = {}

    def take(self) -> Status | None:
        """The next signal not yet taken."""
        return self._received.pop(0) if self._received else None

    def wait(self, timeout_s: float) -> Status | None:
        """Wait for a signal."""
        deadline = time.monotonic() + timeout_s
        while not self._received and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.take()

    def install(self) -> None:
        """Receive from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._STATUS:
            old = signal.signal(number, self._receive)
            self._old.setdefault(number, old)

    def restore(self) -> None:
        """Leave signals as they were found."""
        for number, old in self._old.items():
            signal.signal(number, old)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(self._STATUS[signal.Signals(number)])  # no lock: a second signal may interrupt


@contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    signals.install()
    try:
        yield signals
    finally:
        signals.restore()
