import pytest

from storage import retry
from storage.errors import ConfigurationError, ObjectMissing, StorageError
from storage.retry import retrying
from storage.testing import MemoryStore


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures, error=StorageError):
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"call {self.calls}")
        return "answer"


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made; none is waited for, the clock moves by them."""
    made = []
    now = [1000.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])

    def sleep(seconds):
        made.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(retry.time, "sleep", sleep)
    return made


def test_what_fails_for_a_moment_is_tried_again_with_growing_pauses(pauses):
    flaky = Flaky(6)
    assert retrying(flaky) == "answer"
    assert flaky.calls == 7
    assert all(0 <= pause <= 0.1 * 2**i for i, pause in enumerate(pauses))


def test_the_last_error_is_raised_once_the_deadline_has_passed(pauses):
    flaky = Flaky(10**9)
    with pytest.raises(StorageError, match=r"call [0-9]+"):
        retrying(flaky, deadline_s=30.0)
    assert sum(pauses) <= 30.0
    assert max(pauses) <= 10.0
    assert flaky.calls > 4


@pytest.mark.parametrize("error", [ObjectMissing, ConfigurationError])
def test_an_answer_and_a_wrong_setting_are_not_tried_again(pauses, error):
    flaky = Flaky(1, error)
    with pytest.raises(error):
        retrying(flaky)
    assert flaky.calls == 1
    assert pauses == []


def _failing(monkeypatch, store, name, failures):
    """Have a method of the store's file system fail so many times."""
    fs, _ = store._open()
    real = getattr(fs, name)
    flaky = Flaky(failures, OSError)

    def method(*args, **kwargs):
        flaky()
        return real(*args, **kwargs)

    monkeypatch.setattr(fs, name, method)
    return flaky


def test_a_write_that_is_repeated_takes_its_buffers_anew(monkeypatch, pauses):
    store = MemoryStore()
    flaky = _failing(monkeypatch, store, "pipe_file", 2)

    class Buffers:
        iterations = 0

        def __iter__(self):
            self.iterations += 1
            yield b"one "
            yield b"two"

    buffers = Buffers()
    assert store.write("k", buffers) == 7
    assert store.read("k") == b"one two"
    assert buffers.iterations == flaky.calls == 3


def test_reading_listing_and_deleting_are_tried_again(monkeypatch, pauses):
    store = MemoryStore()
    store.write("d/k", [b"x"])
    for name in ("cat_file", "find", "ls", "rm_file"):
        _failing(monkeypatch, store, name, 1)
    assert store.read("d/k") == b"x"
    assert store.list() == {"d/k": 1}
    assert store.children() == ["d"]
    store.delete(["d/k"])
    assert store.list() == {}


def test_a_place_that_never_answered_is_given_up_sooner(monkeypatch, pauses):
    store = MemoryStore()
    _failing(monkeypatch, store, "find", 10**9)
    with pytest.raises(StorageError, match="cannot list memory://"):
        store.list()
    assert sum(pauses) <= store.deadline_s / 8
    pauses.clear()
    store.write("k", [b"x"])
    with pytest.raises(StorageError):
        store.list()
    assert store.deadline_s / 8 < sum(pauses) <= store.deadline_s


def test_a_creation_that_nobody_answers_is_given_up_in_time_and_called_so(monkeypatch, pauses):
    store = MemoryStore()
    store.write("k", [b"x"])
    for name in ("pipe_file", "cat_file"):
        _failing(monkeypatch, store, name, 10**9)
    with pytest.raises(StorageError, match="cannot create memory://"):
        store.create("other", b"x")
    assert sum(pauses) <= store.deadline_s


def test_a_creation_whose_answer_was_lost_and_whose_reading_back_failed_has_succeeded(monkeypatch, pauses):
    store = MemoryStore()
    fs, _ = store._open()
    pipe_file = fs.pipe_file

    def answer_lost(*args, **kwargs):
        pipe_file(*args, **kwargs)
        raise OSError("connection reset")

    monkeypatch.setattr(fs, "pipe_file", answer_lost)
    _failing(monkeypatch, store, "cat_file", 2)
    assert store.create("k", b"mine") is True
