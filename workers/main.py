"""The processes of a node as plain subprocesses: `python -m workers.main agent|worker|writer ...`.

A worker reads the job from its standard input.
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import TYPE_CHECKING

from storage.errors import Superseded
from workers.agent import AgentLoop
from workers.channel import Channel, accept, listen
from workers.clouds import watch_clouds
from workers.faults import planned_fault
from workers.notice import pass_on_notices
from workers.output import keep_output
from workers.processes import ProcessId

if TYPE_CHECKING:
    import socket

    from workers.output import Output


def main() -> None:
    """Run one process of a node."""
    parser = argparse.ArgumentParser(prog="workers.main")
    parser.add_argument("role", choices=("agent", "worker", "writer"))
    parser.add_argument("--address", required=True, help="name of the agent's socket")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--generation", type=int, default=0)
    parser.add_argument("--supervisor", help="PID:STARTED of the process without which nobody comes back")
    parser.add_argument("--quiet", action="store_true", help="keep what is printed, and do not show it")
    arguments = parser.parse_args()
    address = resolve(arguments.address)
    output = keep_output(address, arguments.role, arguments.rank, arguments.generation, quiet=arguments.quiet)
    try:
        _serve(address, arguments, output)
    except TimeoutError as error:
        output.discard()
        sys.exit(f"{arguments.role} {arguments.rank} ends: {error}")


def _serve(address: str, arguments: argparse.Namespace, output: Output) -> None:
    pass_on_notices(address, arguments.role)
    pid, _, started = (arguments.supervisor or "").partition(":")
    supervisor = ProcessId(int(pid), int(started)) if pid else None
    if arguments.role == "agent":
        fault = planned_fault("agent", arguments.rank, arguments.generation)
        loop = AgentLoop(address, supervisor=supervisor, fault=fault, show=output.show)
        watch_clouds(address)
        control = _listen_alone(address + "-control")
        threading.Thread(target=serve_control, args=(loop, control), daemon=True).start()
        loop.run()
    elif arguments.role == "writer":
        from workers.writer import run_writer

        run_writer(address, arguments.rank, arguments.generation, supervisor)
    else:
        from workers.arithmetic import settle_arithmetic
        from workers.worker import run_worker

        source = sys.stdin.buffer.read()
        settle_arithmetic()
        run_worker(address, arguments.rank, arguments.generation, source, supervisor)


def resolve(name: str) -> str:
    """The socket address that a name on the command line stands for ('@' for the abstract namespace)."""
    return "\0" + name[1:] if name.startswith("@") else name


def _listen_alone(address: str) -> socket.socket:
    """Listen where coordinators connect to; ends this process if a dead one's agent of the same name does."""
    try:
        return listen(address)
    except OSError as error:
        sys.exit(f"an agent of this name is at work already: {error}")


def serve_control(loop: AgentLoop, listener: socket.socket) -> None:
    """Let coordinators call `loop.tell` and `loop.listen`; who was superseded is told so and cut off."""
    while True:
        channel = accept(listener)
        if channel is not None:
            threading.Thread(target=_serve_coordinator, args=(loop, channel), daemon=True).start()


def _serve_coordinator(loop: AgentLoop, channel: Channel) -> None:
    try:
        while True:
            kind, attempt, argument = channel.receive()
            try:
                if kind == "tell":
                    loop.tell(attempt, argument)
                else:
                    channel.send(*loop.listen(attempt, argument))
            except Superseded as error:
                channel.send(error)
                return
    except (EOFError, OSError):
        pass  # the coordinator is gone; the lease runs
    finally:
        channel.close()


if __name__ == "__main__":
    main()
