"""Messages between the processes of one node: pickled tuples, length-prefixed, over Unix stream sockets.

Only processes of the same user are let in (SO_PEERCRED), so what is unpickled is our own. On Linux the
addresses are in the abstract namespace: no file is left behind, whatever dies.
"""

from __future__ import annotations

import os
import pickle
import platform
import select
import socket
import struct
import tempfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from workers.processes import is_alive

if TYPE_CHECKING:
    from workers.processes import ProcessId

_LENGTH = struct.Struct("<I")
_MAX_NBYTES = 1 << 30
SIGNALS_S = 0.5
"""Seconds until somebody who waits for a message has handled a signal at the latest."""

_PEERCRED = struct.Struct("3i")
_ABSTRACT = platform.system() == "Linux"


def wait_readable(descriptor: int, timeout_s: float) -> bool:
    """Whether there is something to read, or an end to see, within `timeout_s`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


class Channel:
    """One end of a connection. Not for use by two threads at once in the same direction."""

    __slots__ = ("_buffer", "socket")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = bytearray()

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self.socket.fileno()

    def peer_pid(self) -> int | None:
        """The process that listens where this end has connected to; None where the system does not tell."""
        return _credentials(self.socket)[0] if _ABSTRACT else None

    def send(self, *message: Any) -> None:
        """Send one message. Raises EOFError when the other end is gone."""
        data = pickle.dumps(message, protocol=5)
        try:
            self.socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise EOFError("the connection was cut") from error

    def receive(self) -> tuple[Any, ...]:
        """Wait for one message. Raises EOFError when the other end is gone."""
        while True:
            message = self._next()
            if message is not None:
                return message
            # Python handles a signal in the main thread, which one that came to another thread does not wake.
            try:
                while not wait_readable(self.fileno(), SIGNALS_S):
                    pass
            except ValueError as error:
                raise EOFError("the connection was closed") from error
            self._fill()

    def received(self) -> list[tuple[Any, ...]]:
        """The messages that are there already, without waiting. Raises EOFError at the end."""
        if wait_readable(self.fileno(), 0):
            self._fill()
        return self._complete()

    def receive_ready(self) -> list[tuple[Any, ...]]:
        """Read once and return the messages that are complete. Raises EOFError at the end."""
        self._fill()
        return self._complete()

    def close(self) -> None:
        """End the stream for both sides, whoever else holds the descriptor."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _fill(self) -> None:
        try:
            data = self.socket.recv(1 << 16)
        except OSError as error:
            raise EOFError("the connection was cut") from error
        if not data:
            raise EOFError("the connection was closed")
        self._buffer += data

    def _complete(self) -> list[tuple[Any, ...]]:
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> tuple[Any, ...] | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (nbytes,) = _LENGTH.unpack_from(self._buffer)
        if nbytes > _MAX_NBYTES:
            raise EOFError(f"a message of {nbytes} bytes is no message of ours")
        end = _LENGTH.size + nbytes
        if len(self._buffer) < end:
            return None
        message: tuple[Any, ...] = pickle.loads(memoryview(self._buffer)[_LENGTH.size : end])
        del self._buffer[:end]
        return message


def address_for(name: str) -> str:
    """The address of a socket with this name on this node."""
    if _ABSTRACT:
        return f"\0holdfast-{name}"
    return os.path.join(tempfile.gettempdir(), f"holdfast-{name}.sock")


def listen(address: str) -> socket.socket:
    """A listening socket. Raises OSError if the address is in use."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if not address.startswith("\0") and os.path.exists(address):
        os.unlink(address)
    try:
        sock.bind(address)
        sock.listen(256)
    except OSError:
        sock.close()
        raise
    return sock


def accept(listener: socket.socket) -> Channel | None:
    """The next connection; None if it was another user's and was closed."""
    sock, _ = listener.accept()
    if _ABSTRACT:
        _, uid = _credentials(sock)
        if uid != os.getuid():
            sock.close()
            return None
    return Channel(sock)


def _credentials(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end."""
    pid, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return pid, uid


def connect(address: str, timeout_s: float, supervisor: ProcessId | None = None) -> Channel:
    """Connect to a socket that may not be listening yet. Raises TimeoutError naming it.

    So it does once the `supervisor` is gone, if one is given: nobody listens then who does not already.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(address)
            return Channel(sock)
        except OSError as error:
            sock.close()
            name = address.replace("\0", "@")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no agent answered at {name} within {timeout_s:g} s") from error
            if supervisor is not None and not is_alive(supervisor):
                raise TimeoutError(f"no agent answers at {name}, and its supervisor is gone") from error
            time.sleep(0.01)
