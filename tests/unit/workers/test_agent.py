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
from workers.messages import Close, Failed, Greet, Greeted, Lost, Noticed, Process, Ready
from workers.processes import ProcessId, is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfds and abstract sockets")

PEER = """
import os, sys, time
from workers.channel import connect
from workers.main import resolve
channel = connect(resolve(sys.argv[1]), 10)
channel.send("join", sys.argv[2], 0, os.getpid(), 3)
if sys.argv[3] == "ready":
    channel.send("ready", {} if sys.argv[2] == "worker" else None)
elif sys.argv[3] == "failed":
    channel.send("failed", ValueError("x" * int(sys.argv[4])))
print("sent", flush=True)
time.sleep(float(sys.argv[5]))
"""


class Node:
    """An agent in a process of its own, and a coordinator's connections to it."""

    def __init__(self, *arguments: str) -> None:
        self.name = "@" + address_for(secrets.token_hex(8))[1:]
        command = [sys.executable, "-m", "workers.main", "agent", "--address", self.name, *arguments]
        self.popen = subprocess.Popen(command)
        self.control = self.connect()
        self.events: list[Any] = []
        self.workers = 0
        self.peers: list[subprocess.Popen[Any]] = []

    def connect(self) -> Channel:
        return connect("\0" + self.name[1:] + "-control", 20)

    def tell(self, *commands: Any, attempt: int = 1) -> None:
        self.control.send("tell", attempt, list(commands))

    def exchange(self, timeout_s: float = 0.1, attempt: int = 1) -> None:
        self.control.send("listen", attempt, timeout_s)
        events, progress = self.control.receive()
        self.events += events
        self.workers = progress.workers

    def until(self, condition: Any, timeout_s: float = 10, attempt: int = 1) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.exchange(attempt=attempt)
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


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(tmp_path))  # who is killed leaves what it has printed


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
    node.tell(Close(remove=False))
    assert node.popen.wait(10) == 0
    assert not is_alive(process)


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


# -- coordinators ----------------------------------------------------------------------------------------


def test_a_coordinator_that_was_superseded_is_told_so_and_its_commands_have_no_effect(node: Node) -> None:
    """Invariant E, whatever it says and however often."""
    node.tell(Greet(2, 0), attempt=2)
    assert node.until(lambda: of(node.events, Greeted), attempt=2)
    for message in (("tell", 1, [Close(remove=True)]), ("listen", 1, 0.0)):
        old = node.connect()
        old.send(*message)
        (error,) = old.receive()
        assert isinstance(error, Superseded)
        assert "attempt 2" in str(error)
        with pytest.raises(EOFError):
            old.receive()
        old.close()
    node.exchange(attempt=2)
    assert node.popen.poll() is None


def test_a_coordinator_that_waits_is_told_when_another_takes_over(node: Node) -> None:
    old = node.connect()
    old.send("listen", 1, 30.0)
    time.sleep(0.2)
    node.tell(Greet(2, 0), attempt=2)
    (error,) = old.receive()
    assert isinstance(error, Superseded)
    old.close()
    assert node.until(lambda: of(node.events, Greeted), attempt=2), "the event was given to the old one"


def test_a_successor_hears_which_processes_there_are_and_nothing_that_was_not_for_it(node: Node) -> None:
    popen = node.peer("worker", "ready")
    node.tell(Greet(1, 0))
    assert node.until(lambda: of(node.events, Greeted) and of(node.events, Ready))
    other = node.peer("writer", "ready")
    time.sleep(0.3)  # its readiness waits to be heard, by the first
    node.events.clear()
    node.tell(Greet(2, 0), attempt=2)
    assert node.until(lambda: of(node.events, Greeted), attempt=2)
    (greeted,) = of(node.events, Greeted)
    assert set(greeted.processes) == {
        Process("worker", 0, 3, popen.pid, True),
        Process("writer", 0, 3, other.pid, True),
    }
    assert greeted.attempt == 2
    assert not of(node.events, Ready)


def test_what_happens_before_the_first_word_of_the_first_coordinator_is_for_it(node: Node) -> None:
    """A worker may be there, or gone, before the coordinator has found the agent's socket."""
    popen = node.peer("worker", "ready")
    popen.kill()
    popen.wait(10)
    time.sleep(0.3)
    node.tell(Greet(1, 0))
    assert node.until(lambda: of(node.events, Greeted))
    assert of(node.events, Ready)
    assert of(node.events, Lost)


def test_an_agent_ends_with_its_supervisor() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as supervisor:
        process = ProcessId.of(supervisor.pid)
        node = Node("--supervisor", f"{process.pid}:{process.started}")
        try:
            node.tell(Greet(1, 0))
            assert node.until(lambda: of(node.events, Greeted))
            worker = ProcessId.of(node.peer("worker", "ready").pid)
            assert node.until(lambda: node.workers == 1)
            supervisor.kill()
            assert node.popen.wait(10) == 0
            assert not is_alive(worker)
        finally:
            node.close()


def test_an_agent_whose_supervisor_has_ended_already_does_not_begin() -> None:
    """Nor one whose supervisor's number is another process's by now."""
    for pid, began in ((1 << 22) - 1, 5), (os.getpid(), 1):
        name = "@" + address_for(secrets.token_hex(8))[1:]
        command = [sys.executable, "-m", "workers.main", "agent", "--address", name]
        popen = subprocess.run([*command, "--supervisor", f"{pid}:{began}"], timeout=20, check=False)
        assert popen.returncode == 0


@pytest.mark.parametrize("role", ["agent", "writer"])
def test_sigterm_to_a_process_of_the_node_is_a_notice_and_it_works_on(node: Node, role: str) -> None:
    popen = node.popen
    if role == "writer":
        command = [sys.executable, "-m", "workers.main", "writer", "--address", node.name, "--rank", "0"]
        popen = subprocess.Popen(command)
        node.peers.append(popen)
        assert node.until(lambda: of(node.events, Ready))
    for _ in range(2):
        node.events.clear()
        popen.send_signal(signal.SIGTERM)
        popen.send_signal(signal.SIGINT)
        assert node.until(lambda: of(node.events, Noticed))
        (noticed,) = of(node.events, Noticed)
        assert role in noticed.reason
        assert str(popen.pid) in noticed.reason
    assert popen.poll() is None
    assert not of(node.events, Lost)


def test_a_process_with_a_twin_leaves_and_the_other_is_told_to_be_ready(node: Node) -> None:
    """A coordinator that died had started it, and its successor did not know."""
    first = node.peer("worker", "ready")
    assert node.until(lambda: of(node.events, Ready))
    node.peer("worker", "ready")
    assert node.until(lambda: len(of(node.events, Ready)) == 2)
    assert [ready.pid for ready in of(node.events, Ready)] == [first.pid] * 2
    assert node.workers == 1
    assert not of(node.events, Lost)
