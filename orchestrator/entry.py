"""Where the command `holdfast` begins."""

from __future__ import annotations

import signal

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
    """Run the command and exit with its code; signals to stop wait until it is loaded and can handle them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    from orchestrator import cli

    cli.main()
