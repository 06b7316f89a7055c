import ml_dtypes
import numpy as np
import pytest
import zarr
from safetensors.numpy import load_file

import storage
from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.export import export
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
