"""Arrays arrive to the bit or not at all; whatever the peer does, a fetch ends and lets go of its memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import psutil
import pytest

from storage.errors import InfrastructureError, Superseded
from tests.integration.harness import ROOT
from workers.exchange import TRIES, Exchange, Fetched, Key
from workers.shelf import BLOCK_NBYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

LIMIT_S = 20.0
KEY = Key(1, 0, 5, "sums")
BIG = 96 * BLOCK_NBYTES
"""More than all the buffers on the way hold."""


class Node:
    """An exchange, and a way to wait for its events."""

    def __init__(self, token: str = "secret") -> None:
        self._woken = threading.Semaphore(0)
        self.exchange = Exchange("127.0.0.1", token, self._woken.release)
        self.address = self.exchange.open()
        self._events: dict[int, Fetched] = {}

    def ended(self, request: int, limit_s: float = LIMIT_S) -> Fetched:
        """Wait for the event of a request."""
        deadline = time.monotonic() + limit_s
        while request not in self._events:
            assert self._woken.acquire(timeout=max(0, deadline - time.monotonic())), "no event came"
            for fetched in self.exchange.take():
                assert fetched.request not in self._events
                self._events[fetched.request] = fetched
        return self._events[request]

    def fetch(
        self, peer: str, into: Sequence[NDArray[Any]], *, key: Key = KEY, deadline_s: float = LIMIT_S
    ) -> Fetched:
        """Fetch, and wait for the end."""
        return self.ended(self.exchange.fetch(peer, key, into, deadline_s))


@pytest.fixture
def nodes() -> Iterator[Callable[..., Node]]:
    """Makes nodes, which are closed in the end."""
    made: list[Node] = []

    def make(token: str = "secret") -> Node:
        made.append(Node(token))
        return made[-1]

    yield make
    for node in made:
        node.exchange.close()


class Proxy:
    """A TCP connection to a node that changes what the node sends or is sent, and can be halted."""

    def __init__(
        self,
        target: str,
        change: Callable[[bytearray], None] = lambda data: None,
        change_request: Callable[[bytearray], None] = lambda data: None,
    ) -> None:
        self._target = target
        self._change = change
        self._change_request = change_request
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.flows = threading.Event()
        self.flows.set()
        self.halt_after: int | None = None
        self._sockets: list[socket.socket] = [self._listener]
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                host, port = self._target.split(":")
                server = socket.create_connection((host, int(port)))
                self._sockets += [client, server]
                self._start(self._forward, client, server, False)
                self._start(self._forward, server, client, True)

    def _forward(self, source: socket.socket, sink: socket.socket, changing: bool) -> None:
        total = 0
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                total += len(data)
                if not changing:
                    self._change_request(data)
                else:
                    self._change(data)
                    if self.halt_after is not None and total > self.halt_after:
                        self.halt_after = None
                        self.flows.clear()
                    self.flows.wait()
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut everything."""
        self.flows.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@pytest.fixture
def proxies() -> Iterator[Callable[..., Proxy]]:
    """Makes proxies, which are closed in the end."""
    made: list[Proxy] = []

    def make(*args: Any) -> Proxy:
        made.append(Proxy(*args))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


CHILD = """
import sys
import numpy as np
from workers.exchange import Exchange, Key

exchange = Exchange("127.0.0.1", "secret", lambda: None)
print(exchange.open(), flush=True)
array = np.ones(int(sys.argv[1]), np.uint8)
exchange.publish(Key(1, 0, 5, "sums"), [array])
for line in sys.stdin:
    exchange.fetch(line.strip(), Key(1, 0, 5, "sums"), [array], 60)
"""


class Child:
    """A node of its own process, which serves an array of ones and fetches from the addresses it is told."""

    def __init__(self, nbytes: int) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(nbytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.popen.stdout is not None
        self.address = self.popen.stdout.readline().strip()

    def fetch_from(self, address: str) -> None:
        """Have it fetch."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(address + "\n")
        self.popen.stdin.flush()


@pytest.fixture
def child() -> Iterator[Child]:
    """A node in another process, with a big array."""
    child = Child(BIG)
    yield child
    child.popen.kill()
    _, err = child.popen.communicate(timeout=LIMIT_S)
    assert not err


# -- what arrives -----------------------------------------------------------------------------------------


def test_arrays_of_any_kind_arrive_to_the_bit_with_their_info(nodes: Callable[..., Node]) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 3 * BLOCK_NBYTES + 12, dtype=np.uint8)
    arrays: list[NDArray[Any]] = [
        noise.view(np.float32),  # NaNs of all kinds among them, and a last block that is not whole
        np.empty(0, np.float64),
        rng.standard_normal((7, 3)).astype(ml_dtypes.bfloat16),
        np.array(-5, np.int64),
        noise[:BLOCK_NBYTES],
    ]
    a, b = nodes(), nodes()
    a.exchange.publish(KEY, arrays, b"\0info\xff")
    into = [np.zeros_like(array) for array in arrays]
    assert b.fetch(a.address, into) == Fetched(1, None, b"\0info\xff")
    for array, found in zip(arrays, into, strict=True):
        assert array.tobytes() == found.tobytes()


@pytest.mark.parametrize("arrays", [[], [np.empty(0, np.float32)]])
def test_nothing_can_be_fetched_too(nodes: Callable[..., Node], arrays: list[NDArray[Any]]) -> None:
    a, b = nodes(), nodes()
    a.exchange.publish(KEY, arrays, b"x")
    assert b.fetch(a.address, [each.copy() for each in arrays]) == Fetched(1, None, b"x")


def test_what_is_not_published_yet_is_waited_for(nodes: Callable[..., Node]) -> None:
    a, b = nodes(), nodes()
    into = np.zeros(4, np.float32)
    request = b.exchange.fetch(a.address, KEY, [into], LIMIT_S)
    time.sleep(0.3)
    assert b.exchange.take() == []
    begin = time.monotonic()
    a.exchange.publish(KEY, [np.arange(4, dtype=np.float32)])
    assert b.ended(request).error is None
    assert time.monotonic() - begin < 0.5
    assert into.tolist() == [0, 1, 2, 3]


def test_what_is_never_published_is_an_error_at_the_deadline(nodes: Callable[..., Node]) -> None:
    a, b = nodes(), nodes()
    begin = time.monotonic()
    fetched = b.fetch(a.address, [np.zeros(1)], deadline_s=0.3)
    assert isinstance(fetched.error, InfrastructureError)
    assert 0.2 < time.monotonic() - begin < 2


def test_many_fetches_at_once_do_not_mix(nodes: Callable[..., Node]) -> None:
    a, b = nodes(), nodes()
    keys = [Key(1, 0, step, name) for step in range(10) for name in ("sums", "state")]
    intos = [np.zeros(BLOCK_NBYTES, np.float32) for _ in keys]
    requests = [
        b.exchange.fetch(a.address, key, [into], LIMIT_S) for key, into in zip(keys, intos, strict=True)
    ]
    for i, key in enumerate(keys):
        a.exchange.publish(key, [np.full(BLOCK_NBYTES, i, np.float32)])
    assert all(b.ended(request).error is None for request in requests)
    assert all((into == i).all() for i, into in enumerate(intos))


@pytest.mark.parametrize(
    ("into", "complaint"),
    [
        ([np.zeros(5, np.float32)], "expected 1 arrays, found 2"),
        ([np.zeros(5, np.float32), np.zeros(3)], "array 1: expected 3 x float64, found 3 x int64"),
        (
            [np.zeros(6, np.float32), np.zeros(3, np.int64)],
            "array 0: expected 6 x float32, found 5 x float32",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named_and_not_written(
    nodes: Callable[..., Node], into: list[NDArray[Any]], complaint: str
) -> None:
    a, b = nodes(), nodes()
    a.exchange.publish(KEY, [np.ones(5, np.float32), np.ones(3, np.int64)])
    error = b.fetch(a.address, into).error
    assert isinstance(error, InfrastructureError)
    assert complaint in str(error)
    assert not any(each.any() for each in into)


def test_arrays_that_would_be_copied_or_cannot_be_written_are_refused(nodes: Callable[..., Node]) -> None:
    node = nodes()
    with pytest.raises(ValueError, match="not contiguous"):
        node.exchange.publish(KEY, [np.zeros((4, 4))[:, 1]])
    with pytest.raises(ValueError, match="not contiguous"):
        node.exchange.fetch(node.address, KEY, [np.zeros((4, 4))[:, 1]], 1)
    with pytest.raises(ValueError, match="cannot be written"):
        node.exchange.fetch(node.address, KEY, [np.frombuffer(bytes(8))], 1)
    node.exchange.publish(KEY, [np.zeros(1)])
    with pytest.raises(ValueError, match="published already"):
        node.exchange.publish(KEY, [np.zeros(1)])


# -- what is stale ----------------------------------------------------------------------------------------


def test_a_stale_request_is_refused_by_the_one_who_has_advanced(nodes: Callable[..., Node]) -> None:
    a, b = nodes(), nodes()
    a.exchange.publish(KEY, [np.ones(1)])
    into = np.zeros(1)
    waiting = b.exchange.fetch(a.address, Key(1, 0, 6, "sums"), [into], LIMIT_S)
    time.sleep(0.2)
    a.exchange.advance(1, 1)
    assert isinstance(b.ended(waiting, 2).error, Superseded)
    error = b.fetch(a.address, [into]).error
    assert isinstance(error, Superseded)
    assert "attempt 1, epoch 1 has begun" in str(error)
    assert into[0] == 0
    with pytest.raises(Superseded):
        a.exchange.publish(Key(1, 0, 7, "sums"), [into])


def test_to_advance_ends_fetches_of_before(nodes: Callable[..., Node]) -> None:
    a, b = nodes(), nodes()
    waiting = b.exchange.fetch(a.address, KEY, [np.zeros(1)], LIMIT_S)
    kept = b.exchange.fetch(a.address, Key(2, 0, 0, "sums"), [np.zeros(1)], LIMIT_S)
    b.exchange.advance(2, 0)
    assert isinstance(b.ended(waiting, 1).error, Superseded)
    assert isinstance(b.fetch(a.address, [np.zeros(1)]).error, Superseded)
    a.exchange.publish(Key(2, 0, 0, "sums"), [np.zeros(1)])
    assert b.ended(kept).error is None


def test_a_stream_under_way_ends_when_it_becomes_stale(
    nodes: Callable[..., Node], proxies: Callable[..., Proxy]
) -> None:
    a, b = nodes(), nodes()
    a.exchange.publish(KEY, [np.ones(BIG, np.uint8)])
    proxy = proxies(a.address)
    proxy.halt_after = BLOCK_NBYTES
    request = b.exchange.fetch(proxy.address, KEY, [np.zeros(BIG, np.uint8)], LIMIT_S)
    until(lambda: not proxy.flows.is_set())
    a.exchange.advance(2, 0)
    proxy.flows.set()
    assert isinstance(b.ended(request).error, Superseded)


# -- who may write and read -------------------------------------------------------------------------------


def test_a_cancelled_fetch_writes_no_more(nodes: Callable[..., Node], proxies: Callable[..., Proxy]) -> None:
    a, b = nodes(), nodes()
    a.exchange.publish(KEY, [np.ones(BIG, np.uint8)])
    proxy = proxies(a.address)
    proxy.halt_after = 10 * BLOCK_NBYTES
    memory = mmap.mmap(-1, BIG)
    request = b.exchange.fetch(proxy.address, KEY, [np.frombuffer(memory, np.uint8)], LIMIT_S)
    until(lambda: not proxy.flows.is_set() and memory[0] == 1)
    b.exchange.cancel(request)
    assert "cancelled" in str(b.ended(request, 1).error)
    memory[:] = sevens = b"\7" * BIG
    proxy.flows.set()
    time.sleep(0.5)
    assert memory[:] == sevens
    memory.close()  # nobody holds a view on it any more
    b.exchange.cancel(request)  # too late, which is no fault
    assert b.exchange.take() == []


@pytest.mark.parametrize("moment", range(8))
def test_a_fetch_cancelled_at_any_moment_writes_no_more(nodes: Callable[..., Node], moment: int) -> None:
    a, b = nodes(), nodes()
    a.exchange.publish(KEY, [np.ones(BIG, np.uint8)])
    into = np.zeros(BIG, np.uint8)
    request = b.exchange.fetch(a.address, KEY, [into], LIMIT_S)
    time.sleep(moment * 0.004)
    b.exchange.cancel(request)
    into[:] = 7
    assert "cancelled" in str(b.ended(request, 1).error)
    time.sleep(0.1)
    assert (into == 7).all()


def test_a_waiting_fetch_is_cancelled_at_once(nodes: Callable[..., Node]) -> None:
    a, b = nodes(), nodes()
    request = b.exchange.fetch(a.address, KEY, [np.zeros(1)], LIMIT_S)
    time.sleep(0.2)
    begin = time.monotonic()
    b.exchange.cancel(request)
    assert "cancelled" in str(b.ended(request, 1).error)
    assert time.monotonic() - begin < 0.5


def test_withdrawing_waits_for_the_stream_that_reads(
    nodes: Callable[..., Node], proxies: Callable[..., Proxy]
) -> None:
    a, b = nodes(), nodes()
    memory = mmap.mmap(-1, BIG)
    a.exchange.publish(KEY, [np.frombuffer(memory, np.uint8)])
    proxy = proxies(a.address)
    proxy.halt_after = BLOCK_NBYTES
    request = b.exchange.fetch(proxy.address, KEY, [np.ones(BIG, np.uint8)], LIMIT_S)
    until(lambda: not proxy.flows.is_set())
    timer = threading.Timer(0.3, proxy.flows.set)
    timer.start()
    begin = time.monotonic()
    a.exchange.withdraw((1, 0, 6), LIMIT_S)
    assert time.monotonic() - begin > 0.25
    memory.close()
    assert b.ended(request).error is None
    assert "was withdrawn" in str(b.fetch(a.address, [np.zeros(1)]).error)
    timer.join()


def test_withdrawing_cuts_off_a_peer_that_does_not_read(nodes: Callable[..., Node], child: Child) -> None:
    node, other = nodes(), nodes()
    memory = mmap.mmap(-1, BIG)
    node.exchange.publish(KEY, [np.frombuffer(memory, np.uint8)])
    kept = Key(1, 0, 6, "sums")
    healthy = other.exchange.fetch(node.address, kept, [np.zeros(1)], LIMIT_S)
    child.popen.send_signal(signal.SIGSTOP)
    child.fetch_from(node.address)
    child.popen.send_signal(signal.SIGCONT)
    until(lambda: len(connections_of(child.popen.pid)) > 1)
    time.sleep(0.02)
    child.popen.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    node.exchange.withdraw((1, 0, 6), 0.3)
    assert time.monotonic() - begin < 3
    memory.close()
    node.exchange.publish(kept, [np.ones(1)])
    assert other.ended(healthy).error is None


def test_only_what_is_below_is_withdrawn(nodes: Callable[..., Node]) -> None:
    a, b = nodes(), nodes()
    for epoch, step in ((0, 5), (0, 6), (1, 0)):
        a.exchange.publish(Key(1, epoch, step, "sums"), [np.zeros(1)])
    a.exchange.withdraw((1, 0, 6))
    assert b.fetch(a.address, [np.zeros(1)]).error is not None
    for epoch, step in ((0, 6), (1, 0)):
        assert b.fetch(a.address, [np.zeros(1)], key=Key(1, epoch, step, "sums")).error is None


# -- what goes wrong --------------------------------------------------------------------------------------


def test_a_wrong_token_is_refused(nodes: Callable[..., Node]) -> None:
    a, b = nodes(), nodes("guess")
    a.exchange.publish(KEY, [np.ones(1)])
    into = np.zeros(1)
    error = b.fetch(a.address, [into]).error
    assert isinstance(error, InfrastructureError)
    assert "refused us: the token is not that of this run" in str(error)
    assert "secret" not in str(error)
    assert into[0] == 0


def flip(pattern: bytes, times: int) -> Callable[[bytearray], None]:
    """Turn a bit over in the pattern, wherever it is seen, so many times."""
    left = [times]

    def change(data: bytearray) -> None:
        at = data.find(pattern)
        if at >= 0 and left[0]:
            left[0] -= 1
            data[at] ^= 1

    return change


def test_a_block_that_was_damaged_on_the_way_is_fetched_again(
    nodes: Callable[..., Node], proxies: Callable[..., Proxy]
) -> None:
    a, b = nodes(), nodes()
    array = np.zeros(3 * BLOCK_NBYTES + 100, np.uint8)
    array[BLOCK_NBYTES + 1000 : BLOCK_NBYTES + 65000] = 0xA5
    a.exchange.publish(KEY, [array])
    for times in range(1, TRIES):
        into = np.ones_like(array)
        proxy = proxies(a.address, flip(b"\xa5" * 64, times))
        assert b.fetch(proxy.address, [into]).error is None
        assert np.array_equal(into, array)


def test_a_block_that_is_always_damaged_is_named(
    nodes: Callable[..., Node], proxies: Callable[..., Proxy]
) -> None:
    a, b = nodes(), nodes()
    array = np.zeros(3 * BLOCK_NBYTES, np.uint8)
    array[BLOCK_NBYTES + 1000 : BLOCK_NBYTES + 65000] = 0xA5
    a.exchange.publish(KEY, [array])
    into = np.zeros_like(array)
    error = b.fetch(proxies(a.address, flip(b"\xa5" * 64, 1000)).address, [into]).error
    assert isinstance(error, InfrastructureError)
    assert "block 1 (bytes 1048576 to 2097152 of array 0) was wrong 3 times: the CRC-32C differs" in str(
        error
    )
    assert not into.any(), "what is wrong must not be put into place"


def test_a_damaged_request_is_not_taken_for_another(
    nodes: Callable[..., Node], proxies: Callable[..., Proxy]
) -> None:
    a, b = nodes(), nodes()
    for step in (4, 5):
        a.exchange.publish(Key(1, 0, step, "sums"), [np.full(1, step)])

    def ask_for_another(data: bytearray) -> None:
        data[:] = data.replace(b'[1, 0, 5, "sums"]', b'[1, 0, 4, "sums"]')

    into = np.zeros(1, int)
    error = b.fetch(proxies(a.address, lambda data: None, ask_for_another).address, [into]).error
    assert "the CRC-32C of the request differs" in str(error)
    assert into[0] == 0


def test_damage_anywhere_is_never_taken_for_good(
    nodes: Callable[..., Node], proxies: Callable[..., Proxy]
) -> None:
    a, b = nodes(), nodes()
    array = np.arange(BLOCK_NBYTES // 2, dtype=np.uint32)
    a.exchange.publish(KEY, [array])
    for at in [*range(9, 700, 23), *range(1000, 60_000, 9973)]:
        seen = [0]

        def change(data: bytearray, at: int = at, seen: list[int] = seen) -> None:
            if seen[0] <= at < seen[0] + len(data):
                data[at - seen[0]] ^= 0x10
            seen[0] += len(data)

        into = np.zeros_like(array)
        fetched = b.fetch(proxies(a.address, change).address, [into], deadline_s=1)
        assert fetched.error is not None or np.array_equal(into, array)


def test_a_connection_that_is_cut_ends_the_fetch(
    nodes: Callable[..., Node], proxies: Callable[..., Proxy]
) -> None:
    a, b = nodes(), nodes()
    a.exchange.publish(KEY, [np.ones(BIG, np.uint8)])
    proxy = proxies(a.address)
    proxy.halt_after = BLOCK_NBYTES
    into = np.zeros(BIG, np.uint8)
    request = b.exchange.fetch(proxy.address, KEY, [into], LIMIT_S)
    until(lambda: not proxy.flows.is_set())
    proxy.close()
    assert isinstance(b.ended(request, 3).error, InfrastructureError)
    assert b.fetch(a.address, [into]).error is None, "another connection works"


def stopped_in_mid_stream(node: Node, child: Child, into: NDArray[np.uint8], deadline_s: float) -> int:
    """Fetch from a child, and stop it when the first block is there; return the request."""
    request = node.exchange.fetch(child.address, KEY, [into], deadline_s)
    until(lambda: bool(into[0]))
    child.popen.send_signal(signal.SIGSTOP)
    assert not into[-1], "it was too fast"
    return request


def test_a_peer_that_is_killed_in_mid_stream_ends_the_fetch(nodes: Callable[..., Node], child: Child) -> None:
    node = nodes()
    into = np.zeros(BIG, np.uint8)
    request = stopped_in_mid_stream(node, child, into, LIMIT_S)
    child.popen.kill()
    error = node.ended(request, 3).error
    assert isinstance(error, InfrastructureError)
    error = node.fetch(child.address, [into]).error
    assert "cannot be reached" in str(error)
    assert "debug context" not in str(error)


def test_a_peer_that_is_stopped_is_an_error_at_the_deadline(nodes: Callable[..., Node], child: Child) -> None:
    node = nodes()
    into = np.zeros(BIG, np.uint8)
    begin = time.monotonic()
    request = stopped_in_mid_stream(node, child, into, 1.0)
    error = node.ended(request, 3).error
    assert isinstance(error, InfrastructureError)
    assert "in time" in str(error)
    assert time.monotonic() - begin < 2
    again = node.fetch(child.address, [into], deadline_s=0.5).error
    assert "in time" in str(again)
    into[:] = 7
    child.popen.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    assert (into == 7).all()
    assert node.fetch(child.address, [into]).error is None


def test_an_address_where_nobody_is_ends_the_fetch(nodes: Callable[..., Node]) -> None:
    node = nodes()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    assert "cannot be reached" in str(node.fetch(address, [np.zeros(1)]).error)
    assert "no address" in str(node.fetch("host.invalid:1", [np.zeros(1)]).error)


def test_a_host_that_is_not_ours_cannot_be_served_on() -> None:
    exchange = Exchange("192.0.2.1", "secret", lambda: None)
    with pytest.raises(InfrastructureError, match="cannot serve on 192"):
        exchange.open()
    exchange.close()


# -- the end ----------------------------------------------------------------------------------------------


def connections_of(pid: int) -> set[tuple[Any, ...]]:
    """The sockets of a process."""
    return {(each.laddr, each.raddr) for each in psutil.Process(pid).net_connections("tcp") if each.laddr}


def threads_of_ours() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("holdfast")]


def test_closing_ends_threads_and_sockets_even_with_stuck_peers(child: Child) -> None:
    before = connections_of(os.getpid())
    other = Child(BIG)
    silent = socket.create_server(("127.0.0.1", 0))
    before |= {(silent.getsockname(), ())}
    node = Node()
    memory = mmap.mmap(-1, BIG)
    node.exchange.publish(KEY, [np.frombuffer(memory, np.uint8)])
    child.fetch_from(node.address)  # it reads from us, and is stopped
    until(lambda: len(connections_of(child.popen.pid)) > 1)
    time.sleep(0.02)
    child.popen.send_signal(signal.SIGSTOP)
    into = np.zeros(BIG, np.uint8)
    requests = [
        stopped_in_mid_stream(node, other, into, 60),
        node.exchange.fetch(other.address, KEY, [np.zeros(BIG, np.uint8)], 60),
        node.exchange.fetch(f"127.0.0.1:{silent.getsockname()[1]}", KEY, [np.zeros(1)], 60),
        node.exchange.fetch(node.address, Key(1, 0, 9, "sums"), [np.zeros(1)], 60),
    ]
    time.sleep(0.3)
    begin = time.monotonic()
    node.exchange.close()
    assert time.monotonic() - begin < 5
    assert all(isinstance(node.ended(request, 0.1).error, InfrastructureError) for request in requests)
    assert threads_of_ours() == []
    memory.close()  # nobody holds a view on it any more
    silent.close()
    other.popen.kill()
    other.popen.communicate(timeout=LIMIT_S)
    until(lambda: connections_of(os.getpid()) <= before)
    node.exchange.close()  # once more does nothing


def test_importing_is_cheap_and_starts_nothing() -> None:
    script = """
import sys, threading
from workers.exchange import Exchange
exchange = Exchange("127.0.0.1", "secret", print)
assert not {"pyarrow", "ray", "grpc"} & set(sys.modules)
assert threading.active_count() == 1
exchange.close()
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=LIMIT_S)


def test_nothing_is_written_to_standard_error_and_an_exit_without_closing_is_clean(child: Child) -> None:
    script = f"""
import os, subprocess, sys, threading
import numpy as np
from workers.exchange import Exchange, Key
woken = threading.Semaphore(0)
exchange = Exchange("127.0.0.1", "secret", woken.release)
exchange.open()
key = Key(1, 0, 5, "sums")
def fetch(address, into):
    exchange.fetch(address, key, [into], 10)
    woken.acquire()
    return exchange.take()[0].error
assert fetch("{child.address}", np.zeros({BIG}, np.uint8)) is None
assert fetch("127.0.0.1:1", np.zeros(1)) is not None
assert fetch("{child.address}", np.zeros(1)) is not None
subprocess.run(["true"], check=True)
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        check=False,
        timeout=LIMIT_S,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
