"""Times two processes that swap arrays: our exchange over Arrow Flight, Ray actor calls, and plain TCP.

    python tests/bench/transport.py [--rounds N] [--tiny] [--without-ray]

In each exchange both send an array and have received the other's when it ends, both directions at once. The
exchange checks every block by its CRC-32C, Ray and TCP check nothing. TCP, sendall and recv_into with a
thread that sends, is what the machine can do. Ray is called as `actor.take.remote(array)`; the actor copies
what it is given, as all do, into memory of its own. Its two actors are on two nodes, both on this machine:
on one node they would share an object store, and nothing would travel. Run by hand on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import queue
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from workers.exchange import Exchange, Key  # noqa: E402

SIZES = {4096: 200, 1_600_000: 100, 16_000_000: 20, 100_000_000: 4}
"""Bytes -> exchanges in a round, the first of which is not counted."""

TINY = {4096: 2, 1_600_000: 2}
LIMIT_S = 60.0


class Side(Protocol):
    """One of the two processes."""

    def open(self) -> str:
        """Begin; return the address to tell the other side."""

    def meet(self, peer: str) -> None:
        """Take the other's address."""

    def swap(self, array: Any, into: Any) -> None:
        """Have the other's array in `into`, and the other ours."""

    def close(self) -> None:
        """End."""


class Flight:
    """Our exchange, as agents use it."""

    def __init__(self, token: str) -> None:
        self._events = threading.Semaphore(0)
        self._exchange = Exchange("127.0.0.1", token, self._events.release)
        self._step = 0

    def open(self) -> str:
        """Serve."""
        return self._exchange.open()

    def meet(self, peer: str) -> None:
        """Connections are made by the first fetch."""
        self._peer = peer

    def swap(self, array: Any, into: Any) -> None:
        """Publish and fetch; what was published for the last step is withdrawn."""
        self._step += 1
        key = Key(1, 0, self._step, "sums")
        self._exchange.publish(key, [array])
        self._exchange.fetch(self._peer, key, [into], LIMIT_S)
        self._events.acquire()
        for fetched in self._exchange.take():
            if fetched.error is not None:
                raise fetched.error
        # What the other side has not fetched yet is that of this step: it waits for ours before it goes on.
        self._exchange.withdraw((1, 0, self._step))

    def close(self) -> None:
        """Wait until the other side has what it still needs."""
        self._exchange.withdraw((1, 0, self._step + 1))
        self._exchange.close()


class Tcp:
    """One socket, and a thread that sends."""

    def __init__(self, token: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._to_send: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sent: queue.SimpleQueue[None] = queue.SimpleQueue()

    def open(self) -> str:
        """Listen."""
        return str(self._listener.getsockname()[1])

    def meet(self, peer: str) -> None:
        """The one whose port is lower calls the other."""
        if int(self.open()) < int(peer):
            self._socket = socket.create_connection(("127.0.0.1", int(peer)))
        else:
            self._socket, _ = self._listener.accept()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        while True:
            self._socket.sendall(self._to_send.get())
            self._sent.put(None)

    def swap(self, array: Any, into: Any) -> None:
        """Send and receive at once."""
        self._to_send.put(memoryview(array).cast("B"))
        view = memoryview(into).cast("B")
        got = 0
        while got < len(view):
            got += self._socket.recv_into(view[got:])
        self._sent.get()

    def close(self) -> None:
        """Nothing is under way."""
        self._socket.close()
        self._listener.close()


def timed(side: Side, nbytes: int, repeats: int) -> list[float]:
    """Milliseconds of each exchange but the first."""
    array = np.random.default_rng(0).standard_normal(nbytes // 4, np.float32)
    into = np.zeros_like(array)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        side.swap(array, into)
        times.append(1000 * (time.perf_counter() - begin))
    if not np.array_equal(array, into):
        raise ValueError("something else was received")
    return times[1:]


def be_a_side(name: str, token: str) -> None:
    """Obey lines `NBYTES REPEATS` from standard input."""
    side: Side = {"flight": Flight, "tcp": Tcp}[name](token)
    print(side.open(), flush=True)
    side.meet(input())
    for line in sys.stdin:
        print(*timed(side, *map(int, line.split())), flush=True)
    side.close()


class Pair:
    """Two subprocesses that are sides."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, __file__, "--side", name, "--token", secrets.token_hex()]
        self._sides = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        self._tell(*self._hear()[::-1])

    def _tell(self, *lines: str) -> None:
        for side, line in zip(self._sides, lines, strict=True):
            assert side.stdin is not None
            side.stdin.write(line.strip() + "\n")
            side.stdin.flush()

    def _hear(self) -> list[str]:
        return [side.stdout.readline() for side in self._sides if side.stdout is not None]

    def times(self, nbytes: int, repeats: int) -> list[float]:
        """Milliseconds of the exchanges, as each side saw them."""
        self._tell(*[f"{nbytes} {repeats}"] * 2)
        return [float(word) for line in self._hear() for word in line.split()]

    def close(self) -> None:
        """End both."""
        for side in self._sides:
            side.communicate(timeout=LIMIT_S)
        if any(side.returncode for side in self._sides):
            raise SystemExit("a side failed")


class Caller:
    """A Ray actor that calls the other."""

    def __init__(self) -> None:
        self._into: Any = None
        self._ready = threading.Semaphore(0)
        self._taken = threading.Semaphore(0)

    def meet(self, peer: Any) -> None:
        """Take the handle of the other."""
        self._peer = peer

    def take(self, array: Any) -> None:
        """Called by the other: copy, when there is where to."""
        self._ready.acquire()
        np.copyto(self._into, array)
        self._taken.release()

    def swap(self, array: Any, into: Any) -> None:
        """Call, and be called."""
        import ray

        self._into = into
        self._ready.release()
        ray.get(self._peer.take.remote(array))
        self._taken.acquire()

    def times(self, nbytes: int, repeats: int) -> list[float]:
        """Milliseconds of each exchange but the first."""
        return timed(self, nbytes, repeats)  # type: ignore[arg-type]


class RayPair:
    """Two actors on the two nodes of a Ray cluster of their own."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = {"num_cpus": 1, "object_store_memory": 10**9}
        self._cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self._cluster.add_node(**node)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        ids = [entry["NodeID"] for entry in ray.nodes()]
        places = [NodeAffinitySchedulingStrategy(node_id, soft=False) for node_id in ids]
        actor = ray.remote(num_cpus=0, max_concurrency=2)(Caller)
        self._sides = [actor.options(scheduling_strategy=place).remote() for place in places]
        ray.get([a.meet.remote(b) for a, b in zip(self._sides, self._sides[::-1], strict=True)])

    def times(self, nbytes: int, repeats: int) -> list[float]:
        """Milliseconds of the exchanges, as each side saw them."""
        import ray

        found = ray.get([side.times.remote(nbytes, repeats) for side in self._sides], timeout=LIMIT_S)
        return [ms for times in found for ms in times]

    def close(self) -> None:
        """End both."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def measure(rounds: int, tiny: bool, with_ray: bool) -> dict[str, dict[int, list[float]]]:
    """transport -> bytes -> milliseconds; each of all once in every round."""
    sizes = TINY if tiny else SIZES
    pairs: dict[str, Pair | RayPair] = {"flight": Pair("flight"), "tcp": Pair("tcp")}
    if with_ray:
        pairs["ray"] = RayPair()
    found: dict[str, dict[int, list[float]]] = {name: {nbytes: [] for nbytes in sizes} for name in pairs}
    for _ in range(rounds):
        for nbytes, repeats in sizes.items():
            for name, pair in pairs.items():
                found[name][nbytes] += pair.times(nbytes, repeats)
    for pair in pairs.values():
        pair.close()
    return found


def rows(found: dict[str, dict[int, list[float]]]) -> list[tuple[str, str]]:
    """What was measured, as rows of the table of results."""
    names = {
        "flight": "exchange (Arrow Flight, CRC-32C)",
        "ray": "Ray actor calls (two nodes)",
        "tcp": "TCP sockets",
    }
    return [
        (f"{nbytes / 1e6:g} MB each way, {names[name]}", _figure(nbytes, times))
        for nbytes in next(iter(found.values()))
        for name in sorted(found)
        for times in [found[name][nbytes]]
    ]


def _figure(nbytes: int, times: list[float]) -> str:
    median = statistics.median(times)
    high = sorted(times)[int(0.95 * (len(times) - 1))]
    return f"{median:.2f} ms (95th percentile {high:.2f} ms), {nbytes / median / 1e3:.0f} MB/s each way"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="only see that everything runs")
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--side", choices=["flight", "tcp"], help=argparse.SUPPRESS)
    parser.add_argument("--token", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        be_a_side(options.side, options.token)
        return
    rounds = 1 if options.tiny else options.rounds
    found = measure(rounds, options.tiny, not options.without_ray)
    print("## transport\n\n| what | figure |\n|---|---|")
    for what, figure in rows(found):
        print(f"| {what} | {figure} |")


if __name__ == "__main__":
    main()
