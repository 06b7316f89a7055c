"""Parts for tests: a store in memory, one that fails on demand, and the contract every backend must pass."""

from __future__ import annotations

import pickle
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from storage.errors import ObjectMissing, StorageError
from storage.object_store import ObjectStore
from storage.store import ObjectInfo, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Fault: TypeAlias = Literal["before", "after", "torn"]
"""What a failing operation has done: nothing, all of it, or (a write) half of the object."""


_T = TypeVar("_T")


class MemoryStore(ObjectStore):
    """An empty store in this process, apart from all others."""

    def __init__(self) -> None:
        super().__init__(f"memory://{uuid.uuid4().hex}")


class FaultyStore(Store):
    """Passes every operation on and notes it; the `fail_at`-th, counted from 0, raises StorageError."""

    def __init__(self, inner: Store, fail_at: int | None = None, fault: Fault = "before") -> None:
        super().__init__(inner.url)
        self.inner = inner
        self.fail_at = fail_at
        self.fault = fault
        self.operations: list[tuple[str, str]] = []

    def list(self, prefix: str = "") -> dict[str, int]:
        fails = self._fails("list", prefix)
        found = self.inner.list(prefix)
        return self._answer(found, fails)

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        fails = self._fails("read", key)
        return self._answer(self.inner.read(key, start, stop), fails)

    def info(self, key: str) -> ObjectInfo:
        fails = self._fails("info", key)
        return self._answer(self.inner.info(key), fails)

    def write(self, key: str, buffers: Iterable[bytes | memoryview]) -> int:
        fails = self._fails("write", key)
        data = b"".join(buffers)
        if fails and self.fault == "torn":
            data = data[: len(data) // 2]
        return self._answer(self.inner.write(key, (data,)), fails)

    def create(self, key: str, data: bytes) -> bool:
        fails = self._fails("create", key)
        if fails and self.fault == "torn":
            data = data[: len(data) // 2]
        return self._answer(self.inner.create(key, data), fails)

    def delete(self, keys: Iterable[str]) -> None:
        keys = [*keys]
        fails = self._fails("delete", " ".join(keys))
        if fails and self.fault == "torn":
            keys = keys[: len(keys) // 2]
        self._answer(self.inner.delete(keys), fails)

    def children(self, prefix: str = "") -> Sequence[str]:
        fails = self._fails("children", prefix)
        return self._answer(self.inner.children(prefix), fails)

    def delete_directory(self, prefix: str) -> None:
        fails = self._fails("delete_directory", prefix)
        if fails and self.fault == "torn":
            keys = [*self.inner.list(prefix)]
            self.inner.delete(keys[: len(keys) // 2])
            self._answer(None, fails)
        self._answer(self.inner.delete_directory(prefix), fails)

    def last_change(self, prefix: str) -> float | None:
        fails = self._fails("last_change", prefix)
        return self._answer(self.inner.last_change(prefix), fails)

    def _fails(self, verb: str, key: str) -> bool:
        self.operations.append((verb, key))
        fails = len(self.operations) - 1 == self.fail_at
        if fails and self.fault == "before":
            raise StorageError(f"cannot {verb} {self.url}/{key}: told to fail")
        return fails

    def _answer(self, result: _T, fails: bool) -> _T:
        if fails:
            verb, key = self.operations[-1]
            raise StorageError(f"cannot {verb} {self.url}/{key}: told to fail afterwards")
        return result


class StoreContract:
    """What is asked of every backend: a test class inherits it and gives a fixture `store`, always empty."""

    def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        assert store.list() == {}
        assert store.list("attempts") == {}

    def test_what_is_written_is_read_and_listed(self, store: Store) -> None:
        assert store.write("a/b/c", [b"12", memoryview(b"345"), b""]) == 5
        assert store.read("a/b/c") == b"12345"
        assert store.list() == {"a/b/c": 5}

    def test_writing_again_replaces_the_object(self, store: Store) -> None:
        store.write("k", [b"a long first content"])
        store.write("k", [b"short"])
        assert store.read("k") == b"short"

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        assert store.write("k", []) == 0
        assert store.list() == {"k": 0}
        assert store.read("k") == b""

    def test_many_buffers_become_one_object(self, store: Store) -> None:
        buffers = [bytes([i % 256]) * (i % 7) for i in range(5000)]
        store.write("k", buffers)
        assert store.read("k") == b"".join(buffers)

    def test_a_large_object_survives(self, store: Store) -> None:
        data = memoryview(bytes(range(256)) * (1 << 14))
        store.write("k", [data, b"tail", data])
        assert store.read("k", 4 << 20, (4 << 20) + 4) == b"tail"
        assert store.list() == {"k": (8 << 20) + 4}

    def test_ranges_are_read_as_far_as_the_object_goes(self, store: Store) -> None:
        store.write("k", [b"0123456789"])
        assert store.read("k", 2, 5) == b"234"
        assert store.read("k", 7) == b"789"
        assert store.read("k", 0, 4) == b"0123"
        assert store.read("k", 8, 99) == b"89"
        assert store.read("k", 5, 5) == b""
        assert store.read("k", 10, 20) == store.read("k", 12, 20) == store.read("k", 12) == b""
        store.write("empty", [])
        assert store.read("empty", 0, 1) == store.read("empty", 0) == b""

    def test_a_missing_object_is_named(self, store: Store) -> None:
        assert "no/such" in _raised(ObjectMissing, lambda: store.read("no/such"))
        assert "no/such" in _raised(ObjectMissing, lambda: store.read("no/such", 0, 4))

    def test_the_size_of_an_object_is_told_and_a_directory_is_none(self, store: Store) -> None:
        store.write("d/k", [b"12345"])
        assert store.info("d/k").nbytes == 5
        for key in ("d", "d/none", "none"):
            assert key in _raised(ObjectMissing, partial(store.info, key))

    def test_a_tag_follows_the_content_where_there_is_one(self, store: Store) -> None:
        store.write("k", [b"one"])
        tag = store.info("k").tag
        assert store.info("k").tag == tag
        store.write("k", [b"two"])
        assert tag is None or store.info("k").tag != tag

    def test_listing_a_directory_leaves_its_neighbours_out(self, store: Store) -> None:
        for key in ("a/1", "a/b/2", "ab/3", "a.json"):
            store.write(key, [b"x"])
        assert store.list("a") == {"a/1": 1, "a/b/2": 1}
        assert store.list("a/") == store.list("a")
        assert store.list("a/1") == {}

    def test_a_new_object_is_listed_at_once(self, store: Store) -> None:
        for i in range(5):
            store.write(f"d/{i}", [b"x"])
            assert len(store.list("d")) == i + 1
            assert store.create(f"e/{i}", b"x")
            assert len(store.list("e")) == i + 1

    def test_create_succeeds_once_and_leaves_the_first(self, store: Store) -> None:
        assert store.create("d/k", b"first") is True
        assert store.create("d/k", b"second") is False
        assert store.read("d/k") == b"first"
        assert store.list() == {"d/k": 5}

    def test_an_empty_create_is_exclusive_too(self, store: Store) -> None:
        assert store.create("k", b"") is True
        assert store.create("k", b"other") is False
        assert store.read("k") == b""

    def test_create_has_exactly_one_winner_in_a_race(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            for i in range(5):
                data = [f"{i} {j}".encode() for j in range(8)]
                won = [*pool.map(partial(store.create, f"race/{i}"), data)]
                assert won.count(True) == 1
                assert store.read(f"race/{i}") == data[won.index(True)]

    def test_children_are_the_directories_directly_below(self, store: Store) -> None:
        for key in ("a/1/x", "a/2/y/z", "a/file", "b/1/x", "top"):
            store.write(key, [b"x"])
        assert [*store.children("a")] == ["a/1", "a/2"]
        assert [*store.children("a/")] == ["a/1", "a/2"]
        assert [*store.children()] == ["a", "b"]
        assert [*store.children("none")] == []
        assert [*store.children("a/1")] == []

    def test_a_directory_is_there_once_something_is_in_it(self, store: Store) -> None:
        store.write("a", [b"x"])
        assert store.is_there()

    def test_ranges_are_read_into_buffers(self, store: Store) -> None:
        store.write("k", [bytes(range(100))])
        first, second = bytearray(3), bytearray(4)
        assert store.read_into("k", 10, [memoryview(first), memoryview(second)]) == 7
        assert (bytes(first), bytes(second)) == (bytes(range(10, 13)), bytes(range(13, 17)))
        assert store.read_into("k", 98, [memoryview(first), memoryview(second)]) == 2
        assert bytes(first[:2]) == bytes(range(98, 100))
        _raised(ObjectMissing, lambda: store.read_into("none", 0, [memoryview(first)]))

    def test_a_directory_is_deleted_with_all_that_is_in_it(self, store: Store) -> None:
        for key in ("a/1/x", "a/1/y/z", "a/10/x", "b"):
            store.write(key, [b"x"])
        store.delete_directory("a/1")
        assert store.list() == {"a/10/x": 1, "b": 1}
        assert [*store.children("a")] == ["a/10"]
        store.delete_directory("a/1")

    def test_the_time_of_the_last_change_is_told(self, store: Store) -> None:
        store.write("d/e/k", [b"x"])
        changed = store.last_change("d")
        assert changed is not None
        assert abs(changed - time.time()) < 3600
        assert store.last_change("none") is None

    def test_deleting_is_idempotent(self, store: Store) -> None:
        store.write("a/1", [b"x"])
        store.write("a/2", [b"x"])
        store.delete(["a/1", "a/none", "b/none"])
        assert store.list() == {"a/2": 1}
        store.delete(key for key in ["a/1", "a/2"])
        assert store.list() == {}
        store.write("a/1", [b"again"])
        assert store.read("a/1") == b"again"

    def test_keys_cannot_leave_the_store(self, store: Store) -> None:
        for key in ("../x", "/x", "a/../../x", "a//b", "", ".hidden", "a\\b", "a\0b", "s3://x"):
            _raised(ValueError, partial(store.read, key))
            _raised(ValueError, partial(store.info, key))
            _raised(ValueError, partial(store.write, key, [b"x"]))
            _raised(ValueError, partial(store.create, key, b"x"))
            _raised(ValueError, partial(store.delete, [key]))
        assert store.list() == {}

    def test_a_pickled_store_finds_the_same_objects(self, store: Store) -> None:
        store.write("k", [b"x"])
        copy = pickle.loads(pickle.dumps(store))
        assert copy.url == store.url
        assert copy.read("k") == b"x"


def _raised(kind: type[Exception], act: Callable[[], object]) -> str:
    """The message of the error that `act` must raise; written so that this module needs no pytest."""
    try:
        act()
    except kind as exc:
        return str(exc)
    raise AssertionError(f"no {kind.__name__} was raised")
