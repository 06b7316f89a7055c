"""Objects whose variables come to be after them, and those who wait for that with values."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Awaited:
    """Base of what may be built later than it is made."""

    _waiting: tuple[Callable[[], bool], ...] = ()

    def await_more(self, look: Callable[[], bool]) -> None:
        """In place. Have `look` called whenever more of this has been built, until it returns True."""
        self._waiting = (*self._waiting, look)

    def tell_more(self) -> None:
        """In place. Call those who wait, as something may have been built."""
        if self._waiting:
            self._waiting = tuple(look for look in self._waiting if not look())
