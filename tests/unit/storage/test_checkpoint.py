import json
import threading
import time

import numpy as np
import pytest
import zarr

from storage import checkpoint
from storage.checkpoint import (
    Part,
    commit,
    digest_of_parts,
    directory_name,
    state_digest,
    write_part,
)
from storage.errors import (
    CheckpointError,
    ConfigurationError,
    CorruptCheckpoint,
    IncompatibleCheckpoint,
    StorageError,
    Superseded,
)
from storage.layout import CHUNK, Layout, StateArray
from storage.manifest import MANIFEST, Base
from storage.reader import restore
from storage.shards import plan
from storage.store import open_store
from storage.testing import FaultyStore, MemoryStore
from tests.unit.storage.states import ARRAYS, buffers, empty, new_run, save

BIG = Layout.of({"emb": (5 * CHUNK // 64 + 3, 64), "b": (7,)})  # six chunks, the last one short
BIG_ARRAYS = (StateArray("params", BIG), StateArray("slots/m", Layout.of({"m": (11,)}), "float64"))


@pytest.fixture
def run(tmp_path):
    return new_run(open_store(str(tmp_path / "run")))


@pytest.mark.parametrize("num_writers", [1, 3])
def test_zarr_reads_every_variable_equal_to_the_bit(run, num_writers):
    attempt = run.claim_attempt()
    for arrays in (ARRAYS, BIG_ARRAYS):
        flat = buffers(arrays)
        step = len(arrays)
        directory, _ = save(run, attempt, step, arrays, flat, num_writers, max_shard_nbytes=8 << 20)
        group = zarr.open_group(f"{run.store.url}/{directory}", mode="r")
        for array in arrays:
            stored = group[array.name]
            assert stored.shape == (array.length,)
            assert stored.dtype == array.dtype
            assert np.isnan(stored.fill_value)
            table = stored.attrs["variables"]
            assert list(table) == [v.name for v in array.layout.variables]
            views = array.layout.views(flat[array.name])
            for name, place in table.items():
                size = int(np.prod(place["shape"]))
                values = stored[place["offset"] : place["offset"] + size].reshape(place["shape"])
                assert values.tobytes() == views[name].tobytes()


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint16", "int32", "int64", "uint64"]
)
def test_every_dtype_is_read_by_zarr_and_restored(run, dtype):
    arrays = (StateArray("buffers/x", Layout.of({"x": (3000,)}), dtype),)
    flat = buffers(arrays)
    directory, manifest = save(run, run.claim_attempt(), 1, arrays, flat)
    group = zarr.open_group(f"{run.store.url}/{directory}", mode="r")
    assert group["buffers/x"][:3000].tobytes() == flat["buffers/x"][:3000].tobytes()
    into = empty(arrays)
    restore(run.store, directory, manifest, arrays, into)
    assert into["buffers/x"].tobytes() == flat["buffers/x"].tobytes()


def test_zarr_shows_a_lost_shard_as_nan_and_reports_a_flipped_bit(run):
    directory, _ = save(run, run.claim_attempt(), 1)
    key = f"{directory}/params/c/0"
    data = bytearray(run.store.read(key))
    data[100] ^= 1
    run.store.write(key, [bytes(data)])
    group = zarr.open_group(f"{run.store.url}/{directory}", mode="r")
    with pytest.raises(ValueError, match=r"(?i)crc|checksum"):
        group["params"][:]
    run.store.delete([key])
    assert np.isnan(group["params"][:]).all()


@pytest.mark.parametrize("num_writers", [1, 2, 5])
def test_restore_gives_the_same_bits_for_any_number_of_writers(run, num_writers):
    flat = buffers(BIG_ARRAYS)
    directory, manifest = save(run, run.claim_attempt(), 1, BIG_ARRAYS, flat, num_writers)
    into = empty(BIG_ARRAYS)
    restore(run.store, directory, manifest, BIG_ARRAYS, into)
    for name, values in flat.items():
        assert into[name].tobytes() == values.tobytes()
    assert manifest.state_digest == state_digest(BIG_ARRAYS, flat)


def test_the_state_digest_ignores_padding_and_sees_every_element():
    flat = buffers(BIG_ARRAYS)
    digest = state_digest(BIG_ARRAYS, flat)
    flat["params"][BIG.length] = 1
    assert state_digest(BIG_ARRAYS, flat) == digest
    for at in (0, BIG.length - 1):
        flat["params"][at] += 1
        assert state_digest(BIG_ARRAYS, flat) != digest
        flat["params"][at] -= 1


def test_parts_travel_as_json_and_give_the_same_digest():
    store, flat = MemoryStore(), buffers(BIG_ARRAYS)
    shards = plan(BIG_ARRAYS, 3)
    parts = []
    for writer in range(3):
        part = write_part(store, "d", BIG_ARRAYS, flat, [s for s in shards if s.writer == writer])
        parts.append(Part.from_json(json.loads(json.dumps(part.to_json()))))
        assert parts[-1] == part
    assert digest_of_parts(BIG_ARRAYS, parts) == state_digest(BIG_ARRAYS, flat)
    with pytest.raises(CheckpointError, match="digests of"):
        digest_of_parts(BIG_ARRAYS, parts[1:])


class BusyStore(MemoryStore):
    """Every write waits until `at_once` of them are under way."""

    def __init__(self, at_once):
        super().__init__()
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(at_once, timeout=20)

    def write(self, key, data):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._meeting.wait()
        time.sleep(0.01)
        nbytes = super().write(key, data)
        with self._lock:
            self._now -= 1
        return nbytes


@pytest.mark.parametrize("in_flight", [1, 3])
def test_as_many_shards_are_written_at_a_time_as_it_says(in_flight):
    arrays = tuple(StateArray(f"slots/s{i}", Layout.of({"v": (9,)})) for i in range(6))
    store = BusyStore(in_flight)
    write_part(store, "d", arrays, buffers(arrays), plan(arrays, 1), in_flight=in_flight)
    assert store.most == in_flight
    assert len(store.list("d")) == 6


def test_an_empty_state_array_is_saved_and_restored(run):
    arrays = (StateArray("params", Layout.of({})),)
    directory, manifest = save(run, run.claim_attempt(), 1, arrays, buffers(arrays))
    assert manifest.objects.keys() == {"zarr.json", "params/zarr.json", "params/digests"}
    restore(run.store, directory, manifest, arrays, empty(arrays))
    assert zarr.open_group(f"{run.store.url}/{directory}", mode="r")["params"].shape == (0,)


OBJECTS = ["zarr.json", "slots/zarr.json", "slots/adam_v/zarr.json", "params/c/0", "slots/adam_m/c/0"]


@pytest.mark.parametrize("key", OBJECTS)
def test_restore_finds_a_flipped_byte_anywhere(key):
    run = new_run(MemoryStore())
    directory, manifest = save(run, run.claim_attempt(), 1)
    good = run.store.read(f"{directory}/{key}")
    for at in {0, len(good) // 3, len(good) - 20, len(good) - 1}:
        data = bytearray(good)
        data[at] ^= 0x10
        run.store.write(f"{directory}/{key}", [bytes(data)])
        with pytest.raises(CorruptCheckpoint, match=key):
            restore(run.store, directory, manifest, ARRAYS, empty(ARRAYS))
    run.store.write(f"{directory}/{key}", [good])
    restore(run.store, directory, manifest, ARRAYS, empty(ARRAYS))


@pytest.mark.parametrize("key", OBJECTS)
def test_restore_names_a_truncated_a_longer_and_a_missing_object(key):
    run = new_run(MemoryStore())
    directory, manifest = save(run, run.claim_attempt(), 1)
    good = run.store.read(f"{directory}/{key}")
    for data in (good[:-1], b"", good + b"x"):
        run.store.write(f"{directory}/{key}", [data])
        with pytest.raises(CorruptCheckpoint, match=key):
            restore(run.store, directory, manifest, ARRAYS, empty(ARRAYS))
    run.store.delete([f"{directory}/{key}"])
    with pytest.raises(CorruptCheckpoint, match=f"{key} is missing"):
        restore(run.store, directory, manifest, ARRAYS, empty(ARRAYS))


def test_restore_finds_a_shard_swapped_for_a_good_one_of_another_step():
    run = new_run(MemoryStore())
    attempt = run.claim_attempt()
    one, _ = save(run, attempt, 1)
    two, manifest = save(run, attempt, 2)
    run.store.write(f"{two}/params/c/0", [run.store.read(f"{one}/params/c/0")])
    with pytest.raises(CorruptCheckpoint, match="params/c/0"):
        restore(run.store, two, manifest, ARRAYS, empty(ARRAYS))


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (
            (
                StateArray(
                    "params", Layout.of({"dense/kernel": (64, 256), "dense/bias": (128,), "scale": ()})
                ),
            ),
            r"params: dense/kernel: shape \(64, 256\) here, \(64, 128\) there",
        ),
        ((ARRAYS[0], ARRAYS[1], ARRAYS[2], StateArray("slots/x", ARRAYS[0].layout)), "slots/x: missing"),
        (ARRAYS[:2], "slots/adam_v: in the checkpoint, but not asked for"),
        (
            (ARRAYS[0], StateArray("slots/adam_m", ARRAYS[1].layout, "float64"), ARRAYS[2]),
            "slots/adam_m: dtype float64 here, float32 there",
        ),
        ((ARRAYS[0], ARRAYS[2], ARRAYS[1]), "order of arrays"),
    ],
)
def test_another_state_is_refused_by_name_and_nothing_changes(wanted, named):
    run = new_run(MemoryStore())
    directory, manifest = save(run, run.claim_attempt(), 1)
    into = empty(wanted)
    with pytest.raises(IncompatibleCheckpoint, match=named):
        restore(run.store, directory, manifest, wanted, into)
    for name, values in empty(wanted).items():
        assert into[name].tobytes() == values.tobytes()


def test_buffers_of_the_wrong_size_are_refused():
    run = new_run(MemoryStore())
    directory, manifest = save(run, run.claim_attempt(), 1)
    into = empty(ARRAYS) | {"params": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="params: need float32 of shape"):
        restore(run.store, directory, manifest, ARRAYS, into)


def test_a_commit_without_all_shards_is_refused(run):
    attempt = run.claim_attempt()
    directory = directory_name(1, attempt.number, attempt.nonce)
    shards = plan(BIG_ARRAYS, 2)
    part = write_part(run.store, directory, BIG_ARRAYS, buffers(BIG_ARRAYS), [s for s in shards if s.writer])
    with pytest.raises(CheckpointError, match="were not written"):
        _commit(run, attempt, directory, [part])
    assert run.entries()[0].status == "incomplete"


def test_a_commit_finds_an_object_that_is_not_as_reported(run):
    attempt = run.claim_attempt()
    directory = directory_name(1, attempt.number, attempt.nonce)
    part = write_part(run.store, directory, BIG_ARRAYS, buffers(BIG_ARRAYS), plan(BIG_ARRAYS, 1))
    run.store.write(f"{directory}/params/c/0", [b"short"])
    with pytest.raises(StorageError, match="params/c/0 has 5 bytes"):
        _commit(run, attempt, directory, [part])
    assert f"{directory}/{MANIFEST}" not in run.store.list()


def test_a_directory_is_committed_once(run):
    attempt = run.claim_attempt()
    save(run, attempt, 1)
    with pytest.raises(CheckpointError, match="committed before"):
        save(run, attempt, 1)


def test_a_zombie_attempt_is_told_so_and_its_checkpoint_does_not_count(run):
    zombie = run.claim_attempt()
    run.record_base(zombie, None)
    good, _ = save(run, zombie, 10)
    successor = run.claim_attempt()
    run.record_base(successor, Base(10, zombie.number))
    with pytest.raises(Superseded, match=f"attempt {successor.number} has taken over"):
        save(run, zombie, 20)
    latest = run.latest()
    assert latest is not None
    assert latest.directory == good
    assert [e.status for e in run.entries()] == ["latest", "invalid"]
    assert "not on the line" in run.entries()[1].reason


@pytest.mark.parametrize("fault", ["before", "after", "torn"])
def test_a_save_that_fails_at_any_operation_leaves_the_one_before_it_latest_and_whole(fault):
    operations = _num_operations()
    for at in range(operations):
        inner = MemoryStore()
        run = new_run(inner)
        attempt = run.claim_attempt()
        run.record_base(attempt, None)
        first, _ = save(run, attempt, 1)
        faulty = FaultyStore(inner, at, fault)
        broken = new_run(inner)
        broken.store = faulty
        with pytest.raises(StorageError):
            save(broken, attempt, 2)
        found = new_run(inner).latest()
        assert found is not None
        assert found.manifest is not None
        verbs = [verb for verb, _ in faulty.operations]
        committed = "create" in verbs[:-1] or (verbs[-1] == "create" and fault == "after")
        assert (found.directory != first) == committed
        into = empty(ARRAYS)
        restore(inner, found.directory, found.manifest, ARRAYS, into)
        assert into["params"].tobytes() == buffers(ARRAYS, found.step)["params"].tobytes()


def _num_operations():
    run = new_run(MemoryStore())
    attempt = run.claim_attempt()
    run.identity()
    run.store = FaultyStore(run.store)
    save(run, attempt, 2)
    return len(run.store.operations)


def _commit(run, attempt, directory, parts):
    return commit(
        run,
        attempt,
        directory,
        BIG_ARRAYS,
        parts,
        step=1,
        parent=None,
        counters={},
        metrics={},
        fingerprint={},
    )


def test_documents_that_no_reader_would_take_are_refused(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_NBYTES", 1000)
    run.record_base(attempt := run.claim_attempt(), None)
    with pytest.raises(ConfigurationError, match=r"params/zarr\.json of [0-9]+ bytes: save fewer variables"):
        save(run, attempt, 1)
    assert run.latest() is None
