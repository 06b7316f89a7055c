"""The agent's loop against peers that die at the worst moment: real processes, real sockets."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from storage.errors import Superseded
from workers.channel import Channel, address_for, connect
from workers.messages import Close, Failed, Greet, Greeted, Lost, Noticed, Ready
from workers.processes import ProcessId, is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds and abstract sockets")

PEER = """
import os, sys, time
from workers.channel import connect
from workers.main import resolve
channel = connect(resolve(sys.argv[1]), 10)
channel.send("join", sys.argv[2], 0, os.getpid())
if sys.argv[3] == "ready":
    channel.send("ready", {} if sys.argv[2] == "worker" else None)
elif sys.argv[3] == "failed":
    channel.send("failed", ValueError("x" * int(sys.argv[4])))
print("sent", flush=True)
time.sleep(float(sys.argv[5]))
"""


class Node:
    """An agent in a process of its own, and the control connection to it."""

    def __init__(self) -> None:
        self.name = "@" + address_for(secrets.token_hex(8))[1:]
        self.popen = subprocess.Popen([sys.executable, "-m", "workers.main", "agent", "--address", self.name])
        self.control = connect("\0" + self.name[1:] + "-control", 20)
        self.events: list[Any] = []
        self.workers = 0
        self.peers: list[subprocess.Popen[Any]] = []
        self.exchange()  # what it did not tell an older coordinator is not for this one

    def exchange(self, timeout_s: float = 0.1) -> None:
        self.control.send("listen", 1, timeout_s)
        events, progress = self.control.receive()
        self.events += events
        self.workers = progress.workers

    def until(self, condition: Any, timeout_s: float = 10) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.exchange()
        return bool(condition())

    def peer(self, role: str, message: str, size: int = 0, stay_s: float = 60) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PEER, self.name, role, message, str(size), str(stay_s)]
        popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.peers.append(popen)
        assert popen.stdout is not None
        assert popen.stdout.readline() == "sent\n"
        return popen

    def close(self) -> None:
        if self.popen.poll() is None:
            os.kill(self.popen.pid, signal.SIGCONT)
        self.control.close()
        everybody: list[subprocess.Popen[Any]] = [*self.peers, self.popen]
        for popen in everybody:
            popen.kill()
            popen.wait(10)
            if popen.stdout is not None:
                popen.stdout.close()


@pytest.fixture
def node() -> Iterator[Node]:
    found = Node()
    yield found
    found.close()


def of(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_a_worker_that_dies_is_lost_and_no_longer_counted(node: Node) -> None:
    popen = node.peer("worker", "ready")
    assert node.until(lambda: of(node.events, Ready))
    assert node.workers == 1
    popen.kill()
    assert node.until(lambda: of(node.events, Lost))
    (lost,) = of(node.events, Lost)
    assert (lost.role, lost.pid, lost.ready) == ("worker", popen.pid, True)
    assert node.until(lambda: node.workers == 0)


@pytest.mark.parametrize("role", ["worker", "writer"])
def test_a_peer_that_was_ready_and_died_while_the_agent_was_busy_is_not_waited_for(
    node: Node, role: str
) -> None:
    """Reserving gigabytes takes the agent seconds, in which a worker can join, be killed and be reaped."""
    os.kill(node.popen.pid, signal.SIGSTOP)
    popen = node.peer(role, "ready")
    popen.kill()
    popen.wait(10)
    os.kill(node.popen.pid, signal.SIGCONT)
    time.sleep(0.2)
    node.exchange()
    node.exchange()
    assert node.workers == 0, "a dead worker would be given work for ever"
    ready, lost = of(node.events, Ready), of(node.events, Lost)
    assert len(ready) == len(lost), "it was announced as ready and never as lost"


@pytest.mark.parametrize("size", [10, 300_000])
def test_what_a_worker_says_before_it_ends_is_heard(node: Node, size: int) -> None:
    """The reason why a job cannot be loaded must not be lost in the race with the end of the process."""
    os.kill(node.popen.pid, signal.SIGSTOP)
    command = [sys.executable, "-c", PEER, node.name, "worker", "failed", str(size), "0"]
    popen = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    node.peers.append(popen)
    time.sleep(0.5)
    os.kill(node.popen.pid, signal.SIGCONT)
    assert node.until(lambda: of(node.events, Failed) or of(node.events, Lost))
    node.exchange()
    assert of(node.events, Failed), "only the death was noticed"


def test_an_agent_without_a_coordinator_ends_itself_and_its_workers() -> None:
    from workers import agent

    name = address_for(secrets.token_hex(8))
    program = (
        "import sys; from workers.agent import AgentLoop; AgentLoop('\\0' + sys.argv[1], lease_s=0.5).run()"
    )
    with subprocess.Popen([sys.executable, "-c", program, name[1:]]) as popen:
        channel = connect(name, 20)
        channel.send("join", "worker", 0, os.getpid())
        channel.send("ready", {})
        # This process plays the worker, and leaves as a worker does.
        assert channel.receive() == ("exit",)
        channel.close()
        assert popen.wait(agent.LEASE_S) == 0


def test_a_closed_agent_ends_workers_that_do_not_leave(node: Node) -> None:
    popen = node.peer("worker", "ready")
    os.kill(popen.pid, signal.SIGSTOP)
    process = ProcessId.of(popen.pid)
    assert node.until(lambda: of(node.events, Ready))
    node.control.send("tell", 1, [Close(remove=False)])
    assert node.popen.wait(10) == 0
    assert not is_alive(process)


def test_an_older_coordinator_is_told_that_it_is_superseded(node: Node) -> None:
    newer, older = (connect("\0" + node.name[1:] + "-control", 5) for _ in range(2))
    newer.send("tell", 3, [Greet(3, 0)])
    newer.send("listen", 3, 5.0)
    events, _ = newer.receive()
    assert [type(event) for event in events] == [Greeted]
    for channel, kind, argument in ((node.control, "listen", 5.0), (older, "tell", [Close(remove=True)])):
        channel.send(kind, 2, argument)
        (error,) = channel.receive()
        assert isinstance(error, Superseded)
        assert "attempt 3" in str(error)
    newer.send("listen", 3, 0.1)
    newer.receive()
    assert node.popen.poll() is None, "it obeyed the older one"
    newer.close()
    older.close()


def test_who_waits_while_another_takes_over_is_told_so_and_hears_nothing(node: Node) -> None:
    node.control.send("listen", 1, 20.0)
    newer = connect("\0" + node.name[1:] + "-control", 5)
    newer.send("tell", 2, [Greet(2, 0)])
    newer.send("listen", 2, 5.0)
    events, _ = newer.receive()
    assert [type(event) for event in events] == [Greeted]
    (error,) = node.control.receive()
    assert isinstance(error, Superseded)
    newer.close()


def test_an_agent_ends_with_its_supervisor() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as supervisor:
        process = ProcessId.of(supervisor.pid)
        name = "@" + address_for(secrets.token_hex(8))[1:]
        command = [sys.executable, "-m", "workers.main", "agent", "--address", name]
        command += ["--supervisor", f"{process.pid}:{process.started}"]
        with subprocess.Popen(command) as agent:
            connect("\0" + name[1:] + "-control", 20).close()
            assert agent.poll() is None
            supervisor.kill()
            assert agent.wait(10) == 0
        assert subprocess.run(command, timeout=20, check=False).returncode == 0, "it is gone already"


def test_sigterm_to_an_agent_is_a_notice(node: Node) -> None:
    node.popen.terminate()
    assert node.until(lambda: of(node.events, Noticed))
    assert str(node.popen.pid) in of(node.events, Noticed)[0].reason
    assert node.popen.poll() is None


def test_strangers_that_say_nothing_or_nonsense_do_no_harm(node: Node) -> None:
    silent = connect("\0" + node.name[1:], 5)
    garbage = connect("\0" + node.name[1:], 5)
    garbage.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    brief: Channel = connect("\0" + node.name[1:], 5)
    brief.close()
    node.peer("worker", "ready")
    assert node.until(lambda: node.workers == 1)
    silent.close()
    garbage.close()
    node.exchange()
    assert node.popen.poll() is None
    assert node.workers == 1
