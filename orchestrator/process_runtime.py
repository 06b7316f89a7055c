"""The processes of a run as subprocesses on this machine; several nodes are groups of them."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob
from typing import TYPE_CHECKING

from orchestrator.events import Exited, Heard, NodeLost, Place
from orchestrator.failures import died
from orchestrator.runtime import DEAD_S, HEARTBEAT_S, START_S
from workers.arithmetic import single_threaded_environment
from workers.channel import Channel, address_for, connect
from workers.main import resolve
from workers.messages import Lost
from workers.output import spool_prefix
from workers.processes import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.events import Event
    from workers.messages import Command, Progress
    from workers.processes import ProcessId

CLOSE_TIMEOUT_S = 5.0
"""Seconds that agents, workers and writers have to end when the run does."""

ROOM = 1 << 20
"""Workers that fit on a node, as far as this runtime knows."""


@dataclass(slots=True)
class _Agent:
    """The connections to an agent: one on which it is told, one on which it is heard."""

    name: str
    since: float
    found: bool
    pid: int | None = None  # of the process that is connected to, where that can be told
    telling: Channel | None = None
    listening: Channel | None = None
    asked_at: float | None = None
    heard: bool = False
    outgoing: list[Command] = field(default_factory=list)

    def may_be(self, child: _Child) -> bool:
        """Whether it is this subprocess; else a dead coordinator had started one of its name just before."""
        return child.role == "agent" and self.pid in (None, child.process.pid)


@dataclass(slots=True)
class _Child:
    """A subprocess of this one."""

    node: int
    role: str
    rank: int
    generation: int
    process: subprocess.Popen[bytes]


class ProcessRuntime:
    """Agents, writers and workers as subprocesses.

    Agents have names made of `invocation`, which the coordinators of one `holdfast run` share: a successor
    finds the agents of the one before it. They end with `supervisor`. Where it `is_silent`, they show
    nothing of what they print from when they know where to keep it.
    """

    def __init__(
        self,
        source: bytes,
        nodes: int,
        invocation: str,
        supervisor: ProcessId,
        *,
        is_silent: bool = False,
    ) -> None:
        self.is_silent = is_silent
        self._source = source
        self._nodes = nodes
        self._invocation = invocation
        self._supervisor = supervisor
        self._agents: dict[int, _Agent] = {}
        self._children: list[_Child] = []
        self._progress: dict[int, Progress] = {}
        self._found: dict[int, int] = {}
        self._watch = Watch(time.monotonic())

    def places(self, wanted: int) -> Mapping[int, Place]:
        """Every node; those with an agent of an earlier coordinator say so."""
        if not self._agents:  # one that was starting may be at work by now; later ones are our own
            self._found = _listening(self._invocation)
        return {node: Place(ROOM, node, self._found.get(node)) for node in range(self._nodes)}

    def start(self, node: int, role: str, rank: int, generation: int) -> None:
        """Start a subprocess; its standard output goes to our standard error."""
        if role == "agent":
            name = _name(self._invocation, node, generation)
            found = self._found.get(node) == generation
            self._agents[node] = _Agent(name, time.monotonic(), found)
            self._progress.pop(node, None)
            if found:
                return
        if node not in self._agents:
            return  # it has just been lost, as will be told
        # -P: the user's working directory must not hide our packages; a job's imports come with its source.
        command = [sys.executable, "-P", "-m", "workers.main", role]
        command += [
            "--address",
            self._agents[node].name,
            "--rank",
            str(rank),
            "--generation",
            str(generation),
            "--supervisor",
            f"{self._supervisor.pid}:{self._supervisor.started}",
        ]
        if self.is_silent:
            command += ["--quiet"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=2,
            env={**os.environ, **single_threaded_environment()},
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            if role == "worker":
                process.stdin.write(self._source)
            process.stdin.close()
        self._children.append(_Child(node, role, rank, generation, process))

    def exchange(
        self, attempt: int, commands: Sequence[tuple[int, Command]], timeout_s: float
    ) -> tuple[list[Event], Mapping[int, Progress]]:
        """One round with the agents over their control sockets; a hung one holds nobody up."""
        for node, command in commands:
            if node in self._agents:
                self._agents[node].outgoing.append(command)
        events: list[Event] = []
        for node, agent in [*self._agents.items()]:
            try:
                self._speak(agent, attempt)
            except (EOFError, OSError) as error:
                events.append(self._lost(node, _disconnected(error)))
        waiting = {a.listening.fileno(): n for n, a in self._agents.items() if a.listening is not None}
        poll = select.poll()
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        connecting = len(waiting) < len(self._agents)
        self._watch.waits(time.monotonic())
        ready = poll.poll(0 if events else (min(timeout_s, 0.01) if connecting else timeout_s) * 1000)
        self._watch.wakes(time.monotonic())
        for descriptor, _ in ready:
            node = waiting[descriptor]
            try:
                events += self._hear(node, self._agents[node])
            except (EOFError, OSError) as error:
                events.append(self._lost(node, _disconnected(error)))
        for node, agent in [*self._agents.items()]:
            if (silence := _silence(agent)) is not None:
                events.append(self._lost(node, *silence))
        self._see_ends(events)
        return [*events, *self._exited()], self._progress

    def _see_ends(self, events: Sequence[Event]) -> None:
        """Wait for the ends of processes that agents miss: sockets close a moment before they can be seen."""
        missed = {
            (event.node, event.event.role, event.event.rank, event.event.generation)
            for event in events
            if isinstance(event, Heard) and isinstance(event.event, Lost) and not event.event.cause
        }
        for child in self._children:
            if (child.node, child.role, child.rank, child.generation) in missed:
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(0.2)

    def _speak(self, agent: _Agent, attempt: int) -> None:
        if agent.listening is None:
            address = resolve(agent.name + "-control")
            try:
                agent.listening, agent.telling = connect(address, 0), connect(address, 0)
            except TimeoutError as error:
                if agent.found:
                    raise EOFError("it has ended since it was found") from error
                return
            agent.pid = agent.listening.peer_pid()
        assert agent.telling is not None
        if agent.outgoing:
            agent.telling.send("tell", attempt, agent.outgoing)
            agent.outgoing = []
        if agent.asked_at is None:
            agent.listening.send("listen", attempt, HEARTBEAT_S)
            agent.asked_at = time.monotonic()

    def _hear(self, node: int, agent: _Agent) -> list[Event]:
        assert agent.listening is not None
        answer = agent.listening.receive()
        if len(answer) == 1:
            raise answer[0]
        events, self._progress[node] = answer
        agent.asked_at, agent.heard = None, True
        return [Heard(node, event) for event in events]

    def _lost(self, node: int, cause: str, silent_s: float = 0.0) -> NodeLost:
        """Give an agent up, with what is known of its end."""
        detection_s = max(silent_s, time.monotonic() - self._watch.since)
        agent = self._agents.pop(node)
        for channel in (agent.listening, agent.telling):
            if channel is not None:
                channel.close()
        self._found.pop(node, None)
        self._progress.pop(node, None)
        for child in self._children:
            if child.node == node and agent.may_be(child):
                with suppress(subprocess.TimeoutExpired):
                    cause = died(_cause(child.process.wait(0.2)))
        return NodeLost(node, cause, detection_s)

    def _exited(self) -> list[Event]:
        """Subprocesses that have ended, reaped."""
        ended = [child for child in self._children if child.process.poll() is not None]
        self._children = [child for child in self._children if child not in ended]
        events: list[Event] = []
        for child in ended:
            cause = _cause(child.process.returncode)
            if child.role != "agent":
                events.append(Exited(child.node, child.role, child.rank, child.generation, cause))
            elif child.node in self._agents and self._agents[child.node].may_be(child):
                events.append(self._lost(child.node, died(cause)))
        return events

    def abandon(self, node: int) -> None:
        """Kill the subprocesses of a node."""
        if node in self._agents:
            self._lost(node, "")
        for child in self._children:
            if child.node == node:
                child.process.kill()

    def close(self) -> None:
        """Let the agents end their workers; kill what is left."""
        connected = any(agent.listening is not None for agent in self._agents.values())
        for agent in self._agents.values():
            for channel in (agent.listening, agent.telling):
                if channel is not None:
                    channel.close()
        deadline = time.monotonic() + (CLOSE_TIMEOUT_S if connected else 0)
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._children.clear()
        self._agents.clear()
        for path in glob(spool_prefix(address_for(f"{self._invocation}-*")) + "*"):
            with suppress(OSError):  # of processes that came to no agent with an arena
                os.unlink(path)


def _name(invocation: str, node: int, generation: int) -> str:
    return address_for(f"{invocation}-{node}-{generation}").replace("\0", "@")


def _listening(invocation: str) -> dict[int, int]:
    """The newest agents of this invocation that listen on this machine: node -> generation."""
    # Of the flags, accepting connections: others are the agents' ends of connections, or do not listen yet.
    listener = rf" 00010000 \d+ \d+ +\d+ @holdfast-{re.escape(invocation)}-(\d+)-(\d+)-control$"
    pattern = re.compile(listener, re.MULTILINE)
    found: dict[int, int] = {}
    with suppress(OSError), open("/proc/net/unix", encoding="ascii", errors="replace") as file:
        for node, generation in pattern.findall(file.read()):
            found[int(node)] = max(found.get(int(node), 0), int(generation))
    return found


def _silence(agent: _Agent) -> tuple[str, float] | None:
    """That an agent has not answered in time, in words, and for how long; None if it still may."""
    if agent.heard and agent.asked_at is not None:
        silent = time.monotonic() - agent.asked_at - HEARTBEAT_S
        return (f"was silent for {silent:.1f} s", silent) if silent > DEAD_S else None
    waited = time.monotonic() - agent.since
    return (f"did not answer for {waited:.0f} s", waited) if not agent.heard and waited > START_S else None


def _disconnected(error: Exception) -> str:
    return f"broke the connection off ({error})" if str(error) else "broke the connection off"


def _cause(returncode: int) -> str:
    if returncode < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"
