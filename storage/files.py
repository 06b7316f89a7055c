"""Files of a user's own, at any URL: one of them, or those below a directory."""

from __future__ import annotations

import errno
import io
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.errors import ConfigurationError, ObjectMissing
from storage.file_store import sync_directory
from storage.layout import check_key, check_name
from storage.store import Store, check_url, open_store, translated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import WriteableBuffer

    from storage.store import ObjectInfo


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object of a store, which may have any name (`storage.layout.check_key`)."""

    store: Store
    key: str

    @property
    def url(self) -> str:
        """Its URL, or its absolute path."""
        return f"{self.store.url}/{self.key}"

    @property
    def path(self) -> str | None:
        """Its path on this machine; None where it is not a file here."""
        return None if "://" in self.store.url else self.url

    def info(self) -> ObjectInfo:
        """Its size and tag. Raises ObjectMissing if there is no such file."""
        return self.store.info(self.key)

    def read(self, start: int | None = None, stop: int | None = None) -> bytes:
        """Its bytes, or those of [start, stop) as far as they go."""
        return self.store.read(self.key, start, stop)

    def write(self, *data: bytes | memoryview) -> None:
        """Make it of these buffers, one behind the other, whole or not at all.

        On this machine it may have any name. Raises ConfigurationError for one that stores elsewhere refuse.
        """
        try:
            check_name(self.key)
        except ValueError as exc:
            if self.path is None:
                raise ConfigurationError(f"{self.url} cannot be written: {exc}") from exc
            plain = StoredFile(self.store, uuid.uuid4().hex)  # stores write plain names alone
            plain.write(*data)
            try:
                with translated("write", self.store.url, self.key):
                    os.replace(plain.url, self.url)
                    sync_directory(self.store.url)
            finally:
                self.store.delete([plain.key])
        else:
            self.store.write(self.key, data)

    def delete(self) -> None:
        """Remove it; none is no error."""
        self.store.delete([self.key])


def file_at(url: str) -> StoredFile:
    """The file of this URL or path, which need not be there.

    Raises ConfigurationError for what cannot be the URL of a file.
    """
    check_url(url)
    if "://" not in url:
        url = os.path.abspath(os.path.expanduser(url))
    head, _, name = url.rpartition("/")
    if head.endswith(":/"):
        name = ""
    try:
        check_key(name)
    except ValueError as exc:
        raise ConfigurationError(
            f"{url} is not the URL of a file: give one such as s3://bucket/name"
        ) from exc
    return StoredFile(open_store(head or "/"), name)


def is_file(url: str) -> bool:
    """Whether there is a file at a URL or path."""
    try:
        file_at(url).info()
    except (ObjectMissing, ConfigurationError):
        return False
    return True


def files_below(url: str, suffixes: Sequence[str]) -> dict[StoredFile, int]:
    """The files below a directory whose names end so, in whatever case, sorted by key, with sizes in bytes.

    Hidden ones, and those in hidden directories, are left out.
    """
    store = open_store(url)
    found = sorted(store.list().items())
    return {StoredFile(store, key): nbytes for key, nbytes in found if key.lower().endswith(tuple(suffixes))}


def files_at(url: str, suffixes: Sequence[str]) -> list[StoredFile]:
    """The file of this URL, whatever its name, or those below the directory of this URL.

    Raises ConfigurationError if there is neither.
    """
    check_url(url)
    if is_file(url):
        return [file_at(url)]
    found = [*files_below(url, suffixes)]
    if not found:
        raise ConfigurationError(
            f"{url}: there is no such file, and no directory with files {', '.join(suffixes)}"
        )
    return found


class RangeReader(io.RawIOBase):
    """A stored file as Python reads one: each read is of a range of bytes, and nothing is kept."""

    def __init__(self, file: StoredFile, nbytes: int) -> None:
        super().__init__()
        self._file = file
        self._nbytes = nbytes
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place of the file; returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._nbytes}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "there is nothing before the beginning of a file")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes, or all to the end; fewer only at the end."""
        left = max(self._nbytes - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._file.read(self._at, self._at + wanted) if wanted else b""
        self._at += len(data)
        return data

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer as far as bytes are left; returns how many there were."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
