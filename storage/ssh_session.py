"""A session with an SSH server: its connection, the thread that it lives in, and what is asked over SFTP.

The only importer of asyncssh, which it imports when a session begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import threading
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import ConfigurationError
from storage.store import check_no_password

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Iterator
    from concurrent.futures import Future

    import asyncssh

_T = TypeVar("_T")

_CONNECT_S = 30.0
_KEEPALIVE_S = 15.0  # asyncssh gives a connection up after three of these without an answer
_AT_ONCE = 16  # directories that are listed, or files that are deleted, at a time
_DIRECTORY_TRIES = 10  # a concurrent delete may remove an empty directory that was just made


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL says; what it leaves out is for `~/.ssh/config` to say."""

    url: str
    host: str
    root: str
    given: dict[str, Any]


def parse(url: str) -> Place:
    """What a URL says; ConfigurationError where it cannot work."""
    scheme, _, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    check_no_password(url, "use a key, or an agent")
    try:
        parts = urllib.parse.urlsplit(f"//{netloc}")
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError as exc:
        raise ConfigurationError(f"{url}: {exc}: give {scheme}://USER@HOST:PORT/PATH") from exc
    if not host or parts.netloc != netloc:
        raise ConfigurationError(f"{url} names no host: give {scheme}://USER@HOST:PORT/PATH")
    given: dict[str, Any] = {} if port is None else {"port": port}
    if user:
        given["username"] = urllib.parse.unquote(user)
    return Place(url, host, (slash + path).rstrip("/"), given)


class LoopThread:
    """An event loop that runs in a thread of its own until it is told to end."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.sessions: set[Session] = set()
        """Those that are open; only the loop changes it."""
        self._loop = asyncio.new_event_loop()
        # Each failure reaches its caller. Those of the other requests of a lost connection have none.
        self._loop.set_exception_handler(lambda loop, context: None)
        threading.Thread(target=self._serve, name="holdfast-ssh", daemon=True).start()

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def give_up(self, session: Session) -> None:
        def abort() -> None:
            self.sessions.discard(session)
            session.connection.abort()

        self._loop.call_soon_threadsafe(abort)

    def end(self) -> None:
        """Close what is open, soon: whoever collects garbage may say so, in any thread, and must not wait."""
        if self.pid == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        for session in self.sessions:
            session.connection.abort()
        for session in self.sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.connection.wait_closed(), 5.0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()


class Session:
    """A connection and the SFTP channel in it; used in one event loop only. Raises OSErrors."""

    def __init__(
        self, connection: asyncssh.SSHClientConnection, sftp: asyncssh.SFTPClient, answer_s: float
    ) -> None:
        self.connection = connection
        self.sftp = sftp
        self._answer_s = answer_s
        self._flushes = True
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def answer(self, request: Awaitable[_T]) -> _T:
        """What the server answers; TimeoutError where it says nothing."""
        timeout = asyncio.timeout(self._answer_s)
        try:
            with _as_os_errors():
                async with timeout:
                    return await request
        except TimeoutError:
            if timeout.expired():
                raise TimeoutError(f"the server has not answered for {self._answer_s:g} s") from None
            raise

    @contextlib.asynccontextmanager
    async def opened(self, path: str) -> AsyncIterator[asyncssh.SFTPClientFile]:
        """A file that is there, for reading."""
        file = await self.answer(self.sftp.open(path, "rb"))
        async with self._closing(file):
            yield file

    async def created(self, path: str) -> asyncssh.SFTPClientFile:
        """A new file, for writing; its directories are made, durably, as needed."""
        for _ in range(_DIRECTORY_TRIES):
            with contextlib.suppress(FileNotFoundError):
                return await self.answer(self.sftp.open(path, "xb"))
            await self._make_directories(os.path.dirname(path))
        return await self.answer(self.sftp.open(path, "xb"))

    async def flush(self, file: asyncssh.SFTPClientFile) -> None:
        """Have the server write to its disk what it has of a file, if it is able to."""
        if self._flushes:
            try:
                await self.answer(file.fsync())
            except OSError as exc:
                if exc.errno != errno.EOPNOTSUPP:
                    raise
                self._flushes = False

    async def flush_directory(self, path: str) -> None:
        """Likewise the names in a directory, if it can be opened like a file, as on an OpenSSH server."""
        if self._flushes:
            try:
                directory = await self.answer(self.sftp.open(path or "/", "rb"))
            except (ConnectionError, TimeoutError):
                raise
            except OSError:
                return  # deleted meanwhile, or not to be opened
            async with self._closing(directory):
                await self.flush(directory)

    async def rename(self, old: str, new: str) -> None:
        """Give a file the name of another one, in its place."""
        with _needed("posix-rename@openssh.com"):
            await self.answer(self.sftp.posix_rename(old, new))

    async def link(self, old: str, new: str) -> None:
        """Give a file one more name, which nothing may have yet."""
        with _needed("hardlink@openssh.com"):
            await self.answer(self.sftp.link(old, new))

    async def remove(self, paths: Iterable[str]) -> None:
        """Remove files; those that are not there are no error."""

        async def one(path: str) -> None:
            async with self._slots:
                with contextlib.suppress(FileNotFoundError):
                    await self.answer(self.sftp.remove(path))

        await asyncio.gather(*map(one, paths))

    async def remove_empty(self, directory: str, root: str) -> None:
        """Remove a directory and what is above it as far as it is empty, but never `root`."""
        with contextlib.suppress(OSError):
            while directory.startswith(f"{root}/"):
                await self.answer(self.sftp.rmdir(directory))
                directory = os.path.dirname(directory)

    async def scan(self, directory: str, *, scratch: bool) -> dict[str, asyncssh.SFTPAttrs]:
        """What is directly in a directory, by path; {} where there is none."""
        async with self._slots:
            try:
                names = await self.answer(self.sftp.readdir(directory or "/"))
            except FileNotFoundError:
                return {}
        found = {str(name.filename): name.attrs for name in names}
        return {
            f"{directory}/{name}": attrs
            for name, attrs in found.items()
            if name not in (".", "..") and (scratch or not name.startswith("."))
        }

    async def walk(self, top: str, *, scratch: bool) -> dict[str, asyncssh.SFTPAttrs]:
        """What is below a directory, by path; links are not followed."""
        found = await self.scan(top, scratch=scratch)
        directories = [path for path, attrs in found.items() if is_kind(attrs, stat.S_IFDIR)]
        for below in await asyncio.gather(*(self.walk(path, scratch=scratch) for path in directories)):
            found |= below
        return found

    async def followed(self, found: dict[str, asyncssh.SFTPAttrs]) -> dict[str, asyncssh.SFTPAttrs]:
        """The same, with what links lead to in their place; those that lead nowhere are left out."""
        result = {}
        for path, attrs in found.items():
            with contextlib.suppress(FileNotFoundError):
                is_link = is_kind(attrs, stat.S_IFLNK)
                result[path] = await self.answer(self.sftp.stat(path)) if is_link else attrs
        return result

    @contextlib.asynccontextmanager
    async def _closing(self, file: asyncssh.SFTPClientFile) -> AsyncIterator[None]:
        try:
            yield
        except (ConnectionError, TimeoutError):
            raise  # the server closes it
        except BaseException:
            with contextlib.suppress(OSError):
                await self.answer(file.close())
            raise
        await self.answer(file.close())

    async def _make_directories(self, path: str) -> None:
        missing = []
        while path and not await self.answer(self.sftp.isdir(path)):
            missing.append(path)
            path = os.path.dirname(path).rstrip("/")
        for directory in reversed(missing):
            try:
                await self.answer(self.sftp.mkdir(directory))
            except OSError as exc:
                if exc.errno not in (errno.EIO, errno.EEXIST, errno.ENOENT):  # EIO: it exists, for one
                    raise
            else:
                await self.flush_directory(os.path.dirname(directory))


async def connect(place: Place, answer_s: float, sessions: set[Session]) -> Session:
    """Log in. Host keys are verified, whatever `~/.ssh/config` says."""
    import asyncssh

    connection: asyncssh.SSHClientConnection | None = None
    try:
        async with asyncio.timeout(_CONNECT_S):
            options = await asyncssh.SSHClientConnectionOptions.construct(
                config=(), host=place.host, **place.given
            )
            connection = await asyncssh.connect(
                place.host,
                # None, which UserKnownHostsFile may come to, would be to trust every host: [] is the default
                known_hosts=options.known_hosts or [],
                keepalive_interval=_KEEPALIVE_S,
                **place.given,
            )
            session = Session(connection, await connection.start_sftp_client(), answer_s)
    except BaseException as exc:
        if connection is not None:
            connection.abort()
        raise _cannot_connect(place, exc) from exc
    sessions.add(session)
    return session


def _cannot_connect(place: Place, exc: BaseException) -> BaseException:
    """The error to raise: a ConfigurationError for what a person has to change, else what may pass."""
    import asyncssh

    where = f"cannot log in at {place.url}"
    if isinstance(exc, asyncssh.HostKeyNotVerifiable | asyncssh.KeyExchangeFailed):
        return ConfigurationError(
            f"{where}: {_reason(exc)}: compare the host's key, and put it into ~/.ssh/known_hosts"
        )
    if isinstance(exc, asyncssh.PermissionDenied):
        return ConfigurationError(
            f"{where}: {_reason(exc)}: name the user in the URL, and have their key in ~/.ssh or an agent"
        )
    if isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_NONAME:
        return ConfigurationError(f"{where}: {_reason(exc)}: check the name of the host")
    if isinstance(exc, ValueError | FileNotFoundError | PermissionError):
        return ConfigurationError(f"{where}: {_reason(exc)}: check ~/.ssh/config and the files it names")
    if isinstance(exc, TimeoutError):
        return TimeoutError(f"no connection within {_CONNECT_S:g} s")
    if isinstance(exc, asyncssh.Error):
        return ConnectionError(_reason(exc))
    return exc


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise what a server answers as the OSError that a file system would raise."""
    import asyncssh

    try:
        yield
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath) as exc:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from exc
    except (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect) as exc:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from exc
    except (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost) as exc:
        raise ConnectionError(_reason(exc)) from exc
    except asyncssh.SFTPOpUnsupported as exc:
        raise OSError(errno.EOPNOTSUPP, f"the server does not know how: {_reason(exc)}") from exc
    except asyncssh.SFTPBadMessage as exc:  # OpenSSH's word for EINVAL and ENAMETOOLONG
        raise OSError(errno.EINVAL, _reason(exc)) from exc
    except asyncssh.SFTPFailure as exc:  # OpenSSH's word for most errors
        raise OSError(
            errno.EIO, f"the server says {_reason(exc)!r} and no more; its disk may be full"
        ) from exc
    except asyncssh.SFTPError as exc:
        raise OSError(errno.EIO, _reason(exc)) from exc
    except asyncssh.Error as exc:
        raise ConnectionError(_reason(exc)) from exc


@contextlib.contextmanager
def _needed(extension: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        raise ConfigurationError(
            f"the SSH server lacks {extension}, without which nothing is stored whole: use OpenSSH's"
        ) from exc


def _reason(exc: BaseException) -> str:
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return " ".join(text.split()) or type(exc).__name__


def is_kind(attrs: asyncssh.SFTPAttrs, kind: int) -> bool:
    """Whether it is of a kind such as stat.S_IFDIR."""
    return attrs.permissions is not None and stat.S_IFMT(attrs.permissions) == kind
