import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import storage
from storage.catalog import attempt_key
from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, StorageError, Superseded
from storage.manifest import MANIFEST, Base
from storage.reader import restore
from storage.retention import Retention
from storage.run_directory import RunDirectory
from storage.store import open_store
from storage.testing import FaultyStore, MemoryStore
from tests.unit.storage.states import ARRAYS, empty, new_run, save


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else open_store(str(tmp_path / "run"))


def begun(store, base=None):
    """A run with an attempt that has recorded its base."""
    run = new_run(store)
    attempt = run.claim_attempt()
    run.record_base(attempt, base)
    return run, attempt


def steps(run):
    return [(e.step, e.attempt, e.status) for e in run.entries()]


def test_the_first_identity_stands(store):
    run, other = RunDirectory(store), RunDirectory(store)
    assert run.identity() is None
    first = run.create_identity({"seed": 1})
    assert first["seed"] == 1
    assert {"format", "run_id", "place_id", "created_at"} <= first.keys()
    assert other.create_identity({"seed": 2}) == first
    assert RunDirectory(store).identity() == first


def test_a_damaged_or_newer_identity_is_named(store):
    store.write("run.json", [b'{"format":1'])
    with pytest.raises(CorruptCheckpoint, match=r"run\.json"):
        RunDirectory(store).identity()
    store.write("run.json", [b'{"format":2,"run_id":"x"}'])
    with pytest.raises(ConfigurationError, match="format 2, this version reads 1"):
        RunDirectory(store).identity()


def test_attempts_count_up_from_one(store):
    run = RunDirectory(store)
    assert run.newest_attempt() == 0
    assert [run.claim_attempt().number for _ in range(3)] == [1, 2, 3]
    assert run.newest_attempt() == 3


def test_racing_claimers_get_different_numbers(store):
    barrier = threading.Barrier(4)

    def claim(_):
        barrier.wait(20)
        return RunDirectory(store).claim_attempt()

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            claims = [*pool.map(claim, range(4))]
            assert len({a.number for a in claims}) == 4
            assert len({a.nonce for a in claims}) == 4


def test_a_number_is_left_to_a_claim_that_was_there_before(store):
    class Late(FaultyStore):
        def create(self, key, data):
            if key.startswith("attempts/00000001"):  # another one is faster after both have listed
                self.inner.create(attempt_key(1, "00112233"), b"{}")
            return super().create(key, data)

    assert RunDirectory(Late(store)).claim_attempt().number == 2


def test_a_checkpoint_counts_only_once_its_attempt_has_recorded_a_base(store):
    run = new_run(store)
    attempt = run.claim_attempt()
    save(run, attempt, 1)
    assert run.latest() is None
    assert steps(run) == [(1, 1, "invalid")]
    run.record_base(attempt, None)
    latest = run.latest()
    assert latest is not None
    assert latest.manifest is not None
    assert (latest.step, latest.status, latest.manifest.step) == (1, "latest", 1)
    assert steps(run) == [(1, 1, "latest")]


def test_a_base_is_recorded_once_and_the_same_again_is_no_error(store):
    run, _ = begun(store)
    second = run.claim_attempt()
    run.record_base(second, Base(10, 1))
    run.record_base(second, Base(10, 1))
    with pytest.raises(CheckpointError, match="another base"):
        run.record_base(second, Base(20, 1))


def test_a_base_on_no_line_is_refused(store):
    run, _ = begun(store)
    with pytest.raises(CheckpointError, match="on no recorded line"):
        run.record_base(run.claim_attempt(), Base(10, 9))


def test_a_base_that_a_newer_attempt_has_cut_off_is_superseded(store):
    run, _ = begun(store)
    late, newer = run.claim_attempt(), run.claim_attempt()
    run.record_base(newer, None)
    with pytest.raises(Superseded, match=f"attempt {newer.number} has taken over"):
        run.record_base(late, Base(10, late.number + 7))


def test_resuming_earlier_cuts_off_what_came_after(store):
    run, first = begun(store)
    for step in (10, 20, 30):
        save(run, first, step)
    second = run.claim_attempt()
    run.record_base(second, Base(20, first.number))
    assert steps(run) == [(10, 1, "complete"), (20, 1, "latest"), (30, 1, "invalid")]
    save(run, second, 30)
    assert steps(run)[-2:] == [(30, 1, "invalid"), (30, 2, "latest")]
    third = run.claim_attempt()
    run.record_base(third, Base(30, second.number))
    assert [(e.step, e.attempt) for e in run.candidates()] == [(30, 2), (20, 1), (10, 1)]


def test_losing_older_attempt_files_changes_nothing(store):
    run, first = begun(store)
    save(run, first, 10)
    second = run.claim_attempt()
    run.record_base(second, Base(10, 1))
    save(run, second, 20)
    before = steps(run)
    store.delete([attempt_key(1, first.nonce), attempt_key(1, first.nonce, ".base")])
    assert steps(RunDirectory(store)) == before
    assert RunDirectory(store).claim_attempt().number == 3


def test_an_attempt_that_recorded_no_base_cuts_nothing_off_but_fences(store):
    run, first = begun(store)
    save(run, first, 10)
    run.claim_attempt()
    assert run.latest() is not None
    with pytest.raises(Superseded):
        save(run, first, 20)


def test_candidates_fall_back_past_what_is_damaged(store):
    run, attempt = begun(store)
    directories = [save(run, attempt, step)[0] for step in (10, 20, 30, 40)]
    store.delete([f"{directories[3]}/params/c/0"])
    manifest = bytearray(store.read(f"{directories[2]}/{MANIFEST}"))
    manifest[50] ^= 1
    store.write(f"{directories[2]}/{MANIFEST}", [bytes(manifest)])
    shard = bytearray(store.read(f"{directories[1]}/params/c/0"))
    shard[50] ^= 1
    store.write(f"{directories[1]}/params/c/0", [bytes(shard)])

    run = RunDirectory(store)
    assert steps(run) == [
        (10, 1, "complete"),
        (20, 1, "latest"),
        (30, 1, "incomplete"),
        (40, 1, "incomplete"),
    ]
    assert [bool(e.reason) for e in run.entries()] == [False, False, True, True]
    tried = []
    for entry in run.candidates():
        tried.append(entry.step)
        try:
            restore(store, entry.directory, entry.manifest, ARRAYS, empty(ARRAYS))
            break
        except CorruptCheckpoint:
            continue
    assert tried == [20, 10]


def test_a_checkpoint_of_another_run_does_not_count(store):
    run, attempt = begun(store)
    save(run, attempt, 10)
    other, other_attempt = begun(MemoryStore())
    directory, _ = save(other, other_attempt, 20)
    for key in other.store.list(directory):
        store.write(key, [other.store.read(key)])
    assert [e.status for e in run.entries()] == ["latest", "invalid"]
    assert run.latest().step == 10


def test_retention_keeps_the_newest_and_removes_the_manifest_first():
    inner = MemoryStore()
    run, attempt = begun(inner)
    for step in (10, 20, 30, 40):
        save(run, attempt, step)
    run.store = FaultyStore(inner)
    deleted = run.retain(Retention(keep=2))
    assert [d.split("-")[1] for d in deleted] == ["000000000010", "000000000020"]
    assert steps(run) == [(30, 1, "complete"), (40, 1, "latest")]
    deletions = [keys for verb, keys in run.store.operations if verb == "delete"]
    assert deletions[0] == f"{deleted[0]}/{MANIFEST}"
    assert not [key for key in inner.list() if key.startswith(tuple(deleted))]


def test_retention_spares_the_base_of_the_newest_attempt_and_other_lines(store):
    run, first = begun(store)
    for step in (10, 20, 30):
        save(run, first, step)
    second = run.claim_attempt()
    run.record_base(second, Base(20, 1))
    for step in (40, 50):
        save(run, second, step)
    run.retain(Retention(keep=1))
    assert steps(run) == [(20, 1, "complete"), (30, 1, "invalid"), (50, 2, "latest")]


def test_a_retention_that_dies_half_way_leaves_an_incomplete_checkpoint_at_worst():
    for fail_at in range(12):
        inner = MemoryStore()
        run, attempt = begun(inner)
        for step in (10, 20, 30):
            save(run, attempt, step)
        run.store = FaultyStore(inner, fail_at, "torn")
        with contextlib.suppress(StorageError):
            run.retain(Retention(keep=1))
        fresh = RunDirectory(inner)
        latest = fresh.latest()
        assert latest.step == 30
        restore(inner, latest.directory, latest.manifest, ARRAYS, empty(ARRAYS))


def test_the_sign_of_life_is_that_of_the_newest_attempt_that_gave_one(store):
    run = RunDirectory(store)
    assert run.newest_beat() is None
    first, second = run.claim_attempt(), run.claim_attempt()
    run.beat(first, {"counter": 1, "host": "a"})
    run.beat(second, {"counter": 1})
    run.beat(second, {"counter": 2, "closed": False})
    run.claim_attempt()
    beat = run.newest_beat()
    assert beat == {"counter": 2, "closed": False, "attempt": 2, "nonce": second.nonce}


def test_the_journal_is_that_of_all_attempts_in_order(store):
    run = RunDirectory(store)
    first, second = run.claim_attempt(), run.claim_attempt()
    assert run.journal() == []
    run.write_journal(second, [{"event": "start"}, {"event": "loss", "value": float("nan")}])
    run.write_journal(first, [{"event": "old"}])
    run.write_journal(first, [{"event": "old"}, {"event": "line\nbreak"}])
    assert run.journal() == [
        {"event": "old"},
        {"event": "line\nbreak"},
        {"event": "start"},
        {"event": "loss", "value": "NaN"},
    ]


def test_another_probe_finds_the_same(monkeypatch):
    run = RunDirectory(MemoryStore())
    fs, _ = run.store._open()
    pipe_file = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda path, data, mode: pipe_file(path, data))
    assert [run.probe_exclusive() for _ in range(3)] == [False] * 3


class Busy(FaultyStore):
    """Has something else happen once, after an operation that `wanted` chooses."""

    def __init__(self, inner, wanted, act):
        super().__init__(inner)
        self._wanted, self._act = wanted, act

    def _answer(self, result, fails):
        if self._act is not None and self.operations[-1] == self._wanted:
            act, self._act = self._act, None
            act()
        return super()._answer(result, fails)


def test_what_is_put_on_record_while_others_are_forgotten_stays(store):
    run, attempt = begun(store)
    gone, _ = save(run, attempt, 1)
    run.pin(gone)
    store.delete_directory(gone)
    new = []

    def save_and_pin():
        new.append(save(run, attempt, 2)[0])
        run.pin(new[0])
        run.mark_verified(new[0])

    RunDirectory(Busy(store, ("children", "checkpoints"), save_and_pin)).collect()
    assert run.pins() == run.on_record("verified") == {*new}


def test_a_pin_made_during_retention_is_heeded(store):
    run, attempt = begun(store)
    directories = [save(run, attempt, step)[0] for step in (1, 2, 3)]
    manifest = f"{directories[0]}/{MANIFEST}"
    busy = Busy(store, ("delete", manifest), lambda: run.pin(directories[1]))
    assert RunDirectory(busy).retain(Retention(keep=1)) == directories[:1]
    assert steps(run) == [(2, 1, "complete"), (3, 1, "latest")]


def test_pinning_what_has_been_deleted_meanwhile_is_an_error(store):
    run, attempt = begun(store)
    directory, _ = save(run, attempt, 1)
    store.delete_directory(directory)
    with pytest.raises(CheckpointError, match="has been deleted meanwhile"):
        run.pin(directory)
    assert run.pins() == set()


def test_there_is_a_latest_at_every_moment_however_fast_others_are(tmp_path):
    url = str(tmp_path / "run")
    storage.save(url, {"x": [1.0]})

    def save_thrice():
        for _ in range(3):
            storage.save(url, {"x": [1.0]}, keep=1)

    for wanted in (("list", "attempts"), ("list", "quarantine"), ("children", "checkpoints")):
        run = RunDirectory(Busy(open_store(url), wanted, save_thrice))
        assert run.latest() is not None


@pytest.mark.parametrize(
    "identity",
    [
        b"",
        b"[]",
        b"null",
        b'{"format":1}',
        b'{"format":"2","run_id":"x","place_id":"y"}',
        b'{"format":1,"run_id":"x"}',
        b'{"format":1,"run_id":"x\\u001b[2J","place_id":"y"}',
        b'{"format":1,"run_id":"x","place_id":"../y"}',
        b'{"format":1,"run_id":"x","place_id":"y","seed":"\\ud800"}',
    ],
)
def test_whatever_else_run_json_holds_is_a_named_error(store, identity):
    store.write("run.json", [identity])
    with pytest.raises(CorruptCheckpoint, match=r"run\.json"):
        RunDirectory(store).identity()


@pytest.mark.parametrize("key", ["run.json", "attempts/00000002-00112233.base.json"])
def test_a_record_without_end_is_not_read_to_its_end(tmp_path, key):
    run, _ = begun(open_store(str(tmp_path)))
    with (tmp_path / key).open("wb") as file:
        file.truncate(1 << 40)
    fresh = RunDirectory(run.store)
    with pytest.raises(CorruptCheckpoint, match=f"{key}( is damaged)?: [0-9]+ bytes of JSON, more than"):
        fresh.latest() if "base" in key else fresh.identity()


def test_names_in_digits_of_other_scripts_are_no_names(tmp_path):
    run, attempt = begun(open_store(str(tmp_path)))
    directory, _ = save(run, attempt, 1)
    digits = str.maketrans("0123456789", "".join(chr(0x660 + i) for i in range(10)))
    (tmp_path / "checkpoints" / f"step-{'000000000009'.translate(digits)}-a00000001-aabbccdd").mkdir()
    (tmp_path / "attempts" / f"{'00000009'.translate(digits)}-aabbccdd.base.json").write_bytes(b"{}")
    assert run.latest().directory == directory
    assert len(run.entries()) == 1
    assert run.newest_attempt() == 1


def test_when_attempt_numbers_are_used_up_it_is_said(store):
    run = new_run(store)
    store.write(attempt_key(99_999_999, "00112233"), [b"{}"])
    with pytest.raises(CheckpointError, match="no attempt number left after 99999999: copy its latest"):
        run.claim_attempt()
