import pytest

from storage.errors import ConfigurationError, CorruptCheckpoint, StorageError, Superseded
from storage.manifest import Base
from storage.run_directory import RunDirectory
from storage.store import open_store
from storage.testing import FaultyStore, MemoryStore
from storage.transfer import copy
from storage.verification import verify_checkpoint
from tests.unit.storage.states import ARRAYS, new_run, save


@pytest.fixture
def source(tmp_path):
    """A run with checkpoints 1 and 2 of attempt 1, and 3 of attempt 2."""
    run = new_run(open_store(str(tmp_path / "source")))
    first = run.claim_attempt()
    run.record_base(first, None)
    save(run, first, 1)
    save(run, first, 2)
    second = run.claim_attempt()
    run.record_base(second, Base(2, 1))
    save(run, second, 3, parent=Base(2, 1))
    return run


def there(destination):
    return RunDirectory(open_store(destination))


def test_a_copy_is_the_latest_there_and_a_run_of_its_own_place(source):
    store = MemoryStore()
    copied = copy(source.store.url, store.url)
    assert (copied.step, copied.was_there) == (3, False)
    target = there(store.url)
    latest = target.latest()
    assert latest.order == source.latest().order
    assert verify_checkpoint(target.store, latest.directory, read_data=True).faults == ()
    ours, theirs = source.identity(), target.identity()
    assert ours["run_id"] == theirs["run_id"]
    assert ours["place_id"] != theirs["place_id"]
    assert target.newest_attempt() == 3
    assert target.line() == (3, (Base(2, 1), Base(3, 2)))


def test_a_later_checkpoint_follows_and_an_earlier_one_is_refused(source, tmp_path):
    destination = str(tmp_path / "copy")
    copy(f"{source.store.url}#2", destination)
    assert there(destination).latest().step == 2
    copy(source.store.url, destination)
    target = there(destination)
    assert [(e.step, e.status) for e in target.entries()] == [(2, "complete"), (3, "latest")]
    with pytest.raises(ConfigurationError, match="is at step 3 already: a copy of step 1"):
        copy(f"{source.store.url}#1", destination)
    assert copy(source.store.url, destination).was_there


def test_another_run_is_not_copied_into(source, tmp_path):
    other = new_run(open_store(str(tmp_path / "other")))
    with pytest.raises(ConfigurationError, match="holds another run"):
        copy(source.store.url, other.store.url)
    assert [*other.store.list()] == ["run.json"]


def test_damage_at_the_source_is_named_and_nothing_counts_at_the_destination(source, tmp_path):
    directory = source.latest().directory
    shard = tmp_path / "source" / directory / "params" / "c" / "0"
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    destination = str(tmp_path / "copy")
    with pytest.raises(CorruptCheckpoint, match=r"source/.*params/c/0 does not match"):
        copy(source.store.url, destination)
    target = there(destination)
    assert target.identity() is None
    assert target.latest() is None


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_copy_that_fails_at_any_operation_can_be_made_again(source, monkeypatch, fault):
    """Whatever was done until then, nothing half-copied counts, and the same command completes it."""
    from storage import transfer

    real = transfer.open_store
    at = 0
    while True:
        inner = MemoryStore()
        faulty = FaultyStore(inner, at, fault)
        monkeypatch.setattr(transfer, "open_store", lambda url, faulty=faulty: faulty)
        try:
            copy(source.store.url, inner.url)
        except StorageError:
            found = there(inner.url).latest()
            if found is not None:
                assert verify_checkpoint(inner, found.directory, read_data=True).faults == ()
            monkeypatch.setattr(transfer, "open_store", real)
            copy(source.store.url, inner.url)
            latest = there(inner.url).latest()
            assert latest.step == 3
            assert there(inner.url).identity()["run_id"] == source.identity()["run_id"]
            assert verify_checkpoint(inner, latest.directory, read_data=True).faults == ()
        if len(faulty.operations) <= at:
            break
        at += 1
    assert at > 3 * len(ARRAYS)


def _after_the_manifest(monkeypatch, then):
    """Have something else happen once, between the commit of a copy and its becoming the latest."""
    from storage import transfer

    real = transfer._copy_manifest

    def copy_manifest(*args):
        monkeypatch.setattr(transfer, "_copy_manifest", real)
        real(*args)
        then()

    monkeypatch.setattr(transfer, "_copy_manifest", copy_manifest)


def test_a_slow_copy_does_not_undo_a_later_one_that_was_faster(source, tmp_path, monkeypatch):
    destination = str(tmp_path / "copy")
    _after_the_manifest(monkeypatch, lambda: copy(source.store.url, destination))
    with pytest.raises(ConfigurationError, match="is at step 3 already: a copy of step 2 would undo that"):
        copy(f"{source.store.url}#2", destination)
    assert [(e.step, e.status) for e in there(destination).entries()] == [(2, "complete"), (3, "latest")]


def test_a_copy_is_told_when_another_has_taken_over(source, tmp_path, monkeypatch):
    destination = str(tmp_path / "copy")
    real = RunDirectory.record_line

    def record_line(self, *args):
        real(self, *args)
        if self.store.url == destination:
            RunDirectory(self.store).claim_attempt()

    monkeypatch.setattr(RunDirectory, "record_line", record_line)
    with pytest.raises(Superseded, match="attempt 4 has taken over"):
        copy(source.store.url, destination)
    monkeypatch.undo()
    copy(source.store.url, destination)
    assert there(destination).latest().step == 3


def test_of_two_runs_copied_to_one_place_at_once_one_is_refused(source, tmp_path, monkeypatch):
    other = new_run(open_store(str(tmp_path / "other")))
    attempt = other.claim_attempt()
    other.record_base(attempt, None)
    save(other, attempt, 1)
    destination = str(tmp_path / "copy")
    _after_the_manifest(monkeypatch, lambda: copy(other.store.url, destination))
    with pytest.raises(ConfigurationError, match="holds another run"):
        copy(source.store.url, destination)


def test_a_place_that_no_address_could_name_is_not_copied_to(source, tmp_path):
    with pytest.raises(ConfigurationError, match="'#' would be taken for a step"):
        copy(source.store.url, str(tmp_path / "copy#1"))
