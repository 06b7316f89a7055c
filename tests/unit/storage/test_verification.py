import numpy as np
import pytest

import storage
from storage.errors import CorruptCheckpoint, ObjectMissing, StorageError
from storage.layout import CHUNK, Layout, StateArray
from storage.objects import read_manifest
from storage.reader import open_checkpoint
from storage.store import open_store
from storage.testing import FaultyStore, MemoryStore
from storage.verification import verify_checkpoint
from tests.unit.storage.states import ARRAYS, new_run, save

BIG = (StateArray("params", Layout.of({"w": (5 * CHUNK // 64 + 3, 64)})),)


def saved(arrays=ARRAYS, **kwargs):
    run = new_run(MemoryStore())
    attempt = run.claim_attempt()
    run.record_base(attempt, None)
    directory, manifest = save(run, attempt, 1, arrays, **kwargs)
    return run, directory, manifest


def change(run, directory, key, change):
    path = f"{directory}/{key}"
    data = bytearray(run.store.read(path))
    run.store.write(path, [bytes(change(data))])


def flip(at):
    def act(data):
        data[at] ^= 1
        return data

    return act


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_good_checkpoint_has_no_faults_and_every_byte_was_read(compression):
    run, directory, manifest = saved(compression=compression)
    quick = verify_checkpoint(run.store, directory)
    assert quick.faults == ()
    assert quick.objects == len(manifest.objects)
    full = verify_checkpoint(run.store, directory, read_data=True)
    assert full.faults == ()
    assert full.nbytes_read >= manifest.nbytes > quick.nbytes_read
    assert full.step == 1


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_every_damaged_chunk_is_named_with_its_bytes(compression):
    run, directory, _ = saved(BIG, max_shard_nbytes=8 << 20, compression=compression)

    def three(data):
        for at in (10, 5_000_000 % len(data), len(data) - 2000):
            data[at] ^= 1
        return data

    change(run, directory, "params/c/0", three)
    change(run, directory, "params/c/2", flip(100))
    report = verify_checkpoint(run.store, directory, read_data=True)
    by_object = {}
    for fault in report.faults:
        by_object.setdefault(fault.object, []).append(fault)
        assert "does not match its CRC" in fault.text
        assert fault.start < fault.stop
    assert by_object.keys() == {"params/c/0", "params/c/2"}
    assert by_object["params/c/0"][0].start == 0
    assert len(by_object["params/c/0"]) == 2  # of two chunks, one is hit twice
    assert verify_checkpoint(run.store, directory).faults == ()  # data was not asked for


def test_a_truncated_a_missing_and_a_longer_object_are_all_named():
    run, directory, manifest = saved()
    change(run, directory, "params/c/0", lambda data: data[:-5])
    change(run, directory, "slots/adam_v/c/0", lambda data: data + b"x")
    run.store.delete([f"{directory}/slots/adam_m/c/0"])
    faults = {fault.object: fault for fault in verify_checkpoint(run.store, directory).faults}
    nbytes = manifest.objects["params/c/0"].nbytes
    assert (faults["params/c/0"].start, faults["params/c/0"].stop) == (nbytes - 5, nbytes)
    assert f"has {nbytes - 5} bytes, not {nbytes}" in faults["params/c/0"].text
    assert "missing" in faults["slots/adam_m/c/0"].text
    assert "bytes, not" in faults["slots/adam_v/c/0"].text
    assert len(faults) == 3


@pytest.mark.parametrize("key", ["zarr.json", "params/zarr.json", "params/digests", "slots/zarr.json"])
def test_a_damaged_document_is_named_and_the_shards_are_still_looked_at(key):
    run, directory, _ = saved()
    change(run, directory, key, flip(5))
    change(run, directory, "slots/adam_m/c/0", flip(50))
    found = {fault.object for fault in verify_checkpoint(run.store, directory, read_data=True).faults}
    assert found == {key, "slots/adam_m/c/0"}


def test_a_damaged_index_is_named():
    for compression in (None, "zstd"):
        run, directory, manifest = saved(compression=compression)
        nbytes = manifest.objects["params/c/0"].nbytes
        change(run, directory, "params/c/0", flip(nbytes - 6))
        (fault,) = verify_checkpoint(run.store, directory).faults
        assert (fault.object, fault.stop) == ("params/c/0", nbytes)
        assert "index" in fault.text
        assert verify_checkpoint(run.store, directory, read_data=True).faults


@pytest.mark.parametrize("data", [b"", b"{}", b"not json"])
def test_a_damaged_manifest_is_one_fault(data):
    run, directory, _ = saved()
    run.store.write(f"{directory}/manifest.json", [data])
    (fault,) = verify_checkpoint(run.store, directory, read_data=True).faults
    assert fault.object == "manifest.json"


def test_a_manifest_of_another_directory_is_a_fault():
    run, directory, _ = saved()
    other, _ = save(run, run.claim_attempt(), 2)
    run.store.write(f"{directory}/manifest.json", [run.store.read(f"{other}/manifest.json")])
    assert "another directory" in verify_checkpoint(run.store, directory).faults[0].text


def test_a_share_reads_so_much_and_the_same_seed_reads_the_same():
    run, directory, _ = saved(BIG, max_shard_nbytes=8 << 20)
    change(run, directory, "params/c/1", flip(100))
    found = [
        bool(verify_checkpoint(run.store, directory, subset=0.34, seed=seed).faults) for seed in range(20)
    ]
    again = [
        bool(verify_checkpoint(run.store, directory, subset=0.34, seed=seed).faults) for seed in range(20)
    ]
    assert found == again
    assert 0 < sum(found) < 20
    assert verify_checkpoint(run.store, directory, subset=1.0).faults
    part = verify_checkpoint(run.store, directory, subset=0.34).nbytes_read
    assert part < verify_checkpoint(run.store, directory, subset=1.0).nbytes_read


def test_progress_is_told(tmp_path):
    url = storage.save(str(tmp_path / "w"), {"a": np.zeros(3 << 20)})
    told = []
    head, _, name = url.rpartition("/checkpoints/")
    verify_checkpoint(open_store(head), f"checkpoints/{name}", read_data=True, progress=told.append)
    assert told == sorted(told)
    assert told[-1] > 3 << 23


class Wrong(FaultyStore):
    """Answers the first readings of objects whose key ends in `key` with other bytes, each with its own."""

    def __init__(self, inner, key, times):
        super().__init__(inner)
        self.key = key
        self.left = times

    def read(self, key, start=None, stop=None):
        data = super().read(key, start, stop)
        if key.endswith(self.key) and self.left:
            self.left -= 1
            return bytes([self.left]) * len(data)
        return data


@pytest.mark.parametrize(
    "key", ["manifest.json", "zarr.json", "params/zarr.json", "params/digests", "params/c/0"]
)
def test_what_reads_wrong_once_is_no_damage(key):
    run, directory, _ = saved()
    assert verify_checkpoint(Wrong(run.store, key, 1), directory, read_data=True).faults == ()


@pytest.mark.parametrize(
    "key", ["manifest.json", "zarr.json", "params/zarr.json", "params/digests", "params/c/0"]
)
def test_what_reads_otherwise_each_time_is_a_fault_of_the_storage(key):
    run, directory, _ = saved()
    with pytest.raises(StorageError, match="each reading gives other bytes"):
        verify_checkpoint(Wrong(run.store, key, 100), directory, read_data=True)


def test_a_manifest_that_reads_wrong_twice_alike_is_damaged():
    run, directory, _ = saved()
    run.store.write(f"{directory}/manifest.json", [b"{}"])
    with pytest.raises(CorruptCheckpoint, match="missing"):
        read_manifest(run.store, directory)


class Deleting(FaultyStore):
    """Deletes the checkpoint, as retention does, when the first shard is read."""

    def read(self, key, start=None, stop=None):
        if "/c/" in key and key in self.inner.list():
            directory = key.partition("/params/")[0]
            self.inner.delete([f"{directory}/manifest.json"])
            self.inner.delete_directory(directory)
        return super().read(key, start, stop)


def test_what_is_deleted_while_it_is_read_is_not_called_damaged():
    for act in (
        lambda store, directory: open_checkpoint(store, directory).load(),
        lambda store, directory: open_checkpoint(store, directory)["params/scale"][()],
        lambda store, directory: verify_checkpoint(store, directory, read_data=True),
    ):
        run, directory, _ = saved()
        with pytest.raises(ObjectMissing, match="was deleted while it was being"):
            act(Deleting(run.store), directory)
