"""The agent of a node: it owns the shared memory, gives out work, is the barrier and commits steps.

`AgentLoop.run` is a single-threaded loop over Unix sockets and pidfds; `tell` and `listen` are how the
coordinator speaks with it, from other threads. What is trained next is decided in `Training`, which does no
waiting.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from storage.errors import Superseded
from workers.channel import Channel, accept, listen, wait_readable
from workers.messages import Close, Command, EpochEnded, Event, Lost, Missed, Prepare, Progress
from workers.processes import ProcessId, Watch, is_alive
from workers.spools import Spools
from workers.step_log import ROWS
from workers.training import Training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.faults import Fault
    from workers.step_log import Row

LEASE_S = 30.0
"""Seconds without a word from a coordinator after which an agent ends itself and its workers.

Its training goes on meanwhile: a successor finds it at work.
"""

LOOK_S = 1.0
"""Seconds after which the loop looks around though nothing has happened."""

REMEMBERED = 64
"""Deaths and ends of epochs that an agent tells a coordinator of that succeeds another one."""

LEAVE_TIMEOUT_S = 2.0
"""Seconds that a worker or writer has to leave before it is killed."""


class _Connection:
    """A `Peer` with its channel, and the pidfd that tells of its end."""

    __slots__ = ("channel", "generation", "id", "pidfd", "process", "rank", "ready", "role")

    def __init__(self, number: int, channel: Channel) -> None:
        self.id = number
        self.channel: Channel | None = channel
        self.role = ""
        self.rank = 0
        self.generation = 0
        self.ready = False
        self.pidfd = -1
        self.process = ProcessId(0, 0)

    def send(self, *message: object) -> None:
        """Send unless cut off."""
        if self.channel is not None:
            with suppress(EOFError):  # the end of the stream will be read, and is what counts
                self.channel.send(*message)


class AgentLoop:
    """Serves workers, writers and one coordinator after another until closed or left alone for `lease_s`.

    Other nodes reach it at `host`. Where `supervisor` is a process of this machine, without which no
    successor will come, the lease ends with it. What processes print by other means than Python's streams is
    given to `show`.
    """

    def __init__(
        self,
        address: str,
        *,
        host: str = "127.0.0.1",
        lease_s: float = LEASE_S,
        supervisor: ProcessId | None = None,
        fault: Fault | None = None,
        show: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.address = address
        self._fault = fault
        self._lease_s = lease_s
        self._supervisor = supervisor
        self._training = Training(host, self._call)
        self._attempt = 0
        self._selector = selectors.DefaultSelector()
        self._inbox: deque[Command] = deque()
        self._condition = threading.Condition()
        self._outbox: list[Event] = []
        self._progress = Progress()
        self._rows: deque[Row] = deque(maxlen=2 * ROWS)
        self._spools = Spools(address, show)
        self._last_word = 0.0
        self._closed = False
        self._remove_arena = False
        self._wake, self._woken = socket.socketpair()
        self._next_id = 0
        self._peers: dict[int, _Connection] = {}
        self._watch_of_deaths = Watch()
        self._deaths: deque[Lost] = deque(maxlen=REMEMBERED)
        self._epochs: deque[EpochEnded] = deque(maxlen=REMEMBERED)
        self._hung: dict[int, float] = {}  # process -> seconds until it was superseded

    # -- the coordinator's side: any thread ---------------------------------------------------------------

    def tell(self, attempt: int, commands: Sequence[Command]) -> None:
        """Hand over commands. Raises Superseded if a coordinator of a higher attempt has spoken."""
        with self._condition:
            self._serve(attempt)
            self._inbox.extend(commands)
            self._call()

    def listen(self, attempt: int, timeout_s: float) -> tuple[list[Event], Progress]:
        """What happened since the last call; waits for something, `timeout_s` at most. Raises Superseded."""
        with self._condition:
            self._serve(attempt)
            self._condition.wait_for(lambda: bool(self._outbox) or self._closed, timeout_s)
            self._serve(attempt)  # if another came meanwhile, it is told and not this one
            events, self._outbox = self._outbox, []
            rows, self._rows = tuple(self._rows), deque(maxlen=2 * ROWS)
            progress = replace(self._progress, rows=rows)
        return events, replace(progress, lines=self._spools.take())

    def _serve(self, attempt: int) -> None:
        if attempt < self._attempt:
            raise Superseded(f"attempt {self._attempt} has taken the nodes over: attempt {attempt} stops")
        if attempt > self._attempt:
            if self._attempt:  # what an older one did not hear is not for it, but for the record
                self._outbox = [*map(Missed, self._deaths), *self._epochs]
                self._rows.clear()  # they are given again when training has begun
            self._attempt = attempt
            self._spools.serve(attempt)
        self._last_word = time.monotonic()

    def _call(self) -> None:
        """Have the loop look at what there is; from any thread."""
        with suppress(BlockingIOError):  # it has been called already
            self._wake.send(b"\0")

    # -- the loop -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until closed. Every worker and writer has ended when this returns."""
        listener = listen(self.address)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._obey)
        self._wake.setblocking(False)
        self._watch_supervisor()
        self._last_word = time.monotonic()
        try:
            while not self._closed:
                self._watch_of_deaths.waits(time.monotonic())
                ready = self._selector.select(self._training.deadlines.wait_s(time.monotonic(), LOOK_S))
                self._watch_of_deaths.wakes(time.monotonic())
                self._training.deadlines.look(time.monotonic())
                for key, _ in ready:
                    key.data(key.fileobj)
                self._supersede()
                if self._fault is not None:
                    self._fault.strike(self._training.progress().step, self._training.phase)
                self._publish()
                if time.monotonic() - self._last_word > self._lease_s:
                    break
        finally:
            listener.close()
            self._end_everyone()
            removed = self._training.release(remove_arena=self._remove_arena)
            self._spools.close(remove=removed)
            with self._condition:
                self._closed = True
                self._condition.notify_all()

    def _watch_supervisor(self) -> None:
        if self._supervisor is None:
            return
        try:
            pidfd = os.pidfd_open(self._supervisor.pid)
        except ProcessLookupError:
            self._closed = True
            return
        if not is_alive(self._supervisor):
            self._closed = True

        def gone(_: object) -> None:
            self._closed = True

        self._selector.register(pidfd, selectors.EVENT_READ, gone)

    def _publish(self) -> None:
        events = [self._dated(event) for event in self._training.take_events()]
        with self._condition:
            self._epochs += [event for event in events if isinstance(event, EpochEnded)]
            self._deaths += [event for event in events if isinstance(event, Lost) and event.ready]
            self._progress = self._training.progress()
            self._rows += self._training.take_rows()
            if events:
                self._outbox += events
                self._condition.notify_all()

    def _dated(self, event: Event) -> Event:
        """With how long, at most, the end of a process has gone unnoticed."""
        if not isinstance(event, Lost):
            return event
        unnoticed_s = time.monotonic() - self._watch_of_deaths.since
        return replace(event, detection_s=self._hung.pop(event.pid, unnoticed_s))

    def _accept(self, listener: socket.socket) -> None:
        channel = accept(listener)
        if channel is None:
            return
        self._next_id += 1
        peer = _Connection(self._next_id, channel)
        self._peers[peer.id] = peer
        self._selector.register(channel.socket, selectors.EVENT_READ, lambda _: self._read(peer))

    def _obey(self, woken: socket.socket) -> None:
        woken.recv(4096)
        while self._inbox:
            command = self._inbox.popleft()
            if isinstance(command, Close):
                self._remove_arena = command.remove
                self._closed = True
                return
            self._training.obey(command)
            if isinstance(command, Prepare):
                self._spools.belong_to(self._training.arena_path)
        self._training.listen()

    def _read(self, peer: _Connection) -> None:
        if peer.channel is None:
            return  # cut off earlier in this round of events
        try:
            messages = peer.channel.receive_ready()
        except EOFError:
            self._cut_off(peer)
            return
        for kind, *arguments in messages:
            if kind == "join":
                self._watch(peer, *arguments)
            elif peer.pidfd >= 0 or kind in ("failed", "notice"):  # of the dead only why they failed counts
                peer.ready = peer.ready or kind == "ready"
                self._training.hear(peer, kind, *arguments)

    def _watch(self, peer: _Connection, role: str, rank: int, pid: int, generation: int = 0) -> None:
        peer.role, peer.rank, peer.generation = role, rank, generation
        peer.process = ProcessId.of(pid)
        with suppress(ProcessLookupError):
            peer.pidfd = os.pidfd_open(pid)
            self._selector.register(peer.pidfd, selectors.EVENT_READ, lambda _: self._ended(peer))
            self._training.join(peer)
            self._training.deadlines.starts(peer.id, time.monotonic())

    def _supersede(self) -> None:
        """Kill who did wrong, or is past its deadline: hung, stopped, or hopelessly slow."""
        for number, cause in self._training.take_doomed():
            if number in self._peers:
                self._cut_off(self._peers[number], cause)
        for number, cause in self._training.deadlines.overdue(time.monotonic()):
            peer = self._peers[number]
            if peer.channel is not None and wait_readable(peer.channel.fileno(), 0):
                self._read(peer)  # it has answered, while we were busy
            else:
                self._hung[peer.process.pid] = self._training.deadlines.allowed_s(number)
                self._training.deadlines.missed(number)
                self._cut_off(peer, cause)

    def _cut_off(self, peer: _Connection, cause: str = "") -> None:
        """A peer is dead or superseded: hand on its work, kill it, and wait for its end by the pidfd."""
        if peer.channel is None:
            return
        self._selector.unregister(peer.channel.socket)
        peer.channel.close()
        peer.channel = None
        if peer.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(peer.pidfd, signal.SIGKILL)
            self._training.lose(peer, cause)
        else:
            del self._peers[peer.id]

    def _ended(self, peer: _Connection) -> None:
        """The process is known to have ended: what it could write can be used again."""
        while peer.channel is not None and wait_readable(peer.channel.fileno(), 0):
            self._read(peer)  # its last words
        self._cut_off(peer)
        self._selector.unregister(peer.pidfd)
        os.close(peer.pidfd)
        del self._peers[peer.id]
        self._training.bury(peer)

    def _end_everyone(self) -> None:
        """Ask who is ready to leave; kill the others, and whom that does not move."""
        left_behind = set(self._peers.values())
        with selectors.DefaultSelector() as selector:
            for peer in self._peers.values():
                if peer.channel is not None and peer.ready:
                    peer.send("exit")
                    selector.register(peer.channel.socket, selectors.EVENT_READ, peer)
            deadline = time.monotonic() + LEAVE_TIMEOUT_S
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    with suppress(EOFError):
                        key.data.channel.receive_ready()
                        continue
                    selector.unregister(key.fileobj)
                    left_behind.remove(key.data)
        for peer in left_behind:
            if peer.pidfd >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(peer.pidfd, signal.SIGKILL)
                wait_readable(peer.pidfd, LEAVE_TIMEOUT_S)
