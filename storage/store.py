"""The five things asked of a place that keeps objects, on file systems and on any fsspec backend.

The only importer of fsspec, and it imports it when a URL first needs it. Errors of third parties become
ours here: what a setting, a credential or a permission causes is a ConfigurationError, what may pass is a
StorageError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError, HoldfastError, MissingExtra, ObjectMissing, StorageError
from storage.layout import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
    "sftp": "ssh",
    "ssh": "ssh",
}
_SCRATCH = ".tmp-"  # no key may start with a dot, so scratch names are never objects
_MAX_BUFFERS = 1024  # IOV_MAX of Linux and macOS
_SETTING_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_CREDENTIAL_ERRORS = {  # by name: their packages are optional
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
}
_memory_create = threading.Lock()


def open_store(url: str) -> Store:
    """The store at a local path, `file://`, `memory://`, `s3://` or any other fsspec URL. Connects nowhere.

    Raises ConfigurationError for a URL that cannot work, MissingExtra if its package is not installed.
    """
    if not url or "\0" in url or "::" in url:
        raise ConfigurationError(
            f"{url!r} is not the URL of a place: give a path or a URL such as s3://bucket/run"
        )
    scheme, separator, rest = url.partition("://")
    if not separator:
        return FileStore(os.path.abspath(os.path.expanduser(url)))
    if scheme in ("file", "local"):
        return FileStore(os.path.abspath(rest))
    _find_backend(scheme, url)
    return ObjectStore(url.rstrip("/"))


class Store(ABC):
    """Objects under one URL. A key is relative to it: segments of `[A-Za-z0-9_.-]` joined by `/`.

    Storing an object is atomic: a reader finds all of it or none. May be shared by threads and pickled (only
    the URL travels); what a fork inherits is made anew.
    """

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
    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The object's bytes, or those of [start, stop) as far as they go; ObjectMissing if there is none."""

    @abstractmethod
    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        """Store the buffers as one object in the place of any other, durably; returns its size in bytes."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Store a small object unless there is one already; True for exactly one of all callers.

        `data` must be the caller's own (hold a nonce): on an object store that answers "exists" or nothing
        at all, finding exactly `data` there counts as success, because a retry may have met its own work.
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""


class FileStore(Store):
    """A directory of a file system, local or mounted."""

    def list(self, prefix: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        top = self._path(prefix.rstrip("/")) if prefix else self.url

        def refuse(exc: OSError) -> None:
            nothing_there = isinstance(exc, FileNotFoundError)
            if not nothing_there and not (prefix and isinstance(exc, NotADirectoryError)):
                raise exc

        with self._errors("list", prefix):
            for directory, names, files in os.walk(top, onerror=refuse):
                names[:] = [name for name in names if not name.startswith(".")]
                for name in files:
                    if name.startswith("."):
                        continue
                    path = f"{directory}/{name}"
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        found[os.path.relpath(path, self.url).replace(os.sep, "/")] = os.stat(path).st_size
        return found

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        path = self._path(key)
        with self._errors("read", key), open(path, "rb", buffering=0) as f:
            if start:
                f.seek(start)
            if stop is None:
                return f.readall()
            pieces = []
            left = stop - (start or 0)
            while left > 0 and (piece := f.read(left)):
                pieces.append(piece)
                left -= len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        path = self._path(key)
        with self._errors("write", key), self._scratch(path, buffers) as (scratch, nbytes):
            os.replace(scratch, path)
        return nbytes

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._errors("create", key), self._scratch(path, (data,)) as (scratch, _):
            try:
                os.link(scratch, path)
            except FileExistsError:
                return False
            os.unlink(scratch)
        return True

    def delete(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        directories = {os.path.dirname(path) for path in paths}
        with self._errors("delete", ""):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            for directory in sorted(directories, key=len, reverse=True):
                with contextlib.suppress(FileNotFoundError):
                    _sync_directory(directory)
                self._remove_empty(directory)

    def _path(self, key: str) -> str:
        check_name(key)
        return f"{self.url}/{key}"

    @contextlib.contextmanager
    def _scratch(self, path: str, buffers: Iterable[bytes | memoryview]) -> Iterator[tuple[str, int]]:
        """A flushed file beside `path`; the body gives it its name, which then is made durable."""
        directory = os.path.dirname(path)
        scratch = f"{directory}/{_SCRATCH}{uuid.uuid4().hex}"
        fd = _create_with_directories(scratch)
        try:
            try:
                nbytes = _write_all(fd, list(buffers))
                os.fsync(fd)
            finally:
                os.close(fd)
            yield scratch, nbytes
            _sync_directory(directory)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(scratch)

    def _remove_empty(self, directory: str) -> None:
        """Remove `directory` and what is above it as far as it is empty, but never the store's own."""
        with contextlib.suppress(OSError):
            while directory.startswith(f"{self.url}/"):
                os.rmdir(directory)
                directory = os.path.dirname(directory)

    def _errors(self, verb: str, key: str) -> contextlib.AbstractContextManager[None]:
        return _translated(verb, self.url, key)


class ObjectStore(Store):
    """A place that fsspec opens, where storing an object replaces it as a whole."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._opened: tuple[int, Any, str] | None = None

    def list(self, prefix: str = "") -> dict[str, int]:
        fs, root = self._open()
        if prefix:
            check_name(prefix.rstrip("/"))
        found = {}
        with _translated("list", self.url, prefix):
            try:
                infos = fs.find(f"{root}/{prefix}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            below = f"{root}/{prefix.rstrip('/')}/" if prefix else f"{root}/"
            for name, info in infos.items():
                key = name[len(root) + 1 :]
                if info["type"] == "file" and name.startswith(below) and "/." not in f"/{key}":
                    found[key] = int(info["size"])
        return found

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        fs, path = self._at(key)
        if start is not None and stop is not None and start >= stop:
            return b""
        with _translated("read", self.url, key):
            data = fs.cat_file(path, start=start, end=stop)
        return data if isinstance(data, bytes) else bytes(data)

    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        fs, path = self._at(key)
        data = b"".join(buffers)
        with _translated("write", self.url, key):
            fs.pipe_file(path, data)
        return len(data)

    def create(self, key: str, data: bytes) -> bool:
        fs, path = self._at(key)
        try:
            with _translated("create", self.url, key), self._exclusion():
                fs.pipe_file(path, data, mode="create")
        except StorageError:
            # It exists, or the answer was lost on its way: what is there now tells which. Where nothing is
            # there, the first error is the news.
            try:
                return self.read(key) == data
            except ObjectMissing:
                pass
            raise
        return True

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            fs, path = self._at(key)
            with _translated("delete", self.url, key), contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)

    def _open(self) -> tuple[Any, str]:
        """The fsspec instance of this process, made when first needed, and the root's path in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            with _translated("open", self.url, ""):
                # a cached listing would hide the newest checkpoint
                fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1:]

    def _at(self, key: str) -> tuple[Any, str]:
        check_name(key)
        fs, root = self._open()
        return fs, f"{root}/{key}"

    def _exclusion(self) -> contextlib.AbstractContextManager[Any]:
        """fsspec's memory file system looks first and stores then, so two threads could both succeed."""
        return _memory_create if self.url.startswith("memory:") else contextlib.nullcontext()


def _find_backend(scheme: str, url: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as exc:
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'holdfast[{extra}]'" if extra else str(exc)
        raise MissingExtra(f"{scheme}:// needs a package that is not installed: {how}") from exc
    except ValueError as exc:
        raise ConfigurationError(
            f"{url}: {scheme}:// is not known: use a path, file://, memory://, s3://, gs:// or az://"
        ) from exc


@contextlib.contextmanager
def _translated(verb: str, url: str, key: str) -> Iterator[None]:
    """Turn whatever a backend raises into one of our errors, naming the URL and the cause."""
    where = f"{url}/{key}" if key else url
    try:
        yield
    except HoldfastError:
        raise
    except FileNotFoundError as exc:
        if verb == "read":
            raise ObjectMissing(f"{where} does not exist") from exc
        raise ConfigurationError(
            f"cannot {verb} {where}: {url} does not exist or is not ready: create it"
        ) from exc
    except Exception as exc:  # backends raise errors of packages we cannot name
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


def _create_with_directories(path: str) -> int:
    """A new file open for writing; its directories are made, durably, as needed."""
    for _ in range(10):  # a concurrent delete may remove an empty directory that was just made
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _make_directories(os.path.dirname(path))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _make_directories(path: str) -> None:
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.mkdir(directory)
            _sync_directory(os.path.dirname(directory))


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    """Write the buffers one behind the other, without joining them; returns the bytes written."""
    views = [memoryview(b).cast("B") for b in buffers if len(b)]
    total = sum(len(v) for v in views)
    first = 0
    while first < len(views):
        written = os.writev(fd, views[first : first + _MAX_BUFFERS])
        while first < len(views) and written >= len(views[first]):
            written -= len(views[first])
            first += 1
        if written:
            views[first] = views[first][written:]
    return total
