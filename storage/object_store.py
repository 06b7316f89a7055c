"""A place that fsspec opens: S3, Google Cloud Storage, Azure, memory and others.

The only importer of fsspec, which it imports when a URL first needs it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import ConfigurationError, MissingExtra, ObjectMissing
from storage.layout import check_key, check_name
from storage.remote_store import RemoteStore
from storage.store import ObjectInfo, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_T = TypeVar("_T")

PART_NBYTES = 8 << 20
"""Bytes of a part of a multipart upload: what is held of an object while it is written."""

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}
_TAGS = ("md5Hash", "ETag", "etag")
"""Of the content (Google), or of the object (S3, others); the first that is there."""
_ANSWER_S = 120.0  # an operation that has not been answered by then has failed
_DELETES_AT_ONCE = 16
_memory_create = threading.Lock()


class ObjectStore(RemoteStore):
    """Storing an object replaces it as a whole."""

    parallel_reads = 8

    def __init__(self, url: str) -> None:
        super().__init__(url)
        _find_backend(url)
        self._opened: tuple[int, Any, str] | None = None

    def list(self, prefix: str = "") -> dict[str, int]:
        return {key: size for key, size in self._find(prefix).items() if "/." not in f"/{key}"}

    def _find(self, prefix: str) -> dict[str, int]:
        """What `list` lists, and what has a name that begins with a dot."""
        if prefix:
            check_key(prefix.rstrip("/"))

        def find(fs: Any, root: str) -> dict[str, Any]:
            try:
                found = _call(fs, "find", f"{root}/{prefix}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            return dict(found) if isinstance(found, dict) else {}  # adlfs gives a list for a single object

        infos, root = self._retrying("list", prefix, lambda fs, root: (find(fs, root), root))
        below = f"{root}/{prefix.rstrip('/')}/" if prefix else f"{root}/"
        found = {}
        for name, info in infos.items():
            key = name[len(root) + 1 :]
            if info["type"] == "file" and name.startswith(below):
                found[key] = int(info["size"])
        return found

    def children(self, prefix: str = "") -> Sequence[str]:
        if prefix:
            check_key(prefix.rstrip("/"))
        below = f"{prefix.rstrip('/')}/" if prefix else ""

        def names(fs: Any, root: str) -> set[str]:
            try:
                infos = _call(fs, "ls", f"{root}/{below}".rstrip("/"), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return set()
            return {
                info["name"].rstrip("/").rpartition("/")[2] for info in infos if info["type"] == "directory"
            }

        found = self._retrying("list", prefix, names)
        return sorted(below + name for name in found if not name.startswith("."))

    def info(self, key: str) -> ObjectInfo:
        check_key(key)

        def ask(fs: Any, root: str) -> ObjectInfo:
            found = _call(fs, "info", f"{root}/{key}")
            if found["type"] != "file":
                raise FileNotFoundError(f"{root}/{key}")
            tag = next((found[name] for name in _TAGS if found.get(name)), None)
            return ObjectInfo(int(found["size"]), None if tag is None else str(tag).strip('"'))

        return self._retrying("read", key, ask)

    def _read_once(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        with translated("read", self.url, key):
            fs, root = self._open()
            return _download(fs, f"{root}/{key}", start, stop)

    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        check_name(key)
        return self._retrying("write", key, lambda fs, root: _upload(fs, f"{root}/{key}", buffers))

    def _create_once(self, key: str, data: bytes) -> None:
        with translated("create", self.url, key), self._exclusion():
            fs, root = self._open()
            _call(fs, "pipe_file", f"{root}/{key}", data, mode="create")

    def delete(self, keys: Iterable[str]) -> None:
        keys = [*keys]
        for key in keys:
            check_name(key)
        self._remove(keys)

    def _remove(self, keys: Sequence[str]) -> None:
        def remove(key: str) -> None:
            def act(fs: Any, root: str) -> None:
                with contextlib.suppress(FileNotFoundError):
                    _call(fs, "rm_file", f"{root}/{key}")

            self._retrying("delete", key, act)

        if len(keys) < 2:
            for key in keys:
                remove(key)
            return
        self._open()
        with ThreadPoolExecutor(_DELETES_AT_ONCE, "holdfast-delete") as pool:
            for _ in pool.map(remove, keys):
                pass

    def delete_directory(self, prefix: str) -> None:
        check_name(prefix.rstrip("/"))
        self._remove([*self._find(prefix)])

    def last_change(self, prefix: str) -> float | None:
        def stored(key: str) -> float:
            at = self._retrying("read", key, lambda fs, root: fs.modified(f"{root}/{key}"))
            return float(at.timestamp())

        times = []
        for key in self.list(prefix):
            with contextlib.suppress(ObjectMissing):  # deleted meanwhile
                times.append(stored(key))
        return max(times, default=None)

    def _retrying(self, verb: str, key: str, act: Callable[[Any, str], _T]) -> _T:
        """What `act` makes of the file system and the root's path in it, tried again while that may help."""

        def once() -> _T:
            with translated(verb, self.url, key):
                return act(*self._open())

        return self._again(once)

    def _open(self) -> tuple[Any, str]:
        """The fsspec instance of this process, made when first needed, and the root's path in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            # a cached listing would hide the newest checkpoint
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1:]

    def _exclusion(self) -> contextlib.AbstractContextManager[Any]:
        """fsspec's memory file system looks first and stores then, so two threads could both succeed."""
        return _memory_create if self.url.startswith("memory:") else contextlib.nullcontext()


def _find_backend(url: str) -> None:
    import fsspec

    scheme = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as exc:
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'holdfast[{extra}]'" if extra else str(exc)
        raise MissingExtra(f"{scheme}:// needs a package that is not installed: {how}") from exc
    except ValueError as exc:
        raise ConfigurationError(
            f"{url}: {scheme}:// is not known: use a path, file://, memory://, s3://, gs://, az:// or sftp://"
        ) from exc


def _call(fs: Any, name: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of a file system; one that is asynchronous inside has to answer in time."""
    if not getattr(fs, "async_impl", False):
        return getattr(fs, name)(*arguments, **options)
    from fsspec.asyn import sync

    return sync(fs.loop, getattr(fs, f"_{name}"), *arguments, timeout=_ANSWER_S, **options)


def _download(fs: Any, path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """An object's bytes, none where the range begins behind its end."""
    try:
        data = _call(fs, "cat_file", path, start=start, end=stop)
    except Exception:
        # Services refuse such a range, each in words of its own, and a range of an empty object too.
        if start is None or start < _call(fs, "info", path)["size"]:
            raise
        return b""
    return data if isinstance(data, bytes) else bytes(data)


def _upload(fs: Any, path: str, buffers: Iterable[bytes | memoryview]) -> int:
    """Store an object: a small one with one request, a large one in parts, of which one is held at a time."""
    source = iter(buffers)
    head: list[bytes | memoryview] = []
    nbytes = 0
    for buffer in source:
        head.append(buffer)
        nbytes += len(buffer)
        if nbytes > PART_NBYTES and not _is_memory(fs):
            break
    else:
        _call(fs, "pipe_file", path, b"".join(head))
        return nbytes
    file = fs.open(path, "wb", block_size=PART_NBYTES)
    try:
        for buffer in head:
            file.write(buffer)
        head.clear()
        for buffer in source:
            nbytes += file.write(buffer)
        file.close()
    except BaseException:
        _abandon(file)
        raise
    return nbytes


def _abandon(file: Any) -> None:
    """End an upload without publishing what has been sent, which closing the file would do."""
    with contextlib.suppress(Exception):
        file.discard()
    file.closed = True


def _is_memory(fs: Any) -> bool:
    """Whether this is fsspec's memory file system, whose files are visible from their opening on."""
    return "memory" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)
