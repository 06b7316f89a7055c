"""What is asked of a place that keeps objects: the interface of file systems and object stores."""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError, HoldfastError, ObjectMissing, StorageError
from storage.layout import check_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_SETTING_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_CREDENTIAL_ERRORS = {  # by name: their packages are optional
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
}
_MISSING_ERRORS = {"ResourceNotFoundError"}  # of Azure, for a container


def open_store(url: str) -> Store:
    """The store at a local path, `file://`, `sftp://`, `s3://` or any other fsspec URL. Connects nowhere.

    Raises ConfigurationError for a URL that cannot work, MissingExtra if its package is not installed.
    """
    check_url(url)
    scheme, separator, rest = url.partition("://")
    if scheme in ("sftp", "ssh") and separator:
        from storage.ssh_store import SshStore

        return SshStore(url.rstrip("/"))
    if separator and scheme not in ("file", "local"):
        from storage.object_store import ObjectStore

        instead = "give that in the environment or in a file, as the storage's own tools take it"
        check_no_password(url, instead)
        return ObjectStore(url.rstrip("/"))
    from storage.file_store import FileStore

    return FileStore(os.path.abspath(rest if separator else os.path.expanduser(url)))


def check_no_password(url: str, instead: str) -> None:
    """Raise ConfigurationError, which says what to do `instead`, for a URL with a password."""
    scheme, _, rest = url.partition("://")
    user, at, host = rest.partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise ConfigurationError(
            f"{scheme}://...@{host}: a URL is stored and shown, so it must hold no password: {instead}"
        )


def check_url(url: str) -> None:
    """Raise ConfigurationError for what cannot be the URL of a place, or no string."""
    is_text = isinstance(url, str)
    if not is_text or not url.partition("://")[2 if "://" in url else 0] or "\0" in url or "::" in url:
        raise ConfigurationError(
            f"{url!r} is not the URL of a place: give a path or a URL such as s3://bucket/run"
            + ("" if is_text else ", as a str")
        )


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it."""

    nbytes: int
    tag: str | None = None
    """What the store gave its content, such as an ETag; None where it gives nothing of the kind."""


class Store(ABC):
    """Objects under one URL. A key is relative to it: segments of `[A-Za-z0-9_.-]` joined by `/`.

    Objects that others wrote can be read and listed under names of other letters too (`check_key`).

    Storing an object is atomic: a reader finds all of it or none. May be shared by threads and pickled (only
    the URL travels); what a fork inherits is made anew.
    """

    is_exclusive = True
    """Whether `create` has exactly one winner; False once a probe has shown that the backend's has not."""

    parallel_reads = 2
    """Reads that are worth making at a time."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.url,)

    @abstractmethod
    def list(self, prefix: str = "") -> dict[str, int]:
        """Size in bytes of every object below the directory `prefix`, recursively; {} where there is none."""

    @abstractmethod
    def children(self, prefix: str = "") -> Sequence[str]:
        """Keys of the directories directly below `prefix`, sorted; what is inside them is not looked at."""

    def is_there(self) -> bool:
        """Whether the directory itself is there; always where directories are but parts of names."""
        return True

    @abstractmethod
    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The object's bytes, or those of [start, stop) as far as they go; ObjectMissing if there is none."""

    def info(self, key: str) -> ObjectInfo:
        """The object's size, and its tag where there is one; ObjectMissing if there is none of that key."""
        check_key(key)
        nbytes = self.list(key.rpartition("/")[0]).get(key)
        if nbytes is None:
            raise ObjectMissing(f"{self.url}/{key} does not exist")
        return ObjectInfo(nbytes)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> int:
        """In place. Fill the buffers, one behind the other, from byte `start`; returns how far it came."""
        data = memoryview(self.read(key, start, start + sum(len(b) for b in buffers)))
        at = 0
        for buffer in buffers:
            piece = data[at : at + len(buffer)]
            buffer[: len(piece)] = piece
            at += len(piece)
        return at

    @abstractmethod
    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        """Store the buffers as one object in the place of any other, durably; returns its size in bytes.

        `buffers` is iterated anew each time an attempt at it has to be repeated; a large object is never
        held in memory as a whole.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Store a small object unless there is one already; True for exactly one of all callers.

        `data` must be the caller's own (hold a nonce): on an object store that answers "exists" or nothing
        at all, finding exactly `data` there counts as success, because a retry may have met its own work.
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""

    @abstractmethod
    def delete_directory(self, prefix: str) -> None:
        """Remove everything below `prefix`, also what killed writers left there and `list` does not show."""

    @abstractmethod
    def last_change(self, prefix: str) -> float | None:
        """When anything below the directory `prefix` was last stored, in Unix seconds of the store's clock.

        None where there is nothing, not even what a killed writer left.
        """


@contextlib.contextmanager
def translated(verb: str, url: str, key: str) -> Iterator[None]:
    """Turn whatever a backend raises into one of our errors, naming the URL and the cause.

    What a setting, a credential or a permission causes is a ConfigurationError, what may pass a StorageError.
    """
    where = f"{url}/{key}" if key else url
    try:
        yield
    except HoldfastError:
        raise
    except Exception as exc:  # backends raise errors of packages we cannot name
        if isinstance(exc, FileNotFoundError) or type(exc).__name__ in _MISSING_ERRORS:
            if verb == "read":
                raise ObjectMissing(f"{where} does not exist") from exc
            raise ConfigurationError(
                f"cannot {verb} {where}: {url} does not exist or is not ready: create it"
            ) from exc
        cause = _one_line(exc)
        number = exc.errno if isinstance(exc, OSError) else None
        if (
            isinstance(exc, PermissionError)
            or number in _SETTING_ERRNOS
            or type(exc).__name__ in _CREDENTIAL_ERRORS
        ):
            raise ConfigurationError(
                f"cannot {verb} {where}: {cause}: check the URL and your access to it"
            ) from exc
        raise StorageError(f"cannot {verb} {where}: {cause}") from exc


def _one_line(exc: Exception) -> str:
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return " ".join(text.split())[:300] or type(exc).__name__
