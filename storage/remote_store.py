"""What stores at the other end of a network have in common: what fails there is tried again."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import TYPE_CHECKING, TypeVar

from storage.errors import ObjectMissing, StorageError
from storage.layout import check_key, check_name
from storage.retry import DEADLINE_S, retrying
from storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class RemoteStore(Store):
    """What fails for a moment is tried again; what was created is recognised where the answer was lost."""

    deadline_s = DEADLINE_S
    """Seconds for which a failing operation is tried again; an eighth of it until the service has answered
    once.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._has_answered = False

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        check_key(key)
        if start is not None and stop is not None and start >= stop:
            return b""
        return self._again(lambda: self._read_once(key, start, stop))

    def create(self, key: str, data: bytes) -> bool:
        check_name(key)
        if not self.is_exclusive and self._is_there(key):
            return False

        def once() -> bool:
            try:
                self._create_once(key, data)
            except StorageError:
                # It exists, or the answer was lost on its way: what is there now tells which. Where nothing
                # is there, or nobody answers, the first error is the news, and it is tried again as a whole.
                with contextlib.suppress(StorageError):
                    return self._read_once(key) == data
                raise
            return True

        return self._again(once)

    @abstractmethod
    def _create_once(self, key: str, data: bytes) -> None:
        """Store a small object; StorageError if that fails, also because there is one already."""

    @abstractmethod
    def _read_once(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """What `read` gives, in one try."""

    def _again(self, operation: Callable[[], _T]) -> _T:
        result = retrying(operation, self.deadline_s if self._has_answered else self.deadline_s / 8)
        self._has_answered = True
        return result

    def _is_there(self, key: str) -> bool:
        try:
            self.read(key)
        except ObjectMissing:
            return False
        return True
