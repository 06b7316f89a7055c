"""The interpreter of `machine`: does what it decides, with the only clock of the control plane."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, assert_never

from orchestrator import events as e
from orchestrator import machine, succession
from orchestrator.events import Note, Status
from orchestrator.failures import classify, in_short
from orchestrator.identity import check_best, check_identity, check_names, full_identity
from orchestrator.life import own_life
from orchestrator.log_writer import LogWriter
from orchestrator.machine import Phase, State
from orchestrator.metrics import MetricsWriter
from orchestrator.requests import Requests
from orchestrator.restart import tokens_left
from orchestrator.spec import check_remainder
from storage.checkpoint import commit
from storage.errors import CheckpointError, ConfigurationError, HoldfastError, StorageError
from storage.layout import StateArray
from storage.manifest import Base
from workers import fingerprint
from workers import messages as m
from workers.arenas import discard_arena
from workers.faults import planned_fault
from workers.schedule import steps_per_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.records import Records
    from orchestrator.runtime import Runtime
    from orchestrator.spec import Job
    from storage.run_directory import Attempt, RunDirectory
    from workers.faults import Fault
    from workers.lines import Line

P = ParamSpec("P")

POLL_S = 0.1
WAITING_S = 15.0
PLACES_S = 1.0
"""Seconds between two looks at which nodes there are."""

GATHER_S = 20.0
"""Seconds after which nodes that are not there yet are not waited for any longer: they join later."""


class Observer(Protocol):
    """Somebody who watches a run: a progress display, a log, a test."""

    draws: bool
    """Whether processes are to leave it to this one to show what they print: it draws at the same place."""

    def note(self, note: Note) -> None:
        """Something happened."""

    def progress(self, snapshot: Snapshot) -> None:
        """Where training is; called several times a second."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where an attempt is."""

    step: int
    steps: int
    metrics: dict[str, float]
    workers: int
    steps_per_s: float | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What an attempt needs to know besides the job."""

    url: str
    least: int
    most: int
    microbatches: int
    nodes: int = 1
    standby: int = 0
    """Workers more on each node, which take over when one dies."""

    token: str = ""
    grace_s: float | None = None
    """Seconds from SIGTERM to the end of this process."""

    def with_standby(self, workers: int) -> int:
        """How many workers there should be room for, so that so many compute."""
        return workers + self.standby * self.nodes


class Coordinator:
    """One attempt at a job, from its claim to its end."""

    def __init__(
        self,
        job: Job,
        settings: Settings,
        run: RunDirectory,
        attempt: Attempt,
        runtime: Runtime,
        records: Records,
        observer: Observer,
        signalled: Callable[[], Status | None],
        recover: Callable[[int, Exception], tuple[float, int] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._settings = settings
        self._run = run
        self._attempt = attempt
        self._runtime = runtime
        self._records = records
        self._observer = observer
        self._signalled = signalled
        self._recover = recover
        self._clock = clock
        self._pause: tuple[float, int] | None = None  # (until when, the round's epoch)
        self._returning: list[tuple[float, int, int]] = []  # (when, lost node, the journal's entry about it)
        self._places: dict[int, e.Place] = {}
        self._looked_at = 0.0
        self._requests: Requests | None = None
        self._granted: dict[str, str] = {}  # by name, what names the last request that was granted
        self._told: dict[str, str] = {}
        self._asked_for: deque[tuple[str, str, list[e.Event]]] = deque()
        self._processes: dict[tuple[int, str, int], int] = {}  # (node, role, rank) -> pid
        self.state = State()
        self._events: deque[e.Event] = deque()
        self._commands: list[tuple[int, m.Command]] = []
        self._answers: list[Future[e.Event]] = []
        self._description: dict[str, Any] = {}
        self._parent: Base | None = None
        self._base_digest: tuple[str | None, int | None] = (None, None)
        self._progress = m.Progress()
        self._trained_from: tuple[float, int] | None = None  # (when training began, at which step)
        self._all_trained = False
        self._steps_per_s: float | None = None
        self._began = self._waiting_since = self._clock()
        self._fault: Fault | None = None
        self._metrics = MetricsWriter(run.store, attempt.number, attempt.nonce)
        self._logs = LogWriter(run.store, attempt.number, attempt.nonce, records.redactor)

    def run(self) -> State:
        """Run the attempt to its end; every process has ended when this returns."""
        self._fault = planned_fault("coordinator", 0, succession.predecessors())
        with ThreadPoolExecutor(1, "storage") as self._storage:
            try:
                self._records.keep(strict=True)
                self._requests = Requests(self._run)
                self._records.follow(self.sign, self._look_for_requests, self._store)
                self._places = dict(self._runtime.places(self._settings.with_standby(self._settings.most)))
                self._handle(self._begin())
                while self.state.phase is not Phase.ENDED:
                    self._turn()
            except HoldfastError as error:
                self._handle(e.Broken(error))
            finally:
                self._end()
        self._tell_end()
        return self.state

    def _begin(self) -> e.Begin:
        asked = self._settings
        return e.Begin(asked.least, asked.most, self._places, asked.nodes, asked.standby)

    def _tell_end(self) -> None:
        """Into the journal only: whoever started the attempt says how it ended."""
        error = self.state.error
        fields: dict[str, Any] = {"status": self.state.status.value, "step": self.snapshot.step}
        if error is not None:
            fields |= {"error": str(error), "class": classify(error).value, "cause": in_short(error)}
        self._tell(Note("end", "", fields))

    def _turn(self) -> None:
        """Listen to the agents, the runtime, the storage and the user once."""
        commands, self._commands = self._commands, []
        events, progresses = self._runtime.exchange(self._attempt.number, commands, self._patience_s())
        if any(isinstance(command, m.Restore) for _, command in commands):
            self._strike(0, "restore")
        self._follow(progresses)
        self._measure()
        for event in _causes_first(events):
            self._keep_track(event)
            if isinstance(event, e.Heard) and isinstance(event.event, m.Evaluated):
                self._metrics.evaluated(event.event.step, event.event.metrics)
            self._handle(event)
        for future in [f for f in self._answers if f.done()]:
            self._answers.remove(future)
            self._handle(self._answered(future))
        if (status := self._signalled()) is not None:
            left_s = self._settings.grace_s if status is Status.PREEMPTED else None
            self._handle(e.Signalled(status, left_s))
        self._look_around()
        self._mention_waiting()
        self._observer.progress(self.snapshot)

    def _patience_s(self) -> float:
        """Seconds that nothing has to be looked at but what the agents say."""
        patience_s = POLL_S / 10 if self._answers else POLL_S
        if self._pause is None:
            return patience_s
        return min(patience_s, max(0.0, self._pause[0] - self._clock()))

    def _look_around(self) -> None:
        """People ask for more or fewer workers, nodes come and go, and those that were lost return."""
        while self._asked_for:
            name, nonce, events = self._asked_for.popleft()
            self._granted = {**self._granted, name: nonce}
            for event in events:
                self._handle(event)
        now = self._clock()
        # Not before it is on record that this was granted: it must be paid for whoever is killed meanwhile.
        due = [r for r in self._returning if r[0] <= now and self._records.durable(r[2])]
        self._returning = [r for r in self._returning if r not in due]
        for _, node, _ in due:
            self._handle(e.Returned(node))
        if self._pause is not None and self._pause[0] <= now:
            epoch, self._pause = self._pause[1], None
            self._handle(e.PauseOver(epoch))
        if self.state.phase is Phase.JOINING and not self.state.waited and now - self._began > GATHER_S:
            self._handle(e.Waited())
        if now - self._looked_at < PLACES_S:
            return
        self._looked_at = now
        places = dict(self._runtime.places(self._settings.with_standby(self.state.most)))
        if places.keys() != self._places.keys() or any(
            places[node].workers != self._places[node].workers for node in places
        ):
            self._places = places
            self._handle(e.Available(places))

    def _follow(self, progresses: Mapping[int, m.Progress]) -> None:
        """Where training is: at the step that all nodes have made; it never goes back while a node lives."""
        for node, progress in progresses.items():
            self._hear_output(node, progress.lines)
        mine = [progresses[node] for node in self.state.members if node in progresses]
        if not mine:
            return
        last = min(mine, key=lambda progress: progress.step)
        workers = sum(progress.workers for progress in progresses.values())
        standby = sum(progress.standby for progress in progresses.values())
        for progress in mine:
            self._metrics.take(progress.rows)
        step = max(self._progress.step, last.step)
        metrics = last.metrics if last.step == step else self._progress.metrics
        self._progress = m.Progress(step, metrics, workers, standby)

    def _keep_track(self, event: e.Event) -> None:
        """Of which processes there are."""
        match event:
            case e.Heard(node, m.Greeted(processes)):
                self._processes |= {(node, p.role, p.rank): p.pid for p in processes}
            case e.Heard(node, m.Ready(role, rank, pid)):
                self._processes[node, role, rank] = pid
            case e.Heard(node, m.Lost(role, rank, pid)):
                if self._processes.get((node, role, rank)) == pid:
                    del self._processes[node, role, rank]
            case e.NodeLost(node):
                self._processes = {key: pid for key, pid in self._processes.items() if key[0] != node}

    def _hear_output(self, node: int, lines: Sequence[Line]) -> None:
        """What processes of a node print; shown to whoever does not see them print it."""
        for line in self._logs.take(node, lines):
            if self._runtime.is_silent and not line.again:
                self._observer.note(Note(e.OUTPUT, f"{line.role} {line.rank}: {line.text}", {}))

    def _store(self, *, last: bool = False) -> None:
        """Store what was measured and printed, if that is due; training needs none of it."""
        for what, writer in (("metrics", self._metrics), ("logs", self._logs)):
            try:
                writer.store(self._clock(), last=last)
            except (StorageError, ConfigurationError) as error:
                if last or not writer.complained:
                    self._observer.note(Note("storage", f"the {what} could not be stored: {error}", {}))
                writer.complained = True

    def _mention_waiting(self) -> None:
        """Nobody should look at a run that waits for workers without being told."""
        if self.state.phase is not Phase.JOINING or self._clock() - self._waiting_since < WAITING_S:
            return
        self._waiting_since = self._clock()
        text = "no worker is ready yet: does the job take long to load, or is the cluster full?"
        self._tell(Note("waiting", text, {}))

    def _end(self) -> None:
        """End every process. The arenas go when nobody will need them again."""
        self._store(last=True)  # before the memory goes, which holds them, too
        close = m.Close(remove=self._stored())
        commands: list[tuple[int, m.Command]] = [(node, close) for node in sorted(self.state.nodes)]
        try:
            self._runtime.exchange(self._attempt.number, commands, 0.1)
        except HoldfastError:
            pass  # it has gone, as it was asked to
        finally:
            self._runtime.close()
        if close.remove and self.state.prepare is not None:  # and what lost nodes of this machine have left
            discard_arena(self.state.prepare.place_id, self._progress.step)

    def _stored(self) -> bool:
        """Whether the attempt ended well, and storage holds what the arena does."""
        ended_well = self.state.status in (Status.DONE, Status.PREEMPTED, Status.INTERRUPTED)
        return ended_well and self._parent is not None and self._parent.step >= self._progress.step

    # -- the machine ------------------------------------------------------------------------------------

    def _handle(self, event: e.Event) -> None:
        self._events.append(event)
        if isinstance(event, e.Based):
            self._tell_base()
        while self._events:
            self.state, actions = machine.transition(self.state, self._events.popleft(), self._attempt.number)
            for action in actions:
                self._do(action)

    def _tell_base(self) -> None:
        """From where the attempt goes on; steps beyond it were committed once and are trained again."""
        base = self.state.base.base if self.state.base is not None else None
        step = 0 if base is None else base.step
        self._metrics.begin(step)
        lost = max(0, self._records.ledger.reached - step)
        text = f"{lost} steps since then are lost and trained again" if lost else ""
        self._tell(Note("based", text, {"step": step, "steps_lost": lost}))

    def _do(self, action: e.Action) -> None:
        match action:
            case e.StartProcess(node, role, rank, generation):
                self._runtime.start(node, role, rank, generation)
            case e.Tell(node, command):
                self._commands.append((node, command))
            case e.Abandon(node):
                self._commands = [(n, command) for n, command in self._commands if n != node]
                self._runtime.abandon(node)
            case e.Recover(node, error):
                if (granted := self._recover(node, error)) is not None:
                    delay_s, entry = granted
                    self._returning.append((self._clock() + delay_s, node, entry))
            case e.Pause(epoch, seconds):
                self._pause = (self._clock() + seconds, epoch)
            case e.Identify(description):
                self._ask(self._identify, description)
            case e.ChooseBase(epoch, found, bad, reason):
                self._ask(self._choose_base, epoch, found, bad, reason)
            case e.RecordBase(base):
                self._ask(self._record_base, base)
            case e.CommitCheckpoint(parts):
                self._ask(self._commit, parts)
            case e.RecordDivergence(found):
                self._storage.submit(self._record_divergence, found)
            case Note():
                self._tell(action)
            case _:
                assert_never(action)

    def _ask(self, question: Callable[P, e.Event], *arguments: P.args, **named: P.kwargs) -> None:
        """Have the storage thread answer, however slow it is; the agent must go on hearing from us."""
        self._answers.append(self._storage.submit(question, *arguments, **named))

    def _answered(self, future: Future[e.Event]) -> e.Event:
        try:
            return future.result()
        except HoldfastError as error:
            return e.Broken(error)

    def _tell(self, note: Note) -> None:
        self._records.note(note)

    # -- what the machine asks to be looked up ----------------------------------------------------------

    def _identify(self, description: dict[str, Any]) -> e.Event:
        self._description = description
        batches = steps_per_epoch(description["samples"], self._job.batch_size, self._job.remainder)
        self._metrics.describe(description, batches)
        check_remainder(self._job, description["samples"])
        redactor = self._records.redactor
        check_names(description, redactor)
        check_best(self._job, description)
        ours = full_identity(self._job, self._settings.microbatches, description, redactor)
        if not self._run.probe_exclusive():
            self._tell(
                Note(
                    "storage",
                    f"{self._settings.url} lets an object be created twice: start no other coordinator there",
                    {},
                )
            )
        identity = self._run.identity() or self._run.create_identity(ours)
        for change in check_identity(identity, ours, self._settings.url, redactor):
            self._tell(Note("changed", f"the job is not quite what it was: {change}", {}))
        return e.Identified(
            m.Prepare(
                place_id=self._run.place(identity),
                seed=self._job.seed,
                batch_size=self._job.batch_size,
                microbatches=self._settings.microbatches,
                shuffle=self._job.shuffle,
                remainder=self._job.remainder,
                paranoid=self._job.paranoid,
                url=self._settings.url,
                token=self._settings.token,
                stop_on_divergence=self._job.on_divergence == "stop",
                worker_timeout_s=self._job.worker_timeout_s,
                checkpoint_timeout_s=self._job.checkpoints.timeout_s,
            )
        )

    def _choose_base(self, epoch: int, states: Sequence[m.Found], bad: Sequence[str], reason: str) -> e.Event:
        """The highest step on the newest line, in memory or in a checkpoint; memory breaks a tie."""
        self._strike(0, "plan")
        if bad:
            self._quarantine(bad[-1], reason)
        for damaged in self._run.damaged():
            self._quarantine(damaged.directory, damaged.reason)
            text = f"{damaged.directory} is bad, falling back: {damaged.reason}"
            self._tell(Note("fall-back", text, {"directory": damaged.directory}))
        found = max(
            (f for f in states if self._run.stands(Base(step=f.step, attempt=f.attempt))),
            key=lambda f: (f.step, f.attempt),
            default=None,
        )
        memory = None if found is None else Base(step=found.step, attempt=found.attempt)
        entry = next((e for e in self._run.candidates() if e.directory not in bad), None)
        if memory is not None and (entry is None or memory.step >= entry.step):
            assert found is not None
            self._check_arithmetic(found.fingerprint)
            self._parent = None
            return e.BaseChosen(epoch, memory, None, in_memory=True)
        if entry is None:
            self._check_nothing_is_lost(bad)
            return e.BaseChosen(epoch, None, None, in_memory=False)
        assert entry.manifest is not None
        self._check_arithmetic(dict(entry.manifest.fingerprint))
        self._parent = Base(step=entry.step, attempt=entry.attempt)
        self._base_digest = entry.manifest.state_digest, entry.step
        return e.BaseChosen(epoch, self._parent, entry.directory, in_memory=False)

    def _quarantine(self, directory: str, reason: str) -> None:
        """Put a damaged checkpoint on record, if that can be done: this attempt leaves it out in any case."""
        try:
            self._run.quarantine(directory, reason)
        except (StorageError, ConfigurationError) as error:
            self._tell(Note("storage", f"{directory} could not be put into quarantine: {error}", {}))

    def _check_nothing_is_lost(self, bad: Sequence[str]) -> None:
        """Raise CheckpointError if a checkpoint was ever committed: starting from zero would lose the run."""
        tried = [f"{e.directory} ({e.reason or 'its content is bad'})" for e in self._run.unusable(bad)]
        if tried:
            raise CheckpointError(
                f"no checkpoint of {self._settings.url} can be used, and starting from zero would lose the "
                f"run: tried {'; '.join(tried)}"
            )

    def _check_arithmetic(self, theirs: dict[str, Any]) -> None:
        """Refuse, or only mention, that this machine computes with other bits than the state's did."""
        difference = fingerprint.difference(theirs, self._description["fingerprint"])
        if difference is None:
            return
        text = f"this machine computes with other bits than the run did: {difference}"
        if self._job.determinism == "strict":
            raise ConfigurationError(
                f'{text}; resume where they are equal, or give the job determinism="warn" to go on'
            )
        self._tell(Note("arithmetic", text, {}))

    def _record_base(self, base: Base | None) -> e.Event:
        self._run.record_base(self._attempt, base)
        return e.Based(
            m.Plan(
                attempt=self._attempt.number,
                epoch=0,
                nonce=self._attempt.nonce,
                url=self._settings.url,
                steps=self._job.steps,
                checkpoint_every=self._job.checkpoints.every_steps,
                validate_every=self._job.validate_every,
                compression=self._job.checkpoints.compression,
                in_flight=self._job.checkpoints.in_flight,
            )
        )

    def _commit(self, parts: Sequence[m.CheckpointWritten]) -> e.Event:
        """Commit a checkpoint; old ones are deleted afterwards."""
        written = parts[0]  # with the metrics of the node that evaluates
        self._strike(written.step, "before")
        try:
            manifest = commit(
                self._run,
                self._attempt,
                written.directory,
                [StateArray.from_json(array) for array in self._description["arrays"]],
                [each.part for each in parts],
                step=written.step,
                parent=self._parent,
                counters=written.counters,
                metrics=written.metrics,
                fingerprint=self._description["fingerprint"],
                compression=self._job.checkpoints.compression,
            )
        except HoldfastError as error:
            return e.CommitFailed(written.step, error)
        self._parent = Base(step=written.step, attempt=self._attempt.number)
        self._strike(written.step, "after")
        self._storage.submit(self._tidy, written.step)
        return e.Committed(written.step, manifest.state_digest)

    def _record_divergence(self, found: m.Diverged) -> None:
        record = {
            "microbatch": found.microbatch,
            "microbatches": self._settings.microbatches,
            "batch_size": self._job.batch_size,
            "seed": self._job.seed,
            "loss": found.loss,
            "gradient_finite": found.finite,
            "gradient_blake3": found.digest,
        }
        try:
            self._run.record_divergence(self._attempt, found.step, record)
        except HoldfastError as error:
            self._tell(Note("storage", f"the record of the divergence could not be written: {error}", {}))

    def _strike(self, step: int, phase: str) -> None:
        if self._fault is not None:
            self._fault.strike(step, phase)

    def _tidy(self, step: int) -> None:
        """Delete what is no longer kept, and what earlier attempts have left behind."""
        try:
            self._run.retain(self._job.checkpoints.retention, self._attempt)
            self._strike(step, "collection")
            self._run.collect()
        except HoldfastError as error:
            self._tell(Note("retention-failed", f"old checkpoints could not be deleted: {error}", {}))

    # -- signs of life ----------------------------------------------------------------------------------

    def _measure(self) -> None:
        now, step = self._clock(), self._progress.step
        if self.state.phase not in (Phase.TRAINING, Phase.STOPPING):
            self._records.meter.pause()
            return
        if self._trained_from is None:
            self._trained_from = (now, step)
        elif step > self._trained_from[1]:
            self._steps_per_s = (step - self._trained_from[1]) / (now - self._trained_from[0])
        self._records.reached(step)
        if self.state.phase is Phase.TRAINING and not self._all_trained:
            self._records.meter.look(now, step, calm=self._records.ledger.calm)
            self._all_trained = step >= self._job.steps  # what follows is storing them

    @property
    def snapshot(self) -> Snapshot:
        """Where the attempt was when it was last heard of."""
        progress = self._progress
        step = progress.step if self._trained_from is not None else self._records.ledger.reached
        return Snapshot(step, self._job.steps, progress.metrics, progress.workers, self._steps_per_s)

    @property
    def state_digest(self) -> tuple[str | None, int | None]:
        """Digest of the last checkpoint that this attempt committed or went on from, and its step."""
        committed = self.state.state_digest
        return self._base_digest if committed is None else (committed, self.state.stored_step)

    def sign(
        self,
        *,
        closed: bool = False,
        status: Status | None = None,
        error: Exception | None = None,
        waiting: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The sign of life: how the attempt stands. `waiting` says what is waited for before the next one."""
        error, ledger = error or self.state.error, self._records.ledger
        return {
            **own_life(),
            "closed": closed,
            "status": (status or self.state.status).value,
            "error": None if error is None or status is Status.RUNNING else str(error),
            "class": None if error is None else classify(error).value,
            "step": self.snapshot.step,
            "trained": self._trained_from is not None,
            "steps": self._job.steps,
            "metrics": {**self._progress.metrics, **self.state.metrics},
            "state_digest": self.state_digest[0],
            "steps_per_s": self._steps_per_s,
            "phase": self.state.phase.value,
            "waiting": waiting,
            "workers": 0 if waiting else self._progress.workers,
            "standby": 0 if waiting else self._progress.standby,
            "nodes": 0 if waiting else len([n for n in self.state.members if n in self.state.nodes]),
            "granted": self._granted,
            "processes": [
                {"node": node, "role": role, "rank": rank, "pid": pid}
                for (node, role, rank), pid in sorted(self._processes.items())
            ],
            "max_restarts": self._job.restart.max_restarts,
            "restarts_left": tokens_left(self._job.restart, ledger.granted, ledger.highest_step),
            "totals": ledger.totals.to_json(),
            "pace": self._records.meter.pace.to_json(),
        }

    def _look_for_requests(self) -> bool:
        """Whether a request was granted that its author has not been told of."""
        granted = self._granted
        try:
            asked = self._requests.new() if self._requests is not None else []
        except HoldfastError:
            return False  # the storage will be complained about elsewhere
        self._asked_for.extend(asked)
        news, self._told = granted != self._told, granted
        return news


def _causes_first(events: Sequence[e.Event]) -> list[e.Event]:
    """Events in their order, but how a process ended comes before that its agent misses it."""
    ends = {(x.node, x.role, x.rank, x.generation): x for x in events if isinstance(x, e.Exited)}
    ordered: list[e.Event] = []
    for event in events:
        match event:
            case e.Heard(node, m.Lost(role, rank, generation=generation, cause="")):
                ended = ends.get((node, role, rank, generation))
                if ended is not None and ended not in ordered:
                    ordered.append(ended)
        if event not in ordered or not isinstance(event, e.Exited):
            ordered.append(event)
    return ordered
