"""The supervisor job on the cluster: start `holdfast run`, and start it again by the restart policy.

    python -m orchestrator.supervision --retries N [--environment PACKAGE] [--label K=V] -- run ...

It ends with the exit code of the last `holdfast run`. It is not killed with the coordinator, nor the
coordinator with it where it alone is killed: the run directory tells whoever asks which of them lives.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator import succession
from orchestrator.relaunch import Relaunches
from orchestrator.restart import Restart, decide
from orchestrator.spec import RestartPolicy
from orchestrator.submission import AGAIN, LABELS, SUBMITTED, goes_on
from orchestrator.terminal import say
from storage.errors import HoldfastError, InfrastructureError
from storage.run_directory import RunDirectory
from storage.store import open_store
from workers.output import keep_secret, redact_output

if TYPE_CHECKING:
    from collections.abc import Sequence


class Supervisor:
    """One `holdfast run` after another."""

    def __init__(self, command: Sequence[str], run: RunDirectory, retries: int) -> None:
        self._command = [sys.executable, "-m", "orchestrator", *command]
        self._run = run
        self._folder = os.getcwd()
        self._policy = RestartPolicy(max_restarts=retries)
        self._history: list[Restart] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = 0

    def supervise(self) -> int:
        """Run until there is nothing to start again; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        relaunches = Relaunches(self._run, self._policy.max_restarts)
        try:
            return self._supervise(relaunches)
        finally:
            relaunches.end()

    def _supervise(self, relaunches: Relaunches) -> int:
        while True:
            code = self._once()
            cause = goes_on(code, stopped=bool(self._stopped), again=bool(self._history))
            if cause is None:
                return code if code >= 0 else AGAIN
            failure, step = InfrastructureError(cause), self._step()
            decision = decide(self._policy, self._history, step, failure, random.random())
            say(f"supervisor: {decision.reason}")
            if not decision.restart:
                return AGAIN
            self._history.append(Restart(step, delay_s=decision.delay_s, cause=cause))
            if not relaunches.wait(decision.delay_s, cause, lambda: bool(self._stopped)):
                say("supervisor: stopped while waiting")
                return 130

    def _once(self) -> int:
        self._child = subprocess.Popen(self._command, cwd=succession.still_there(self._folder))
        if self._stopped:
            self._child.send_signal(self._stopped)
        try:
            return self._child.wait()
        finally:
            self._child = None

    def _stop(self, number: int, frame: object) -> None:
        self._stopped = number
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, number)

    def _step(self) -> int:
        """The highest step that the run directory knows of."""
        steps = [restart.highest_step for restart in self._history]
        with suppress(HoldfastError):
            beat: dict[str, Any] = self._run.newest_beat() or {}
            totals = beat.get("totals")
            for found in (beat.get("step"), totals.get("highest_step") if isinstance(totals, dict) else None):
                steps += [found] if type(found) is int else []
        return max(steps, default=0)


def main() -> int:
    """Take the environment, supervise, and return the exit code; a mistake is one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--retries", type=int, required=True)
    parser.add_argument("--environment", default="")
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    redact_output()
    try:
        if args.environment:
            from orchestrator.ray_jobs import take_environment

            variables = take_environment(args.environment)
            os.environ.update(variables)
            keep_secret(variables.keys() - {SUBMITTED})
        if args.label:
            os.environ[LABELS] = ",".join(args.label)
        url = args.command[args.command.index("--run-dir") + 1]
        return Supervisor(args.command, RunDirectory(open_store(url)), args.retries).supervise()
    except HoldfastError as error:
        say(f"holdfast: error: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
