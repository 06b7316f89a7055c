"""Stores for simulations: one that notes each change, and a file system that forgets what was not flushed."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from storage.errors import ObjectMissing
from storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

Change = tuple[str, str, bytes]
"""("put" or "delete", key, content)."""


class ModelStore(Store):
    """An object store in a dict, which notes every change of a single object in order."""

    def __init__(self, objects: dict[str, bytes] | None = None, *, exclusive: bool = True) -> None:
        super().__init__("model")
        self.objects = dict(objects or {})
        self.changes: list[Change] = []
        self._exclusive = exclusive

    def list(self, prefix: str = "") -> dict[str, int]:
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        return {key: len(data) for key, data in sorted(self.objects.items()) if key.startswith(below)}

    def children(self, prefix: str = "") -> list[str]:
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        inside = (key[len(below) :] for key in self.objects if key.startswith(below))
        return sorted({below + key.partition("/")[0] for key in inside if "/" in key})

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(f"model/{key} does not exist")
        return self.objects[key][start:stop]

    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        data = b"".join(buffers)
        self._change("put", key, data)
        return len(data)

    def create(self, key: str, data: bytes) -> bool:
        if self._exclusive and key in self.objects:
            return False
        self._change("put", key, data)
        return True

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            if key in self.objects:
                self._change("delete", key, b"")

    def delete_directory(self, prefix: str) -> None:
        self.delete([*self.list(prefix)])

    def last_change(self, prefix: str) -> float | None:
        return 0.0 if self.list(prefix) else None

    def _change(self, verb: str, key: str, data: bytes) -> None:
        self.changes.append((verb, key, data))
        apply(self.objects, self.changes[-1])


def apply(objects: dict[str, bytes], change: Change) -> None:
    """In place."""
    verb, key, data = change
    if verb == "put":
        objects[key] = data
    else:
        objects.pop(key, None)


def moments(changes: list[Change]) -> Iterator[tuple[int, dict[str, bytes]]]:
    """(changes made, objects) for every prefix, and with each upload of a shard torn in the middle."""
    objects: dict[str, bytes] = {}
    yield 0, dict(objects)
    for i, change in enumerate(changes):
        verb, key, data = change
        if verb == "put" and "/c/" in key:
            yield i, {**objects, key: data[: len(data) // 2]}
        apply(objects, change)
        yield i + 1, dict(objects)


# -- a file system ----------------------------------------------------------------------------------------

Event = tuple[Any, ...]
"""What a system call changed: ("make", path, file), ("data", file, bytes), ("sync", file), ("rename", a, b),
("link", a, b), ("unlink", path), ("mkdir", path), ("rmdir", path) or ("syncdir", path)."""


class RecordingOs:
    """Stands in for the module `os` of a file store: passes on, and notes what changes."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._files: dict[int, int] = {}  # descriptor -> number of the file
        self._directories: dict[int, str] = {}
        self._made = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        fd = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self._made += 1
            self._files[fd] = self._made
            self.events.append(("make", path, self._made))
        elif flags & os.O_DIRECTORY:
            self._directories[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self._files.pop(fd, None)
        self._directories.pop(fd, None)
        os.close(fd)

    def writev(self, fd: int, buffers: list[memoryview]) -> int:
        count = os.writev(fd, buffers)
        self.events.append(("data", self._files[fd], b"".join(buffers)[:count]))
        return count

    def fsync(self, fd: int) -> None:
        os.fsync(fd)
        if fd in self._files:
            self.events.append(("sync", self._files[fd]))
        else:
            self.events.append(("syncdir", self._directories[fd]))

    def replace(self, a: str, b: str) -> None:
        os.replace(a, b)
        self.events.append(("rename", a, b))

    def link(self, a: str, b: str) -> None:
        os.link(a, b)
        self.events.append(("link", a, b))

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self.events.append(("unlink", path))

    def mkdir(self, path: str) -> None:
        os.mkdir(path)
        self.events.append(("mkdir", path))

    def rmdir(self, path: str) -> None:
        os.rmdir(path)
        self.events.append(("rmdir", path))

    @property
    def shutil(self) -> SimpleNamespace:
        """The one function that a file store takes from shutil, made of the calls above."""

        def rmtree(path: str) -> None:
            for directory, _, files in os.walk(path, topdown=False):
                for name in files:
                    self.unlink(f"{directory}/{name}")
                self.rmdir(directory)

        return SimpleNamespace(rmtree=rmtree)


def after_power_loss(events: list[Event], root: str) -> Iterator[dict[str, bytes]]:
    """What may be found below `root`, which was there before, if the power is lost after `events`.

    All that was not flushed is lost; nothing is; each single change of a directory that was not flushed is,
    alone; the data of the last file written and not flushed is there by half.
    """
    pending = _not_flushed(events)
    unsynced = {e[1] for e in events if e[0] == "data"} - {e[1] for e in events if e[0] == "sync"}
    losses: list[set[int]] = [set(pending), set(), *({i} for i in pending)]
    for lost in losses:
        yield _found(events, lost, root, (lambda file: file in unsynced) if lost == set(pending) else None)
    if unsynced:
        last = max(unsynced)
        yield _found(events, set(), root, None, torn=last)


def _not_flushed(events: list[Event]) -> list[int]:
    """The changes of directories that no later flush of the directory has made durable."""
    pending: dict[int, str] = {}
    for i, event in enumerate(events):
        if event[0] == "syncdir":
            pending = {j: directory for j, directory in pending.items() if directory != event[1]}
        elif event[0] in ("make", "rename", "link", "unlink", "mkdir", "rmdir"):
            pending[i] = os.path.dirname(event[2] if event[0] in ("rename", "link") else event[1])
    return [*pending]


def _found(
    events: list[Event],
    lost: set[int],
    root: str,
    is_empty: Callable[[int], bool] | None,
    torn: int | None = None,
) -> dict[str, bytes]:
    content: dict[int, bytes] = {}
    names: dict[str, int] = {}
    directories = {root}
    for i, event in enumerate(events):
        if event[0] == "data":
            content[event[1]] = content.get(event[1], b"") + event[2]
        if i in lost:
            continue
        match event:
            case ("make", path, file):
                names[path] = file
            case ("rename", a, b):
                if a in names:
                    names[b] = names.pop(a)
            case ("link", a, b):
                if a in names:
                    names[b] = names[a]
            case ("unlink", path):
                names.pop(path, None)
            case ("mkdir", path):
                directories.add(path)
            case ("rmdir", path):
                directories.discard(path)
    found = {}
    for path, file in names.items():
        parents, parent = True, os.path.dirname(path)
        while parent != root:
            parents = parents and parent in directories
            parent = os.path.dirname(parent)
        if parents:
            data = content.get(file, b"")
            if is_empty is not None and is_empty(file):
                data = b""
            found[path] = data[: len(data) // 2] if file == torn else data
    return found


def lay_out(files: dict[str, bytes], old_root: str, root: Path) -> None:
    """Write files that were below one root below another, which is emptied first."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for path, data in files.items():
        target = root / os.path.relpath(path, old_root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
