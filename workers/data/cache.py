"""What was read last, kept as far as a number of bytes goes, and what will be read next."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from workers.data.parts import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.data.parts import Part


class BlockCache:
    """Decoded blocks by number: those used last stay while they take `limit` bytes at most.

    May be shared by threads: a block that is being loaded is waited for, not loaded twice. At times one block
    more is held, which has just been loaded.
    """

    def __init__(self, load: Callable[[int], Part], limit: int) -> None:
        self._load = load
        self._limit = limit
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, Part] = OrderedDict()
        self._nbytes = 0
        self._loading: dict[int, Future[Part]] = {}
        self._ahead: deque[int] = deque()
        self._reads_ahead = False

    def get(self, number: int) -> Part:
        """The block, loaded if need be. Raises what loading it does."""
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
            future = self._loading.get(number)
            if future is None:
                mine = self._loading[number] = Future()
        if future is not None:
            return future.result()
        try:
            block = self._load(number)
        except BaseException as error:
            with self._lock:
                del self._loading[number]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._loading[number]
            self._keep(number, block)
        mine.set_result(block)
        return block

    def load_ahead(self, numbers: Sequence[int], nbytes: Callable[[int], int]) -> None:
        """Load these blocks in a thread, instead of those of an earlier call that it has not begun.

        As many as fit into half the limit, by what `nbytes` expects of each: what is in use stays.
        """
        room = self._limit // 2
        with self._lock:
            self._ahead.clear()
            for number in numbers:
                if number in self._blocks or number in self._loading:
                    continue
                room -= nbytes(number)
                if room < 0:
                    break
                self._ahead.append(number)
            if not self._ahead or self._reads_ahead:
                return
            self._reads_ahead = True
        threading.Thread(target=self._read_ahead, name="holdfast-read-ahead").start()

    def _read_ahead(self) -> None:
        """Until there is nothing more to load. Whoever needs a block that failed loads it, and is told."""
        main = threading.main_thread()
        while True:
            with self._lock:
                if (
                    not self._ahead or not main.is_alive()
                ):  # the end of the process waits for one block at most
                    self._reads_ahead = False
                    return
                number = self._ahead.popleft()
            with suppress(Exception):
                self.get(number)

    def _keep(self, number: int, block: Part) -> None:
        self._blocks[number] = block
        self._nbytes += _nbytes(block)
        while self._nbytes > self._limit and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self._nbytes -= _nbytes(oldest)


def _nbytes(block: Part) -> int:
    return sum(array.nbytes for _, array in leaves(block))
