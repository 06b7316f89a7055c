"""The sums of several nodes' gradients, in shared memory of their own: parts of the reduction tree.

A part is the sum over the leaves below one node of the tree (`schedule.subtrees`). This node's own are
written by its workers, those of other nodes are fetched into place.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from storage.errors import SharedMemoryTooSmall
from workers.processes import available_memory
from workers.state import page_up

if TYPE_CHECKING:
    from workers.engine import Flat, Sums


class Parts:
    """`count` places for a gradient and its sums: `grads[i]`, of `length` elements, and `sums[i]`."""

    def __init__(self, path: str, count: int, length: int, num_metrics: int) -> None:
        self.path = path
        self.count = count
        sums_nbytes, grads_nbytes = page_up(num_metrics * 16), page_up(length * 4)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(fd, count * (sums_nbytes + grads_nbytes), mmap.MAP_SHARED)
        finally:
            os.close(fd)
        starts = [i * (sums_nbytes + grads_nbytes) for i in range(count)]
        self.grads: list[Flat] = [np.frombuffer(memory, "<f4", length, at + sums_nbytes) for at in starts]
        self.sums: list[Sums] = [
            np.frombuffer(memory, "<f8", num_metrics * 2, at).reshape(num_metrics, 2) for at in starts
        ]

    @classmethod
    def create(cls, path: str, count: int, length: int, num_metrics: int) -> Parts:
        """Reserve the memory, mode 0600. Raises SharedMemoryTooSmall."""
        directory = os.path.dirname(path)
        nbytes = count * (page_up(num_metrics * 16) + page_up(length * 4))
        available = available_memory(directory)
        if nbytes > available:
            raise _too_small(directory, nbytes, available)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            os.unlink(path)
            raise _too_small(directory, nbytes, available_memory(directory)) from error
        finally:
            os.close(fd)
        return cls(path, count, length, num_metrics)

    def remove(self) -> None:
        """Delete the file; mappings stay usable until they are closed."""
        if os.path.lexists(self.path):
            os.unlink(self.path)


def _too_small(directory: str, needed: int, available: int) -> SharedMemoryTooSmall:
    return SharedMemoryTooSmall(
        f"the sums that nodes exchange need {needed} bytes of shared memory in {directory}, but {available} "
        "bytes are available: enlarge it, or free some"
    )
