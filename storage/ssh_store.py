"""A directory of a machine that is reached by SSH: the promises of a file system, kept over SFTP."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import stat
import threading
import uuid
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import MissingExtra, ObjectMissing
from storage.file_store import BATCH_NBYTES, SCRATCH, batches
from storage.layout import check_key, check_name
from storage.remote_store import RemoteStore
from storage.ssh_session import LoopThread, Session, connect, is_kind, parse
from storage.store import ObjectInfo, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
    from concurrent.futures import Future

_T = TypeVar("_T")


class SshStore(RemoteStore):
    """Objects are files; a key is a path below the store's directory.

    Who logs in, with which key, and which hosts are known is found as OpenSSH finds it: in `~/.ssh/config`,
    `~/.ssh/known_hosts`, `~/.ssh/id_*` and the agent at SSH_AUTH_SOCK. A host whose key is not known is
    refused. The server must have OpenSSH's extensions for renaming and for hard links, and flushes what is
    written if it has the one for that.
    """

    parallel_reads = 4
    answer_s = 120.0
    """Seconds in which the server answers a request, or the requests for 8 MiB; else the connection is given
    up.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._place = parse(url)
        if importlib.util.find_spec("asyncssh") is None:
            scheme = url.partition("://")[0]
            raise MissingExtra(
                f"{scheme}:// needs a package that is not installed: pip install 'holdfast[ssh]'"
            )
        self._lock = threading.Lock()
        self._loop: LoopThread | None = None
        self._session: Session | None = None

    def list(self, prefix: str = "") -> dict[str, int]:
        top = self._directory(prefix)
        root = self._place.root

        async def sizes(session: Session) -> dict[str, int]:
            tree = await session.walk(top, scratch=False)
            files = await session.followed(
                {path: attrs for path, attrs in tree.items() if not is_kind(attrs, stat.S_IFDIR)}
            )
            return {
                path[len(root) + 1 :]: attrs.size or 0
                for path, attrs in files.items()
                if is_kind(attrs, stat.S_IFREG)
            }

        return self._retrying("list", prefix, sizes)

    def children(self, prefix: str = "") -> Sequence[str]:
        top = self._directory(prefix)
        root = self._place.root

        async def names(session: Session) -> Sequence[str]:
            found = await session.followed(await session.scan(top, scratch=False))
            return sorted(
                path[len(root) + 1 :] for path, attrs in found.items() if is_kind(attrs, stat.S_IFDIR)
            )

        return self._retrying("list", prefix, names)

    def is_there(self) -> bool:
        async def ask(session: Session) -> None:
            await session.answer(session.sftp.stat(self._place.root))

        try:
            self._retrying("list", "", ask)
        except ObjectMissing:
            return False
        return True

    def info(self, key: str) -> ObjectInfo:
        path = self._readable(key)

        async def ask(session: Session) -> ObjectInfo:
            attrs = await session.answer(session.sftp.stat(path))
            if not is_kind(attrs, stat.S_IFREG):
                raise FileNotFoundError(path)
            return ObjectInfo(attrs.size or 0)

        return self._retrying("read", key, ask)

    def _read_once(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        path = self._readable(key)
        begin = start or 0

        async def pieces(session: Session) -> bytes:
            data = bytearray()
            async with session.opened(path) as file:
                while stop is None or begin + len(data) < stop:
                    at = begin + len(data)
                    nbytes = BATCH_NBYTES if stop is None else min(BATCH_NBYTES, stop - at)
                    piece: bytes = await session.answer(file.read(nbytes, at))
                    if not piece:
                        break
                    data += piece
            return bytes(data)

        with self._connected("read", key) as session:
            return self._run(pieces(session))

    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        path = self._path(key)

        def once() -> int:
            with self._scratch("write", key, buffers) as (session, scratch, nbytes):
                self._run(session.rename(scratch, path))
            return nbytes

        return self._again(once)

    def _create_once(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._scratch("create", key, (data,)) as (session, scratch, _):
            self._run(session.link(scratch, path))
            self._run(session.remove([scratch]))

    def delete(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        root = self._place.root

        async def remove(session: Session) -> None:
            await session.remove(paths)
            for directory in sorted({os.path.dirname(path) for path in paths}, key=len, reverse=True):
                await session.flush_directory(directory)
                await session.remove_empty(directory, root)

        if paths:
            self._retrying("delete", "", remove)

    def delete_directory(self, prefix: str) -> None:
        top = self._path(prefix.rstrip("/"))

        async def remove(session: Session) -> None:
            tree = await session.walk(top, scratch=True)
            directories = [top, *(path for path, attrs in tree.items() if is_kind(attrs, stat.S_IFDIR))]
            await session.remove(tree.keys() - {*directories})
            for directory in sorted(directories, key=len, reverse=True):
                with contextlib.suppress(FileNotFoundError):
                    await session.answer(session.sftp.rmdir(directory))
            await session.flush_directory(os.path.dirname(top))

        self._retrying("delete", prefix, remove)

    def last_change(self, prefix: str) -> float | None:
        top = self._directory(prefix)

        async def newest(session: Session) -> float | None:
            try:
                own = await session.answer(session.sftp.stat(top))
            except FileNotFoundError:
                return None
            tree = await session.walk(top, scratch=True)
            return max(float(attrs.mtime or 0) for attrs in (own, *tree.values()))

        return self._retrying("read", prefix, newest)

    def _path(self, key: str) -> str:
        check_name(key)
        return f"{self._place.root}/{key}"

    def _readable(self, key: str) -> str:
        check_key(key)
        return f"{self._place.root}/{key}"

    def _directory(self, prefix: str) -> str:
        return self._readable(prefix.rstrip("/")) if prefix else self._place.root

    def _retrying(self, verb: str, key: str, act: Callable[[Session], Coroutine[Any, Any, _T]]) -> _T:
        def once() -> _T:
            with self._connected(verb, key) as session:
                return self._run(act(session))

        return self._again(once)

    @contextlib.contextmanager
    def _scratch(
        self, verb: str, key: str, buffers: Iterable[bytes | memoryview]
    ) -> Iterator[tuple[Session, str, int]]:
        """A flushed file beside the object; the body gives it its name, which then is made durable."""
        directory = os.path.dirname(self._path(key))
        scratch = f"{directory}/{SCRATCH}{uuid.uuid4().hex}"
        with self._connected(verb, key) as session:
            try:
                yield session, scratch, self._upload(session, scratch, buffers)
                self._run(session.flush_directory(directory))
            except (ConnectionError, TimeoutError):
                raise  # nothing can be done there now: it stays, as a killed writer's does
            except BaseException:
                with contextlib.suppress(OSError):
                    self._run(session.remove([scratch]))
                raise

    def _upload(self, session: Session, path: str, buffers: Iterable[bytes | memoryview]) -> int:
        """Make a file of the buffers and flush it. While some are on their way the next ones are prepared."""
        file = self._run(session.created(path))
        nbytes = 0
        sending: Future[int] | None = None
        try:
            for batch in batches(buffers):
                data = b"".join(batch)
                if sending is not None:
                    sending.result()
                sending = self._submit(session.answer(file.write(data, nbytes)))
                nbytes += len(data)
            if sending is not None:
                sending.result()
            self._run(session.flush(file))
        except (ConnectionError, TimeoutError):
            raise
        except BaseException:
            # A server gives a handle that was closed to the next file: nothing for this one may still be on
            # its way.
            if sending is not None:
                sending.exception()
            with contextlib.suppress(OSError):
                self._run(session.answer(file.close()))
            raise
        self._run(session.answer(file.close()))
        return nbytes

    @contextlib.contextmanager
    def _connected(self, verb: str, key: str) -> Iterator[Session]:
        """The session, made when first needed; errors are translated, and a broken session is given up."""
        with translated(verb, self.url, key):
            session = self._open()
            try:
                yield session
            except (ConnectionError, TimeoutError):
                self._give_up(session)
                raise

    def _open(self) -> Session:
        with self._lock:
            if self._loop is None or self._loop.pid != os.getpid():
                self._loop = LoopThread()
                self._session = None
                weakref.finalize(self, self._loop.end)
            if self._session is None:
                self._session = self._run(connect(self._place, self.answer_s, self._loop.sessions))
            return self._session

    def _give_up(self, session: Session) -> None:
        with self._lock:
            if self._session is session and self._loop is not None:
                self._session = None
                self._loop.give_up(session)

    def _submit(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        assert self._loop is not None
        return self._loop.submit(coroutine)

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return self._submit(coroutine).result()
