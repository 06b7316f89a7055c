import json
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import storage
from storage import saving
from storage.errors import (
    CheckpointError,
    ConfigurationError,
    CorruptCheckpoint,
    IncompatibleCheckpoint,
    StorageError,
)
from storage.object_store import ObjectStore
from storage.run_directory import RunDirectory
from storage.store import open_store
from storage.testing import MemoryStore
from tests.sim.storage_model import ModelStore

ARRAYS = {
    "dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "dense/bias": np.zeros(4, np.float64),
    "half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "mask": np.array([[True, False], [False, True]]),
    "step": np.int64(7),
    "empty": np.zeros((0, 5), np.float16),
    "big endian": None,
}
del ARRAYS["big endian"]


def test_what_is_saved_is_loaded_with_names_shapes_and_dtypes(tmp_path):
    url = str(tmp_path / "w")
    saved = storage.save(url, ARRAYS, step=3, metadata={"note": "x"}, metrics={"loss": 0.5})
    assert storage.latest(url) == saved
    found = storage.load(url)
    assert found.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        assert found[name].dtype == np.asarray(values).dtype
        assert found[name].shape == np.shape(values)
        assert found[name].tobytes() == np.asarray(values).tobytes()
    checkpoint = storage.open(saved)
    assert checkpoint.manifest.metadata == {"note": "x"}
    assert checkpoint.manifest.step == 3
    assert storage.load(f"{url}#3", ["dense/*"]).keys() == {"dense/kernel", "dense/bias"}


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5})?", fullmatch=True),
        hnp.arrays(
            st.sampled_from(["<f4", ">f4", "<f8", "<i2", ">i8", "|u1", "|b1"]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
        ),
        max_size=6,
    ),
    st.sampled_from([None, "zstd"]),
)
def test_any_arrays_come_back_to_the_bit(arrays, compression):
    url = f"memory://library-{os.urandom(8).hex()}"
    storage.save(url, arrays, compression=compression)
    found = storage.load(url)
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        assert found[name].shape == values.shape
        assert found[name].tobytes() == values.astype(values.dtype.newbyteorder("=")).tobytes()


def test_steps_go_up_by_themselves_and_never_down(tmp_path):
    url = str(tmp_path / "w")
    steps = [storage.open(storage.save(url, {"x": np.ones(3)})).manifest.step for _ in range(3)]
    assert steps == [0, 1, 2]
    with pytest.raises(
        ConfigurationError, match="step 2 is not after the latest checkpoint, which is at step 2"
    ):
        storage.save(url, {"x": np.ones(3)}, step=2)
    with pytest.raises(ConfigurationError, match="step 'two'"):
        storage.save(url, {"x": np.ones(3)}, step="two")
    assert storage.open(url).manifest.step == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 10**12}, "step 1000000000000: give a whole number from 0 to 999999999999"),
        ({"step": -1}, "step -1: give a whole number"),
        ({"step": True}, "step True: give a whole number"),
        ({"step": 1.0}, r"step 1\.0: give a whole number"),
        ({"compression": "gzip"}, "compression='gzip' is not known"),
        ({"keep": 0}, "keep=0: give a whole number"),
        ({"metadata": {"x": np.float32(1)}}, "metadata: .*give JSON values by name"),
        ({"metrics": {"loss": None}}, "metrics: .*give numbers by name"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_another_saver_is_superseded(tmp_path, options, message):
    url = str(tmp_path / "w")
    storage.save(url, {"x": np.ones(3)})
    with pytest.raises(ConfigurationError, match=message):
        storage.save(url, {"x": np.ones(3)}, **options)
    assert RunDirectory(open_store(url)).newest_attempt() == 1


def test_a_step_may_be_any_integer(tmp_path):
    saved = storage.save(str(tmp_path / "w"), {"x": np.ones(3)}, step=np.int64(5))
    assert storage.open(saved).manifest.step == 5


def test_a_place_that_no_address_could_name_is_not_saved_to(tmp_path):
    with pytest.raises(ConfigurationError, match="'#' would be taken for a step"):
        storage.save(str(tmp_path / "w#2"), {"x": np.ones(3)})
    assert list(tmp_path.iterdir()) == []


def test_saving_does_not_begin_anew_where_only_damaged_checkpoints_are_left(tmp_path):
    url = str(tmp_path / "w")
    saved = storage.save(url, {"x": np.ones(3)}, step=7)
    shard = f"{saved}/data/float64/c/0"
    os.rename(shard, f"{url}/aside")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of .* can be used: .*data/float64/c/0 is missing"
    ):
        storage.save(url, {"x": np.ones(3)})
    os.rename(f"{url}/aside", shard)
    shutil.rmtree(f"{url}/attempts")
    with pytest.raises(CheckpointError, match="is not on the line of attempt None"):
        storage.save(url, {"x": np.ones(3)})


def test_a_saver_who_looked_before_the_first_save_does_not_replace_its_run(monkeypatch):
    """Where creation is not exclusive, another run.json would take what was acknowledged out of the run."""
    store = ModelStore(exclusive=False)
    monkeypatch.setattr(saving, "open_store", lambda url: store)
    real = RunDirectory.claim_attempt
    urls = []

    def claim_attempt(run):
        monkeypatch.setattr(RunDirectory, "claim_attempt", real)
        urls.append(storage.save("model", {"x": np.ones(3)}))
        return real(run)

    monkeypatch.setattr(RunDirectory, "claim_attempt", claim_attempt)
    urls.append(storage.save("model", {"x": np.ones(3)}))
    entries = RunDirectory(store).entries()
    assert [(f"model/{e.directory}", e.status) for e in entries] == [
        (urls[0], "complete"),
        (urls[1], "latest"),
    ]


def test_what_was_saved_is_saved_even_if_old_ones_cannot_be_deleted(monkeypatch):
    store = MemoryStore()
    storage.save(store.url, {"x": np.ones(3)})
    storage.save(store.url, {"x": np.ones(3)})

    def fail(self, keys):
        raise StorageError("told to fail")

    monkeypatch.setattr(ObjectStore, "delete", fail)
    with pytest.warns(UserWarning, match="saved, but older checkpoints could not be deleted: told to fail"):
        url = storage.save(store.url, {"x": np.ones(3)}, keep=1)
    assert storage.latest(store.url) == url


def test_the_line_of_many_saves_is_as_long_as_what_is_kept(tmp_path):
    url = str(tmp_path / "w")
    for _ in range(6):
        storage.save(url, {"x": np.ones(3)}, keep=2)
    run = RunDirectory(open_store(url))
    number, chain = run.line()
    assert (number, [(link.step, link.attempt) for link in chain]) == (6, [(3, 4), (4, 5)])
    assert [(e.step, e.status) for e in run.entries()] == [(4, "complete"), (5, "latest")]


def test_what_a_killed_saver_left_goes_with_later_saves(tmp_path):
    url = str(tmp_path / "w")
    storage.save(url, {"x": np.ones(3)})
    left = tmp_path / "w" / "checkpoints" / "step-000000000001-a00000001-0123456789abcdef"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    storage.save(url, {"x": np.ones(3)}, keep=2)
    assert left.exists()
    for path in (left / "half", left):
        os.utime(path, (0, 0))
    storage.save(url, {"x": np.ones(3)}, keep=2)
    assert not left.exists()


def test_keep_leaves_only_the_newest(tmp_path):
    url = str(tmp_path / "w")
    for value in range(5):
        storage.save(url, {"x": np.full(3, value)}, keep=2)
    assert [entry.step for entry in RunDirectory(open_store(url)).entries()] == [3, 4]
    storage.save(url, {"x": np.ones(3)}, keep=1)
    assert [entry.step for entry in RunDirectory(open_store(url)).entries()] == [4, 5]


def test_variables_are_read_when_they_are_looked_at(tmp_path):
    checkpoint = storage.open(storage.save(str(tmp_path / "w"), ARRAYS))
    kernel = checkpoint["dense/kernel"]
    assert (kernel.shape, kernel.dtype, kernel.nbytes, len(kernel)) == ((3, 4), np.float32, 48, 3)
    assert np.array_equal(kernel, ARRAYS["dense/kernel"])
    assert np.array_equal(kernel[1:, 2], ARRAYS["dense/kernel"][1:, 2])
    assert "dense/kernel" in checkpoint
    assert list(checkpoint) == sorted(checkpoint, key=[*checkpoint].index)
    with pytest.raises(KeyError, match="holds no nothing; it holds "):
        checkpoint["nothing"]


def test_plain_zarr_opens_it(tmp_path):
    saved = storage.save(str(tmp_path / "w"), ARRAYS)
    array = zarr.open_group(saved, mode="r")["data/float32"]
    place = array.attrs["variables"]["dense/kernel"]
    values = array[place["offset"] : place["offset"] + 12].reshape(place["shape"])
    assert np.array_equal(values, ARRAYS["dense/kernel"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.ones(2, complex)}, "z: complex128 cannot be saved"),
        ({"s": np.array(["text"])}, "s: <U4 cannot be saved"),
        ({"o": np.array([object()])}, "o: object cannot be saved"),
        ({"../x": np.ones(2)}, "bad name"),
        ({"a": [1, 2], "": np.ones(2)}, "bad name"),
        ({1: np.ones(2)}, "1: the name is not a string"),
        ({"a": [[1], [1, 2]]}, "'a': .*inhomogeneous"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, arrays, message):
    with pytest.raises(ConfigurationError, match=message):
        storage.save(str(tmp_path / "w"), arrays)
    assert list(tmp_path.iterdir()) == []


def test_into_takes_all_or_nothing(tmp_path):
    url = str(tmp_path / "w")
    storage.save(url, {"a": np.ones(3), "b": np.ones((2, 2), np.float32), "c": np.ones(1)})
    into = {"a": np.zeros(4), "b": np.zeros((2, 2)), "d": np.zeros(1)}
    with pytest.raises(IncompatibleCheckpoint) as info:
        storage.load(url, into=into)
    for part in (
        "d is missing",
        "c was not asked for",
        "a: expected float64 of shape (4,), found float64 of shape (3,)",
        "b: expected float64 of shape (2, 2), found float32 of shape (2, 2)",
    ):
        assert part in str(info.value)
    assert not any(values.any() for values in into.values())
    good = {"x": np.zeros(3)}
    storage.load(url, into=good, rename={"a": "x"}, strict=False)
    assert good["x"].tolist() == [1, 1, 1]


def readonly(values):
    values.flags.writeable = False
    return values


SHARED = np.full(5, 9.0)
WRONG = [
    ({"c": readonly(np.full(3, 9.0))}, {}, "c is read-only"),
    ({"c": np.broadcast_to(np.full(1, 9.0), 3)}, {}, "c is read-only"),
    ({"c": np.lib.stride_tricks.as_strided(np.full(1, 9.0), (3,), (0,))}, {}, "elements of c share memory"),
    ({"b": SHARED[:3], "c": SHARED[2:]}, {}, "b and c share memory"),
    ({"c": [9.0, 9.0, 9.0]}, {}, "c is list, not a NumPy array"),
    ({}, {"rename": {"b": "x", "c": "x"}}, "two variables the same name"),
    ({}, {"rename": {"b": "a"}}, "two variables the same name"),
    ({}, {"rename": {"none/*": "a/*"}}, r"does not hold none/\*"),
]


@pytest.mark.parametrize(("changes", "options", "message"), WRONG)
def test_what_cannot_be_filled_is_refused_before_anything_is_changed(tmp_path, changes, options, message):
    url = str(tmp_path / "w")
    storage.save(url, {name: np.full(3, i) * 1.0 for i, name in enumerate("abc")})
    into = {name: np.full(3, 9.0) for name in "abc"} | changes
    with pytest.raises((ConfigurationError, IncompatibleCheckpoint), match=message):
        storage.load(url, into=into, **options)
    assert all(x == 9 for values in into.values() for x in values)


def test_targets_may_lie_between_each_other_and_in_any_order(tmp_path):
    url = str(tmp_path / "w")
    arrays = {
        "a": np.arange(3.0),
        "b": np.arange(3.0) + 10,
        "c": np.arange(12.0).reshape(3, 4),
        "d": np.ones(()),
    }
    storage.save(url, arrays)
    columns = np.zeros((3, 2))
    into = {
        "a": columns[:, 0],
        "b": columns[::-1, 1],
        "c": np.zeros((4, 3), order="C").T,
        "d": np.zeros(()),
    }
    storage.load(url, into=into)
    for name, values in arrays.items():
        assert np.array_equal(into[name], values)


def test_damage_leaves_what_was_to_be_filled_as_it_was(tmp_path):
    url = str(tmp_path / "w")
    saved = storage.save(url, {"a": np.ones(3, np.float32), "b": np.ones(3)})
    shard = tmp_path / saved / "data" / "float64" / "c" / "0"
    shard.write_bytes(bytes(shard.stat().st_size))
    into = {"a": np.full(3, 9, np.float32), "b": np.full(3, 9.0)}
    with pytest.raises(CorruptCheckpoint):
        storage.load(url, into=into)
    assert all(x == 9 for values in into.values() for x in values)


def test_damage_is_an_error_and_verify_tells_where(tmp_path):
    url = str(tmp_path / "w")
    saved = storage.save(url, {"a": np.ones(3)})
    assert storage.verify(url).faults == ()
    shard = tmp_path / saved / "data" / "float64" / "c" / "0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=r"data/float64/c/0, bytes 0 to 8196: inner chunk 0"):
        storage.load(url)
    assert [fault.object for fault in storage.verify(url).faults] == ["data/float64/c/0"]


def test_a_training_run_is_not_saved_into(tmp_path):
    RunDirectory(open_store(str(tmp_path))).create_identity({"seed": 0})
    with pytest.raises(ConfigurationError, match="training run"):
        storage.save(str(tmp_path), {"a": np.ones(3)})


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("none", "there is no run at"),
        ("w#2", "no valid checkpoint of step 2: there are 0"),
        ("w#two", "'two' is not a step"),
        ("w/checkpoints/step-000000000009-a00000001-0123456789abcdef", "no committed checkpoint"),
    ],
)
def test_an_address_that_means_nothing_says_what_there_is(tmp_path, address, message):
    storage.save(str(tmp_path / "w"), {"a": np.ones(3)})
    with pytest.raises(ConfigurationError, match=message):
        storage.open(str(tmp_path / address))


def test_two_that_save_at_once_both_succeed_or_one_is_told(tmp_path):
    code = (
        "import sys, numpy, storage\n"
        "from storage.errors import HoldfastError\n"
        "try:\n"
        f"    storage.save({str(tmp_path / 'w')!r}, {{'a': numpy.full(1000, int(sys.argv[1]))}})\n"
        "except HoldfastError as error:\n"
        "    print(type(error).__name__)\n"
        "else:\n"
        "    print('saved')\n"
    )
    racing = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in racing]
    assert {*said} <= {"saved", "Superseded", "ConfigurationError", "CheckpointError"}, said
    assert "saved" in said
    assert storage.verify(str(tmp_path / "w")).faults == ()
    json.dumps(storage.load(str(tmp_path / "w"))["a"][:1].tolist())
