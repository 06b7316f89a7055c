"""The exchange between nodes, played: transfers take their time, are refused, break off and arrive late.

It has the methods and the rules of `workers.exchange.Exchange`. A transfer copies one half at one moment and
the other half at another one: what is published and changes meanwhile arrives as a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from storage.errors import InfrastructureError, Superseded
from workers.exchange import Fetched, Key
from workers.shelf import Form, flat_bytes

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Arrays = list["NDArray[Any]"]


@dataclass(eq=False)
class Transfer:
    """A fetch that has not ended."""

    number: int
    exchange: PlayedExchange
    peer: str
    key: Key
    into: Arrays
    half: bool = False


class Network:
    """All exchanges of a simulated run."""

    def __init__(self, rng: random.Random, failing: float) -> None:
        self.rng = rng
        self.failing = failing
        self.parted = False  # whether nobody reaches anybody
        self.exchanges: dict[str, PlayedExchange] = {}
        self.transfers: list[Transfer] = []

    def possible(self) -> list[Transfer]:
        """Transfers with which something can happen now."""
        return [each for each in self.transfers if self._source(each) is not None]

    def _source(self, transfer: Transfer) -> Arrays | Exception | None:
        """What is sent, or why nothing is; None while it is not published."""
        source = self.exchanges.get(transfer.peer)
        if source is None or self.parted:
            return InfrastructureError(f"{transfer.peer} cannot be reached")
        return source.lookup(transfer.key)

    def carry(self, transfer: Transfer) -> None:
        """Carry one half of a transfer, or have it fail."""
        found = self._source(transfer)
        if found is not None and self.rng.random() < self.failing:
            found = InfrastructureError("the connection broke")
        if found is None:
            return
        if isinstance(found, Exception):
            self.end(transfer, found)
            return
        forms = [[Form.of(array) for array in arrays] for arrays in (found, transfer.into)]
        if forms[0] != forms[1]:
            self.end(transfer, InfrastructureError(f"{transfer.key}: {forms[0]} is not {forms[1]}"))
            return
        for source, target in zip(found, transfer.into, strict=True):
            middle = source.nbytes // 2
            part = slice(middle, None) if transfer.half else slice(None, middle)
            flat_bytes(target)[part] = flat_bytes(source)[part]
        if transfer.half:
            self.end(transfer, None)
        transfer.half = True

    def end(self, transfer: Transfer, error: Exception | None) -> None:
        """No more is written; its exchange is told."""
        self.transfers.remove(transfer)
        transfer.exchange.ended.append(Fetched(transfer.number, error))
        transfer.exchange.wake()

    def die(self, host: str) -> None:
        """The process that served as `host` is gone."""
        self.exchanges.pop(host, None)
        self.transfers = [each for each in self.transfers if each.exchange.host != host]


class PlayedExchange:
    """One node's side."""

    networks: ClassVar[dict[str, Network]] = {}
    """The network that a host is on, by what its name begins with."""

    def __init__(self, host: str, token: str, wake: Callable[[], None]) -> None:
        self.host = host
        self.wake = wake
        self.network = self.networks[host.partition("/")[0]]
        self.ended: list[Fetched] = []
        self._held: dict[Key, Arrays] = {}
        self._withdrawn = (0, 0, 0)
        self._current = (0, 0)
        self._number = 0

    def open(self) -> str:
        self.network.exchanges[self.host] = self
        return self.host

    def lookup(self, key: Key) -> Arrays | Exception | None:
        """What a request is answered with."""
        if key.when[:2] < self._current:
            return Superseded(f"{key} is stale")
        if key.when < self._withdrawn:
            return InfrastructureError(f"{key} was withdrawn")
        return self._held.get(key)

    def publish(self, key: Key, arrays: Sequence[NDArray[Any]], info: bytes = b"") -> None:
        if key.when[:2] < self._current:
            raise Superseded(f"{key} is stale")
        if key in self._held:
            raise ValueError(f"{key} is published already")
        self._held[key] = list(arrays)

    def withdraw(self, before: tuple[int, int, int], timeout_s: float = 2.0) -> None:
        for transfer in [*self.network.transfers]:  # who reads it ends in peace, or is cut
            if transfer.peer == self.host and transfer.half and transfer.key.when < before:
                self.network.carry(transfer)
        self._withdrawn = max(self._withdrawn, before)
        self._held = {key: arrays for key, arrays in self._held.items() if key.when >= before}

    def fetch(self, peer: str, key: Key, into: Sequence[NDArray[Any]], deadline_s: float) -> int:
        self._number += 1
        transfer = Transfer(self._number, self, peer, key, list(into))
        self.network.transfers.append(transfer)
        if key.when[:2] < self._current:
            self.network.end(transfer, Superseded(f"{key} is stale"))
        return self._number

    def advance(self, attempt: int, epoch: int) -> None:
        self._current = max(self._current, (attempt, epoch))
        for transfer in self._mine():
            if transfer.key.when[:2] < self._current:
                self.network.end(transfer, Superseded(f"{transfer.key} is stale"))

    def cancel(self, request: int) -> None:
        for transfer in self._mine():
            if transfer.number == request:
                self.network.end(transfer, InfrastructureError(f"{transfer.key} was cancelled"))

    def take(self) -> list[Fetched]:
        ended, self.ended = self.ended, []
        return ended

    def close(self) -> None:
        self.network.die(self.host)

    def _mine(self) -> list[Transfer]:
        return [each for each in self.network.transfers if each.exchange is self]
