"""The interpreter of `machine`: does what it decides, with the only clock of the control plane."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, assert_never

from orchestrator import events as e
from orchestrator import machine, succession
from orchestrator.events import Note, Status
from orchestrator.identity import check_identity, full_identity
from orchestrator.life import own_life
from orchestrator.machine import Phase, State
from orchestrator.scale import Requests
from storage.checkpoint import commit
from storage.errors import CheckpointError, ConfigurationError, HoldfastError, StorageError
from storage.layout import StateArray
from storage.manifest import Base
from workers import fingerprint
from workers import messages as m
from workers.arenas import discard_arena
from workers.faults import planned_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.runtime import Runtime
    from orchestrator.spec import Job
    from orchestrator.totals import Totals
    from storage.run_directory import Attempt, RunDirectory
    from workers.faults import Fault

P = ParamSpec("P")

POLL_S = 0.1
BEAT_S = 5.0
REQUESTS_S = 1.0
"""Seconds between two looks at what is asked for by way of the run directory."""

WAITING_S = 15.0
PLACES_S = 1.0
"""Seconds between two looks at which nodes there are."""

GATHER_S = 20.0
"""Seconds after which nodes that are not there yet are not waited for any longer: they join later."""


class Observer(Protocol):
    """Somebody who watches a run: a progress display, a log, a test."""

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
    token: str = ""
    grace_s: float | None = None
    """Seconds from SIGTERM to the end of this process."""


class Coordinator:
    """One attempt at a job, from its claim to its end."""

    def __init__(
        self,
        job: Job,
        settings: Settings,
        run: RunDirectory,
        attempt: Attempt,
        runtime: Runtime,
        totals: Totals,
        observer: Observer,
        signalled: Callable[[], Status | None],
        recover: Callable[[Totals, Exception], tuple[Totals, float | None]],
    ) -> None:
        self._job = job
        self._settings = settings
        self._run = run
        self._attempt = attempt
        self._runtime = runtime
        self._observer = observer
        self._signalled = signalled
        self._recover = recover
        self._returning: list[tuple[float, int]] = []  # (when, lost node that may be started again)
        self._places: dict[int, e.Place] = {}
        self._looked_at = 0.0
        self._requests: Requests | None = None
        self._scaled: str | None = None  # what names the last request that was granted
        self._told: str | None = None
        self._asked_for: deque[tuple[e.Scaled, str]] = deque()
        self._progresses: dict[int, m.Progress] = {}
        self._processes: dict[tuple[int, str, int], int] = {}  # (node, role, rank) -> pid
        self.totals = totals
        self.state = State()
        self._events: deque[e.Event] = deque()
        self._commands: list[tuple[int, m.Command]] = []
        self._answers: list[Future[e.Event]] = []
        self._description: dict[str, Any] = {}
        self._parent: Base | None = None
        self._base_digest: str | None = None
        self._progress = m.Progress()
        self._clock: tuple[float, int] | None = None  # (when training began, at which step)
        self._steps_per_s: float | None = None
        self._journal: list[dict[str, Any]] = []
        self._journal_written = True
        self._began = self._waiting_since = time.monotonic()
        self._beats = 0
        self._recording = threading.Lock()
        self._fault: Fault | None = None

    def run(self) -> State:
        """Run the attempt to its end; every process has ended when this returns."""
        self._fault = planned_fault("coordinator", 0, succession.predecessors())
        stop_beating = threading.Event()
        beating = threading.Thread(target=self._beat_until, args=(stop_beating,), daemon=True)
        with ThreadPoolExecutor(1, "storage") as self._storage:
            try:
                self._beat()
                beating.start()
                self._places = dict(self._runtime.places())
                self._handle(
                    e.Begin(self._settings.least, self._settings.most, self._places, self._settings.nodes)
                )
                while self.state.phase is not Phase.ENDED:
                    self._turn()
            except HoldfastError as error:
                self._handle(e.Broken(error))
            finally:
                self._end()
                stop_beating.set()
                if beating.ident is not None:
                    beating.join()
        self._keep_record(closed=True)
        return self.state

    def _turn(self) -> None:
        """Listen to the agents, the runtime, the storage and the user once."""
        commands, self._commands = self._commands, []
        timeout_s = POLL_S / 10 if self._answers else POLL_S
        events, progresses = self._runtime.exchange(self._attempt.number, commands, timeout_s)
        if any(isinstance(command, m.Restore) for _, command in commands):
            self._strike(0, "restore")
        self._follow(progresses)
        self._measure()
        for event in events:
            self._keep_track(event)
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

    def _look_around(self) -> None:
        """People ask for more or fewer workers, nodes come and go, and those that were lost return."""
        while self._asked_for:
            asked, self._scaled = self._asked_for.popleft()
            self._handle(asked)
        now = time.monotonic()
        due = [node for at, node in self._returning if at <= now]
        self._returning = [(at, node) for at, node in self._returning if at > now]
        for node in due:
            self._handle(e.Returned(node))
        if self.state.phase is Phase.JOINING and not self.state.waited and now - self._began > GATHER_S:
            self._handle(e.Waited())
        if now - self._looked_at < PLACES_S:
            return
        self._looked_at = now
        places = dict(self._runtime.places())
        if places.keys() != self._places.keys() or any(
            places[node].workers != self._places[node].workers for node in places
        ):
            self._places = places
            self._handle(e.Available(places))

    def _follow(self, progresses: Mapping[int, m.Progress]) -> None:
        """Where training is: at the step that all nodes have made; it never goes back while a node lives."""
        self._progresses = dict(progresses)
        mine = [progresses[node] for node in self.state.members if node in progresses]
        if not mine:
            return
        last = min(mine, key=lambda progress: progress.step)
        workers = sum(progress.workers for progress in progresses.values())
        step = max(self._progress.step, last.step)
        metrics = last.metrics if last.step == step else self._progress.metrics
        self._progress = m.Progress(step, metrics, workers)

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

    def _mention_waiting(self) -> None:
        """Nobody should look at a run that waits for workers without being told."""
        if self.state.phase is not Phase.JOINING or time.monotonic() - self._waiting_since < WAITING_S:
            return
        self._began = self._waiting_since = time.monotonic()
        text = "no worker is ready yet: does the job take long to load, or is the cluster full?"
        self._tell(Note("waiting", text, {}))

    def _end(self) -> None:
        """End every process. The arenas go when nobody will need them again."""
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
            self._count_lost_steps()
        while self._events:
            before = self.state
            self.state, actions = machine.transition(before, self._events.popleft(), self._attempt.number)
            self.totals = replace(
                self.totals,
                worker_deaths=self.totals.worker_deaths + self.state.worker_deaths - before.worker_deaths,
            )
            for action in actions:
                self._do(action)

    def _count_lost_steps(self) -> None:
        """Steps that were committed once and are about to be trained again."""
        base = self.state.base.base if self.state.base is not None else None
        lost = max(0, self.totals.highest_step - (0 if base is None else base.step))
        self.totals = replace(self.totals, steps_lost=self.totals.steps_lost + lost)

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
                self.totals, delay_s = self._recover(self.totals, error)
                if delay_s is not None:
                    self._returning.append((time.monotonic() + delay_s, node))
            case e.Identify(description):
                self._ask(self._identify, description)
            case e.ChooseBase(epoch, found, bad, reason):
                self._ask(self._choose_base, epoch, found, bad, reason)
            case e.RecordBase(base):
                self._ask(self._record_base, base)
            case e.CommitCheckpoint(parts):
                self._ask(self._commit, parts)
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
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": note.kind,
            "text": note.text,
            **note.fields,
        }
        last = self._journal[-1] if self._journal else {}
        if note.kind == last.get("kind") == "checkpoint-skipped":  # one entry for each row of them
            self._journal[-1] = {**entry, "times": last.get("times", 1) + 1}
        else:
            self._journal.append(entry)
            self._observer.note(note)
        self._journal_written = False

    # -- what the machine asks to be looked up ----------------------------------------------------------

    def _identify(self, description: dict[str, Any]) -> e.Event:
        self._description = description
        ours = full_identity(self._job, self._settings.microbatches, description)
        if not self._run.probe_exclusive():
            self._tell(
                Note(
                    "storage",
                    f"{self._settings.url} lets an object be created twice: start no other coordinator there",
                    {},
                )
            )
        identity = self._run.identity() or self._run.create_identity(ours)
        for change in check_identity(identity, ours, self._settings.url):
            self._tell(Note("changed", f"the job is not quite what it was: {change}", {}))
        return e.Identified(
            m.Prepare(
                place_id=identity["place_id"],
                seed=self._job.seed,
                batch_size=self._job.batch_size,
                microbatches=self._settings.microbatches,
                shuffle=self._job.shuffle,
                url=self._settings.url,
                token=self._settings.token,
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
        self._base_digest = entry.manifest.state_digest
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
        now, step = time.monotonic(), self._progress.step
        if self.state.phase in (Phase.TRAINING, Phase.STOPPING):
            if self._clock is None:
                self._clock = (now, step)
            elif step > self._clock[1]:
                self._steps_per_s = (step - self._clock[1]) / (now - self._clock[0])
            self.totals = replace(self.totals, highest_step=max(self.totals.highest_step, step))

    @property
    def snapshot(self) -> Snapshot:
        """Where the attempt was when it was last heard of."""
        progress = self._progress
        step = progress.step if self._clock is not None else self.totals.highest_step
        return Snapshot(step, self._job.steps, progress.metrics, progress.workers, self._steps_per_s)

    @property
    def state_digest(self) -> str | None:
        """Digest of the last checkpoint that this attempt committed or went on from."""
        return self.state.state_digest or self._base_digest

    def _record(self, *, closed: bool) -> dict[str, Any]:
        return {
            **own_life(),
            "counter": self._beats,
            "closed": closed,
            "status": self.state.status.value,
            "error": None if self.state.error is None else str(self.state.error),
            "step": self.snapshot.step,
            "trained": self._clock is not None,
            "steps": self._job.steps,
            "metrics": {**self._progress.metrics, **self.state.metrics},
            "state_digest": self.state_digest,
            "steps_per_s": self._steps_per_s,
            "workers": self._progress.workers,
            "scaled": self._scaled,
            "processes": [
                {"node": node, "role": role, "rank": rank, "pid": pid}
                for (node, role, rank), pid in sorted(self._processes.items())
            ],
            "totals": self.totals.to_json(),
        }

    def _beat(self) -> None:
        self._beats += 1
        self._requests = Requests(self._run)
        self._run.beat(self._attempt, self._record(closed=False))

    def _keep_record(self, *, closed: bool) -> None:
        """Store the sign of life and the journal; a failure of the storage is no reason to stop training."""
        try:
            with self._recording:
                self._beats += 1
                self._run.beat(self._attempt, self._record(closed=closed))
                if not self._journal_written:
                    self._journal_written = True
                    self._run.write_journal(self._attempt, list(self._journal))
        except (StorageError, ConfigurationError) as error:
            self._observer.note(Note("storage", f"the run's records could not be written: {error}", {}))

    def _beat_until(self, stop: threading.Event) -> None:
        until_beat_s = BEAT_S
        trains = False
        while not stop.wait(REQUESTS_S):
            until_beat_s -= REQUESTS_S
            begins = not trains and self._clock is not None  # a successor should know that there are steps
            trains = trains or begins
            if self._look_for_requests() or begins or until_beat_s <= 0:
                self._keep_record(closed=False)
                until_beat_s = BEAT_S

    def _look_for_requests(self) -> bool:
        """Whether a request was granted that its author has not been told of."""
        granted = self._scaled
        try:
            asked = self._requests.new() if self._requests is not None else None
        except HoldfastError:
            return False  # the storage will be complained about elsewhere
        if asked is not None:
            self._asked_for.append(asked)
        news, self._told = granted != self._told, granted
        return news
