import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import storage
from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint, StorageError
from storage.layout import CHUNK, Layout, StateArray
from storage.naming import numpy_dtype
from storage.reader import open_checkpoint, restore
from storage.store import Store, open_store
from storage.testing import MemoryStore
from tests.unit.storage.states import buffers, empty, new_run, save

BIG = Layout.of({"a": (CHUNK,), "b": (2 * CHUNK,), "c": (5,), "d": (3, CHUNK // 2)})
ARRAYS = (StateArray("params", BIG), StateArray("slots/m", BIG))


class Watched(Store):
    """Passes on to another store, notes what is read of data, and may spoil it."""

    def __init__(self, inner, spoil=None):
        super().__init__(inner.url)
        self.inner = inner
        self.ranges = []
        self.spoil = spoil

    def list(self, prefix=""):
        return self.inner.list(prefix)

    def children(self, prefix=""):
        return self.inner.children(prefix)

    def read(self, key, start=None, stop=None):
        data = self.inner.read(key, start, stop)
        if "/c/" in key:
            self.ranges.append((key.partition("/c/")[0].rpartition("-")[2].partition("/")[2], start, stop))
            if self.spoil:
                data = self.spoil(len(self.ranges), data)
        return data

    def write(self, key, buffers):
        raise NotImplementedError

    def create(self, key, data):
        raise NotImplementedError

    def delete(self, keys):
        raise NotImplementedError

    def delete_directory(self, prefix):
        raise NotImplementedError

    def last_change(self, prefix):
        raise NotImplementedError


@pytest.fixture(scope="module")
def saved():
    run = new_run(MemoryStore())
    flat = buffers(ARRAYS)
    directory, manifest = save(run, run.claim_attempt(), 1, ARRAYS, flat, max_shard_nbytes=8 << 20)
    return run.store, directory, manifest, {a.name: a.layout.views(flat[a.name]) for a in ARRAYS}


STORED = 4 * CHUNK + 4
"""Bytes of an inner chunk with its CRC."""


def test_only_the_chunks_of_the_variables_asked_for_are_read(saved):
    store, directory, _, views = saved
    watched = Watched(store)
    found = open_checkpoint(watched, directory).load(["params/b"])
    assert found["params/b"].tobytes() == views["params"]["b"].tobytes()
    assert sorted(watched.ranges) == [("params", 0, STORED), ("params", STORED, 2 * STORED)]
    watched.ranges.clear()
    open_checkpoint(watched, directory).load(["*/c"])
    assert sorted(watched.ranges) == [("params", STORED, 2 * STORED), ("slots/m", STORED, 2 * STORED)]
    watched.ranges.clear()
    open_checkpoint(watched, directory)["params/d"][2, 5:9]
    assert watched.ranges == [("params", 0, STORED)]  # of the third shard


def test_names_globs_renames_and_casts(saved):
    store, directory, _, views = saved
    checkpoint = open_checkpoint(store, directory)
    found = checkpoint.load(
        ["params/[ac]", "slots/m/c"],
        rename={"params/*": "model/*", "slots/m/c": "moment"},
        dtype={"params/a": "float64", "params/c": "bfloat16", "slots/*": "float16"},
    )
    assert found.keys() == {"model/a", "model/c", "moment"}
    with np.errstate(over="ignore"):
        for name, values, dtype in (
            ("model/a", views["params"]["a"], np.float64),
            ("model/c", views["params"]["c"], ml_dtypes.bfloat16),
            ("moment", views["slots/m"]["c"], np.float16),
        ):
            assert found[name].dtype == dtype
            assert found[name].tobytes() == values.astype(dtype).tobytes()
    with pytest.raises(IncompatibleCheckpoint, match=r"does not hold nothing, \*/x; it holds params/a"):
        checkpoint.load(["params/a", "nothing", "*/x"])
    with pytest.raises(ConfigurationError, match="same name"):
        checkpoint.load(["params/a", "params/c"], rename={"params/a": "params/c"})
    with pytest.raises(ConfigurationError, match="float7"):
        checkpoint.load(["params/c"], dtype="float7")
    with pytest.raises(ConfigurationError, match="int32"):
        checkpoint.load(["params/c"], dtype="int32")


def test_integers_are_cast_only_without_loss(tmp_path):
    url = storage.save(str(tmp_path / "w"), {"i": np.arange(4, dtype=np.int32), "f": np.ones(2)})
    found = storage.load(url, dtype="float16")
    assert (found["i"].dtype, found["f"].dtype) == (np.int32, np.float16)
    assert storage.load(url, dtype={"i": "int64"})["i"].dtype == np.int64
    with pytest.raises(IncompatibleCheckpoint, match="i: int32 cannot become int8 without loss"):
        storage.load(url, dtype={"i": "int8"})


@pytest.mark.parametrize("num_readers", [1, 2, 3, 5, 40])
def test_any_number_of_readers_together_read_everything(saved, num_readers):
    store, directory, manifest, _ = saved
    into = empty(ARRAYS)
    for reader in range(num_readers):
        restore(store, directory, manifest, ARRAYS, into, reader=reader, num_readers=num_readers)
    for name, values in buffers(ARRAYS).items():
        assert into[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("kind", ["random", "zeros"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint16", "int64"])
def test_compressed_arrays_are_restored_and_read_by_zarr(tmp_path, dtype, kind):
    run = new_run(open_store(str(tmp_path)))
    arrays = (StateArray("params", Layout.of({"w": (3 * CHUNK + 5,)}), dtype),)
    flat = buffers(arrays)
    if kind == "zeros":
        flat["params"][:] = 0
    directory, manifest = save(
        run, run.claim_attempt(), 1, arrays, flat, max_shard_nbytes=16 << 20, compression="zstd"
    )
    into = empty(arrays)
    restore(run.store, directory, manifest, arrays, into)
    assert into["params"].tobytes() == flat["params"].tobytes()
    array = zarr.open_group(f"{tmp_path}/{directory}", mode="r")["params"]
    assert array[:].tobytes() == flat["params"][: arrays[0].length].tobytes()
    if kind == "zeros":
        assert manifest.nbytes < 100_000


def test_zarr_reports_a_flipped_bit_of_a_compressed_chunk(tmp_path):
    run = new_run(open_store(str(tmp_path)))
    arrays = (StateArray("params", Layout.of({"w": (3 * CHUNK,)})),)
    directory, _ = save(run, run.claim_attempt(), 1, arrays, max_shard_nbytes=4 << 20, compression="zstd")
    shard = tmp_path / directory / "params" / "c" / "1"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    array = zarr.open_group(f"{tmp_path}/{directory}", mode="r")["params"]
    with pytest.raises(Exception, match=r"(?i)crc|checksum"):
        array[:]
    shard.unlink()
    assert np.isnan(array[CHUNK : 2 * CHUNK]).all()


def test_what_reads_wrong_once_is_read_again(saved):
    store, directory, _, views = saved

    def once(count, data):
        return data if count != 1 else bytes(len(data))

    checkpoint = open_checkpoint(Watched(store, once), directory)
    assert checkpoint.load(["params/c"])["params/c"].tobytes() == views["params"]["c"].tobytes()


def test_what_reads_wrong_twice_alike_is_damage_with_object_and_bytes(saved):
    store, directory, _, _ = saved
    checkpoint = open_checkpoint(Watched(store, lambda count, data: bytes(len(data))), directory)
    place = rf"params/c/1, bytes {STORED} to {2 * STORED}: inner chunk 1 does not match its CRC"
    with pytest.raises(CorruptCheckpoint, match=place):
        checkpoint.load(["params/c"])


def test_what_reads_otherwise_each_time_is_a_fault_of_the_storage(saved):
    store, directory, _, _ = saved
    checkpoint = open_checkpoint(Watched(store, lambda count, data: bytes([count]) * len(data)), directory)
    with pytest.raises(StorageError, match="each reading gives other bytes"):
        checkpoint.load(["params/c"])


SHAPE = (7, 5, 3)
VALUES = np.arange(105, dtype=np.int16).reshape(SHAPE)
axis_index = st.one_of(
    st.integers(-9, 9),
    st.booleans(),
    st.lists(st.booleans(), min_size=3, max_size=7).map(np.array),
    st.slices(8),
    st.none(),
    st.just(Ellipsis),
    st.lists(st.integers(-3, 2), max_size=3),
)


@pytest.fixture(scope="module")
def lazy():
    url = f"memory://lazy-{id(VALUES)}"
    return storage.open(storage.save(url, {"before": np.ones(3, np.int16), "x": VALUES, "s": np.int16(4)}))


@settings(max_examples=300, deadline=None)
@given(index=st.one_of(axis_index, st.tuples(axis_index), st.tuples(axis_index, axis_index)))
def test_indexing_gives_what_numpy_gives(lazy, index):
    try:
        expected = VALUES[index]
    except (IndexError, ValueError) as error:  # a ValueError where a list mixes bools and numbers
        with pytest.raises(type(error)):
            lazy["x"][index]
        return
    found = lazy["x"][index]
    assert (found.shape, found.dtype, found.tolist()) == (expected.shape, expected.dtype, expected.tolist())


@pytest.mark.parametrize("index", [True, False, np.True_, (True, 0), (False,), (0, True), (..., False)])
def test_a_bool_is_a_mask_and_not_the_number_of_a_row(lazy, index):
    expected = VALUES[index]
    assert (lazy["x"][index].shape, lazy["x"][index].tolist()) == (expected.shape, expected.tolist())


def test_types_may_be_numpys_own(saved):
    store, directory, _, _ = saved
    checkpoint = open_checkpoint(store, directory)
    assert checkpoint.load(["params/c"], dtype=np.float64)["params/c"].dtype == np.float64
    assert checkpoint.load(["params/c"], dtype=ml_dtypes.bfloat16)["params/c"].dtype == ml_dtypes.bfloat16
    assert checkpoint.load(["params/c"], dtype={"*": np.dtype("f2")})["params/c"].dtype == np.float16
    with pytest.raises(ConfigurationError, match="is not known"):
        checkpoint.load(["params/c"], dtype=object())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": {"paramz/*": "model/*"}}, r"does not hold paramz/\*, which rename is for"),
        ({"rename": {"*": "model/*"}}, r"does not hold \*, which rename is for: give a name, or PREFIX/\*"),
        ({"rename": {"params/x": "model/x"}}, "does not hold params/x, which rename is for"),
        ({"dtype": {"paramz/*": "float16"}}, r"does not hold paramz/\*, which dtype is for"),
    ],
)
def test_what_is_renamed_or_cast_has_to_be_there(saved, options, message):
    store, directory, _, _ = saved
    with pytest.raises(IncompatibleCheckpoint, match=message):
        open_checkpoint(store, directory).load(["params/c"], **options)


def test_a_prefix_becomes_a_prefix(saved):
    store, directory, _, _ = saved
    checkpoint = open_checkpoint(store, directory)
    assert checkpoint.load(["params/c"], rename={"params/*": "*"}).keys() == {"c"}
    with pytest.raises(ConfigurationError, match="would run names together"):
        checkpoint.load(["params/c"], rename={"params/*": "model"})


CASTS = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in cast")
@pytest.mark.parametrize("source", CASTS)
@pytest.mark.parametrize("target", CASTS)
def test_casts_are_numpys_to_the_bit(tmp_path, source, target):
    bits = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)
    values = bits.view(numpy_dtype(source))  # all kinds of NaN, infinities and subnormals among them
    url = storage.save(str(tmp_path / "w"), {"x": values, "before": np.ones(3, values.dtype)})
    found = storage.load(url, dtype={"x": target})["x"]
    with np.errstate(over="ignore", invalid="ignore"):
        assert found.tobytes() == values.astype(numpy_dtype(target)).tobytes()


def test_masks_scalars_and_whole_arrays(lazy):
    assert lazy["x"][VALUES > 50].tolist() == VALUES[VALUES > 50].tolist()
    assert lazy["s"][()] == 4
    assert np.asarray(lazy["s"]) == 4
    assert np.asarray(lazy["x"], dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        np.array(lazy["x"], copy=False)
    with pytest.raises(TypeError):
        len(lazy["s"])
