"""The processes of a run as Ray actors. The only module that imports Ray.

No actor is called once per training step: a worker's whole life is one call, and it works with its agent over
the node's Unix sockets.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator.machine import Exited
from storage.errors import ConfigurationError, InfrastructureError
from workers.agent import AgentLoop
from workers.arithmetic import settle_arithmetic, single_threaded_environment
from workers.channel import address_for
from workers.messages import Command, Event, Progress
from workers.worker import run_worker
from workers.writer import run_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INIT_TRIES = 3
AGENT_TIMEOUT_S = 120.0
"""Seconds without an answer after which the agent is taken to be lost; it may have to start."""

FORWARDED = ("HOLDFAST_FAULTS", "HOLDFAST_SHM_DIR", "HOLDFAST_TRACE")


class HoldfastAgent:
    """The agent of a node; `run` serves in one thread while `exchange` is called in others."""

    def __init__(self, address: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._loop = AgentLoop(address)

    def run(self) -> None:
        """Serve until closed."""
        self._loop.run()

    def exchange(self, commands: Sequence[Command], timeout_s: float) -> tuple[list[Event], Progress]:
        """See AgentLoop.exchange."""
        return self._loop.exchange(commands, timeout_s)


class HoldfastWorker:
    """A worker; `run` is its life."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)

    def run(self, address: str, rank: int, generation: int, source: bytes, folder: str) -> None:
        """Serve the agent; where `folder` exists, relative paths mean what they mean to the user."""
        with suppress(OSError):
            os.chdir(folder)
        settle_arithmetic()
        run_worker(address, rank, generation, source)


class HoldfastWriter:
    """The writer of a node; `run` is its life."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)

    def run(self, address: str, rank: int, generation: int) -> None:
        """Serve the agent."""
        run_writer(address, rank, generation)


class RayRuntime:
    """Agent, writer and workers as actors, all on the node that the agent is placed on."""

    def __init__(self, source: bytes, address: str | None, num_workers: int, cpus_per_worker: float) -> None:
        self._source = source
        self._address = address
        self._num_workers = num_workers
        self._cpus = cpus_per_worker
        self._socket = address_for(secrets.token_hex(8))
        self._actors: dict[tuple[str, int], Any] = {}
        self._lives: dict[Any, tuple[str, int]] = {}
        self._pending: Any = None  # the call under way: one at a time
        self._outgoing: list[Command] = []
        self._asked_at = 0.0
        self._progress = Progress()
        self._heard = False
        self._own_ray = False
        self._node: str | None = None
        self._environment = {
            **single_threaded_environment(),
            **{name: os.environ[name] for name in FORWARDED if name in os.environ},
        }

    def connect(self, tell: Callable[[str], None]) -> None:
        """Connect to the cluster at the address, else RAY_ADDRESS, else start a local one.

        Raises ConfigurationError if an address does not answer or the cluster is too small.
        """
        # Workers of a local cluster inherit this before they import NumPy.
        os.environ.update(single_threaded_environment())
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if not ray.is_initialized():
            self._init(ray, tell)
            self._own_ray = True
        needed = self._num_workers * self._cpus
        total = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        if needed > total:
            raise ConfigurationError(
                f"{self._num_workers} workers with {self._cpus:g} CPUs each need {needed:g}, but Ray has "
                f"{total:g}: give fewer --workers or --cpus-per-worker {total / self._num_workers:.2g}"
            )
        self._node = self._choose_node(ray)

    def _init(self, ray: Any, tell: Callable[[str], None]) -> None:
        address = self._address or os.environ.get("RAY_ADDRESS") or "local"
        _check_listening(address)
        for last in [*([False] * (INIT_TRIES - 1)), True]:
            try:
                ray.init(
                    address=address,
                    namespace="holdfast",
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

    def _choose_node(self, ray: Any) -> str | None:
        """This machine's node if it is one, else the one with most CPUs: one node holds the state."""
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        if not nodes:
            return None
        here = ray.get_runtime_context().get_node_id()
        needed = self._num_workers * self._cpus
        large = [node for node in nodes if node["Resources"].get("CPU", 0) >= needed]
        if not large:
            raise ConfigurationError(
                f"no node of the Ray cluster has the {needed:g} CPUs that the workers need"
            )
        best = max(large, key=lambda n: (n["NodeID"] == here, n["Resources"].get("CPU", 0), n["NodeID"]))
        node: str = best["NodeID"]
        return node

    def start(self, role: str, rank: int, generation: int) -> None:
        """Create an actor and call its life."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        classes: dict[str, type] = {
            "agent": HoldfastAgent,
            "worker": HoldfastWorker,
            "writer": HoldfastWriter,
        }
        options: dict[str, Any] = {
            "num_cpus": self._cpus if role == "worker" else 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 4 if role == "agent" else 1,
        }
        if self._node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._node, soft=False)
        remote: Any = ray.remote(classes[role]).options(**options)
        if role == "agent":
            actor = remote.remote(self._socket, self._environment)
            life = actor.run.remote()
        else:
            actor = remote.remote(self._environment)
            job = (self._source, os.getcwd()) if role == "worker" else ()
            arguments = (self._socket, rank, generation, *job)
            life = actor.run.remote(*arguments)
        self._actors[role, rank] = actor
        self._lives[life] = (role, rank)

    def exchange(self, commands: Sequence[Command], timeout_s: float) -> tuple[list[Event], Progress]:
        """One call of the agent; until it has started, there is nothing to hear."""
        import ray

        agent = self._actors.get(("agent", 0))
        if agent is None:
            raise InfrastructureError("the agent is gone")
        self._outgoing += commands
        if self._pending is None:
            self._pending = agent.exchange.remote(self._outgoing, timeout_s)
            self._asked_at = time.monotonic()
            self._outgoing = []
        try:
            ready, _ = ray.wait([self._pending], timeout=timeout_s + (1.0 if self._heard else 0.0))
            if not ready:
                if time.monotonic() - self._asked_at > AGENT_TIMEOUT_S:
                    raise InfrastructureError(f"the agent's actor did not answer for {AGENT_TIMEOUT_S:.0f} s")
                return [], self._progress
            call, self._pending, self._heard = self._pending, None, True
            events, self._progress = ray.get(call)
        except ray.exceptions.RayError as error:
            raise InfrastructureError(f"the agent's actor is gone: {_first_line(error)}") from error
        return events, self._progress

    def exited(self) -> list[Exited]:
        """Actors whose life has ended."""
        import ray

        if not self._lives:
            return []
        ready, _ = ray.wait(list(self._lives), num_returns=len(self._lives), timeout=0)
        ended = []
        for life in ready:
            role, rank = self._lives.pop(life)
            actor = self._actors.pop((role, rank))
            try:
                ray.get(life)
                cause = "its connection to the agent ended"
            except ray.exceptions.RayError as error:
                cause = _first_line(error)
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
            ended.append(Exited(role, rank, cause))
        return ended

    def close(self) -> None:
        """Wait for the agent to end, kill all actors, and leave Ray if we joined it."""
        import ray

        agent_life = [life for life, (role, _) in self._lives.items() if role == "agent"]
        if agent_life and self._heard:
            ray.wait(agent_life, timeout=10.0)
        for actor in self._actors.values():
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._actors.clear()
        self._lives.clear()
        if self._own_ray:
            ray.shutdown()


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
