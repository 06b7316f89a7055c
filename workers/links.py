"""A node's connections to the other nodes: opened when there are any, and used to hand the state on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.exchange import Exchange, Key

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from workers.state import Arena

COPY_S = 600.0
"""Seconds that copying the state of another node may take."""


class Links:
    """Serves this node's state and fetches those of others; sums go by the same `exchange`."""

    def __init__(self, host: str, wake: Callable[[], None]) -> None:
        self._host = host
        self._wake = wake
        self._exchange: Exchange | None = None
        self._token = ""
        self._address = ""
        self._copying: dict[int, str] = {}  # request -> where from

    @property
    def exchange(self) -> Exchange:
        """The transport, which has been opened."""
        assert self._exchange is not None, "other nodes are asked before the transport is open"
        return self._exchange

    @property
    def quiet(self) -> bool:
        """No state is being copied to here."""
        return not self._copying

    def open(self, token: str) -> str:
        """Serve other nodes that know the token; returns where."""
        if self._exchange is None or token != self._token:
            self.close()
            self._exchange = Exchange(self._host, token, self._wake)
            self._token, self._address = token, self._exchange.open()
        return self._address

    def begin(self, attempt: int, epoch: int) -> None:
        """An epoch begins: nothing of an older one is served or fetched any more."""
        if self._exchange is not None:
            self._exchange.withdraw((attempt, epoch, 0))
            self._exchange.advance(attempt, epoch)

    def publish_state(self, stamp: tuple[int, int, int], arena: Arena, buffer: int) -> None:
        """Let the others copy a buffer, which is not written before the next epoch has begun."""
        self.exchange.publish(Key(*stamp, "state"), _state(arena, buffer))

    def fetch_state(self, address: str, stamp: tuple[int, int, int], arena: Arena, buffer: int) -> None:
        """Copy another node's state into a buffer; `fetched` when it is there."""
        request = self.exchange.fetch(address, Key(*stamp, "state"), _state(arena, buffer), COPY_S)
        self._copying[request] = address

    def fetched(self, request: int) -> str | None:
        """Where a copy that has ended came from; None for other requests."""
        return self._copying.pop(request, None)

    def cancel(self) -> None:
        """Copy no more; `quiet` once that is so."""
        for request in self._copying:
            self.exchange.cancel(request)

    def take(self) -> list[tuple[int, Exception | None]]:
        """Requests that have ended since the last call, with what went wrong."""
        if self._exchange is None:
            return []
        return [(each.request, each.error) for each in self._exchange.take()]

    def close(self) -> None:
        """Serve nobody any more."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None


def _state(arena: Arena, buffer: int) -> list[NDArray[Any]]:
    return [*arena.buffers[buffer].values(), arena.aux_bytes(buffer)]
