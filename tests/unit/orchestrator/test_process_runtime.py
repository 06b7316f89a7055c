"""Agents and writers as real subprocesses, found by their name and missed when they end or fall silent."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import process_runtime
from orchestrator.events import Exited, Heard, NodeLost
from orchestrator.process_runtime import ProcessRuntime
from storage.errors import Superseded
from workers import messages as m
from workers.processes import ProcessId, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets")


class Driver:
    """A coordinator's side: what it tells and what has happened."""

    def __init__(self, invocation: str, nodes: int, attempt: int = 1) -> None:
        self.runtime = ProcessRuntime(b"", nodes, invocation, ProcessId.current())
        self.attempt = attempt
        self.events: list[Any] = []

    def exchange(self, *commands: tuple[int, m.Command]) -> None:
        events, self.progress = self.runtime.exchange(self.attempt, commands, 0.05)
        self.events += events

    def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, self.events
            self.exchange()
        return found

    def of(self, kind: type) -> list[Any]:
        told = [event.event if isinstance(event, Heard) else event for event in self.events]
        return [event for event in told if isinstance(event, kind)]

    def begin(self, *nodes: int) -> None:
        for node in nodes:
            self.runtime.start(node, "agent", node, 0)
            self.runtime.start(node, "writer", node, 0)
            self.exchange((node, m.Greet(self.attempt, node)))
        self.until(lambda: len(self.of(m.Ready)) == len(nodes))

    def agent(self, node: int) -> ProcessId:
        children = self.runtime._children
        pid = next(c.process.pid for c in children if (c.node, c.role) == (node, "agent"))
        return ProcessId.of(pid)


@pytest.fixture
def invocation() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def driver(invocation: str) -> Iterator[Driver]:
    made = Driver(invocation, 2)
    yield made
    for child in made.runtime._children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGCONT)
    with suppress(Superseded):
        made.exchange(*((node, m.Close(remove=True)) for node in (0, 1)))
    made.runtime.close()


def test_an_agent_that_is_killed_is_a_lost_node_and_its_processes_end_with_it(driver: Driver) -> None:
    driver.begin(0, 1)
    ready = next(e.event for e in driver.events if e.node == 0 and isinstance(e.event, m.Ready))
    writer = ProcessId.of(ready.pid)
    os.kill(driver.agent(0).pid, signal.SIGKILL)
    driver.until(lambda: driver.of(NodeLost))
    (lost,) = driver.of(NodeLost)
    assert (lost.node, lost.cause) == (0, "was killed by SIGKILL")
    driver.until(lambda: not is_alive(writer))
    driver.exchange((0, m.Greet(1, 0)))  # what is for a lost node goes nowhere
    driver.exchange((1, m.Greet(1, 1)))
    driver.until(lambda: len(driver.of(m.Greeted)) == 3)
    assert len(driver.of(NodeLost)) == 1, "it is told once"
    driver.runtime.start(0, "worker", 0, 1)  # asked for before the loss was told
    assert not [event for event in driver.of(Exited) if event.rank == 0 and event.role == "worker"]


def test_a_silent_agent_is_given_up_and_holds_nobody_up(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.begin(0, 1)
    monkeypatch.setattr(process_runtime, "DEAD_S", 0.5)
    agent = driver.agent(0)
    os.kill(agent.pid, signal.SIGSTOP)
    driver.exchange((1, m.Greet(1, 1)))
    driver.until(lambda: len(driver.of(m.Greeted)) == 3, timeout_s=1.0)
    (lost,) = driver.until(lambda: driver.of(NodeLost))
    assert lost.node == 0
    assert "silent for" in lost.cause
    driver.runtime.abandon(0)
    deadline = time.monotonic() + 10
    while is_alive(agent) and time.monotonic() < deadline:
        driver.exchange()
    assert not is_alive(agent), "SIGSTOP does not keep it from being killed"


def test_a_writer_that_ends_is_reported_with_its_generation(driver: Driver) -> None:
    driver.begin(0)
    (ready,) = driver.of(m.Ready)
    os.kill(ready.pid, signal.SIGKILL)
    driver.until(lambda: driver.of(Exited) and driver.of(m.Lost))
    assert driver.of(Exited) == [Exited(0, "writer", 0, 0, "killed by SIGKILL")]
    assert [(lost.role, lost.generation) for lost in driver.of(m.Lost)] == [("writer", 0)]


def test_a_successor_finds_the_agents_at_work_and_the_old_coordinator_is_told(
    driver: Driver, invocation: str
) -> None:
    driver.begin(0, 1)
    successor = Driver(invocation, 3, attempt=2)
    assert [place.alive for place in successor.runtime.places(2).values()] == [0, 0, None]
    for node in (0, 1):
        successor.runtime.start(node, "agent", node, 0)
        successor.exchange((node, m.Greet(2, node)))
    successor.until(lambda: len(successor.of(m.Greeted)) == 2)
    pids = {process.pid for greeted in successor.of(m.Greeted) for process in greeted.processes}
    assert pids == {ready.pid for ready in driver.of(m.Ready)}
    with pytest.raises(Superseded):
        driver.until(lambda: False)
    os.kill(driver.agent(1).pid, signal.SIGKILL)
    successor.until(lambda: successor.of(NodeLost))
    assert successor.runtime.places(2)[1].alive is None, "what is lost is not found again"
    successor.exchange((0, m.Close(remove=True)))
    successor.runtime.close()


def test_a_successor_looks_again_for_an_agent_that_was_starting_when_it_began(
    driver: Driver, invocation: str
) -> None:
    """It may have waited meanwhile, as the restart policy says."""
    successor = ProcessRuntime(b"", 1, invocation, ProcessId.current())
    assert successor.places(1)[0].alive is None
    driver.begin(0)
    assert successor.places(1)[0].alive == 0


def test_an_agent_of_the_same_name_that_a_dead_coordinator_had_just_started_is_taken_for_our_own(
    driver: Driver, invocation: str
) -> None:
    successor = Driver(invocation, 1, attempt=2)
    assert successor.runtime.places(1)[0].alive is None
    driver.begin(0)  # it was starting, and listens first
    successor.runtime.start(0, "agent", 0, 0)
    ours = successor.agent(0)
    successor.exchange((0, m.Greet(2, 0)))
    (greeted,) = successor.until(lambda: successor.of(m.Greeted))
    assert [process.pid for process in greeted.processes] == [ready.pid for ready in driver.of(m.Ready)]
    successor.until(lambda: not successor.runtime._children)
    assert not is_alive(ours)
    successor.exchange()
    assert not successor.of(NodeLost), "our own had nothing to do"
    os.kill(driver.agent(0).pid, signal.SIGKILL)
    (lost,) = successor.until(lambda: successor.of(NodeLost))
    assert lost.cause.startswith("broke the connection off")
    successor.runtime.close()


def test_an_agent_that_ends_after_it_was_found_is_lost_at_once(driver: Driver, invocation: str) -> None:
    driver.begin(0)
    successor = Driver(invocation, 1, attempt=2)
    assert successor.runtime.places(1)[0].alive == 0
    agent = driver.agent(0)
    os.kill(agent.pid, signal.SIGKILL)
    driver.until(lambda: driver.of(NodeLost))
    successor.runtime.start(0, "agent", 0, 0)
    successor.exchange((0, m.Greet(2, 0)))
    (lost,) = successor.of(NodeLost)
    assert lost.cause == "broke the connection off (it has ended since it was found)"
    successor.runtime.close()


def test_a_successor_of_another_run_finds_nobody(driver: Driver, invocation: str) -> None:
    driver.begin(0)
    other = ProcessRuntime(b"", 2, invocation[:-1], ProcessId.current())
    assert [place.alive for place in other.places(2).values()] == [None, None]


def test_the_end_leaves_no_process(driver: Driver) -> None:
    driver.begin(0, 1)
    processes = [driver.agent(0), driver.agent(1), *(ProcessId.of(r.pid) for r in driver.of(m.Ready))]
    for node in (0, 1):
        driver.exchange((node, m.Close(remove=True)))
    began = time.monotonic()
    driver.runtime.close()
    assert time.monotonic() - began < process_runtime.CLOSE_TIMEOUT_S, "they were asked to and do"
    assert not any(is_alive(process) for process in processes)
