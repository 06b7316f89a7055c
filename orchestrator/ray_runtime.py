"""The processes of a run as Ray actors. Beside `ray_jobs` the only module that imports Ray.

No actor is called once per training step: a worker's whole life is one call, and it works with its agent
over the node's Unix sockets. Actors are named and detached: they outlive a coordinator that is killed, are
found by the next one, and end themselves when none comes.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.events import Draining, Exited, Heard, NodeLost, Place
from orchestrator.runtime import DEAD_S, HEARTBEAT_S
from orchestrator.submission import LABELS, check_cluster
from storage.errors import ConfigurationError, InfrastructureError, Superseded
from workers.agent import AgentLoop
from workers.arithmetic import settle_arithmetic, single_threaded_environment
from workers.channel import address_for
from workers.clouds import watch_clouds
from workers.messages import Close
from workers.notice import pass_on_notices
from workers.output import keep_output, redact_output
from workers.redaction import FORWARD
from workers.worker import run_worker
from workers.writer import run_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from orchestrator.events import Event
    from workers.messages import Command, Progress
    from workers.messages import Event as AgentEvent

INIT_TRIES = 3
START_S = 120.0
"""Seconds that an agent's actor may take to start."""

LEAVE_S = 6.0
"""Seconds that an agent that is let go has to end its workers and remove its memory."""

LINGER_S = 20.0
"""Seconds that an actor stays after its life, for a coordinator to learn how it ended."""

FORWARDED = (
    FORWARD,
    "HOLDFAST_FAULTS",
    "HOLDFAST_NOTICES",
    "HOLDFAST_NOTICES_URL",
    "HOLDFAST_SHM_DIR",
    "HOLDFAST_START_TIMEOUT_S",
    "HOLDFAST_TRACE",
)
"""Environment variables of the coordinator's that the actors get."""

NAMESPACE = "holdfast"
_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray's job server sets for its jobs, beside RAY_ADDRESS."""


@contextmanager
def _ending() -> Iterator[None]:
    """The life of an actor, after which its process ends if no coordinator is there that ends it.

    A detached actor that has nothing to do would hold its CPUs for as long as the cluster lives.
    """
    try:
        yield
    finally:
        timer = threading.Timer(LINGER_S, os._exit, (0,))
        timer.daemon = True
        timer.start()


@contextmanager
def _kept(address: str, role: str, rank: int, generation: int) -> Iterator[None]:
    """The life of a worker or writer, whose output the agent hands on."""
    output = keep_output(address, role, rank, generation)
    try:
        yield
    except TimeoutError:  # there is no agent any more
        output.discard()
        raise


def _settle(environment: Mapping[str, str]) -> None:
    """What an actor's process begins with."""
    os.environ.update(environment)
    redact_output()


class HoldfastAgent:
    """The agent of a node; `run` serves in one thread while `tell` and `listen` are called in others."""

    def __init__(self, address: str, host: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        output = keep_output(address, "agent", 0, 0)
        self._loop = AgentLoop(address, host=host, show=output.show)

    def run(self) -> None:
        """Serve until closed."""
        watch_clouds(self._loop.address)
        with _ending():
            self._loop.run()

    def tell(self, attempt: int, commands: Sequence[Command]) -> None:
        """See AgentLoop.tell."""
        self._loop.tell(attempt, commands)

    def listen(self, attempt: int, timeout_s: float) -> tuple[list[AgentEvent], Progress]:
        """See AgentLoop.listen."""
        return self._loop.listen(attempt, timeout_s)


class HoldfastWorker:
    """A worker; `run` is its life."""

    def __init__(self, environment: dict[str, str]) -> None:
        _settle(environment)

    def run(self, address: str, rank: int, generation: int, source: bytes, folder: str) -> None:
        """Serve the agent; where `folder` exists, relative paths mean what they mean to the user."""
        with suppress(OSError):
            os.chdir(folder)
        pass_on_notices(address, f"worker {rank}")
        settle_arithmetic()
        with _ending(), _kept(address, "worker", rank, generation):
            run_worker(address, rank, generation, source)


class HoldfastWriter:
    """The writer of a node; `run` is its life."""

    def __init__(self, environment: dict[str, str]) -> None:
        _settle(environment)

    def run(self, address: str, rank: int, generation: int) -> None:
        """Serve the agent."""
        pass_on_notices(address, f"writer {rank}")
        with _ending(), _kept(address, "writer", rank, generation):
            run_writer(address, rank, generation)


@dataclass(slots=True)
class _Node:
    """A node of the cluster: its Ray id, where others reach it, and how many workers fit on it."""

    id: str
    host: str
    address: str
    room: int
    slot: int


@dataclass(slots=True)
class _Agent:
    """The actor of a node's agent, and the calls of it that are under way: one of each kind."""

    actor: Any
    since: float
    socket: str
    listening: Any = None
    telling: Any = None
    asked_at: float = 0.0
    heard: bool = False
    outgoing: list[Command] = field(default_factory=list)


class RayRuntime:
    """Agents, writers and workers as actors on the nodes of a cluster."""

    is_silent = True

    def __init__(
        self,
        source: bytes,
        address: str | None,
        least: int,
        cpus_per_worker: float,
        invocation: str,
        autoscale: bool = False,
        insecure: bool = False,
    ) -> None:
        self._source = source
        self._folder = os.getcwd()  # which Ray may make anew, by the same name
        self._address = address
        self._least = least
        self._cpus = cpus_per_worker
        self._invocation = invocation
        self._token = secrets.token_hex(4)  # a dead coordinator's workers may still be starting
        self._autoscale = autoscale
        self._insecure = insecure
        self._asked_for = 0
        self._nodes: dict[int, _Node] = {}
        self._agents: dict[int, _Agent] = {}
        self._found: dict[int, int] = {}  # node -> generation of an agent that was found at work
        self._untold: list[Event] = []
        self._actors: dict[tuple[int, str, int, int], Any] = {}  # writers and workers
        self._lives: dict[Any, tuple[int, str, int, int]] = {}
        self._progress: dict[int, Progress] = {}
        self._drained: set[int] = set()
        self._leaving: list[tuple[float, Any]] = []  # (until when, agent that was let go)
        self._own_ray = False
        self._environment = {
            **single_threaded_environment(),
            **{name: os.environ[name] for name in (*FORWARDED, *_more()) if name in os.environ},
        }
        self._labels = dict(pair.split("=", 1) for pair in os.environ.get(LABELS, "").split(",") if pair)

    def connect(self, tell: Callable[[str], None]) -> None:
        """Connect to the cluster at the address, else RAY_ADDRESS, else start a local one.

        Raises ConfigurationError if an address does not answer, is another machine's without protection, or
        the cluster is too small.
        """
        # Workers of a local cluster inherit this before they import NumPy.
        os.environ.update(single_threaded_environment())
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if not ray.is_initialized():
            self._init(ray, tell)
            self._own_ray = True
        self._find_agents(ray)
        needed = self._least * self._cpus
        total = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        if needed > total and not self._autoscale:
            raise ConfigurationError(
                f"{self._least} workers with {self._cpus:g} CPUs each need {needed:g}, but Ray has "
                f"{total:g}: give fewer --workers or --cpus-per-worker {total / self._least:.2g}"
            )

    def _init(self, ray: Any, tell: Callable[[str], None]) -> None:
        address = self._address or os.environ.get("RAY_ADDRESS") or "local"
        if self._address or _OF_A_JOB not in os.environ:  # else Ray itself says where its job is
            check_cluster(address, os.environ, insecure=self._insecure)
        _check_listening(address)
        for last in [*([False] * (INIT_TRIES - 1)), True]:
            try:
                ray.init(
                    address=address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=True,
                    **({"include_dashboard": False} if address == "local" else {}),
                )
                return
            except (ConnectionError, ValueError) as error:
                where = f"no Ray cluster could be reached at {address}"
                raise ConfigurationError(
                    f"{where}: {_first_line(error)}; check --address and RAY_ADDRESS"
                ) from error
            except Exception as error:
                ray.shutdown()
                if address != "local" or last:
                    raise InfrastructureError(f"Ray could not be started: {_first_line(error)}") from error
                tell(f"Ray did not start (the disk may be cold); trying again: {_first_line(error)}")

    def _find_agents(self, ray: Any) -> None:
        """Agents that an earlier coordinator of this invocation has left at work, by their names."""
        pattern = re.compile(rf"{re.escape(self._invocation)}-agent-(\d+)-(\d+)-([0-9a-f]+)")
        for name in ray.util.list_named_actors():
            if match := pattern.fullmatch(name):
                node, generation = int(match[1]), int(match[2])
                self._found[node] = max(generation, self._found.get(node, 0))
                self._nodes[node] = _Node(match[3], "", "", 0, 0)

    def places(self, wanted: int) -> Mapping[int, Place]:
        """The nodes that are alive and large enough for a worker, this machine's first, then the largest."""
        import ray

        self._ask_for(wanted)
        known_alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        alive = {node["NodeID"]: node for node in known_alive if self._may_work(node) and _is_there(node)}
        here = ray.get_runtime_context().get_node_id()
        numbers = {node.id: number for number, node in self._nodes.items()}
        cpus = {id_: node["Resources"].get("CPU", 0.0) for id_, node in alive.items()}
        for id_ in sorted(alive, key=lambda i: (i != here, -cpus[i], i)):
            room = int(cpus[id_] / self._cpus) if self._cpus else 1 << 20
            if not cpus[id_] or not room:
                continue
            number = numbers.get(id_, max(self._nodes, default=-1) + 1)
            known = self._nodes.get(number)
            if known is None or not known.host:
                host, address = alive[id_]["NodeManagerHostname"], alive[id_]["NodeManagerAddress"]
                self._nodes[number] = _Node(id_, host, address, room, self._free_slot(host, alive))
        return {
            number: Place(node.room, node.slot, self._found.get(number))
            for number, node in sorted(self._nodes.items())
            if node.id in alive
        }

    def _may_work(self, node: Mapping[str, Any]) -> bool:
        labels = node.get("Labels") or {}
        return all(labels.get(key) == value for key, value in self._labels.items())

    def _ask_for(self, wanted: int) -> None:
        """Have the cluster's autoscaler make room for so many workers; it is told of changes only."""
        if not self._autoscale or wanted == self._asked_for:
            return
        from ray.autoscaler.sdk import request_resources

        bundles = [{"CPU": self._cpus}] * wanted
        if self._labels:
            request_resources(bundles=bundles, bundle_label_selectors=[self._labels] * wanted)
        else:
            request_resources(bundles=bundles)
        self._asked_for = wanted

    def _free_slot(self, host: str, alive: Mapping[str, Any]) -> int:
        """Nodes that share a machine share its memory: each has another place in it."""
        taken = {node.slot for node in self._nodes.values() if node.host == host and node.id in alive}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def start(self, node: int, role: str, rank: int, generation: int) -> None:
        """Create an actor and call its life."""
        import ray

        if role == "agent":
            self._start_agent(ray, node, generation)
            return
        if node not in self._agents:
            return  # it has just been lost, as will be told
        classes: dict[str, type] = {"worker": HoldfastWorker, "writer": HoldfastWriter}
        cpus = self._cpus if role == "worker" else 0
        name = f"{role}-{rank}-{generation}-{self._token}"
        actor = self._actor(ray, classes[role], node, name, cpus, self._environment)
        job = (self._source, self._folder) if role == "worker" else ()
        life = actor.run.remote(self._agents[node].socket, rank, generation, *job)
        self._actors[node, role, rank, generation] = actor
        self._lives[life] = (node, role, rank, generation)

    def _start_agent(self, ray: Any, node: int, generation: int) -> None:
        where = self._nodes[node]
        name = f"agent-{node}-{generation}-{where.id}"
        sock = address_for(f"{self._invocation}-{node}-{generation}")
        if self._found.get(node) == generation:
            try:
                actor = ray.get_actor(f"{self._invocation}-{name}")
            except ValueError:
                self._untold.append(NodeLost(node, "has ended since it was found"))
                return
        else:
            actor = self._actor(
                ray, HoldfastAgent, node, name, 0, sock, where.address, self._environment, concurrency=4
            )
            actor.run.remote()
        self._agents[node] = _Agent(actor, time.monotonic(), sock)
        self._progress.pop(node, None)

    def _actor(
        self, ray: Any, kind: type, node: int, name: str, cpus: float, *arguments: Any, concurrency: int = 1
    ) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            "name": f"{self._invocation}-{name}",
            "lifetime": "detached",
            "num_cpus": cpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": concurrency,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(self._nodes[node].id, soft=False),
        }
        return ray.remote(kind).options(**options).remote(*arguments)

    def exchange(
        self, attempt: int, commands: Sequence[tuple[int, Command]], timeout_s: float
    ) -> tuple[list[Event], Mapping[int, Progress]]:
        """One round with the agents; one that is still starting, or hung, holds nobody up."""
        import ray

        for node, command in commands:
            if (agent := self._agents.get(node)) is not None:
                agent.outgoing.append(command)
                if isinstance(command, Close):
                    self._leaving.append((time.monotonic() + LEAVE_S, agent.actor))
        self._end_leaving(ray)
        calls: dict[Any, tuple[int, str]] = {}
        for node, agent in self._agents.items():
            if agent.telling is None and agent.outgoing:
                agent.telling = agent.actor.tell.remote(attempt, agent.outgoing)
                agent.outgoing = []
            if agent.listening is None:
                agent.listening = agent.actor.listen.remote(attempt, HEARTBEAT_S)
                agent.asked_at = time.monotonic()
            calls |= {agent.listening: (node, "listening")}
            calls |= {agent.telling: (node, "telling")} if agent.telling is not None else {}
        events, self._untold = self._untold, []
        waiting = [*calls, *self._lives]
        if waiting:
            ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0) if ready else (ready, None)
            for reference in ready:
                if reference in calls:
                    events += self._answered(ray, reference, *calls[reference])
                else:
                    events.append(self._ended(ray, reference))
        else:
            time.sleep(timeout_s)
        events += [NodeLost(n, *why) for n, agent in self._agents.items() if (why := _silence(agent))]
        for event in events:
            if isinstance(event, NodeLost):
                _lost_on.add(self._nodes[event.node].id)
                self._forget(event.node)
        return [*events, *self._draining()], self._progress

    def _answered(self, ray: Any, call: Any, node: int, kind: str) -> list[Event]:
        agent = self._agents[node]
        setattr(agent, kind, None)
        try:
            answer = ray.get(call)
        except ray.exceptions.RayActorError as error:
            return [NodeLost(node, _end_of(error), time.monotonic() - agent.asked_at, str(error))]
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Superseded):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            lost_for_s = time.monotonic() - agent.asked_at
            return [NodeLost(node, f"cannot be reached ({_short(error)})", lost_for_s, str(error))]
        if kind == "telling":
            return []
        events, self._progress[node] = answer
        agent.heard = True
        return [Heard(node, event) for event in events]

    def _ended(self, ray: Any, life: Any) -> Exited:
        node, role, rank, generation = self._lives.pop(life)
        detail = ""
        try:
            ray.get(life)
            cause = "its connection to the agent ended"
        except ray.exceptions.RayActorError as error:
            cause, detail = "its process died", str(error)
        except ray.exceptions.RayError as error:
            cause, detail = _short(error), str(error)
        if (actor := self._actors.pop((node, role, rank, generation), None)) is not None:
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
        return Exited(node, role, rank, generation, cause, detail)

    def _draining(self) -> list[Event]:
        """Nodes that Ray is about to take away; a private interface, whose loss must not stop training."""
        try:
            from ray._private.state import state

            draining = state.get_draining_nodes()
        except Exception:  # noqa: BLE001 whatever a private interface raises
            return []
        events: list[Event] = []
        for number, node in self._nodes.items():
            if node.id in draining and number not in self._drained:
                self._drained.add(number)
                deadline = draining[node.id]
                left_s = max(0.0, deadline / 1000 - time.time()) if deadline else None
                events.append(Draining(number, "Ray drains it", left_s))
        return events

    def _end_leaving(self, ray: Any) -> None:
        """Kill agents that were let go and have had time to leave: Ray waits for a node to be idle."""
        now = time.monotonic()
        for _, actor in [each for each in self._leaving if each[0] <= now]:
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._leaving = [each for each in self._leaving if each[0] > now]

    def _forget(self, node: int) -> None:
        self._agents.pop(node, None)
        self._found.pop(node, None)
        self._progress.pop(node, None)

    def abandon(self, node: int) -> None:
        """Kill the actors of a node."""
        import ray

        agent = self._agents.get(node)
        self._forget(node)
        mine = [key for key in self._actors if key[0] == node]
        for actor in [*([agent.actor] if agent else []), *(self._actors.pop(key) for key in mine)]:
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._lives = {life: key for life, key in self._lives.items() if key[0] != node}

    def close(self) -> None:
        """Wait for the agents to end, kill all actors, and leave Ray if we joined it."""
        import ray

        deadline = time.monotonic() + 10.0
        calls = [agent.listening for agent in self._agents.values() if agent.listening is not None]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=max(0.0, deadline - time.monotonic()))
        if self._lives and calls:
            lives = list(self._lives)
            ray.wait(lives, num_returns=len(lives), timeout=max(0.0, deadline - time.monotonic()))
        for node in [*self._agents]:
            self.abandon(node)
        for actor in self._actors.values():
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._actors.clear()
        self._lives.clear()
        with suppress(ray.exceptions.RayError):
            self._ask_for(0)
        if self._own_ray:
            ray.shutdown()


def _more() -> list[str]:
    """Variables that the run was submitted with, and all its processes get."""
    return os.environ.get(FORWARD, "").split(",")


_lost_on: set[str] = set()
"""Ray's names of nodes that an agent was lost on."""


def _is_there(node: Mapping[str, Any]) -> bool:
    """Whether a node is one that processes can be started on: of a dead one Ray learns only after a while."""
    if node["NodeID"] not in _lost_on:
        return True
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=1.0).close()
    except OSError:
        return False
    return True


def _silence(agent: _Agent) -> tuple[str, float] | None:
    """That an agent has not answered in time, in words, and for how long; None if it still may."""
    waited = time.monotonic() - agent.asked_at
    if agent.heard and agent.listening is not None and waited - HEARTBEAT_S > DEAD_S:
        return f"was silent for {waited - HEARTBEAT_S:.1f} s", waited - HEARTBEAT_S
    if not agent.heard and time.monotonic() - agent.since > START_S:
        return f"did not start within {START_S:.0f} s", START_S
    return None


def _end_of(error: Exception) -> str:
    """How an actor ended, as the end of a sentence about it: Ray's own text is a page."""
    if getattr(error, "preempted", False):
        return "was preempted with its machine"
    text = str(error)
    if "node" in text and any(word in text for word in ("node has died", "node died", "node was terminated")):
        return "died with its machine"
    return "died"


def _short(error: Exception) -> str:
    return type(error).__name__


def look(address: str) -> str:
    """What a cluster consists of, in words. Raises ConfigurationError if it cannot be reached or joined."""
    import ray

    _check_listening(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
        cpus = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    except Exception as error:
        advice = f"give the address of a cluster of Ray {ray.__version__}"
        raise ConfigurationError(f"it cannot be joined: {_first_line(error)}: {advice}") from error
    finally:
        ray.shutdown()
    return f"version {ray.__version__}, as here; {nodes} nodes with {cpus:g} CPUs"


def _check_listening(address: str) -> None:
    """Raise ConfigurationError if nothing listens at a host and port: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"no Ray cluster could be reached at {address}: {error}; check --address and RAY_ADDRESS"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
