"""Arrow Flight as the exchange uses it: streams of (metadata, bytes) over gRPC, and how connections are cut.

Import it where it is used: pyarrow.flight takes a while. pyarrow has no means to give up a server's stream to
a silent client, or a call that a silent server has not begun to answer. That is done here by shutting down
their sockets, which gRPC takes for the end of the peer.
"""

from __future__ import annotations

import hmac
import os
import re
import socket
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from pyarrow import flight

from storage.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from numpy.typing import NDArray

    Message = tuple[bytes, NDArray[np.uint8]]
    Answer = Callable[[bytes, str, Callable[[], bool]], Iterator[Message]]
    """(request, reader, whether it is gone) -> what it is sent."""

    Address = tuple[str, int]

CONNECT_TIMEOUT_S = 3.0

_SCHEMA = pa.schema([pa.field("bytes", pa.uint8(), nullable=False)])
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),  # nodes of a cluster reach each other directly
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # a new client does not inherit how long the last one waits to retry
    ("grpc.enable_retries", 0),  # of no use to us, and its code crashes on damaged frames (pyarrow 26)
    ("grpc.min_reconnect_backoff_ms", int(1000 * CONNECT_TIMEOUT_S)),  # the time limit of connecting
]


class Damaged(Exception):
    """What was received makes no sense; it may when sent again."""


class Server(flight.FlightServerBase):  # type: ignore[misc]
    """Answers requests of those who know the token. It serves from its creation to `shutdown`."""

    def __init__(self, host: str, token: str, answer: Answer) -> None:
        self._token = token.encode()
        self._answer = answer
        location = f"grpc://[{host}]:0" if ":" in host else f"grpc://{host}:0"
        try:
            with _quiet():
                super().__init__(location)
        except (OSError, pa.ArrowException) as error:
            raise InfrastructureError(f"cannot serve on {host}: {_first_line(error)}") from error

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Begin a stream: the schema is sent at once, the rest as `answer` yields it."""
        token, _, request = ticket.ticket.partition(b"\n")
        if not hmac.compare_digest(token, self._token):
            raise flight.FlightUnauthenticatedError("the token is not that of this run")
        messages = self._answer(request, context.peer(), context.is_cancelled)
        return flight.GeneratorStream(_SCHEMA, _batches(messages))


@contextmanager
def _quiet() -> Iterator[None]:
    """Have gRPC, which asks when it is first used, log nothing: what goes wrong becomes an error anyway."""
    told = "GRPC_VERBOSITY" in os.environ
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        yield
    finally:
        if not told:
            del os.environ["GRPC_VERBOSITY"]  # child processes have a gRPC of their own


def _batches(messages: Iterable[Message]) -> Iterator[tuple[Any, bytes]]:
    for metadata, data in messages:
        column = pa.Array.from_buffers(pa.uint8(), data.nbytes, [None, pa.py_buffer(data)])
        batch = pa.RecordBatch.from_arrays([column], schema=_SCHEMA)
        del data, column  # what is sent is freed by gRPC, when it has been
        yield batch, metadata
        del batch


class Call:
    """A request under way; `cancel` may be called from any thread."""

    def __init__(self, peer: str, client: Any, reader: Any) -> None:
        self._peer = peer
        self._client = client  # outlives the call
        self._reader = reader

    def cancel(self) -> None:
        """Make `messages` end, with an error unless it is complete."""
        self._reader.cancel()

    def messages(self) -> Iterator[Message]:
        """What is received, with views on memory that belongs to the message."""
        while True:
            try:
                chunk = self._reader.read_chunk()
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                raise _translated(error, self._peer) from error
            if chunk.data is None or chunk.app_metadata is None:
                raise Damaged("a message lacks data or metadata")
            data = np.frombuffer(chunk.data.column(0).buffers()[1] or b"", np.uint8)
            yield chunk.app_metadata.to_pybytes(), data[: chunk.data.num_rows]


class Client:
    """A connection to one peer for any number of calls, made when it is first needed."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        host, _, port = peer.rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            raise InfrastructureError(f"{peer} is no address that can be found: {error}") from error
        self.addresses: set[Address] = {_plain(address) for *_, address in found}
        self._client = flight.FlightClient(f"grpc://{peer}", generic_options=_OPTIONS)

    def call(self, token: str, request: bytes, timeout_s: float) -> Call:
        """Send a request; return when the peer has begun to answer. The whole call ends after `timeout_s`."""
        ticket = flight.Ticket(token.encode() + b"\n" + request)
        options = flight.FlightCallOptions(timeout=timeout_s)
        try:
            return Call(self._peer, self._client, self._client.do_get(ticket, options))
        except (OSError, pa.ArrowException) as error:
            raise _translated(error, self._peer) from error


def cut_connections(to: Collection[Address], port: int, reader: str = "") -> None:
    """Shut down this process's connections to some addresses, and those that others made to its port.

    With `reader`, as a server's context names it, of the latter only that one.
    """
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # it was closed meanwhile, or is not connected
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                ours, theirs = _plain(sock.getsockname()), _plain(sock.getpeername())
                if theirs in to or (ours[1] == port and (not reader or theirs == _address_of(reader))):
                    sock.shutdown(socket.SHUT_RDWR)


def _address_of(reader: str) -> Address:
    """The address in names such as `ipv4:10.0.0.1:4242` and `ipv6:%5B::1%5D:4242`."""
    host, _, port = unquote(reader).partition(":")[2].rpartition(":")
    return _plain((host.strip("[]"), int(port)))


def _plain(address: Any) -> Address:
    """Host and port; IPv4 in the clothes of IPv6 is IPv4."""
    return address[0].removeprefix("::ffff:"), address[1]


def _translated(error: Exception, peer: str) -> Exception:
    match error:
        case flight.FlightTimedOutError():
            return InfrastructureError(f"{peer} did not answer in time")
        case flight.FlightUnauthenticatedError():
            return InfrastructureError(f"{peer} refused us: {_first_line(error)}")
        case flight.FlightUnavailableError():
            return InfrastructureError(f"{peer} cannot be reached: {_first_line(error)}")
        case flight.FlightCancelledError():
            return InfrastructureError(f"{peer}: the call was cancelled")
        case _:
            return Damaged(_first_line(error))


def _first_line(error: Exception) -> str:
    """What happened, without what gRPC and Arrow add for their developers."""
    text = str(error).partition("\n")[0]
    text = re.sub(r"\.? (gRPC client debug context|Detail|Client context): .*", "", text)
    return re.sub(r"^Flight returned .*?, with message: ", "", text)
