"""How agents of several nodes get each other's arrays: each publishes its own and fetches those of others.

A fetch writes into memory of the caller's and says by an event when it has ended; from then on it writes no
more. What was not published yet is waited for at its source, so that it is on its way the moment it is. Every
block is checked by its CRC-32C before it is put into place, and fetched again where it is wrong.
"""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import HoldfastError, InfrastructureError, Superseded
from workers import wire
from workers.shelf import Form, Key, Shelf, blocks_of, flat_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from workers.flight import Address, Call, Client, Message, Server
    from workers.shelf import Block, Published

__all__ = ["Exchange", "Fetched", "Key"]

TRIES = 3
"""How often a block is fetched before the fetch fails."""

WITHDRAW_TIMEOUT_S = 2.0
"""How long a stream may read what is withdrawn before its connection is cut."""

CLOSE_TIMEOUT_S = 6.0
"""How long everything may take to end; connecting to a host that is silent takes up to half of it."""

PEACE_S = 0.25
"""How long what ends may do so by itself before its connection is cut."""

MAX_FETCHES = 64
"""Fetches under way at once; more wait for their turn."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetch has ended: all of it arrived and was checked if `error` is None; `info` is the publisher's."""

    request: int
    error: Exception | None
    info: bytes = b""


class _Over(Exception):
    """The request that a thread works on has ended already."""


class _Request:
    """A fetch under way; `into` is None from the moment that it has ended, and not written without `lock`."""

    __slots__ = ("_call", "_into", "deadline", "forms", "key", "lock", "number", "peer")

    def __init__(
        self, number: int, peer: str, key: Key, into: Sequence[NDArray[Any]], deadline: float
    ) -> None:
        self.number = number
        self.peer = peer
        self.key = key
        self.deadline = deadline
        self.forms = tuple(Form.of(array) for array in into)
        self.lock = threading.Lock()
        self._into: list[NDArray[np.uint8]] | None = [flat_bytes(array) for array in into]
        self._call: Call | None = None

    def blocks(self) -> list[Block]:
        """All that is to be received."""
        with self.lock:
            return blocks_of(self._into or ())

    def left_s(self) -> float:
        """Seconds to the deadline. Raises InfrastructureError when it is over."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise InfrastructureError(f"{self.key} did not arrive from {self.peer} in time")
        return left

    def attach(self, call: Call) -> None:
        """Have `call` cancelled when this ends."""
        with self.lock:
            ended, self._call = self._into is None, call
        if ended:
            call.cancel()
            raise _Over

    def put(self, block: Block, data: NDArray[np.uint8]) -> None:
        """Write one block, which takes a fraction of a millisecond, unless this has ended."""
        with self.lock:
            if self._into is None:
                raise _Over
            np.copyto(self._into[block.array][block.begin : block.end], data)

    def end(self) -> bool:
        """Write no more from now on; whether that is news."""
        with self.lock:
            news, self._into = self._into is not None, None
            call, self._call = self._call, None
        if call is not None:
            call.cancel()
        return news


class Exchange:
    """One node's side of it. `wake` is called, from any thread, when there is something to `take`.

    Methods may be called from any thread; only `withdraw` and `close` wait for others.
    """

    def __init__(self, host: str, token: str, wake: Callable[[], None]) -> None:
        self._host = host
        self._token = token
        self._wake = wake
        self._shelf = Shelf()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._requests: dict[int, _Request] = {}
        self._events: list[Fetched] = []
        self._clients: dict[str, Client] = {}
        self._addresses: set[Address] = set()
        self._port = 0
        self._current = (0, 0)
        self._server: Server | None = None
        self._pool: futures.ThreadPoolExecutor | None = None
        self._running: set[futures.Future[None]] = set()

    def open(self) -> str:
        """Start to serve on a free port of `host`; return HOST:PORT, which is what others fetch from."""
        from workers import flight

        self._server = flight.Server(self._host, self._token, self._answer)
        self._pool = futures.ThreadPoolExecutor(MAX_FETCHES, "holdfast-fetch")
        self._port = self._server.port
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    # -- what others fetch from us ------------------------------------------------------------------------

    def publish(self, key: Key, arrays: Sequence[NDArray[Any]], info: bytes = b"") -> None:
        """Serve `arrays`, which must be contiguous and must not change, until they are withdrawn.

        Raises Superseded if the key's attempt and epoch are below what we have advanced to.
        """
        self._shelf.publish(key, arrays, info)

    def withdraw(self, before: tuple[int, int, int], timeout_s: float = WITHDRAW_TIMEOUT_S) -> None:
        """Forget what is published below (attempt, epoch, step), and wait until no stream reads it any more.

        Streams may end in peace for `timeout_s`; then their connections are cut. Later requests for it are
        refused. Raises InfrastructureError if something is read even so: then its memory must not be written.
        """
        self._shelf.withdraw(before)
        for reader in self._shelf.await_return(timeout_s):
            self._cut(reader)
        if readers := self._shelf.await_return(timeout_s):
            raise InfrastructureError(f"what is withdrawn is still read by {', '.join(sorted(readers))}")

    def _answer(self, request: bytes, reader: str, gone: Callable[[], bool]) -> Iterator[Message]:
        """The messages that answer a request: what is published, as soon as it is, or why not."""
        try:
            asked = wire.unpack_request(request)
            key = Key(*asked["key"])
            with self._shelf.borrowed(key, reader, asked["left_s"], gone) as published:
                yield from self._blocks(published, reader, asked["blocks"])
        except Superseded as error:
            yield wire.pack_refusal("superseded", error)
        except HoldfastError as error:
            yield wire.pack_refusal("failed", error)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            yield wire.pack_refusal("damaged", error)

    def _blocks(self, published: Published, reader: str, numbers: list[int] | None) -> Iterator[Message]:
        blocks = blocks_of(published.flat)
        described: dict[str, Any] | None = {
            "forms": published.forms,
            "info": base64.b64encode(published.info).decode(),
        }
        for number in range(len(blocks)) if numbers is None else numbers:
            self._shelf.check(published.key)
            yield wire.pack_message(number, self._shelf.lend(published, reader, blocks[number]), described)
            described = None
        if described is not None:
            yield wire.pack_message(wire.NO_BLOCK, wire.NOTHING, described)

    # -- what we fetch from others ------------------------------------------------------------------------

    def fetch(self, peer: str, key: Key, into: Sequence[NDArray[Any]], deadline_s: float) -> int:
        """Begin to fetch what `peer` publishes as `key`; return the number that its event will have.

        Do not read or write `into`, contiguous arrays of the same number, types and sizes, before the event.
        An error in it is Superseded if the key is stale, here or there, else InfrastructureError.
        """
        assert self._pool is not None, "open comes first"
        if not all(array.flags.writeable for array in into):
            raise ValueError("an array to fetch into cannot be written")
        request = _Request(next(self._numbers), peer, key, into, time.monotonic() + deadline_s)
        with self._lock:
            self._requests[request.number] = request
            stale = key.when[:2] < self._current
            if not stale:
                task = self._pool.submit(self._run, request)
                self._running.add(task)
        if stale:
            self._end_stale(request)
        else:
            task.add_done_callback(self._running.discard)
        return request.number

    def advance(self, attempt: int, epoch: int) -> None:
        """Refuse whatever is of a lower attempt or epoch from now on, and end such fetches of ours."""
        self._shelf.advance(attempt, epoch)
        with self._lock:
            self._current = max(self._current, (attempt, epoch))
            stale = [each for each in self._requests.values() if each.key.when[:2] < self._current]
        for request in stale:
            self._end_stale(request)

    def cancel(self, request: int) -> None:
        """End a fetch: its arrays are not written any more when this returns. Its event still comes."""
        with self._lock:
            found = self._requests.get(request)
        if found is not None:
            self._end(found, InfrastructureError(f"the fetch of {found.key} from {found.peer} was cancelled"))

    def take(self) -> list[Fetched]:
        """Which fetches have ended since the last call."""
        with self._lock:
            events, self._events = self._events, []
            return events

    def _end_stale(self, request: _Request) -> None:
        attempt, epoch = self._current
        self._end(request, Superseded(f"{request.key} is stale: attempt {attempt}, epoch {epoch} has begun"))

    def _end(self, request: _Request, error: Exception | None, info: bytes = b"") -> None:
        if not request.end():
            return
        with self._lock:
            del self._requests[request.number]
            self._events.append(Fetched(request.number, error, info))
        self._wake()

    def _run(self, request: _Request) -> None:
        """Do all of a fetch, in a thread of its own."""
        try:
            info = self._receive_all(request)
        except _Over:
            return
        except HoldfastError as error:
            if isinstance(error, InfrastructureError):
                self._forget(request.peer)
            # Without traceback and cause, whose frames would keep the caller's memory alive.
            self._end(request, type(error)(*error.args))
        except Exception as error:  # noqa: BLE001 the boundary of a thread: it is reported
            self._end(request, InfrastructureError(f"{request.key} from {request.peer}: {error!r}"))
        else:
            self._end(request, None, info)

    def _receive_all(self, request: _Request) -> bytes:
        """Fetch all blocks, and again those that were wrong; return the publisher's info."""
        from workers import flight

        missing = dict(enumerate(request.blocks()))
        info: bytes | None = None
        reason = ""
        for _ in range(TRIES):
            call: Call | None = None
            try:
                call = self._call(request, None if info is None else sorted(missing))
                for message in call.messages():
                    number, text, data = wire.unpack_message(message)
                    if text:
                        info = _understood(text, request)
                    if info is None:
                        break
                    if number in missing:
                        request.put(missing[number], data)
                        del missing[number]
            except flight.Damaged as error:
                reason = str(error)
                self._forget(request.peer)
            finally:
                if call is not None:
                    call.cancel()
            if info is not None and not missing:
                return info
            reason = reason or "the CRC-32C differs"
        what = "what it begins with" if info is None else _name(missing)
        raise InfrastructureError(
            f"{request.key} from {request.peer}: {what} was wrong {TRIES} times: {reason}"
        )

    def _call(self, request: _Request, numbers: list[int] | None) -> Call:
        """Ask for blocks, or all; the call ends with the request."""
        key = request.key
        left_s = request.left_s()
        asked = {"key": [key.attempt, key.epoch, key.step, key.name], "left_s": left_s, "blocks": numbers}
        call = self._client(request.peer).call(self._token, wire.pack_request(asked), left_s)
        request.attach(call)
        return call

    def _client(self, peer: str) -> Client:
        from workers import flight

        with self._lock:
            client = self._clients.get(peer)
        if client is None:
            client = flight.Client(peer)
            with self._lock:
                client = self._clients.setdefault(peer, client)
                self._addresses |= client.addresses
        return client

    def _forget(self, peer: str) -> None:
        """Have the next call make a new connection; gRPC would go on with one whose state is damaged."""
        with self._lock:
            self._clients.pop(peer, None)

    # -- the end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all fetches, streams, threads and the server: no array is read or written when this returns.

        Raises InfrastructureError if something of it does not end within seconds, which should not happen.
        """
        with self._lock:
            server, self._server = self._server, None
            pool, self._pool = self._pool, None
            requests = list(self._requests.values())
        if server is None or pool is None:
            return
        self._shelf.close()
        for request in requests:
            self._end(request, InfrastructureError(f"{request.key}: this node no longer takes part"))
        stop = threading.Thread(target=server.shutdown, name="holdfast-shutdown")
        stop.start()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        stop.join(PEACE_S)  # streams that are read end by themselves
        while (stop.is_alive() or self._running) and time.monotonic() < deadline:
            self._cut()
            stop.join(PEACE_S)
            futures.wait(set(self._running), PEACE_S)
        ended = not stop.is_alive() and not self._running and not self._shelf.await_return(PEACE_S)
        pool.shutdown(wait=not self._running)
        self._clients.clear()
        if not ended:
            raise InfrastructureError(f"the exchange did not end within {CLOSE_TIMEOUT_S:g} s")

    def _cut(self, reader: str = "") -> None:
        """Cut the connection of one reader, or all from and to us."""
        from workers import flight

        flight.cut_connections(to=() if reader else self._addresses, port=self._port, reader=reader)


def _understood(text: bytes, request: _Request) -> bytes:
    """The publisher's info. Raises if the request was refused, or if something else is published."""
    from workers import flight

    first = json.loads(text)
    if first.get("refused") == "damaged":
        raise flight.Damaged(first["message"])
    if "refused" in first:
        kind = Superseded if first["refused"] == "superseded" else InfrastructureError
        raise kind(f"{request.peer}: {first['message']}")
    found = [Form(*form) for form in first["forms"]]
    where = f"{request.key} from {request.peer}"
    if len(found) != len(request.forms):
        raise InfrastructureError(f"{where}: expected {len(request.forms)} arrays, found {len(found)}")
    for i, (expected, there) in enumerate(zip(request.forms, found, strict=True)):
        if expected != there:
            raise InfrastructureError(f"{where}, array {i}: expected {expected}, found {there}")
    return base64.b64decode(first["info"])


def _name(missing: dict[int, Block]) -> str:
    """The first block that is missing."""
    number, block = min(missing.items())
    return f"block {number} (bytes {block.begin} to {block.end} of array {block.array})"
