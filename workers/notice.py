"""Notices that a node is to be taken away, such as SIGTERM to one of its processes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress

from workers.channel import connect


def send_notice(address: str, reason: str, seconds_left: float | None = None) -> None:
    """Tell the agent at `address` that its node will be taken away, for a reason, in so many seconds."""
    with suppress(TimeoutError, EOFError):
        channel = connect(address, 0)
        channel.send("notice", reason, seconds_left)
        channel.socket.close()  # not `close`, which might cut it off before it is read


def pass_on_notices(address: str, role: str) -> None:
    """Have the agent at `address` told when this process gets SIGTERM, and go on working.

    SIGINT is ignored: Ctrl-C may reach the whole group of processes, and the coordinator decides what it
    means. Children of the user's code behave as usual: they are forked with the default behaviour.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    # A handler would run only when the main thread wakes up, and the kernel may wake another one.
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while numbers := heard.recv(64):
            if signal.SIGTERM in numbers:
                send_notice(address, f"SIGTERM to {role} (process {os.getpid()})")
        told.close()  # which keeps it open until then

    threading.Thread(target=watch, name="notices", daemon=True).start()

    def install(default: bool = False) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Not SIG_IGN, which a program that is executed would inherit.
                signal.signal(number, signal.SIG_DFL if default else lambda *_: None)

    install()
    os.register_at_fork(before=lambda: install(default=True), after_in_parent=install)
