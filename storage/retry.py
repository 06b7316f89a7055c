"""Trying again what a storage service or a network failed to do."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, TypeVar

from storage.errors import ObjectMissing, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

DEADLINE_S = 120.0
"""Seconds after which an operation is not begun again."""

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0


def retrying(operation: Callable[[], _T], deadline_s: float = DEADLINE_S) -> _T:
    """The result of `operation`, which is begun anew after a StorageError until the deadline has passed.

    The waits double, with full jitter. A missing object is an answer, and a ConfigurationError does not pass:
    neither is tried again.
    """
    end = time.monotonic() + deadline_s
    wait = _FIRST_WAIT_S
    while True:
        try:
            return operation()
        except ObjectMissing:
            raise
        except StorageError:
            pause = random.uniform(0.0, wait)
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        wait = min(2 * wait, _LONGEST_WAIT_S)
