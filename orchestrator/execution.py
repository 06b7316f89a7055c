"""Running a job to its end: one attempt after another, as the restart policy allows."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator import ledger as books
from orchestrator import succession
from orchestrator.coordinator import Coordinator, Observer, Settings
from orchestrator.discretion import Discreet, discretion
from orchestrator.events import Note, Status
from orchestrator.failures import classify, in_short
from orchestrator.history import pace_of, read_ledger
from orchestrator.identity import check_arrays, check_is_training, check_settings
from orchestrator.life import SIGN_OF_LIFE_S, boot_id, check_beat, lives, own_life
from orchestrator.process_runtime import ProcessRuntime
from orchestrator.records import Records
from orchestrator.relaunch import STOP
from orchestrator.requests import Requests
from orchestrator.restart import COORDINATOR, JOB, Decision, Restart, decide, tokens_left
from orchestrator.result import Result
from orchestrator.spec import (
    Job,
    check_microbatches,
    check_place,
    check_range,
    check_runtime,
    check_workers,
)
from orchestrator.status import add_history, at_checkpoint
from storage.errors import (
    CrashLoop,
    HoldfastError,
    InfrastructureError,
    RunAlive,
    StorageError,
    Superseded,
)
from storage.run_directory import Attempt, RunDirectory
from storage.store import open_store
from workers.arenas import discard_arena, sweep
from workers.clouds import look_of
from workers.deadlines import start_s_of
from workers.engine import as_engine
from workers.redaction import Redactor
from workers.task import state_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from orchestrator.machine import State
    from orchestrator.runtime import Runtime
    from storage.catalog import Entry
    from storage.layout import StateArray


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

    standby: int = 0
    """Workers more on each node, ready to take over when one dies."""

    autoscale: bool = False
    """Whether Ray's autoscaler is asked for room for all workers."""

    grace_s: float | None = None
    """Seconds that this process has to end after SIGTERM. None: as long as a checkpoint takes."""

    address: str | None = None
    insecure: bool = False
    """Whether the address may be another machine's, without a token or TLS."""

    cpus_per_worker: float = 1.0
    take_over: bool = False
    command: tuple[str, ...] = ()
    """The words of the command line that asks for it, which are kept for `holdfast resume`."""

    folder: str = ""
    """Where that was given."""

    submitted: Mapping[str, Any] | None = None
    """`command` and `folder` of the `holdfast submit` that this is part of, on the machine of who gave it."""

    def __post_init__(self) -> None:
        check_runtime(self.runtime)
        check_place(
            self.run_dir,
            nodes=self.nodes,
            standby=self.standby,
            cpus_per_worker=self.cpus_per_worker,
            grace_s=self.grace_s,
        )


def execute(request: Request, observer: Observer) -> tuple[Result, Exception | None]:
    """Run a job until it is done, stopped, or failed for good; returns the error that ended it, if any.

    Raises HoldfastError for what is refused before the run is touched. Neither says anything secret.
    """
    redactor = Redactor.of(os.environ)
    with discretion():
        result, error = _execute(request, Discreet(observer, redactor))
    result = replace(result, error=result.error and redactor.text(result.error))
    return result, None if error is None else redactor.error(error)


def _execute(request: Request, observer: Observer) -> tuple[Result, Exception | None]:
    look_of(os.environ)  # complain here about what the nodes could not tell anybody of
    start_s_of(os.environ)
    run = RunDirectory(open_store(request.run_dir))
    with _signals() as signals:
        execution = _Execution(request, run, observer, signals)
        return execution.finished_before() or execution.run()


def check_request(request: Request, identity: Mapping[str, Any] | None, url: str) -> tuple[int, int, int]:
    """The fewest and the most workers, and the microbatches, of a request for the run of this identity.

    Raises ConfigurationError for what cannot be, IdentityMismatch for another job.
    """
    job = request.job
    least, most = request.workers if isinstance(request.workers, tuple) else (request.workers,) * 2
    microbatches = job.microbatches or most
    if identity is not None:
        check_is_training(identity, url)
        microbatches = check_settings(identity, job, url)
    check_range(least, most)
    check_workers(most, microbatches)
    check_microbatches(job.batch_size, microbatches)
    return least, most, microbatches


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
        least, most, microbatches = check_request(request, self._identity, self._url)
        self._settings = Settings(
            self._url,
            least,
            most,
            microbatches,
            nodes=request.nodes,
            standby=request.standby,
            token=succession.secret(),
            grace_s=request.grace_s,
        )
        beat = run.newest_beat()
        if beat is not None:
            check_beat(beat, self._url)
        if beat is not None and not request.take_over:
            check_not_alive(beat, run, lambda text: observer.note(Note("waiting", text, {})))
        ledger, damaged = read_ledger(run, beat)
        for text in damaged:
            observer.note(Note("storage", f"what happened before is not known in full: {text}", {}))
        meter = books.Meter(pace_of(beat), ledger.highest_step)
        self._records = Records(run, observer, ledger, meter)
        self._history = ledger.granted  # with what is not on record yet
        # An attempt that was refused before it trained is no restart, nor is going on with more steps.
        self._is_restart = beat is not None and not (
            beat["status"] == Status.DONE.value or (beat["closed"] and not beat["trained"])
        )
        self._beat = beat

    def finished_before(self) -> tuple[Result, None] | None:
        """The result, if all steps are trained and stored, and what comes of them is evaluated."""
        latest = self._run.latest()
        if latest is not None:  # it may be newer than the last sign of life
            ledger = self._records.ledger
            self._records.ledger = replace(ledger, highest_step=max(ledger.highest_step, latest.step))
        if latest is None or not (latest.step >= self._job.steps or self._was_ended_by_callback(latest)):
            return None
        if self._lacks_evaluation(latest):
            return None
        assert self._identity is not None
        check_arrays(self._identity, self._arrays(), self._url)
        # The last coordinator may have been killed between the last checkpoint and its own end.
        discard_arena(self._run.place(self._identity), latest.step)
        if latest.step > self._job.steps:
            text = f"the run has come to step {latest.step}, and is asked for {self._job.steps} steps"
            self._observer.note(Note("finished", f"nothing to do: {text}", {}))
        elif self._beat is None or self._beat["status"] != Status.DONE.value:
            with suppress(HoldfastError):  # nothing is lost but that others are told
                self._put_on_record(latest)
        return _finished_before(self._run, latest, self._records), None

    def _put_on_record(self, latest: Entry) -> None:
        """Give a sign of life, so that others are told that it is done: of a copy there is none."""
        assert latest.manifest is not None
        attempt = self._run.claim_attempt()
        sign = {
            **own_life(),
            "closed": True,
            "status": Status.DONE.value,
            "error": None,
            "step": latest.step,
            "trained": False,
            "steps": self._job.steps,
            "metrics": dict(latest.manifest.metrics),
            "steps_per_s": None,
            "workers": 0,
            "totals": self._records.ledger.totals.to_json(),
        }
        self._begin(attempt, lambda: sign, self._comes_after(), [])
        self._records.keep()

    def _lacks_evaluation(self, latest: Entry) -> bool:
        """Whether the run was stopped within the evaluation that follows the last step."""
        if self._job.validation is None or latest.manifest is None:
            return False
        is_done = self._beat is not None and self._beat["status"] == Status.DONE.value
        return not is_done and not any(name.startswith("val_") for name in latest.manifest.metrics)

    def _was_ended_by_callback(self, latest: Entry) -> bool:
        if self._job.callbacks is None or latest.manifest is None:
            return False
        course = latest.manifest.counters.get("course")
        return isinstance(course, dict) and course.get("stopped") is True

    def _arrays(self) -> tuple[StateArray, ...]:
        engine = as_engine(self._job.model())
        if not self._job.callbacks:
            return state_arrays(engine)
        from workers.nn.callbacks.jobs import keeps_best

        return state_arrays(engine, keeps_best=any(map(keeps_best, self._job.callbacks)))

    def run(self) -> tuple[Result, Exception | None]:
        """One attempt after another, as the policy allows."""
        sweep(keep=self._run.place(self._identity) if self._identity is not None else "")
        try:
            return self._run_attempts()
        finally:
            self._records.stop()

    def _run_attempts(self) -> tuple[Result, Exception | None]:
        ledger = self._records.ledger
        result = Result(run_dir=self._url, status=Status.FAILED.value, step=ledger.reached)
        coordinator: Coordinator | None = None
        after, number = self._comes_after(), 0
        while True:
            try:
                # Once it has run, a cluster without room for it is waited for.
                least = 0 if number else self._settings.least
                runtime = _runtime(self._request, least, self._observer, self._signals)
                succeeds = after == books.COORDINATOR_KILLED
                grants, refusal = self._succeed(runtime) if succeeds else ([], None)
                attempt = self._run.claim_attempt()
            except _Terminated:
                return self._stopped(result, Status.PREEMPTED, coordinator)
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
                    self._records,
                    self._observer,
                    self._signals.take,
                    self._recover,
                )
                self._begin(attempt, coordinator.sign, after, grants)
                result = replace(result, attempt=number)
                if refusal is not None:
                    return self._given_up(result, coordinator, refusal)
                state = coordinator.run()
                result = _result(self._url, attempt, coordinator)
                if state.status is not Status.FAILED:
                    return self._end(result, coordinator), None
                assert state.error is not None
                error = state.error
            if (end := self._wait_to_restart(result, error, number, coordinator)) is not None:
                return end
            after = books.AGAIN

    def _comes_after(self) -> str:
        """What the first attempt of this command comes after."""
        if succession.predecessors():
            return books.COORDINATOR_KILLED
        if self._beat is None:
            return books.NEW
        return books.RESUMED if self._beat["closed"] else books.RUN_KILLED

    def _begin(
        self, attempt: Attempt, sign: Callable[[], dict[str, Any]], after: str, grants: list[Note]
    ) -> None:
        """The first entries of an attempt's journal."""
        self._records.open(attempt, sign)
        cause, died_at = succession.last_death() if after == books.COORDINATOR_KILLED else ("", None)
        if after == books.RUN_KILLED:
            cause = _absence(self._beat)
        if after in (books.AGAIN, books.COORDINATOR_KILLED):
            self._records.meter.begin(died_at or time.monotonic())
        elif self._records.meter.pace.steps:
            self._records.meter.begin(time.monotonic())
        fields = {
            "attempt": attempt.number,
            "invocation": succession.invocation(),
            "boot": boot_id(),
            "after": after,
            "restart": self._is_restart if after != books.AGAIN else True,
            "cause": cause,
            "died_at": died_at,
            "detection_s": 0.0 if after == books.COORDINATOR_KILLED else None,
            "command": list(self._request.command),
            "folder": self._request.folder,
            "submitted": self._request.submitted,
        }
        self._records.note(Note("began", "", fields))
        for note in grants:
            self._records.note(note)
        succession.begun()

    def _succeed(self, runtime: Runtime) -> tuple[list[Note], Decision | None]:
        """Pay for the coordinators of this command that were killed, and wait if that holds nobody up.

        Returns what is to be put on record, and the decision not to go on, if that is what it is.
        """
        ledger = self._records.ledger
        paid = ledger.coordinators if ledger.invocation == succession.invocation() else 0
        cause, _ = succession.last_death()
        killed = InfrastructureError(f"the coordinator was {cause}")
        places = runtime.places(self._settings.with_standby(self._settings.most))
        at_work = any(place.alive is not None for place in places.values())
        notes: list[Note] = []
        decision: Decision | None = None
        for death in range(paid, succession.predecessors()):
            decision = self._decide(killed, COORDINATOR, held_up=not at_work)
            if not decision.restart:
                return notes, decision
            notes.append(self._granted(decision, COORDINATOR, killed, coordinators=death + 1))
        if decision is not None:
            self._signals.wait_for(decision.delay_s)
        return notes, None

    def _decide(self, error: Exception, of: str, *, held_up: bool = True) -> Decision:
        ledger = self._records.ledger
        same = ledger.invocation == succession.invocation()
        return decide(
            self._job.restart,
            self._history,
            ledger.highest_step,
            error,
            random.random(),
            of=of,
            since=ledger.since if same else len(ledger.granted),
            held_up=held_up,
        )

    def _granted(self, decision: Decision, of: str, error: Exception, **more: Any) -> Note:
        """What is put on record of a restart that was granted."""
        step, cause = self._records.ledger.highest_step, in_short(error)
        self._history = (*self._history, Restart(step, of, decision.delay_s, cause))
        fields = {
            "of": of,
            "highest_step": step,
            "delay_s": decision.delay_s,
            "cause": cause,
            "number": decision.number,
            **more,
        }
        return Note("granted", decision.reason, fields)

    def _recover(self, node: int, error: Exception) -> tuple[float, int] | None:
        """Whether a node that was lost is started again, and after how long: by the same policy as a job."""
        of = f"node {node}"
        decision = self._decide(error, of)
        if not decision.restart:
            self._records.note(Note("recover", decision.reason, {}))
            return None
        return decision.delay_s, self._records.note(self._granted(decision, of, error))

    def _wait_to_restart(
        self, result: Result, error: Exception, number: int, coordinator: Coordinator | None
    ) -> tuple[Result, Exception | None] | None:
        """Wait as the policy says; the end, if there is to be no other attempt."""
        decision = self._decide(error, JOB)
        if not decision.restart:
            return self._given_up(result, coordinator, decision, error)
        self._records.note(self._granted(decision, JOB, error))
        if coordinator is not None:
            waiting = {
                "until": time.time() + decision.delay_s,
                "number": decision.number,
                "cause": in_short(error),
            }
            at_work = coordinator
            sign = partial(at_work.sign, status=Status.RUNNING, waiting=waiting)
            self._records.follow(sign, partial(self._look_for_a_stop, Requests(self._run)))
        self._records.keep()  # before it is acted upon
        stopped = self._signals.wait(decision.delay_s)
        if stopped is not None:
            return self._stopped(replace(result, error=None), stopped, coordinator)
        with suppress(StorageError):  # the claim of the next attempt will tell
            if self._run.newest_attempt() > number:
                newer = Superseded(f"a newer attempt has taken {self._url} over: this one stops ({error})")
                return replace(result, error=str(newer)), newer
        return None

    def _look_for_a_stop(self, requests: Requests) -> bool:
        """While nothing is trained nobody needs an answer but the end."""
        with suppress(HoldfastError):  # the storage will be complained about elsewhere
            if any(name == STOP for name, _, _ in requests.new()):
                self._signals.ask(Status.INTERRUPTED)
        return False

    # -- ends -------------------------------------------------------------------------------------------

    def _given_up(
        self,
        result: Result,
        coordinator: Coordinator | None,
        decision: Decision,
        error: Exception | None = None,
    ) -> tuple[Result, Exception]:
        """The end by an error, with what was tried against it."""
        if decision.looping:
            error = CrashLoop(decision.reason)
        elif error is None or isinstance(error, InfrastructureError | StorageError):
            error = InfrastructureError(decision.reason)
        result = replace(result, status=Status.FAILED.value, error=str(error), failure=classify(error).value)
        return self._end(result, coordinator, error), error

    def _stopped(
        self, result: Result, status: Status, coordinator: Coordinator | None
    ) -> tuple[Result, None]:
        """The end by a signal while nothing was trained."""
        return self._end(replace(result, status=status.value), coordinator), None

    def _end(self, result: Result, coordinator: Coordinator | None, error: Exception | None = None) -> Result:
        """Close the records: from here on another command may go on with the run."""
        self._records.stop()
        if coordinator is not None:
            status = Status(result.status)
            self._records.follow_no_more(lambda: coordinator.sign(closed=True, status=status, error=error))
            self._records.keep()
        return self._told(result)

    def _told(self, result: Result) -> Result:
        """The result, with what it took to come to it."""
        ledger = self._records.ledger
        left = tokens_left(self._job.restart, ledger.granted, ledger.highest_step)
        return add_history(replace(result, restarts_left=left), ledger, self._records.meter.pace)


def _absence(beat: dict[str, Any] | None) -> str:
    """For how long nobody ran a run that was killed."""
    t = None if beat is None else beat.get("t")
    if beat is None or not isinstance(t, int | float) or beat["boot_id"] != boot_id():
        return "its last sign of life is of another time or machine"
    return f"its last sign of life was {max(0.0, time.monotonic() - t):.0f} s before"


def check_at_rest(run: RunDirectory, tell: Callable[[str], object]) -> None:
    """`check_not_alive`, of the coordinator that has given the run's newest sign of life, if one has."""
    if (beat := run.newest_beat()) is not None:
        check_not_alive(beat, run, tell)


def check_not_alive(beat: dict[str, Any], run: RunDirectory, tell: Callable[[str], object]) -> None:
    """Raise RunAlive if the coordinator that gave this sign of life still works.

    On this host that is known at once; of another host its sign of life is watched for a while, which `tell`
    is told of.
    """
    check_beat(beat, run.store.url)
    if beat["closed"]:
        return
    where = f"process {beat['pid']} on {beat['host']}"
    alive = lives(beat)
    if alive is None:
        tell(f"waiting {SIGN_OF_LIFE_S:.0f} s for a sign of life of {where}")
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
        return ProcessRuntime(
            request.source,
            request.nodes,
            succession.invocation(),
            succession.supervisor(),
            is_silent=observer.draws,
        )
    from orchestrator.ray_runtime import RayRuntime

    runtime = RayRuntime(
        request.source,
        request.address,
        workers,
        request.cpus_per_worker,
        succession.invocation(),
        request.autoscale,
        request.insecure,
    )
    try:
        runtime.connect(lambda text: observer.note(Note("ray", text, {})))
    except SystemExit as error:  # while it starts, Ray answers SIGTERM itself
        raise _Terminated from error
    signals.install()  # ray.init sets handlers of its own
    return runtime


def _finished_before(run: RunDirectory, latest: Entry, records: Records) -> Result:
    result = at_checkpoint(run.store.url, latest, Status.DONE.value)
    return add_history(result, records.ledger, records.meter.pace)


def _result(url: str, attempt: Attempt, coordinator: Coordinator) -> Result:
    state: State = coordinator.state
    snapshot = coordinator.snapshot
    metrics = {**snapshot.metrics, **state.metrics}
    digest, digest_step = coordinator.state_digest
    return Result(
        run_dir=url,
        status=state.status.value,
        error=None if state.error is None else str(state.error),
        step=snapshot.step,
        attempt=attempt.number,
        loss=metrics.pop("loss", None),
        metrics=metrics,
        state_digest=digest,
        digest_step=digest_step,
        failure=None if state.error is None else classify(state.error).value,
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

    def ask(self, status: Status) -> None:
        """As if a signal had come."""
        self._received.append(status)

    def wait(self, timeout_s: float) -> Status | None:
        """Wait for a signal, and take it."""
        self.wait_for(timeout_s)
        return self.take()

    def wait_for(self, timeout_s: float) -> None:
        """Wait for a signal, which the next one to ask takes."""
        deadline = time.monotonic() + timeout_s
        while not self._received and time.monotonic() < deadline:
            time.sleep(0.05)

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
