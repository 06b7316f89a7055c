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

import numpy as np

from storage.errors import HoldfastError, InfrastructureError, UserCodeError
from storage.layout import StateArray
from workers.arenas import open_arena
from workers.barrier import Assignment, Barrier
from workers.messages import (
    Adopt,
    CheckpointSkipped,
    Command,
    Described,
    Evaluated,
    Event,
    Failed,
    Finished,
    Found,
    Initialise,
    Lost,
    Plan,
    Prepare,
    Prepared,
    Progress,
    Ready,
    Restore,
    RestoreFailed,
    Retried,
    Settled,
    Started,
    Stop,
    Train,
)
from workers.saving import Saving
from workers.schedule import batch_rows, segments, tree_depth, tree_sum
from workers.state import Arena, ArenaSpec
from workers.task import averages, mismatch
from workers.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.checkpoint import Part
    from workers.engine import Sums
    from workers.peer import Peer

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
    GRADIENT = "gradient"
    UPDATE = "update"
    EVALUATE = "evaluate"
    BOUNDARY = "boundary"
    DRAIN = "drain"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class _Survivor:
    """A state that was found in the arena, with what is kept beside it."""

    found: Found
    buffer: int
    metrics: dict[str, float]


def _survivor(arena: Arena) -> _Survivor | None:
    """What is committed in the arena, if all that belongs to it can be read."""
    commit = arena.committed()
    if commit is None:
        return None
    try:
        aux = arena.aux(commit.buffer)
        found = Found(commit.attempt, commit.step, aux["fingerprint"])
        return _Survivor(found, commit.buffer, aux["metrics"])
    except (ValueError, KeyError):
        return None


class Training:
    """One node's run: its arena, its barrier, and where it stands."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._workers: dict[int, Peer] = {}  # ready ones
        self._writer: Peer | None = None
        self._description: dict[str, Any] | None = None
        self._prepare: Prepare | None = None
        self._plan: Plan | None = None
        self._arena: Arena | None = None
        self._survivor: _Survivor | None = None
        self._barrier = Barrier(0)
        self._phase = Phase.IDLE
        self._ticket = 0
        self._attempt = 0
        self._step = 0
        self._buffer = 0
        self._target = 0
        self._segments: list[tuple[int, int]] = []
        self._metrics: dict[str, float] = {}
        self._validation: Validation | None = None
        self._saving = Saving()
        self._restoring = ""
        self._stop: Stop | None = None
        self._trace: list[tuple[int, int, int]] | None = [] if os.environ.get("HOLDFAST_TRACE") else None
        self._dispatched_ns = 0

    # -- what the loop asks -------------------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def progress(self) -> Progress:
        """Where training is."""
        return Progress(self._step, self._metrics, len(self._workers))

    def release(self, *, remove_arena: bool) -> None:
        """The end: everybody has left. Deletes the shared memory if nobody will resume from it.

        Writes the trace of step times, if HOLDFAST_TRACE names a file.
        """
        if self._arena is not None:
            commit = self._arena.committed()
            if remove_arena or commit is None or commit.step == 0:  # the seed makes step 0 anew
                self._arena.remove()
        if self._trace is not None:
            with open(os.environ["HOLDFAST_TRACE"], "a", encoding="ascii") as file:
                file.writelines(
                    f"{step} {dispatched} {committed}\n" for step, dispatched, committed in self._trace
                )

    # -- commands -----------------------------------------------------------------------------------------

    def obey(self, command: Command) -> None:
        """Do what the coordinator asks; failures become events."""
        try:
            match command:
                case Prepare():
                    self._open(command)
                case Initialise(attempt):
                    self._attempt = attempt
                    self._phase = Phase.BLANK
                case Restore(attempt, url, directory):
                    self._restore(attempt, url, directory)
                case Adopt():
                    self._adopt()
                case Train(plan):
                    self._plan = plan
                    self._phase = Phase.BOUNDARY
                case Settled(step, committed):
                    self._saving.settled(step, committed=committed)
                    self._resume_drain()
                case Stop():
                    self._stop = command
                    self._resume_drain()
                case _:
                    raise AssertionError(f"{command} is for the loop")
        except HoldfastError as error:
            self._fail(error)
        self._advance()

    def _open(self, command: Prepare) -> None:
        description = self._description
        assert description is not None, "prepared before a worker described the job"
        arrays = tuple(StateArray.from_json(array) for array in description["arrays"])
        num_slots = command.microbatches + SPARE_SLOTS
        spec = ArenaSpec(command.place_id, arrays, num_slots, len(description["metrics"]))
        self._arena = open_arena(spec)
        self._prepare = command
        self._validation = Validation(description, command.batch_size)
        self._barrier = Barrier(num_slots)
        self._survivor = _survivor(self._arena)
        self._buffer = 0 if self._survivor is None else self._survivor.buffer
        for peer in [*self._workers.values(), *([self._writer] if self._writer else [])]:
            self._admit(peer)
        found = None if self._survivor is None else self._survivor.found
        self._events.append(Prepared(found, spec.nbytes))

    def _restore(self, attempt: int, url: str, directory: str) -> None:
        if self._writer is None:
            error = InfrastructureError(f"no writer is there to read {directory}")
            self._events.append(RestoreFailed(directory, error))
            return
        self._attempt = attempt
        self._target = self._ready_arena().spare_buffer(self._buffer)
        self._phase = Phase.RESTORE
        self._restoring = directory
        self._writer.send("restore", self._target, url, directory)

    def _adopt(self) -> None:
        assert self._survivor is not None
        self._metrics = self._survivor.metrics
        self._started(self._survivor.found.step, self._survivor.buffer, stored=False)

    def _started(self, step: int, buffer: int, *, stored: bool) -> None:
        self._step, self._buffer = step, buffer
        if stored:
            self._saving.stored_step = step
        self._phase = Phase.IDLE
        self._events.append(Started(step))

    def _ready_arena(self) -> Arena:
        assert self._arena is not None, "the arena is not prepared"
        return self._arena

    def _ready_validation(self) -> Validation:
        assert self._validation is not None, "the validation is not prepared"
        return self._validation

    # -- peers --------------------------------------------------------------------------------------------

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
                self._written(*arguments)
            case "restored":
                self._restored(*arguments)
            case "failed" if peer.role == "writer":
                self._writer_failed(*arguments)
            case "failed":
                self._fail(*arguments)
            case _:
                raise AssertionError(f"unknown message {kind} of {peer.role} {peer.rank}")
        self._advance()

    def _ready(self, peer: Peer, description: dict[str, Any] | None) -> None:
        if peer.role == "writer":
            self._writer = peer
        else:
            assert description is not None
            if self._description is None:
                self._description = description
                self._events.append(Described(description))
            elif (error := mismatch(self._description, description, peer.rank)) is not None:
                self._fail(error)
                return
            self._workers[peer.id] = peer
        self._events.append(Ready(peer.role, peer.rank, peer.process.pid))
        if self._arena is not None:
            self._admit(peer)
        if peer.role == "writer":
            self._resume_drain()

    def _admit(self, peer: Peer) -> None:
        """Show a peer the arena. It is recorded there first, for whoever must end it one day."""
        arena, prepare = self._ready_arena(), self._prepare
        assert prepare is not None
        arena.admit(peer.process)
        if peer.role == "writer":
            peer.send("open", arena.path)
            return
        peer.send("open", arena.path, prepare.seed, prepare.batch_size, prepare.microbatches, prepare.shuffle)
        self._send(self._barrier.join(peer.id))

    def lose(self, peer: Peer) -> None:
        """A peer is dead, or is being killed: others do its work."""
        ready = peer.id in self._workers or peer is self._writer
        phase = self._phase
        self._events.append(Lost(peer.role, peer.rank, peer.process.pid, ready, self._step, phase.value))
        if peer is self._writer:
            self._writer = None
            error = InfrastructureError(f"the writer (process {peer.process.pid}) died")
            if phase is Phase.RESTORE:
                self._events.append(RestoreFailed(self._restoring, error))
                self._phase = Phase.IDLE
            elif (failed := self._saving.lost(error)) is not None:
                self._events.append(failed)
        elif self._workers.pop(peer.id, None) is not None and peer.id in self._barrier.members:
            item, deaths, assignments = self._barrier.lost(peer.id)
            if item is not None and deaths >= MAX_DEATHS:
                self._fail(
                    UserCodeError(
                        f"{self._name(item)} killed {deaths} workers in a row: look at what the job does "
                        "with its samples (a crash in native code, or out of memory?)"
                    )
                )
            self._send(assignments)

    def bury(self, peer: Peer) -> None:
        """A lost peer is known to have ended: what it could write may be used again."""
        if self._arena is None:
            return
        self._arena.dismiss(peer.process)
        self._saving.gone(peer.id)
        self._resume_drain()
        self._send(self._barrier.gone(peer.id))
        self._advance()

    # -- phases -------------------------------------------------------------------------------------------

    def _begin(self, phase: Phase, num_items: int) -> None:
        self._phase = phase
        self._ticket += 1
        self._send(self._barrier.begin(range(num_items), use_slots=phase is Phase.GRADIENT))

    def _send(self, assignments: list[Assignment]) -> None:
        if self._phase is Phase.ENDED:
            return
        for assignment in assignments:
            items = assignment.items
            message: tuple[object, ...]
            match self._phase:
                case Phase.GRADIENT:
                    message = (self._step, self._buffer, items, assignment.slots)
                case Phase.UPDATE:
                    slots = [self._barrier.slots[i] for i in range(len(self._barrier.slots))]
                    pieces = [(i, *self._segments[i]) for i in items]
                    message = (self._step, self._buffer, self._target, slots, pieces)
                case Phase.EVALUATE:
                    message = (self._buffer, items)
                case Phase.INITIALISE:
                    message = (self._target, items)
                case _:
                    raise AssertionError(f"work was assigned in phase {self._phase}")
            self._workers[assignment.worker].send(self._phase.value, self._ticket, *message)

    def _done(self, peer: Peer, ticket: int, item: int, sums: Sums | None = None) -> None:
        if ticket == self._ticket and self._barrier.done(peer.id, item) and sums is not None:
            self._ready_validation().collect(item, sums)

    def _raised(self, peer: Peer, ticket: int, item: int, error: HoldfastError) -> None:
        if ticket != self._ticket:
            return
        name = self._name(item)
        times, assignments = self._barrier.failed(peer.id, item)
        if not isinstance(error, UserCodeError):
            self._fail(type(error)(f"{error} (in {name})"))
        elif times > 1:
            self._fail(UserCodeError(f"{error}\nthe job raised twice in {name}"))
        else:
            self._events.append(Retried(name, str(error).rpartition("\n")[2]))
            self._send(assignments)

    def _name(self, item: int) -> str:
        """A piece of work, as users are told of it."""
        match self._phase:
            case Phase.GRADIENT:
                return f"step {self._step}, microbatch {item}"
            case Phase.EVALUATE:
                return f"the evaluation at step {self._step}, batch {item}"
            case Phase.UPDATE:
                return f"the update of step {self._step}, segment {item}"
            case _:
                return f"phase {self._phase.value}"

    def _fail(self, error: Exception) -> None:
        self._events.append(Failed(error))
        self._phase = Phase.ENDED

    def _advance(self) -> None:
        """Go on through every phase that is complete."""
        ends: dict[Phase, Callable[[], None]] = {
            Phase.BLANK: self._begin_initialise,
            Phase.BOUNDARY: self._at_boundary,
            Phase.INITIALISE: self._end_initialise,
            Phase.GRADIENT: self._begin_update,
            Phase.UPDATE: self._commit_step,
            Phase.EVALUATE: self._end_evaluation,
        }
        while self._phase in ends and self._barrier.complete:
            ends[self._phase]()

    def _begin_initialise(self) -> None:
        self._target = self._ready_arena().spare_buffer(self._buffer)
        self._begin(Phase.INITIALISE, 1)

    def _end_initialise(self) -> None:
        self._ready_arena().commit(self._attempt, 0, 0, self._target, self._aux({}))
        self._started(0, self._target, stored=False)

    def _begin_gradient(self) -> None:
        assert self._prepare is not None
        assert self._description is not None
        rows = batch_rows(self._description["samples"], self._prepare.batch_size, self._step)
        if self._trace is not None:
            self._dispatched_ns = time.monotonic_ns()
        self._begin(Phase.GRADIENT, min(rows, self._prepare.microbatches))

    def _begin_update(self) -> None:
        arena = self._ready_arena()
        self._target = arena.spare_buffer(self._buffer)
        self._segments = segments(arena.spec.params.length, max(1, len(self._barrier.members)))
        self._begin(Phase.UPDATE, len(self._segments))

    def _commit_step(self) -> None:
        arena, plan, description = self._ready_arena(), self._plan, self._description
        assert plan is not None
        assert description is not None
        sums = [arena.sums[self._barrier.slots[i]] for i in range(len(self._barrier.slots))]
        work = list(np.empty((tree_depth(len(sums)), *sums[0].shape)))
        self._metrics = averages(description["metrics"], tree_sum(sums, work))
        arena.commit(plan.attempt, plan.epoch, self._step + 1, self._target, self._aux(self._metrics))
        self._step, self._buffer = self._step + 1, self._target
        if self._trace is not None:
            self._trace.append((self._step, self._dispatched_ns, time.monotonic_ns()))
        self._at_boundary()

    def _aux(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What is kept beside a buffer."""
        assert self._description is not None
        return {"metrics": metrics, "fingerprint": self._description["fingerprint"]}

    def _end_evaluation(self) -> None:
        self._events.append(Evaluated(self._step, self._ready_validation().finish(self._step)))
        self._at_boundary()

    # -- boundaries ---------------------------------------------------------------------------------------

    def _at_boundary(self) -> None:
        """A step is committed. Evaluate, checkpoint, stop or go on."""
        plan, validation = self._plan, self._ready_validation()
        assert plan is not None
        done = self._step >= plan.steps
        stopping = self._stop is not None and not done
        if validation.due(self._step, plan.validate_every, last=done) and not stopping:
            self._begin(Phase.EVALUATE, validation.num_batches)
            return
        if done or self._stop is not None:
            self._drain(done=done)
            return
        every = plan.checkpoint_every
        if every is not None and self._step % every == 0 and self._step not in (0, self._saving.stored_step):
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
        self._events.append(Finished(self._step, done))

    def _resume_drain(self) -> None:
        """Something that a drain, or a stop of an idle node, may be waiting for has happened."""
        if self._phase is Phase.DRAIN:
            self._phase = Phase.BOUNDARY

    def _checkpoint(self) -> None:
        """Have the committed buffer stored, if that can be; training goes on at once."""
        assert self._plan is not None
        if (reason := self._saving.obstacle(self._writer)) is not None:
            self._events.append(CheckpointSkipped(self._step, reason))
            return
        assert self._writer is not None
        metrics = self._metrics | self._ready_validation().metrics_of(self._step)
        arena = self._ready_arena()
        self._saving.begin(arena, self._writer, self._plan, self._buffer, self._step, metrics)

    def _written(self, step: int, part: Part, directory: str) -> None:
        self._events.append(self._saving.written(step, part, directory))
        self._resume_drain()

    def _restored(self, step: int, metrics: dict[str, float]) -> None:
        self._metrics = metrics
        self._ready_arena().commit(self._attempt, 0, step, self._target, self._aux(metrics))
        self._started(step, self._target, stored=True)

    def _writer_failed(self, kind: str, error: Exception) -> None:
        if kind == "write":
            self._events.append(self._saving.failed(error))
            self._resume_drain()
        else:
            self._phase = Phase.IDLE
            self._events.append(RestoreFailed(self._restoring, error))
