"""The processes of a run as subprocesses of this one, on this machine."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from orchestrator.machine import Exited
from storage.errors import InfrastructureError
from workers.arithmetic import single_threaded_environment
from workers.channel import Channel, address_for, connect, wait_readable
from workers.main import resolve
from workers.messages import Command, Event, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

AGENT_TIMEOUT_S = 60.0
"""Seconds without an answer after which the agent is taken to be lost."""

CLOSE_TIMEOUT_S = 5.0
"""Seconds that agent, workers and writer have to end when the run does."""


class ProcessRuntime:
    """One node: agent, writer and workers as subprocesses."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._name = address_for(secrets.token_hex(8)).replace("\0", "@")
        self._processes: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._channel: Channel | None = None
        self._outgoing: list[Command] = []
        self._asked_at: float | None = None  # when the call under way was sent; one at a time
        self._created_at = time.monotonic()
        self._progress = Progress()

    def start(self, role: str, rank: int, generation: int) -> None:
        """Start a subprocess; its standard output goes to our standard error."""
        # -P: the user's working directory must not hide our packages; a job's imports come with its source.
        command = [sys.executable, "-P", "-m", "workers.main", role]
        command += ["--address", self._name, "--rank", str(rank), "--generation", str(generation)]
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
        self._processes[role, rank] = process

    def exchange(self, commands: Sequence[Command], timeout_s: float) -> tuple[list[Event], Progress]:
        """One round with the agent over its control socket; a hung agent holds nobody up."""
        self._outgoing += commands
        try:
            if self._channel is None:
                self._channel = self._connect(timeout_s)
                if self._channel is None:
                    return [], self._progress
            if self._asked_at is None:
                self._channel.send(self._outgoing, timeout_s)
                self._outgoing = []
                self._asked_at = time.monotonic()
            if not wait_readable(self._channel.fileno(), timeout_s + 1.0):
                self._check_silence(self._asked_at)
                return [], self._progress
            events, self._progress = self._channel.receive()
            self._asked_at = None
        except (EOFError, OSError) as error:
            self._channel = None
            raise InfrastructureError(f"the agent of this node is gone ({error})") from error
        return events, self._progress

    def _connect(self, timeout_s: float) -> Channel | None:
        try:
            return connect(resolve(self._name + "-control"), timeout_s)
        except TimeoutError:
            self._check_silence(self._created_at)
            return None

    def _check_silence(self, since: float) -> None:
        if time.monotonic() - since > AGENT_TIMEOUT_S:
            raise TimeoutError(f"no answer for {AGENT_TIMEOUT_S:.0f} s")

    def exited(self) -> list[Exited]:
        """Subprocesses that have ended, reaped."""
        ended = [(key, p.returncode) for key, p in self._processes.items() if p.poll() is not None]
        for key, _ in ended:
            del self._processes[key]
        return [Exited(role, rank, _cause(code)) for (role, rank), code in ended]

    def close(self) -> None:
        """Let the agent end its workers; kill what is left."""
        if self._channel is not None:
            self._channel.close()
        deadline = time.monotonic() + (CLOSE_TIMEOUT_S if self._channel is not None else 0)
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def _cause(returncode: int) -> str:
    if returncode < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"
