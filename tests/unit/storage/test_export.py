import json
import math
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
import zarr
from safetensors.numpy import load_file

import storage
from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.export import export
from storage.layout import CHUNK
from storage.store import open_store
from storage.testing import MemoryStore

ARRAYS = {
    "dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "dense/bias": np.zeros(4, np.float64),
    "half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "mask": np.array([[True, False]]),
    "step": np.array(7),
}


@pytest.fixture
def checkpoint(tmp_path):
    return storage.open(storage.save(str(tmp_path / "w"), ARRAYS, step=5))


def check(found, name):
    values = ARRAYS[name]
    if values.dtype == ml_dtypes.bfloat16 and found.dtype == np.uint16:
        values = values.view(np.uint16)
    assert (found.dtype, found.shape, found.tobytes()) == (values.dtype, values.shape, values.tobytes())


def test_npz_is_read_by_numpy(checkpoint, tmp_path):
    assert set(export(checkpoint, str(tmp_path / "x.npz"))) == ARRAYS.keys()
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert {*found.files} == ARRAYS.keys()
        for name in found.files:
            check(found[name], name)


def test_safetensors_is_read_by_safetensors(checkpoint, tmp_path):
    export(checkpoint, str(tmp_path / "deep" / "x.safetensors"))
    found = load_file(tmp_path / "deep" / "x.safetensors")
    assert found.keys() == ARRAYS.keys()
    for name, values in found.items():
        check(values, name)


def test_named_arrays_are_read_by_zarr(checkpoint, tmp_path):
    export(checkpoint, str(tmp_path / "named"))
    group = zarr.open_group(str(tmp_path / "named"), mode="r")
    for name in ARRAYS:
        check(np.asarray(group[name][...]), name)
    assert group["half"].attrs["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "named"])
def test_a_url_gets_the_same_as_a_path(checkpoint, tmp_path, name):
    store = MemoryStore()
    export(checkpoint, f"{store.url}/{name}", ["dense/*"])
    export(checkpoint, str(tmp_path / name), ["dense/*"])
    here = open_store(str(tmp_path)).list(name) or {name: (tmp_path / name).stat().st_size}
    assert store.list() == here
    with pytest.raises(ConfigurationError, match="is there already"):
        export(checkpoint, f"{store.url}/{name}")


def test_tensors_are_aligned_and_the_header_says_where_they_are(checkpoint, tmp_path):
    export(checkpoint, str(tmp_path / "x.safetensors"))
    data = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"step": "5", "state_digest": checkpoint.manifest.state_digest}
    for name, tensor in header.items():
        start, stop = tensor["data_offsets"]
        assert start % ARRAYS[name].itemsize == 0
        assert data[8 + length :][start:stop] == ARRAYS[name].tobytes()


DTYPES = ["float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"]
DTYPES += ["uint8", "uint16", "uint32", "uint64", ml_dtypes.bfloat16]


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "named"])
def test_all_types_and_shapes_arrive_bit_for_bit(tmp_path, name):
    rng = np.random.default_rng(0)
    shapes = [(), (0,), (3, 0, 2), (5,), (2, 3, 4)]
    arrays = {
        f"{np.dtype(dtype).name}/s{i}": np.frombuffer(
            rng.bytes(math.prod(shape) * np.dtype(dtype).itemsize), np.uint8
        )
        .__and__(1 if dtype == "bool" else 255)
        .view(dtype)
        .reshape(shape)
        for dtype in DTYPES
        for i, shape in enumerate(shapes)
    }
    export(storage.open(storage.save(str(tmp_path / "w"), arrays)), str(tmp_path / name))
    if name == "x.safetensors":
        found = load_file(tmp_path / name)
    elif name == "x.npz":
        found = np.load(tmp_path / name)
    else:
        found = {
            key: a[...]
            for key, a in zarr.open_group(str(tmp_path / name), mode="r").members(None)
            if isinstance(a, zarr.Array)
        }
    assert {*found} == arrays.keys()
    for key, values in arrays.items():
        got = np.asarray(found[key])
        assert (got.shape, got.tobytes()) == (values.shape, values.tobytes()), key


@pytest.mark.parametrize("shape", [(3, CHUNK + 7), (CHUNK + 7, 3), (2, 3, CHUNK // 4 + 1), (5 * CHUNK,)])
@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "named"])
def test_large_variables_are_written_in_pieces(tmp_path, name, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    checkpoint = storage.open(storage.save(str(tmp_path / "w"), {"before": np.ones(5), "x": x, "y": x[:1]}))
    export(checkpoint, str(tmp_path / name))
    if name == "x.safetensors":
        found = load_file(tmp_path / name)
    elif name == "x.npz":
        found = np.load(tmp_path / name)
    else:
        found = zarr.open_group(str(tmp_path / name), mode="r")
    assert found["x"][...].tobytes() == x.tobytes()
    assert found["y"][...].tobytes() == x[:1].tobytes()


BOUNDED = """
    import sys
    import numpy as np
    import storage, zarr
    from storage.diff import compare
    from storage.export import export

    def peak():
        lines = open("/proc/self/status")
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def work(place, name):
        url = f"{place}/{name}"
        checkpoint = storage.open(f"{url}-a")
        for kind in ("x.npz", "x.safetensors", "named"):
            export(checkpoint, f"{url}-{kind}")
        assert compare(checkpoint, storage.open(f"{url}-b")).different
        assert not storage.verify(f"{url}-a").faults
        sum(len(storage.open(f"{url}-a")["x"][i:i + 1]) for i in range(0, 4))

    place = sys.argv[1]
    work(place, "small")
    before = peak()
    work(place, "large")
    print(peak() - before)
"""


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_export_diff_and_verify_need_no_memory_for_the_whole(tmp_path, compression):
    for size, rows in (("small", 4), ("large", 4 * 16)):
        x = np.tile(np.arange(CHUNK, dtype=np.float32), (rows, 1))
        for name in "ab":
            x[::2, 5] += 1
            storage.save(str(tmp_path / f"{size}-{name}"), {"x": x}, compression=compression)
    command = [sys.executable, "-c", textwrap.dedent(BOUNDED), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64, f"{done.stdout} MiB more for 256 MiB than for 16"


def test_names_that_a_kind_cannot_hold_are_named(tmp_path):
    names = ("w", "w/b", "zarr.json", "__metadata__")
    checkpoint = storage.open(storage.save(str(tmp_path / "w"), {name: np.ones(3) for name in names}))
    for target, chosen, message in (
        ("named", ["w", "w/b"], "w/b cannot lie below w"),
        ("named", ["zarr.json"], "zarr.json cannot be the name of a Zarr array"),
        ("x.safetensors", ["__metadata__", "w"], "__metadata__ cannot be the name of a tensor"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            export(checkpoint, str(tmp_path / "out" / target), chosen)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "named"])
def test_nothing_is_overwritten_and_nothing_half_written_stays(checkpoint, tmp_path, name):
    (tmp_path / "out").mkdir()
    with pytest.raises(IncompatibleCheckpoint, match="does not hold none"):
        export(checkpoint, str(tmp_path / "out" / name), ["none"])
    shard = next((tmp_path / "w").rglob("c/0"))
    good = shard.read_bytes()
    shard.write_bytes(bytes(len(good)))
    with pytest.raises(CorruptCheckpoint, match="does not match"):
        export(checkpoint, str(tmp_path / "out" / name))
    assert list((tmp_path / "out").iterdir()) == []
    shard.write_bytes(good)
    export(checkpoint, str(tmp_path / "out" / name))
    with pytest.raises(ConfigurationError, match="is there already"):
        export(checkpoint, str(tmp_path / "out" / name))
