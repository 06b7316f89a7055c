"""Where the command `holdfast` begins. A signal ends it while it is loaded as it does later."""

from __future__ import annotations

import json
import signal
import sys

STOPS = {signal.SIGINT, signal.SIGTERM}


class Terminated(BaseException):
    """SIGTERM came before the run had begun."""


class Interrupted(BaseException):
    """Ctrl-C; of a KeyboardInterrupt typer makes an exit code, which leaves no place for a result in JSON."""


def terminate(number: int, frame: object) -> None:
    """Handle SIGTERM."""
    raise Terminated


def interrupt(number: int, frame: object) -> None:
    """Handle SIGINT, once: a second one does not wait."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise Interrupted


def main() -> None:
    """Run the command and exit with its code."""
    command = next(iter(sys.argv[1:]), "")
    try:
        if command == "run":
            signal.signal(signal.SIGTERM, terminate)
            signal.signal(signal.SIGINT, interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # who supervises a run has blocked them until here
        from orchestrator import cli
    except (KeyboardInterrupt, Interrupted):
        _end(command, "interrupted", 130)
    except Terminated:
        _end(command, "preempted", 75)
    cli.main()


def _end(command: str, status: str, code: int) -> None:
    if "--json" in sys.argv:
        from orchestrator.result import Result
        from orchestrator.terminal import put

        of_a_run = command == "run"
        doc = Result(run_dir="", status=status).to_json() if of_a_run else {"status": status, "error": None}
        put(json.dumps(doc))
    sys.exit(code)
