"""What a node trains next: phases, checkpoints and evaluations at step boundaries, and commits.

A step is two phases. In *gradient*, every microbatch is computed into a slot of its own; in *update*,
segments of the parameter range are reduced along the tree and updated out of place. Each phase is complete
when the barrier says so. Between two steps is a boundary, where evaluations, checkpoints and stops happen.

Nothing here waits or reads a socket: `AgentLoop` hands in what it heard and sends what a peer is told.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from storage.errors import CorruptCheckpoint, HoldfastError, InfrastructureError, UserCodeError
from storage.layout import StateArray
from workers.arenas import open_arena, parts_path, steps_path
from workers.barrier import Assignment, Barrier
from workers.course import Answer, Course, Question
from workers.deadlines import Deadlines, start_s_of
from workers.links import Links
from workers.messages import (
    Activate,
    Adopt,
    CheckpointSkipped,
    Command,
    Copy,
    Described,
    Dismiss,
    Doubted,
    EpochEnded,
    Evaluated,
    Event,
    Failed,
    Finished,
    Found,
    Greet,
    Greeted,
    Initialise,
    Lost,
    Noticed,
    PeerFailed,
    Plan,
    Prepare,
    Prepared,
    Process,
    Progress,
    Ready,
    Recovered,
    Replay,
    Restore,
    RestoreFailed,
    Retried,
    Settled,
    Started,
    Stop,
    Train,
    Unreadable,
)
from workers.reduction import Reduction, added
from workers.reports import num_rows, results, value_names
from workers.saving import Saving
from workers.schedule import batch_rows, segments, steps_per_epoch
from workers.state import Arena, ArenaSpec
from workers.step_log import StepLog
from workers.suspicion import Suspicion
from workers.task import mismatch
from workers.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.checkpoint import Part
    from workers.engine import Sums
    from workers.peer import Peer
    from workers.step_log import Row
    from workers.suspicion import Sum

SPARE_SLOTS = 1
"""Gradient slots beyond one per microbatch, so that lost work can be redone before its old slot is free."""

MAX_DEATHS = 3
"""Workers in a row that one item of work may kill."""


class Phase(Enum):
    """What the node is doing."""

    IDLE = "idle"
    BLANK = "blank"
    INITIALISE = "initialise"
    RESTORE = "restore"
    COPY = "copy"
    GRADIENT = "gradient"
    REDUCE = "reduce"
    EXCHANGE = "exchange"
    REVIEW = "review"
    UPDATE = "update"
    EVALUATE = "evaluate"
    CALLBACKS = "callbacks"
    BOUNDARY = "boundary"
    DRAIN = "drain"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class _Survivor:
    """A state that was found in the arena, with what is kept beside it."""

    found: Found
    buffer: int
    metrics: dict[str, float]
    course: dict[str, Any]


def _survivor(arena: Arena) -> _Survivor | None:
    """What is committed in the arena, if all that belongs to it can be read."""
    commit = arena.committed()
    if commit is None:
        return None
    try:
        aux = arena.aux(commit.buffer)
        found = Found(commit.attempt, commit.step, aux["fingerprint"], commit.epoch)
        return _Survivor(found, commit.buffer, aux["metrics"], aux["course"])
    except (ValueError, KeyError):
        return None


def _too_deadly(name: str, deaths: int, cause: str) -> UserCodeError:
    if cause:
        return UserCodeError(
            f"{name} was not done by {deaths} workers in a row (the last: {cause}): look at what the job "
            "does with its samples (does it wait for something?), or give it longer with worker_timeout_s"
        )
    return UserCodeError(
        f"{name} killed {deaths} workers in a row: look at what the job does with its samples (a crash in "
        "native code, or out of memory?)"
    )


def _death(writer: Peer, cause: str = "") -> InfrastructureError:
    how = f"was killed: {cause}" if cause else "died"
    return InfrastructureError(f"the writer (process {writer.process.pid}) {how}")


class Training:
    """One node's run: its arena, its barrier, and where it stands."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.deadlines = Deadlines(start_s_of(os.environ))
        self._links = Links(host, wake)
        self._node = 0
        self._reduction: Reduction | None = None
        self._resting: Prepare | None = None  # a new epoch begins as soon as nobody is at work
        self._events: list[Event] = []
        self._joined: dict[int, Peer] = {}
        self._workers: dict[int, Peer] = {}  # ready ones
        self._active: int | None = None  # how many of them compute; None: all
        self._writers: dict[int, Peer] = {}  # ready ones; more than one only if one is about to end
        self._description: dict[str, Any] | None = None
        self._prepare: Prepare | None = None
        self._plan: Plan | None = None
        self._arena: Arena | None = None
        self._survivor: _Survivor | None = None
        self._steps: StepLog | None = None
        self._steps_told = 0  # the attempt whose coordinator has heard of the steps before
        self._barrier = Barrier(0)
        self._phase = Phase.IDLE
        self._ticket = 0
        self._attempt = 0
        self._step = 0
        self._buffer = 0
        self._target = 0
        self._copying: Copy | None = None
        self._replaying = False
        self._stalled = False  # something could not be fetched: only a new epoch helps
        self._pieces: list[tuple[int, list[int], int, int, int]] = []
        self._addend_slots: list[int] = []
        self._levels: list[int] = []
        self._segments: list[tuple[int, int]] = []
        self._metrics: dict[str, float] = {}
        self._suspicion = Suspicion()
        self._first_maker = -1  # of the microbatch that is reviewed
        self._doomed: list[tuple[int, str]] = []
        self._validation: Validation | None = None
        self._course: Course | None = None  # where there are callbacks
        self._question: Question | None = None
        self._saving = Saving()
        self._restoring = ""
        self._restorer = 0  # id of the writer that reads it
        self._stop: Stop | None = None
        self._is_cut_short = False  # an evaluation was left
        self._failure: Exception | None = None
        self._trace: list[tuple[int, int, int]] | None = [] if os.environ.get("HOLDFAST_TRACE") else None
        self._dispatched_ns = 0
        self._disturbed_at: float | None = None  # no step was committed since

    @property
    def _writer(self) -> Peer | None:
        return max(self._writers.values(), key=lambda peer: peer.generation, default=None)

    # -- what the loop asks -------------------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def take_doomed(self) -> list[tuple[int, str]]:
        """Peers to be cut off that have done wrong, each with what it was."""
        doomed, self._doomed = self._doomed, []
        return doomed

    @property
    def phase(self) -> str:
        """What the node is doing, by the name of its `Phase`."""
        return self._phase.value

    def progress(self) -> Progress:
        """Where training is."""
        active = len(self._workers) if self._active is None else min(self._active, len(self._workers))
        return Progress(self._step, self._metrics, active, len(self._workers) - active)

    def take_rows(self) -> list[Row]:
        """The metrics of the steps since the last call, and for a new coordinator of those before."""
        return [] if self._steps is None else self._steps.take()

    @property
    def arena_path(self) -> str:
        """Where the arena is; "" while there is none."""
        return "" if self._arena is None else self._arena.path

    def release(self, *, remove_arena: bool) -> bool:
        """The end: everybody has left. Deletes the shared memory if nobody will resume from it; returns that.

        Writes the trace of step times, if HOLDFAST_TRACE names a file.
        """
        self._close_reduction()
        self._links.close()
        remove = True
        if self._arena is not None:
            commit = self._arena.committed()
            remove = remove_arena or commit is None or commit.step == 0  # the seed makes step 0 anew
            if remove:
                self._arena.remove()
            if self._steps is not None:
                self._steps.close(remove=remove)
        if self._trace is not None:
            with open(os.environ["HOLDFAST_TRACE"], "a", encoding="ascii") as file:
                file.writelines(
                    f"{step} {dispatched} {committed}\n" for step, dispatched, committed in self._trace
                )
        return remove

    # -- commands -----------------------------------------------------------------------------------------

    def obey(self, command: Command) -> None:
        """Do what the coordinator asks; failures become events."""
        try:
            match command:
                case Greet(attempt, node):
                    self._greet(attempt, node)
                case Prepare():
                    self._resting = command
                case Initialise():
                    self._phase = Phase.BLANK
                case Restore(directory):
                    self._restore(directory)
                case Adopt():
                    self._adopt()
                case Copy():
                    self._copy(command)
                case Replay(address, epoch, step):
                    self._replay(address, epoch, step)
                case Train(plan, stop):
                    self._train(plan, stop)
                case Activate(count):
                    self._active = count
                    self._let_in()
                case Dismiss(rank):
                    self._dismiss(rank)
                case Settled(step, committed, tries):
                    self._saving.settled(step, committed=committed, tries=tries)
                    self._resume_drain()
                case Stop():
                    self._stop = command
                    self._leave_evaluation()
                    self._resume_drain()
                case _:
                    raise AssertionError(f"{command} is for the loop")
        except HoldfastError as error:
            self._fail(error)
        self._advance()

    def _greet(self, attempt: int, node: int) -> None:
        """Tell a coordinator that has found this agent what it has to know."""
        self._node = node
        processes = [
            Process(
                p.role, p.rank, p.generation, p.process.pid, p.id in self._workers or p.id in self._writers
            )
            for p in self._joined.values()
        ]
        epochs = [each.epoch for each in (self._prepare, self._resting) if each is not None]
        if self._description is not None:
            self._events.append(Described(self._description))
        self._events.append(Greeted(tuple(processes), attempt, max(epochs, default=0)))
        if self._failure is not None:
            self._events.append(Failed(self._failure))  # perhaps nobody has heard of it

    def _rest(self) -> None:
        """Nobody is at work: the epoch begins, and the coordinator is told which step the memory holds."""
        command = self._resting
        assert command is not None
        self._resting = None
        if self._arena is None:
            self._open(command)
        arena = self._ready_arena()
        if command.attempt != self._attempt:
            self._close_reduction()  # its epochs are those of another attempt
            self._attempt = command.attempt
        self._prepare = command
        self.deadlines.configure(command.worker_timeout_s, command.checkpoint_timeout_s)
        self._suspicion.enabled = command.stop_on_divergence
        self._suspicion.share = command.paranoid
        self._phase = Phase.IDLE
        self._ticket += 1
        self._stalled = self._replaying = False
        self._suspicion.begin()
        self._barrier.abandon()
        self._saving.abandon()
        self._stop, self._is_cut_short = None, False
        self._survivor = _survivor(arena)
        if self._survivor is not None:
            self._step, self._buffer = self._survivor.found.step, self._survivor.buffer
        address = self._links.open(command.token) if command.peers else ""
        found = None if self._survivor is None else self._survivor.found
        self._events.append(Prepared(found, arena.spec.nbytes, command.epoch, address))

    def _open(self, command: Prepare) -> None:
        description = self._description
        assert description is not None, "prepared before a worker described the job"
        arrays = tuple(StateArray.from_json(array) for array in description["arrays"])
        num_slots = command.microbatches + SPARE_SLOTS
        spec = ArenaSpec(command.place_id, arrays, num_slots, num_rows(description["metrics"]))
        self._arena = open_arena(spec, command.slot)
        self._steps = StepLog(steps_path(self._arena.path), len(value_names(description["metrics"])))
        self._prepare = command
        self._validation = Validation(description, command.batch_size)
        if description["callbacks"] is not None:
            cut = (description["samples"], command.batch_size, command.remainder)
            self._course = Course(description["metrics"], steps_per_epoch(*cut))
        self._barrier = Barrier(num_slots)
        for peer in [*self._workers.values(), *self._writers.values()]:
            self._admit(peer)
        self._let_in()

    def _restore(self, directory: str) -> None:
        prepare = self._ready_prepare()
        if self._writer is None:
            error = InfrastructureError(f"no writer is there to read {directory}")
            self._events.append(RestoreFailed(directory, error, prepare.epoch))
            return
        self._target = self._ready_arena().spare_buffer(self._buffer)
        self._phase = Phase.RESTORE
        self._restoring, self._restorer = directory, self._writer.id
        self._writer.send("restore", self._target, prepare.url, directory)
        self.deadlines.stores(self._writer.id, self._state_nbytes(), self._clock())

    def _adopt(self) -> None:
        assert self._survivor is not None
        self._metrics = self._survivor.metrics
        self._take_course(self._survivor.course, self._survivor.found.step)
        self._started(self._survivor.found.step, self._survivor.buffer, stored=False)

    def _copy(self, command: Copy) -> None:
        """Fetch the state of another node into a buffer."""
        prepare, arena = self._ready_prepare(), self._ready_arena()
        self._target = arena.spare_buffer(self._buffer)
        self._phase = Phase.COPY
        self._copying = command
        stamp = (prepare.attempt, prepare.epoch, command.step)
        self._links.fetch_state(command.address, stamp, arena, self._target)

    def _copied(self) -> None:
        arena, copied = self._ready_arena(), self._copying
        assert copied is not None
        aux = arena.aux(self._target)
        self._metrics = aux["metrics"]
        self._take_course(aux["course"], copied.step)
        arena.commit(copied.attempt, self._ready_prepare().epoch, copied.step, self._target, aux)
        self._started(copied.step, self._target, stored=False)

    def _replay(self, address: str, epoch: int, step: int) -> None:
        """Make the step that another node is ahead by, with sums that it has kept; else copy its state."""
        reduction = self._reduction
        able = step == self._step and not self._callbacks_are_due()
        if reduction is None or not able or not reduction.replay(address, epoch, step):
            self._copy(Copy(address, step + 1, self._attempt))
            return
        self._replaying = True
        self._phase = Phase.EXCHANGE

    def _train(self, plan: Plan, stop: Stop | None) -> None:
        self._disturb()
        self._close_reduction()
        self._plan, self._stop = plan, stop
        self._saving.stored_step = plan.stored_step  # all nodes have to agree on what is stored
        self._links.begin(plan.attempt, plan.epoch)
        if plan.members:
            self._open_reduction(plan)
        self._tell_evaluation()  # whoever was to hear of it may be gone
        self._tell_epoch()
        self._phase = Phase.BOUNDARY

    def _open_reduction(self, plan: Plan) -> None:
        arena, prepare, description = self._ready_arena(), self._ready_prepare(), self._description
        assert description is not None
        cut = (description["samples"], prepare.batch_size)
        last = steps_per_epoch(*cut, prepare.remainder) - 1
        rows = {batch_rows(*cut, step, prepare.remainder) for step in (0, last)}
        self._reduction = Reduction(
            self._links.exchange,
            parts_path(arena.path),
            plan.members,
            self._node,
            (plan.attempt, plan.epoch),
            [min(count, prepare.microbatches) for count in rows],
            arena.spec.params.length,
            arena.spec.num_metrics,
        )
        for peer in self._workers.values():
            peer.send("share", self._reduction.memory.path, self._reduction.memory.count)

    def _close_reduction(self) -> None:
        if self._reduction is not None:
            self._reduction.close()
            self._reduction = None

    def _dismiss(self, rank: int) -> None:
        """A worker that is not needed any more leaves when it has finished what it is doing."""
        for peer in [*self._workers.values()]:
            if peer.rank == rank:
                self._let_go(peer)
        self._let_in()

    def _let_go(self, peer: Peer) -> None:
        if peer.id in self._barrier:
            if not self._barrier.dismiss(peer.id):
                return
            self._barrier.leave(peer.id)
        del self._workers[peer.id]
        peer.send("exit")

    def _started(self, step: int, buffer: int, *, stored: bool) -> None:
        self._step, self._buffer = step, buffer
        if stored:
            self._saving.stored_step = step
        self._phase = Phase.IDLE
        if self._steps is not None and self._steps_told != self._attempt:
            self._steps_told = self._attempt
            self._steps.recall(step)
        prepare, arena = self._ready_prepare(), self._ready_arena()
        if prepare.peers:
            self._links.publish_state((prepare.attempt, prepare.epoch, step), arena, buffer)
        self._events.append(Started(step, prepare.epoch))

    def _ready_prepare(self) -> Prepare:
        assert self._prepare is not None, "the node is not prepared"
        return self._prepare

    def _ready_arena(self) -> Arena:
        assert self._arena is not None, "the arena is not prepared"
        return self._arena

    def _ready_validation(self) -> Validation:
        assert self._validation is not None, "the validation is not prepared"
        return self._validation

    # -- peers --------------------------------------------------------------------------------------------

    def join(self, peer: Peer) -> None:
        """A worker or writer has connected."""
        self._joined[peer.id] = peer

    def hear(self, peer: Peer, kind: str, *arguments: Any) -> None:
        """A message of a worker or writer."""
        match kind:
            case "ready":
                try:
                    self._ready(peer, *arguments)
                except HoldfastError as error:
                    self._fail(error)
            case "done":
                self._done(peer, *arguments)
            case "raised":
                self._raised(peer, *arguments)
            case "written":
                self.deadlines.stored(peer.id, self._clock())
                self._written(*arguments)
            case "restored":
                self.deadlines.stored(peer.id, self._clock())
                self._restored(*arguments)
            case "loading":
                self.deadlines.starts(peer.id, self._clock())
            case "notice":
                self._events.append(Noticed(*arguments))
            case "unreadable":
                self._unreadable(*arguments)
            case "failed" if peer.role == "writer":
                self.deadlines.forget(peer.id)
                self._writer_failed(*arguments)
            case "failed":
                self._fail(*arguments)
            case _:
                raise AssertionError(f"unknown message {kind} of {peer.role} {peer.rank}")
        self._advance()

    def _ready(self, peer: Peer, description: dict[str, Any] | None) -> None:
        self.deadlines.forget(peer.id)  # as one that loads
        if self._is_twin(peer):
            return
        if peer.role == "writer":
            self._writers[peer.id] = peer
        else:
            assert description is not None
            if self._description is None:
                self._description = description
                self._events.append(Described(description))
            elif (error := mismatch(self._description, description, f"worker {peer.rank}")) is not None:
                self._fail(error)
                return
            for other in [*self._workers.values()]:
                if other.rank == peer.rank and other.generation < peer.generation:
                    self._let_go(other)  # it was given up
            self._workers[peer.id] = peer
        self._events.append(Ready(peer.role, peer.rank, peer.process.pid, peer.generation))
        if self._arena is not None:
            self._admit(peer)
            self._let_in()
        if peer.role == "writer":
            self._resume_drain()

    def _is_twin(self, peer: Peer) -> bool:
        """Whether a process is there already that a dead coordinator had started in its stead: one goes."""
        ready = self._writers if peer.role == "writer" else self._workers
        for other in ready.values():
            if (other.rank, other.generation) == (peer.rank, peer.generation):
                del self._joined[peer.id]
                peer.send("exit")
                self._events.append(Ready(other.role, other.rank, other.process.pid, other.generation))
                return True
        return False

    def _admit(self, peer: Peer) -> None:
        """Show a peer the arena. It is recorded there first, for whoever must end it one day."""
        arena, prepare = self._ready_arena(), self._prepare
        assert prepare is not None
        arena.admit(peer.process)
        if peer.role == "writer":
            peer.send("open", arena.path)
            return
        settings = (prepare.batch_size, prepare.microbatches, prepare.shuffle, prepare.remainder)
        peer.send("open", arena.path, prepare.seed, *settings)
        if self._reduction is not None:
            peer.send("share", self._reduction.memory.path, self._reduction.memory.count)

    def _let_in(self) -> None:
        """Workers that stand by compute at once where there are fewer than there should be."""
        if self._arena is None:
            return  # nobody has been shown it
        idle = self._standing_by()
        short = len(idle) if self._active is None else max(0, self._active - len(self._barrier.members))
        for worker in idle[:short]:
            self._send(self._barrier.join(worker))

    def _standing_by(self) -> list[int]:
        return [worker for worker in self._workers if worker not in self._barrier]

    def lose(self, peer: Peer, cause: str = "") -> None:
        """A peer is dead, or is being killed, for a cause: others do its work."""
        self.deadlines.forget(peer.id)
        known = self._joined.pop(peer.id, None) is not None  # else it was the twin of one that is there
        ready = peer.id in self._workers or peer.id in self._writers
        phase = self._phase
        pid = peer.process.pid
        if known:
            self._events.append(
                Lost(peer.role, peer.rank, pid, ready, self._step, phase.value, peer.generation, cause)
            )
        if peer.role == "writer":
            self._writers.pop(peer.id, None)
            self._report(self._saving.lost(peer.id, _death(peer, cause)))
        elif self._workers.pop(peer.id, None) is not None and peer.id in self._barrier:
            self._disturb()
            self._barrier.dismiss(peer.id)
            self._let_in()  # first, to have its share of what the lost one leaves
            item, deaths, assignments = self._barrier.lost(peer.id)
            if item is not None and deaths >= MAX_DEATHS:
                self._fail(_too_deadly(self._name(item), deaths, cause))
            self._send(assignments)
            if self._replaying and not self._workers and not self._stalled:
                self._stalled = True  # others need not wait for new ones: the state can be copied
                error = InfrastructureError("no worker is left to make the step again with")
                self._events.append(PeerFailed("itself", error, self._ready_prepare().epoch))

    def bury(self, peer: Peer) -> None:
        """A lost peer is known to have ended: what it could write may be used again."""
        if self._arena is None:
            return
        self._arena.dismiss(peer.process)
        self._saving.gone(peer.id)
        if self._phase is Phase.RESTORE and peer.id == self._restorer:
            self._restore_failed(_death(peer))
        self._resume_drain()
        self._send(self._barrier.gone(peer.id))
        self._advance()

    # -- phases -------------------------------------------------------------------------------------------

    def _begin(self, phase: Phase, items: range) -> None:
        self._phase = phase
        self._ticket += 1
        self.deadlines.begin()
        if self._active is not None:
            for worker in self._barrier.members[self._active :]:
                self._barrier.leave(worker)  # it stands by
        self._send(self._barrier.begin(items, use_slots=phase is Phase.GRADIENT))

    def _send(self, assignments: list[Assignment]) -> None:
        if self._phase is Phase.ENDED:
            return
        now = self._clock()
        for assignment in assignments:
            items = assignment.items
            message: tuple[object, ...]
            match self._phase:
                case Phase.GRADIENT | Phase.REVIEW:
                    message = (self._step, self._buffer, items, assignment.slots)
                case Phase.REDUCE:
                    message = (self._step, [self._pieces[i] for i in items])
                case Phase.UPDATE:
                    pieces = [(i, *self._segments[i]) for i in items]
                    message = (self._step, self._buffer, self._target, *self._addends(pieces))
                    if self._course is not None:
                        levels = () if self._reduction is not None else (None,)
                        message += (*levels, self._course.knobs, self._course.keeps_best(self._step))
                case Phase.EVALUATE:
                    message = (self._buffer, items)
                case Phase.CALLBACKS:
                    message = (self._buffer, items, self._question)
                case Phase.INITIALISE:
                    message = (self._target, items)
                case _:
                    raise AssertionError(f"work was assigned in phase {self._phase}")
            kind = (Phase.GRADIENT if self._phase is Phase.REVIEW else self._phase).value
            self._workers[assignment.worker].send(kind, self._ticket, *message)
            self.deadlines.given(assignment.worker, kind, items[0], now)

    def _done(
        self, peer: Peer, ticket: int, item: int, found: Sums | Answer | None = None, finite: bool = True
    ) -> None:
        if ticket != self._ticket:
            return
        if self._barrier.done(peer.id, item):
            self.deadlines.finished(peer.id, self._barrier.current(peer.id), self._clock())
            if isinstance(found, Answer):
                self._answered(found)
            elif found is not None:
                self._ready_validation().collect(item, found)
            self._suspicion.heard(item, finite=finite)
        self._let_leave(peer)

    def _let_leave(self, peer: Peer) -> None:
        """A worker that was dismissed and has nothing left to do goes."""
        if peer.id in self._barrier and peer.id not in self._barrier.members:
            self._let_go(peer)

    def _raised(self, peer: Peer, ticket: int, item: int, error: HoldfastError) -> None:
        if ticket != self._ticket:
            return
        name = self._name(item)
        times, assignments = self._barrier.failed(peer.id, item)
        self.deadlines.gave_up(peer.id, self._barrier.current(peer.id), self._clock())
        last = str(error).rpartition("\n")[2]  # after a traceback
        if not isinstance(error, UserCodeError):
            self._fail(type(error)(f"{error} (in {name})"))
        elif times > 1:
            self._fail(UserCodeError(f"{error}\nthe job raised twice in {name}: {last}"))
        else:
            self._events.append(Retried(name, last))
            self._send(assignments)
            self._let_leave(peer)

    def _unreadable(self, ticket: int, item: int, message: str, skipped: bool) -> None:
        if ticket == self._ticket:
            self._events.append(Unreadable(self._name(item), message, skipped))

    def _disturb(self) -> None:
        """Something keeps the node from training: the next step that is committed tells for how long."""
        if self._disturbed_at is None:
            self._disturbed_at = time.monotonic()

    def _name(self, item: int) -> str:
        """A piece of work, as users are told of it."""
        match self._phase:
            case Phase.GRADIENT | Phase.REVIEW:
                return f"step {self._step}, microbatch {item}"
            case Phase.EVALUATE:
                return f"the evaluation at step {self._step}, batch {item}"
            case Phase.CALLBACKS:
                return f"the callbacks at step {self._step}"
            case Phase.UPDATE:
                return f"the update of step {self._step}, segment {item}"
            case _:
                return f"phase {self._phase.value}"

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._events.append(Failed(error))
        self._phase = Phase.ENDED

    def _advance(self) -> None:
        """Go on through every phase that is complete; where an epoch is to begin, only to the next rest."""
        if self._resting is not None:
            self._come_to_rest()
            return
        ends: dict[Phase, Callable[[], None]] = {
            Phase.BLANK: self._begin_initialise,
            Phase.BOUNDARY: self._at_boundary,
            Phase.INITIALISE: self._end_initialise,
            Phase.GRADIENT: self._end_gradient,
            Phase.REVIEW: self._end_review,
            Phase.REDUCE: self._end_reduce,
            Phase.EXCHANGE: self._end_exchange,
            Phase.UPDATE: self._end_update,
            Phase.EVALUATE: self._end_evaluation,
            Phase.CALLBACKS: self._at_boundary,
        }
        while self._phase in ends and self._barrier.complete:
            if self._phase is Phase.EXCHANGE and not self._all_here():
                return
            ends[self._phase]()

    def _come_to_rest(self) -> None:
        """Commit the step if its update is complete; rest as soon as nobody reads or writes the memory."""
        if self._phase is Phase.RESTORE or not self._barrier.idle:
            return
        if self._phase is Phase.UPDATE and self._barrier.complete and self._suspicion.sums_are_good:
            self._commit_step()
            self._phase = Phase.IDLE
        self._links.cancel()
        if self._reduction is not None:
            self._reduction.cancel()
        if self._links.quiet and (self._reduction is None or self._reduction.quiet):
            try:
                self._rest()
            except HoldfastError as error:
                self._fail(error)

    def listen(self) -> None:
        """Look at what has been fetched from other nodes."""
        for request, error in self._links.take():
            copied = self._links.fetched(request)
            where = copied or (self._reduction.fetched(request) if self._reduction is not None else None)
            if where is None or self._resting is not None:
                continue  # of an epoch that is over
            if error is not None:
                self._stalled = True
                self._events.append(PeerFailed(where, error, self._ready_prepare().epoch))
            elif copied is not None:
                self._copied()
        self._advance()

    def _all_here(self) -> bool:
        """Whether every part of the step's tree is on this node."""
        assert self._reduction is not None
        return self._reduction.quiet and not self._stalled

    def _begin_initialise(self) -> None:
        self._target = self._ready_arena().spare_buffer(self._buffer)
        self._begin(Phase.INITIALISE, range(1))

    def _end_initialise(self) -> None:
        epoch = self._ready_prepare().epoch
        self._take_course({}, 0)
        self._ready_arena().commit(self._attempt, epoch, 0, self._target, self._aux({}))
        self._started(0, self._target, stored=False)

    def _begin_gradient(self) -> None:
        prepare = self._ready_prepare()
        assert self._description is not None
        samples = self._description["samples"]
        rows = batch_rows(samples, prepare.batch_size, self._step, prepare.remainder)
        if self._trace is not None:
            self._dispatched_ns = time.monotonic_ns()
        self._stalled = False
        self._suspicion.begin()
        count = min(rows, prepare.microbatches)
        mine = range(count) if self._reduction is None else self._reduction.begin(self._step, count)
        self._begin(Phase.GRADIENT, mine)

    def _end_gradient(self) -> None:
        slots, suspicion = self._barrier.slots, self._suspicion
        if suspicion.of_loss(self._ready_arena(), slots) or suspicion.draw(self._step, slots):
            self._review()
            return
        if self._reduction is None:
            self._begin_update()
            return
        cuts = self._cuts()
        self._pieces = []
        for part in self._reduction.own():
            leaves = [slots[i] for i in range(part.low, part.high)]
            for low, high in cuts:
                self._pieces.append((len(self._pieces), leaves, part.slot, low, high))
        self._begin(Phase.REDUCE, range(len(self._pieces)))

    def _end_reduce(self) -> None:
        """Serve the other nodes with this one's parts. Those that are not finite are judged before."""
        assert self._reduction is not None
        if not self._is_good():
            return
        sums = self._ready_arena().sums
        self._reduction.publish([sums[slot] for _, slot in sorted(self._barrier.slots.items())])
        self._phase = Phase.EXCHANGE

    def _end_exchange(self) -> None:
        assert self._reduction is not None
        self._addend_slots, self._levels = self._reduction.finish()
        self._begin_update()

    def _addends(self, pieces: list[tuple[int, int, int]]) -> tuple[object, ...]:
        """What an update adds up: this node's slots, or the parts of all nodes with their levels."""
        if self._reduction is None:
            return [self._barrier.slots[i] for i in range(len(self._barrier.slots))], pieces
        return self._addend_slots, pieces, self._levels

    def _cuts(self) -> list[tuple[int, int]]:
        assert self._description is not None
        whole = [(start, stop) for start, stop in self._description["whole"]]
        return segments(self._ready_arena().spec.params.length, max(1, len(self._barrier.members)), whole)

    def _review(self) -> None:
        """A microbatch that is not finite, or was drawn, is computed again before it counts."""
        item, suspicion = self._suspicion.suspects[0], self._suspicion
        self._first_maker = self._barrier.makers[item]
        if suspicion.is_sample and not suspicion.makers:
            suspicion.hear(self._ready_arena(), self._barrier.slots[item], self._first_maker)
        if {*suspicion.makers, self._first_maker}.issuperset(self._barrier.members):
            for worker in self._standing_by()[:1]:  # who computed it already is no independent judge
                self._barrier.join(worker)
        self._phase = Phase.REVIEW
        self._ticket += 1
        self.deadlines.begin()
        self._send(self._barrier.review(item, suspicion.makers))

    def _end_review(self) -> None:
        """Compare: the same bits again are a divergence, of other bits one is somebody's fault."""
        arena, suspicion = self._ready_arena(), self._suspicion
        item = suspicion.suspects[0]
        first, second = self._barrier.reviewed(item)
        if suspicion.is_sample:
            self._end_sample(item, second)
            return
        if suspicion.agree(arena, first, second):
            self._diverge(item, [second])
            return
        self._doubt(self._first_maker, self._name(item))
        self._barrier.accept(item)
        if suspicion.is_finite(arena, second):
            suspicion.judged()
        elif suspicion.is_hopeless:
            self._fail(InfrastructureError(f"no two workers agree on {self._name(item)}"))
            return
        if suspicion.suspects:
            self._review()
        else:
            self._end_gradient()

    def _end_sample(self, item: int, slot: int) -> None:
        """A microbatch that was drawn counts when two results agree; who gave another is not trusted."""
        suspicion, name = self._suspicion, self._name(item)
        self._barrier.accept(item)
        wrong = suspicion.hear(self._ready_arena(), slot, self._barrier.makers[item])
        if wrong is None and suspicion.is_hopeless:
            self._fail(InfrastructureError(f"no two workers agree on {name}"))
            return
        if wrong is not None:
            for maker in wrong:
                self._doubt(maker, name)
            suspicion.judged()
        if suspicion.suspects:
            self._review()
        else:
            self._end_gradient()

    def _doubt(self, worker: int, name: str) -> None:
        """Do not trust a worker any more: it gets nothing more to do, and is killed and replaced."""
        peer = self._workers.get(worker)
        if peer is None:
            return  # it has gone already
        self._barrier.dismiss(peer.id)
        self._events.append(Doubted(peer.rank, peer.process.pid, name))
        self._doomed.append((peer.id, f"it computed {name} with other bits than another worker"))

    def _diverge(self, item: int | None, slots: list[int]) -> None:
        self._events.append(self._suspicion.record(self._ready_arena(), self._step, item, slots))
        self._phase = Phase.ENDED

    def _is_good(self) -> bool:
        """Whether a complete update may be committed, or complete parts be served to other nodes.

        Otherwise what led to them is looked at again.
        """
        suspicion, arena = self._suspicion, self._ready_arena()
        if suspicion.sums_are_good:
            return True
        sums = self._sums()
        work = f"the {'sums' if self._phase is Phase.REDUCE else 'update'} of step {self._step}"
        if suspicion.of_gradient(arena, self._barrier.slots):
            suspicion.forgive()
            self._review()
        elif not (faulty := suspicion.is_faulty(sums)):
            self._diverge(None, [slot for _, slot in sorted(self._barrier.slots.items())])
        elif suspicion.is_hopeless:
            self._fail(InfrastructureError(f"no worker gets {work} right"))
        else:
            for worker in self._barrier.doers(faulty):
                self._doubt(worker, work)
            suspicion.forgive()
            self._begin(self._phase, range(len(sums)))
        return False

    def _sums(self) -> list[Sum]:
        """What the items of the phase add up."""
        grads = self._ready_arena().grads
        if self._phase is Phase.REDUCE:
            return [([grads[s] for s in slots], low, high, None) for _, slots, _, low, high in self._pieces]
        if self._reduction is None:
            leaves, levels = [grads[slot] for _, slot in sorted(self._barrier.slots.items())], None
        else:
            leaves, levels = [self._reduction.memory.grads[s] for s in self._addend_slots], self._levels
        return [(leaves, low, high, levels) for low, high in self._segments]

    def _begin_update(self) -> None:
        self._target = self._ready_arena().spare_buffer(self._buffer)
        self._segments = self._cuts()
        self._begin(Phase.UPDATE, range(len(self._segments)))

    def _commit_step(self) -> None:
        arena, plan, description = self._ready_arena(), self._plan, self._description
        assert plan is not None
        assert description is not None
        if self._reduction is None:
            totals = added([arena.sums[self._barrier.slots[i]] for i in range(len(self._barrier.slots))])
        else:
            totals = self._reduction.totals()
        self._metrics = results(description["metrics"], totals)
        if self._course is not None:
            self._course.add(totals)
        arena.commit(plan.attempt, plan.epoch, self._step + 1, self._target, self._aux(self._metrics))
        self._step, self._buffer = self._step + 1, self._target
        if self._steps is not None:
            self._steps.add((self._step, time.time(), *self._metrics.values()))
        if self._disturbed_at is not None:
            self._events.append(Recovered(self._step, time.monotonic() - self._disturbed_at))
            self._disturbed_at = None
        if self._trace is not None:
            self._trace.append((self._step, self._dispatched_ns, time.monotonic_ns()))

    def _end_update(self) -> None:
        """The step is made. One that was made again for a node that is ahead goes no further."""
        if not self._is_good():
            return
        self._commit_step()
        if self._replaying:
            self._replaying = False
            self._started(self._step, self._buffer, stored=False)
        else:
            self._at_boundary()

    def _aux(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What is kept beside a buffer."""
        assert self._description is not None
        fingerprint = self._description["fingerprint"]
        return {"metrics": metrics, "fingerprint": fingerprint, "course": self._course_as_json()}

    def _leave_evaluation(self) -> None:
        """Asked to stop: an evaluation is left to the next attempt, which makes it anew at this step."""
        if self._phase is not Phase.EVALUATE:
            return
        dropped, self._ticket = self._ticket, self._ticket + 1
        for worker in self._barrier.cancel():
            self.deadlines.gave_up(worker, None, self._clock())
            self._workers[worker].send("drop", dropped)
        self._ready_validation().give_up()
        self._is_cut_short = True
        self._phase = Phase.BOUNDARY

    def _end_evaluation(self) -> None:
        self._ready_validation().finish(self._step)
        self._tell_evaluation()
        self._at_boundary()

    def _tell_evaluation(self) -> None:
        """One node tells; it may be another than when it was evaluated."""
        if self._is_first and (metrics := self._ready_validation().to_tell(self._step)) is not None:
            self._events.append(Evaluated(self._step, metrics))

    # -- callbacks ----------------------------------------------------------------------------------------

    def _take_course(self, doc: dict[str, Any], step: int) -> None:
        """The course of the state that the node holds now."""
        if self._course is not None:
            self._course.load(doc, step)

    def _course_as_json(self) -> dict[str, Any]:
        return {} if self._course is None else self._course.to_json()

    def _callbacks_are_due(self) -> bool:
        """Whether callbacks have to be asked before anything else is done at this step.

        Their answers are in memory until the next step is committed: they are asked again after a loss, and
        say the same.
        """
        if self._course is None or self._plan is None:
            return False
        return self._course.is_due(self._step, self._plan.steps)

    def _ask_callbacks(self) -> None:
        """Every node asks its own workers: what they say depends on the state alone."""
        course, plan, validation = self._course, self._plan, self._ready_validation()
        assert course is not None
        assert plan is not None
        if course.ends(self._step) and validation.falls_on(self._step, plan.validate_every):
            if not validation.is_done(self._step):
                self._begin(Phase.EVALUATE, range(validation.num_batches))
                return
            metrics = validation.metrics_of(self._step)
        else:
            metrics = {}
        self._question = course.question(self._step, plan.steps, metrics)
        self._begin(Phase.CALLBACKS, range(1))

    def _answered(self, answer: Answer) -> None:
        course, question = self._course, self._question
        assert course is not None
        assert question is not None
        course.take(question, answer)
        if question.ended is not None:
            self._tell_epoch()

    def _tell_epoch(self) -> None:
        course = self._course
        if course is not None and course.ended and self._is_first:
            self._events.append(EpochEnded(course.ended - 1, course.logs, course.stopped))

    @property
    def _is_first(self) -> bool:
        """Whether this is the node that evaluates and reports for all."""
        plan = self._plan
        return plan is None or not plan.members or plan.members[0].node == self._node

    # -- boundaries ---------------------------------------------------------------------------------------

    def _at_boundary(self) -> None:
        """A step is committed. Evaluate, checkpoint, stop or go on."""
        plan, validation = self._plan, self._ready_validation()
        assert plan is not None
        if self._is_cut_short:
            self._drain(done=False)
            return
        if self._callbacks_are_due() and (self._stop is None or self._step >= plan.steps):
            self._ask_callbacks()
            return
        done = self._step >= plan.steps or (self._course is not None and self._course.stopped)
        stopping = self._stop is not None and not done
        if self._is_first and validation.due(self._step, plan.validate_every, last=done) and not stopping:
            self._begin(Phase.EVALUATE, range(validation.num_batches))
            return
        if done or self._stop is not None:
            self._drain(done=done)
            return
        every = plan.checkpoint_every
        due = (
            every is not None and self._step % every == 0 and self._step not in (0, self._saving.stored_step)
        )
        if due and not self._saving.given_up(self._step):
            self._checkpoint()
        self._begin_gradient()

    def _drain(self, *, done: bool) -> None:
        """Nothing more is trained: write the last checkpoint, wait until it is settled, and finish."""
        self._phase = Phase.DRAIN
        wanted = done or (self._stop is not None and self._stop.checkpoint)
        if self._saving.step is not None:
            return
        if wanted and self._step != self._saving.stored_step:
            if self._saving.obstacle(self._writer) is None:
                self._checkpoint()
            return
        self._phase = Phase.ENDED
        assert self._plan is not None
        self._events.append(Finished(self._step, done, self._plan.epoch))

    def _resume_drain(self) -> None:
        """Something that a drain, or a stop of an idle node, may be waiting for has happened."""
        if self._phase is Phase.DRAIN:
            self._phase = Phase.BOUNDARY

    def _checkpoint(self) -> None:
        """Have the committed buffer stored, if that can be; training goes on at once."""
        assert self._plan is not None
        if (reason := self._saving.obstacle(self._writer)) is not None:
            self._events.append(CheckpointSkipped(self._step, reason, self._plan.epoch))
            return
        assert self._writer is not None
        metrics = self._metrics | self._ready_validation().metrics_of(self._step)
        arena = self._ready_arena()
        nodes = [member.node for member in self._plan.members] or [self._node]
        share = (nodes.index(self._node), len(nodes))
        counters = {} if self._course is None else {"course": self._course.to_json()}
        self._saving.begin(
            arena, self._writer, self._plan, self._buffer, self._step, metrics, counters, share
        )
        self.deadlines.stores(self._writer.id, self._state_nbytes() // share[1], self._clock())

    def _state_nbytes(self) -> int:
        return sum(array.nbytes for array in self._ready_arena().spec.arrays)

    def _written(self, step: int, part: Part, directory: str) -> None:
        self._report(self._saving.written(step, part, directory))
        self._resume_drain()

    def _report(self, event: Event | None) -> None:
        if event is not None:
            self._events.append(event)

    def _restored(self, step: int, metrics: dict[str, float], counters: dict[str, Any]) -> None:
        if self._resting is not None:
            self._phase = Phase.IDLE  # another epoch has begun: it will be read anew if it is needed
            return
        try:
            self._take_course(counters.get("course", {}), step)
        except (ValueError, TypeError) as error:
            self._restore_failed(CorruptCheckpoint(f"{self._restoring}: {error}"))
            return
        self._metrics = metrics
        epoch = self._ready_prepare().epoch
        self._ready_arena().commit(self._attempt, epoch, step, self._target, self._aux(metrics))
        self._started(step, self._target, stored=True)

    def _restore_failed(self, error: Exception) -> None:
        self._phase = Phase.IDLE
        if self._resting is None:
            self._events.append(RestoreFailed(self._restoring, error, self._ready_prepare().epoch))

    def _writer_failed(self, kind: str, error: Exception) -> None:
        if kind == "write":
            self._report(self._saving.failed(error))
            self._resume_drain()
        else:
            self._restore_failed(error)
