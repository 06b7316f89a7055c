"""A worker: a pure function over the node's shared memory, asked for one phase at a time.

It holds nothing that is needed later. Every item it is given can be done again by any other worker, with the
same bits: gradients go to a slot of their own, an update writes each element once, with its final value.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from storage.errors import ConfigurationError, DataError, HoldfastError, UserCodeError
from workers.channel import Channel, connect
from workers.data import ReadsAhead, read_patiently
from workers.data.order import order_of
from workers.deadlines import BEAT_S
from workers.faults import Fault, planned_fault
from workers.parts import Parts
from workers.redaction import Redactor
from workers.rng import Purpose, Streams
from workers.schedule import batch_indices, blocks, microbatches, tree_depth, tree_sum
from workers.state import Arena
from workers.suspicion import all_finite
from workers.task import BEST, Task
from workers.tracebacks import summary, user_traceback
from workers.updates import BLOCK, MeanGradient, longest_block, measured, update_block

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from numpy.typing import NDArray

    from workers.course import Answer, Question
    from workers.data import Dataset
    from workers.engine import Batch
    from workers.processes import ProcessId
    from workers.schedule import Remainder

CONNECT_TIMEOUT_S = 60.0


def run_worker(
    address: str, rank: int, generation: int, source: bytes, supervisor: ProcessId | None = None
) -> None:
    """Serve the agent at `address` until it ends the connection; `supervisor` is as of `connect`."""
    channel = connect(address, CONNECT_TIMEOUT_S, supervisor)
    channel.send("join", "worker", rank, os.getpid(), generation)
    released = end_with(channel)
    try:
        fault = planned_fault("worker", rank, generation)
        with _signs_of_life(channel):
            task = Task.load(source)
            description = task.describe()
    except HoldfastError as error:
        channel.send("failed", _told(error))
        return
    except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
        text = f"{user_traceback(error)}the job could not be loaded: {summary(error)}"
        channel.send("failed", _told(UserCodeError(text)))
        return
    channel.send("ready", description)
    with suppress(EOFError):  # the agent is gone, which ends this process
        _serve(channel, task, fault)
    released.set()
    channel.close()


@contextmanager
def _signs_of_life(channel: Channel) -> Iterator[None]:
    """Let the agent know that this process is not stopped but loads, however long that takes."""
    loaded = threading.Event()

    def tell() -> None:
        with suppress(EOFError):
            while not loaded.wait(BEAT_S):
                channel.send("loading")

    thread = threading.Thread(target=tell, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loaded.set()
        thread.join()  # the channel is for one thread at a time


def _serve(channel: Channel, task: Task, fault: Fault | None) -> None:
    worker: Worker | None = None
    while True:
        waiting = None if worker is None else worker.next_message()
        kind, *arguments = waiting or channel.receive()
        if kind == "exit":
            return
        if kind == "open":
            worker = Worker(channel, task, fault, *arguments)
        else:
            assert worker is not None
            getattr(worker, kind)(*arguments)


class Worker:
    """The phases that an agent can ask for, over one mapped arena. Methods are named as the messages are."""

    def __init__(
        self,
        channel: Channel,
        task: Task,
        fault: Fault | None,
        path: str,
        seed: int,
        batch_size: int,
        num_microbatches: int,
        shuffle: bool,
        remainder: Remainder,
    ) -> None:
        self._channel = channel
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._task = task
        self._fault = fault
        self._seed = seed
        self._batch_size = batch_size
        self._num_microbatches = num_microbatches
        self._shuffle = shuffle
        self._remainder = remainder
        self._arena = arena = Arena.attach(path)
        length = arena.spec.params.length
        # One array object per buffer and slot, so that engines can keep their views of them.
        self._params = [buffer["params"][:length] for buffer in arena.buffers]
        names = [array.name for array in arena.spec.arrays[1:] if array.name != BEST]
        self._states = [[b[name][:length] for name in names] for b in arena.buffers]
        self._best = [b[BEST][:length] for b in arena.buffers if BEST in b]
        self._grads = [grads[:length] for grads in arena.grads]
        self._parts: Parts | None = None  # of several nodes' gradients
        longest = longest_block(length, task.engine.optimizer.whole)
        self._work = np.empty((tree_depth(num_microbatches) + 2, longest), np.float32)
        self._sums_work = np.empty((tree_depth(num_microbatches), arena.spec.num_metrics, 2))

    def share(self, path: str, count: int) -> None:
        """Map the memory in which gradients of several nodes come together."""
        spec = self._arena.spec
        try:
            self._parts = Parts(path, count, spec.params.length, spec.num_metrics)
        except (FileNotFoundError, ValueError):  # of an epoch that is over: it is gone, or made anew
            self._parts = None

    def initialise(self, ticket: int, buffer: int, items: tuple[int, ...]) -> None:
        """Fill a buffer with the initial state."""
        params = self._params[buffer]
        for array in (params, *self._states[buffer], *self._best[buffer : buffer + 1]):
            array[:] = 0
        try:
            self._task.engine.init(params, Streams(self._seed, purpose=Purpose.INIT))
        except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
            self._report(ticket, items[0], error)
        else:
            self._channel.send("done", ticket, items[0])

    def gradient(
        self, ticket: int, step: int, buffer: int, items: tuple[int, ...], slots: tuple[int, ...]
    ) -> None:
        """Compute the gradient of microbatches of `step`, each into its slot."""
        engine = self._task.engine
        samples = self._samples(step)
        for item, slot in zip(items, slots, strict=True):
            lose = self._strike(step, "forward")
            try:
                of_map = Streams(self._seed, step, item, Purpose.MAP)
                batch = self._read(self._task.data, samples[item], of_map, ticket, item)
                if batch is None:
                    self._grads[slot][:], self._arena.sums[slot][:] = 0, 0  # of no weight in any sum
                else:
                    share = len(samples[item]) / sum(map(len, samples))
                    streams = Streams(self._seed, step, item, share=share)
                    sums = engine.loss_and_grad(self._params[buffer], batch, streams, self._grads[slot])
                    self._arena.sums[slot][:] = sums
            except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
                self._report(ticket, item, error)
                continue
            if lose:
                self._arena.sums[slot][0, 0] = np.nan
            if self._strike(step, "backward"):
                assert self._fault is not None
                self._grads[slot][0] = self._fault.spoilt(float(self._grads[slot][0]))
            self._channel.send("done", ticket, item)
        self._read_ahead(step + 1, items)

    def update(
        self,
        ticket: int,
        step: int,
        source: int,
        target: int,
        slots: list[int],
        items: list[tuple[int, int, int]],
        levels: list[int] | None = None,
        knobs: Mapping[str, Any] | None = None,
        keeps_best: bool = False,
    ) -> None:
        """Sum the slots along the tree and apply the optimizer, for segments (item, start, stop).

        With `levels`, the slots are parts of several nodes, of those levels of the tree. A step without any
        weight changes nothing. `knobs` are what callbacks have set; with `keeps_best` the parameters before
        the step are the best ones from now on.
        """
        optimizer = self._task.engine.optimizer
        old = (self._params[source], self._states[source])
        new = (self._params[target], self._states[target])
        memory = self._arena if levels is None else self._parts
        assert memory is not None
        leaves = [self._grads[slot] if levels is None else memory.grads[slot] for slot in slots]
        totals = tree_sum([memory.sums[slot] for slot in slots], list(self._sums_work), levels)
        weight, scratch = np.float32(totals[0, 1]), self._work[-1]
        mean = MeanGradient(leaves, levels, weight or np.float32(1), self._work[:-1])
        try:
            sums = measured(optimizer, step, old[1], mean, len(old[0]))
        except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
            self._report(ticket, items[0][0], error)
            return
        for item, start, stop in items:
            flip, finite = self._strike(step, "reduce"), True
            try:
                for low, high in blocks(start, stop, BLOCK, optimizer.whole):
                    gradient = mean(low, high)
                    if flip:
                        gradient[0] = np.nan
                    finite = finite and all_finite(gradient)
                    update_block(
                        optimizer, step, (low, high), old, new, gradient, weight, scratch, sums, knobs
                    )
                    if self._best:
                        best = old[0] if keeps_best else self._best[source]
                        np.copyto(self._best[target][low:high], best[low:high])
                    if 2 * high >= start + stop:
                        self._strike(step, "update")
            except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
                self._report(ticket, item, error)
                continue
            self._channel.send("done", ticket, item, None, finite)

    def reduce(self, ticket: int, step: int, items: list[tuple[int, list[int], int, int, int]]) -> None:
        """Add slots up to parts of the tree: (item, slots, part, start, stop) each."""
        assert self._parts is not None
        work = self._work[:-2]
        for item, slots, part, start, stop in items:
            flip, finite = self._strike(step, "reduce"), True
            leaves, out = [self._grads[slot] for slot in slots], self._parts.grads[part]
            for low in range(start, stop, BLOCK):
                high = min(low + BLOCK, stop)
                out[low:high] = tree_sum([leaf[low:high] for leaf in leaves], [w[: high - low] for w in work])
                if flip:
                    out[low] = np.nan
                finite = finite and all_finite(out[low:high])
            self._channel.send("done", ticket, item, None, finite)

    def evaluate(self, ticket: int, buffer: int, items: tuple[int, ...]) -> None:
        """Evaluate batches of the validation data."""
        validation = self._task.validation
        assert validation is not None
        for item in items:
            if self._is_dropped(ticket):
                return
            low = item * self._batch_size
            indices = np.arange(low, min(low + self._batch_size, len(validation)))
            try:
                of_map = Streams(self._seed, 0, item, Purpose.EVALUATE)
                batch = self._read(validation, indices, of_map, ticket, item)
                if batch is None:
                    sums = np.zeros((self._arena.spec.num_metrics, 2))
                else:
                    sums = self._task.engine.evaluate(self._params[buffer], batch)
            except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
                self._report(ticket, item, error)
                continue
            self._channel.send("done", ticket, item, sums)

    def drop(self, ticket: int) -> None:
        """The results of that phase are not wanted any more; it is over here already."""

    def next_message(self) -> tuple[Any, ...] | None:
        """In place. A message that came in the midst of a phase."""
        return self._waiting.popleft() if self._waiting else None

    def _is_dropped(self, ticket: int) -> bool:
        """Whether the rest of a phase is not wanted any more."""
        self._waiting += self._channel.received()
        return ("drop", ticket) in self._waiting

    def callbacks(self, ticket: int, buffer: int, items: tuple[int, ...], question: Question) -> None:
        """Ask the job's callbacks."""
        assert self._task.callbacks is not None
        try:
            answer = self._task.callbacks.ask(question, self._params[buffer])
            _check_not_secret(answer)
            self._strike(question.step, "callbacks")
        except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
            self._report(ticket, items[0], error)
        else:
            self._channel.send("done", ticket, items[0], answer)

    def _samples(self, step: int) -> list[NDArray[np.int64]]:
        """The samples of each microbatch of `step`."""
        data = self._task.data
        indices = batch_indices(
            len(data),
            self._batch_size,
            self._seed,
            step,
            shuffle=self._shuffle,
            remainder=self._remainder,
            order=partial(order_of, data),
        )
        return [indices[low:high] for low, high in microbatches(len(indices), self._num_microbatches)]

    def _read_ahead(self, step: int, items: tuple[int, ...]) -> None:
        """Let a dataset that can do so read what this worker will probably be asked for in `step`."""
        if isinstance(self._task.data, ReadsAhead):
            samples = self._samples(step)
            self._task.data.prefetch(np.concatenate([samples[item] for item in items if item < len(samples)]))

    def _read(
        self, data: Dataset, indices: NDArray[np.int64], streams: Streams, ticket: int, item: int
    ) -> Batch | None:
        """Take samples, again if they cannot be read; None if they never can, and the job skips such."""

        def tell(message: str) -> None:
            self._channel.send("unreadable", ticket, item, _redactor().text(message), False)

        try:
            return read_patiently(data, indices, tell, streams)
        except DataError as error:
            if not self._task.skips_unreadable:
                raise
            self._channel.send("unreadable", ticket, item, str(_told(error)), True)
            return None

    def _strike(self, step: int, phase: str) -> bool:
        """Whether a planned fault spoils the result."""
        return self._fault is not None and self._fault.strike(step, phase)

    def _report(self, ticket: int, item: int, error: Exception | SystemExit) -> None:
        if not isinstance(error, HoldfastError):
            error = UserCodeError(user_traceback(error).rstrip())
        self._channel.send("raised", ticket, item, _told(error))


def _redactor() -> Redactor:
    """One that knows this process's environment as it is now: the user's code may have added to it."""
    return Redactor.of(os.environ)


def _told(error: Exception) -> Exception:
    """An error as others may be told of it."""
    return _redactor().error(error)


def _check_not_secret(answer: Answer) -> None:
    """Raise ConfigurationError if callbacks remember what is secret: it would be in each checkpoint."""
    kept = {"state": answer.state, "logs": dict(answer.logs)}
    if _redactor().value(kept, keys=True) != kept:
        raise ConfigurationError(
            "the callbacks remember, or log, something secret of the environment, which would be stored with "
            "each checkpoint: let them take it from the environment whenever they need it"
        )


def end_with(channel: Channel) -> threading.Event:
    """End this process as soon as the other end of the connection is gone, in the middle of any work.

    Setting the event that is returned releases the process from this.
    """
    released = threading.Event()
    descriptor = os.dup(channel.fileno())  # stays valid when the channel is closed

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
        poll.poll()
        if not released.is_set():
            os._exit(0)
        os.close(descriptor)

    threading.Thread(target=watch, name="agent-watch", daemon=True).start()
    return released
