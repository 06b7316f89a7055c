"""What a node has published for others to fetch: who waits for it, who reads it, and when nobody does.

Arrays are never copied: what is handed out are views, and one counts as read until the last of them is freed,
wherever it went. All methods may be called from any thread.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from storage.errors import InfrastructureError, Superseded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

BLOCK_NBYTES = 1 << 20
"""Bytes that have one CRC and travel as one message. From 256 KiB to 2 MiB it makes little difference."""

ABANDONED_S = 1.0
"""How often somebody who waits is asked whether they still do; what they wait for wakes them at once."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What is asked for; `name` says which of the things that belong to a step."""

    attempt: int
    epoch: int
    step: int
    name: str

    @property
    def when(self) -> tuple[int, int, int]:
        """What keys are withdrawn by."""
        return self.attempt, self.epoch, self.step

    def __str__(self) -> str:
        return f"{self.name} of step {self.step} (attempt {self.attempt}, epoch {self.epoch})"


class Form(NamedTuple):
    """What has to agree between an array that is published and the one it is fetched into."""

    dtype: str
    size: int

    @classmethod
    def of(cls, array: NDArray[Any]) -> Form:
        """The form of an array; types that NumPy does not know are told apart by name."""
        return cls(array.dtype.name if array.dtype.kind == "V" else array.dtype.str, array.size)

    def __str__(self) -> str:
        name = self.dtype if self.dtype[0].isalpha() else np.dtype(self.dtype).name
        return f"{self.size} x {name}"


class Block(NamedTuple):
    """Bytes `begin` to `end` of one array."""

    array: int
    begin: int
    end: int


def blocks_of(flat: Sequence[NDArray[np.uint8]]) -> list[Block]:
    """All blocks of some arrays, in order; a block's number is its index here."""
    return [
        Block(i, begin, min(begin + BLOCK_NBYTES, array.nbytes))
        for i, array in enumerate(flat)
        for begin in range(0, array.nbytes, BLOCK_NBYTES)
    ]


def flat_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """A view of all bytes. Raises ValueError where there is none without a copy."""
    if not array.flags.c_contiguous:
        raise ValueError(f"an array with strides {array.strides} is not contiguous: it would be copied")
    return array.reshape(-1).view(np.uint8)


@dataclass(slots=True, eq=False)
class Published:
    """Arrays as bytes, and how many views on them each reader has."""

    key: Key
    forms: tuple[Form, ...]
    flat: tuple[NDArray[np.uint8], ...]
    info: bytes
    readers: Counter[str] = field(default_factory=Counter)


class Shelf:
    """What is published, by key."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # re-entrant: views may be freed at any moment, also in here
        self._held: dict[Key, Published] = {}
        self._leaving: list[Published] = []  # withdrawn, and perhaps on loan still
        self._current = (0, 0)
        self._withdrawn = (0, 0, 0)
        self._closed = False

    def publish(self, key: Key, arrays: Sequence[NDArray[Any]], info: bytes) -> None:
        """Hold views on `arrays`, and hand them out to whoever waits for them."""
        flat = tuple(flat_bytes(array) for array in arrays)
        with self._changed:
            self.check(key)
            if key in self._held:
                raise ValueError(f"{key} is published already")
            self._held[key] = Published(key, tuple(Form.of(array) for array in arrays), flat, info)
            self._changed.notify_all()

    def advance(self, attempt: int, epoch: int) -> None:
        """Refuse whatever is of a lower attempt or epoch from now on."""
        with self._changed:
            self._current = max(self._current, (attempt, epoch))
            self._changed.notify_all()

    def check(self, key: Key) -> None:
        """Raise what a request for `key` is to be refused with, if it is."""
        with self._changed:
            if self._closed:
                raise InfrastructureError(f"{key}: this node no longer takes part")
            if key.when[:2] < self._current:
                attempt, epoch = self._current
                raise Superseded(f"{key} is stale: attempt {attempt}, epoch {epoch} has begun")

    @contextmanager
    def borrowed(
        self, key: Key, reader: str, timeout_s: float, abandoned: Callable[[], bool]
    ) -> Iterator[Published]:
        """Wait for `key` and keep it on loan while entered."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (found := self._find(key)) is None:
                left = deadline - time.monotonic()
                if left <= 0 or abandoned():
                    raise InfrastructureError(f"{key} was not published within {timeout_s:.3g} s")
                self._changed.wait(min(left, ABANDONED_S))
            found.readers[reader] += 1
        try:
            yield found
        finally:
            self._given_back(found, reader)

    def _find(self, key: Key) -> Published | None:
        self.check(key)
        if key.when < self._withdrawn:
            raise InfrastructureError(f"{key} was withdrawn")
        return self._held.get(key)

    def lend(self, published: Published, reader: str, block: Block) -> NDArray[np.uint8]:
        """A view that is on loan until it is freed."""
        view = published.flat[block.array][block.begin : block.end]
        with self._changed:
            published.readers[reader] += 1
        weakref.finalize(view, self._given_back, published, reader).atexit = False
        return view

    def _given_back(self, published: Published, reader: str) -> None:
        with self._changed:
            published.readers[reader] -= 1
            if not published.readers[reader]:
                del published.readers[reader]
                self._changed.notify_all()

    def withdraw(self, before: tuple[int, int, int]) -> None:
        """Hand out nothing below `before` any more."""
        with self._changed:
            self._withdrawn = max(self._withdrawn, before)
            self._leaving += [self._held.pop(key) for key in list(self._held) if key.when < before]
            self._changed.notify_all()

    def close(self) -> None:
        """Refuse everything from now on; it counts as withdrawn."""
        with self._changed:
            self._closed = True
            self._leaving += self._held.values()
            self._held.clear()
            self._changed.notify_all()

    def await_return(self, timeout_s: float) -> set[str]:
        """Wait until nothing that was withdrawn is on loan; return who reads it even after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: not any(each.readers for each in self._leaving), timeout_s)
            self._leaving = [each for each in self._leaving if each.readers]
            return {reader for each in self._leaving for reader in each.readers}
