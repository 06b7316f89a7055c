"""A directory of a file system, local or mounted, where every write is made durable before it counts."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import threading
import uuid
from typing import TYPE_CHECKING

from storage.errors import ConfigurationError
from storage.layout import check_key, check_name
from storage.libc import from_libc
from storage.store import ObjectInfo, Store, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

SCRATCH = ".tmp-"  # no key may start with a dot, so scratch names are never objects
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_MAX_BUFFERS = 1024  # IOV_MAX of Linux and macOS
BATCH_NBYTES = 8 << 20  # written by one system call, about
_LARGE_NBYTES = 64 << 20  # of a file that it takes long to delete
_SYNC_FILE_RANGE_WRITE = 2

_sync_file_range = from_libc("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class FileStore(Store):
    """Objects are files; a key is a path below the store's directory."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._durable: set[str] = set()  # directories whose names we have flushed

    def list(self, prefix: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        top = self._readable(prefix.rstrip("/")) if prefix else self.url

        def refuse(exc: OSError) -> None:
            nothing_there = isinstance(exc, FileNotFoundError)
            if not nothing_there and not (prefix and isinstance(exc, NotADirectoryError)):
                raise exc

        with translated("list", self.url, prefix):
            for directory, names, files in os.walk(top, onerror=refuse):
                names[:] = [name for name in names if not name.startswith(".")]
                for name in files:
                    if name.startswith("."):
                        continue
                    path = f"{directory}/{name}"
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        found[os.path.relpath(path, self.url).replace(os.sep, "/")] = os.stat(path).st_size
        return found

    def children(self, prefix: str = "") -> Sequence[str]:
        top = self._readable(prefix.rstrip("/")) if prefix else self.url
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        try:
            with translated("list", self.url, prefix), os.scandir(top) as items:
                return sorted(
                    below + item.name for item in items if not item.name.startswith(".") and item.is_dir()
                )
        except ConfigurationError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise

    def is_there(self) -> bool:
        try:
            os.stat(self.url)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # whoever lists it is told
            return True
        return True

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        path = self._readable(key)
        with translated("read", self.url, key), open(path, "rb", buffering=0, opener=_open_regular) as f:
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

    def info(self, key: str) -> ObjectInfo:
        path = self._readable(key)
        with translated("read", self.url, key):
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "it is not a regular file")
        return ObjectInfo(status.st_size)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> int:
        path = self._readable(key)
        with translated("read", self.url, key):
            fd = _open_regular(path, os.O_RDONLY)
            try:
                return _transfer(lambda views, done: os.preadv(fd, views, start + done), buffers)
            finally:
                os.close(fd)

    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        path = self._path(key)
        with translated("write", self.url, key), self._scratch(path, buffers) as (scratch, nbytes):
            _replace(scratch, path)
        return nbytes

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with translated("create", self.url, key), self._scratch(path, (data,)) as (scratch, _):
            try:
                os.link(scratch, path)
            except FileExistsError:
                # The server of a mounted file system may have done it and lost the answer: it is ours then.
                with contextlib.suppress(FileNotFoundError):
                    return os.path.samefile(scratch, path)
                return False
            except OSError as exc:
                if exc.errno in _NO_LINKS:
                    raise ConfigurationError(
                        f"cannot create {self.url}/{key}: this file system has no hard links, by which one "
                        "of two coordinators is chosen: use another"
                    ) from exc
                raise
            os.unlink(scratch)
        return True

    def delete(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        directories = {os.path.dirname(path) for path in paths}
        with translated("delete", self.url, ""):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            for directory in sorted(directories, key=len, reverse=True):
                with contextlib.suppress(FileNotFoundError):
                    sync_directory(directory)
                self._remove_empty(directory)

    def delete_directory(self, prefix: str) -> None:
        path = self._path(prefix.rstrip("/"))
        with translated("delete", self.url, prefix), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
            sync_directory(os.path.dirname(path))

    def last_change(self, prefix: str) -> float | None:
        times = []
        with translated("read", self.url, prefix):
            for directory, _, files in os.walk(self._path(prefix.rstrip("/"))):
                for path in (directory, *(f"{directory}/{name}" for name in files)):
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        times.append(os.stat(path).st_mtime)
        return max(times, default=None)

    def _path(self, key: str) -> str:
        check_name(key)
        return f"{self.url}/{key}"

    def _readable(self, key: str) -> str:
        check_key(key)
        return f"{self.url}/{key}"

    @contextlib.contextmanager
    def _scratch(self, path: str, buffers: Iterable[bytes | memoryview]) -> Iterator[tuple[str, int]]:
        """A flushed file beside `path`; the body gives it its name, which then is made durable."""
        directory = os.path.dirname(path)
        scratch = f"{directory}/{SCRATCH}{uuid.uuid4().hex}"
        fd = self._create_with_directories(scratch)
        try:
            try:
                self._make_durable(directory)
                nbytes = 0
                for batch in batches(buffers):
                    moved = _transfer(lambda views, _: os.writev(fd, views), batch)
                    _start_writing_back(fd, nbytes, moved)
                    nbytes += moved
                os.fsync(fd)
            finally:
                os.close(fd)
            yield scratch, nbytes
            sync_directory(directory)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(scratch)

    def _create_with_directories(self, path: str) -> int:
        """A new file open for writing; its directories are made as needed."""
        for _ in range(10):  # a concurrent delete may remove an empty directory that was just made
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._durable.difference_update(_make_directories(os.path.dirname(path)))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def _make_durable(self, directory: str) -> None:
        """Flush the name of `directory`, and of those above it, as far as the store's own.

        Once, and whoever made them: he may have died, or be about to, before he did so himself.
        """
        names = []
        while directory not in self._durable and len(directory) >= len(self.url):
            names.append(directory)
            directory = os.path.dirname(directory)
        for name in reversed(names):
            try:
                sync_directory(os.path.dirname(name))
            except PermissionError:
                if name != self.url:  # what it lies in may be another's
                    raise
            self._durable.add(name)

    def _remove_empty(self, directory: str) -> None:
        """Remove `directory` and what is above it as far as it is empty, but never the store's own."""
        with contextlib.suppress(OSError):
            while directory.startswith(f"{self.url}/"):
                os.rmdir(directory)
                directory = os.path.dirname(directory)


def _replace(scratch: str, path: str) -> None:
    """Give a file its name. What a large one before it had in memory is freed while others go on."""
    old = -1
    with contextlib.suppress(OSError):
        old = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.replace(scratch, path)
    finally:
        if old >= 0 and os.fstat(old).st_size >= _LARGE_NBYTES:
            _close_later(old)
        elif old >= 0:
            os.close(old)


def _close_later(fd: int) -> None:
    try:
        threading.Thread(target=os.close, args=(fd,), name="close").start()
    except RuntimeError:  # the interpreter ends, or there are too many threads
        os.close(fd)


def _start_writing_back(fd: int, start: int, nbytes: int) -> None:
    """Have the kernel bring these bytes to the disk while more are written: the flush at the end is short."""
    if _sync_file_range is not None:
        _sync_file_range(fd, start, nbytes, _SYNC_FILE_RANGE_WRITE)


def _open_regular(path: str, flags: int) -> int:
    """A descriptor of a regular file: a pipe would be waited for, and a device has no end."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # reading a directory fails by itself
        return fd
    os.close(fd)
    raise PermissionError(errno.EACCES, "it is not a regular file")


def _make_directories(path: str) -> list[str]:
    """Make a directory and those above it; returns those that were not there."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.mkdir(directory)
    return missing


def sync_directory(path: str) -> None:
    """Make what was created, renamed or removed in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def batches(buffers: Iterable[bytes | memoryview]) -> Iterator[list[memoryview]]:
    """The buffers in groups that are worth a system call, taken from their source as they are needed."""
    batch: list[memoryview] = []
    nbytes = 0
    for buffer in buffers:
        whole = memoryview(buffer).cast("B")
        for start in range(0, len(whole), BATCH_NBYTES):
            batch.append(whole[start : start + BATCH_NBYTES])
            nbytes += len(batch[-1])
            if nbytes >= BATCH_NBYTES or len(batch) == _MAX_BUFFERS:
                yield batch
                batch, nbytes = [], 0
    if batch:
        yield batch


def _transfer(move: Callable[[list[memoryview], int], int], buffers: Iterable[memoryview]) -> int:
    """Read into, or write, all the buffers with as many system calls as it takes; returns the bytes moved.

    `move` is given the buffers that are left and the bytes moved so far; 0 from it is the end of the file.
    """
    left = [buffer for buffer in buffers if len(buffer)]
    total = 0
    while left:
        moved = move(left[:_MAX_BUFFERS], total)
        if moved == 0:
            break
        total += moved
        while left and moved >= len(left[0]):
            moved -= len(left.pop(0))
        if moved:
            left[0] = left[0][moved:]
    return total
