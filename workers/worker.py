"""A worker: a pure function over the node's shared memory, asked for one phase at a time.

It holds nothing that is needed later. Every item it is given can be done again by any other worker, with the
same bits: gradients go to a slot of their own, an update writes each element once, with its final value.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np

from storage.errors import DataError, HoldfastError, UserCodeError
from workers.channel import Channel, connect
from workers.data import read_patiently
from workers.deadlines import BEAT_S
from workers.faults import Fault, planned_fault
from workers.parts import Parts
from workers.rng import Purpose, Streams
from workers.schedule import batch_indices, microbatches, tree_depth, tree_sum
from workers.state import Arena
from workers.suspicion import all_finite
from workers.task import Task
from workers.tracebacks import summary, user_traceback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from workers.data import Dataset
    from workers.engine import Batch

BLOCK = 1 << 15
"""Elements that an update handles at a time: the operands of a block stay in the cache."""

CONNECT_TIMEOUT_S = 60.0


def run_worker(address: str, rank: int, generation: int, source: bytes) -> None:
    """Serve the agent at `address` until it ends the connection."""
    channel = connect(address, CONNECT_TIMEOUT_S)
    channel.send("join", "worker", rank, os.getpid(), generation)
    released = end_with(channel)
    try:
        fault = planned_fault("worker", rank, generation)
        with _signs_of_life(channel):
            task = Task.load(source)
            description = task.describe()
    except HoldfastError as error:
        channel.send("failed", error)
        return
    except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
        text = f"{user_traceback(error)}the job could not be loaded: {summary(error)}"
        channel.send("failed", UserCodeError(text))
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
        kind, *arguments = channel.receive()
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
    ) -> None:
        self._channel = channel
        self._task = task
        self._fault = fault
        self._seed = seed
        self._batch_size = batch_size
        self._num_microbatches = num_microbatches
        self._shuffle = shuffle
        self._arena = arena = Arena.attach(path)
        length = arena.spec.params.length
        # One array object per buffer and slot, so that engines can keep their views of them.
        self._params = [buffer["params"][:length] for buffer in arena.buffers]
        self._states = [[b[a.name][:length] for a in arena.spec.arrays[1:]] for b in arena.buffers]
        self._grads = [grads[:length] for grads in arena.grads]
        self._parts: Parts | None = None  # of several nodes' gradients
        self._work = np.empty((tree_depth(num_microbatches) + 2, min(BLOCK, max(length, 1))), np.float32)
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
        for array in (params, *self._states[buffer]):
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
        data, engine = self._task.data, self._task.engine
        indices = batch_indices(len(data), self._batch_size, self._seed, step, shuffle=self._shuffle)
        bounds = microbatches(len(indices), self._num_microbatches)
        for item, slot in zip(items, slots, strict=True):
            lose = self._strike(step, "forward")
            try:
                low, high = bounds[item]
                batch = self._read(data, indices[low:high], ticket, item)
                if batch is None:
                    self._grads[slot][:], self._arena.sums[slot][:] = 0, 0  # of no weight in any sum
                else:
                    streams = Streams(self._seed, step, item)
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

    def update(
        self,
        ticket: int,
        step: int,
        source: int,
        target: int,
        slots: list[int],
        items: list[tuple[int, int, int]],
        levels: list[int] | None = None,
    ) -> None:
        """Sum the slots along the tree and apply the optimizer, for segments (item, start, stop).

        With `levels`, the slots are parts of several nodes, of those levels of the tree.
        """
        optimizer = self._task.engine.optimizer
        params, new_params = self._params[source], self._params[target]
        states, new_states = self._states[source], self._states[target]
        memory = self._arena if levels is None else self._parts
        assert memory is not None
        leaves = [self._grads[slot] if levels is None else memory.grads[slot] for slot in slots]
        sums = tree_sum([memory.sums[slot] for slot in slots], list(self._sums_work), levels)
        weight = np.float32(sums[0, 1] or 1.0)  # without any weight the gradient is zero
        work, mean, scratch = self._work[:-2], self._work[-2], self._work[-1]
        for item, start, stop in items:
            flip, finite = self._strike(step, "reduce"), True
            try:
                for low in range(start, stop, BLOCK):
                    high = min(low + BLOCK, stop)
                    size = high - low
                    total = tree_sum([leaf[low:high] for leaf in leaves], [w[:size] for w in work], levels)
                    np.divide(total, weight, out=mean[:size])
                    if flip:
                        mean[0] = np.nan
                    finite = finite and all_finite(mean[:size])
                    optimizer.update(
                        step,
                        params[low:high],
                        [state[low:high] for state in states],
                        mean[:size],
                        new_params[low:high],
                        [state[low:high] for state in new_states],
                        scratch[:size],
                    )
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
            low = item * self._batch_size
            indices = np.arange(low, min(low + self._batch_size, len(validation)))
            try:
                batch = self._read(validation, indices, ticket, item)
                if batch is None:
                    sums = np.zeros((self._arena.spec.num_metrics, 2))
                else:
                    sums = self._task.engine.evaluate(self._params[buffer], batch)
            except (Exception, SystemExit) as error:  # noqa: BLE001 the user's code may raise anything
                self._report(ticket, item, error)
                continue
            self._channel.send("done", ticket, item, sums)

    def _read(self, data: Dataset, indices: NDArray[np.int64], ticket: int, item: int) -> Batch | None:
        """Take samples, again if they cannot be read; None if they never can, and the job skips such."""

        def tell(message: str) -> None:
            self._channel.send("unreadable", ticket, item, message, False)

        try:
            return read_patiently(data, indices, tell)
        except DataError as error:
            if not self._task.skips_unreadable:
                raise
            self._channel.send("unreadable", ticket, item, str(error), True)
            return None

    def _strike(self, step: int, phase: str) -> bool:
        """Whether a planned fault spoils the result."""
        return self._fault is not None and self._fault.strike(step, phase)

    def _report(self, ticket: int, item: int, error: Exception | SystemExit) -> None:
        if not isinstance(error, HoldfastError):
            error = UserCodeError(user_traceback(error).rstrip())
        self._channel.send("raised", ticket, item, error)


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
