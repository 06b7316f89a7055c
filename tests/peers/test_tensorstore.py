"""TensorStore, Google's reader of Zarr, opens our checkpoints: equal to the bit, and no damage unnoticed."""

import numpy as np
import pytest

from storage.layout import CHUNK, Layout, StateArray
from storage.store import open_store
from tests.unit.storage.states import buffers, new_run, save

pytestmark = pytest.mark.peers
ts = pytest.importorskip("tensorstore", reason="TensorStore is not installed: make peers installs it")

DTYPES = ["float16", "float32", "float64", "int8", "uint16", "int32", "int64", "uint64"]


def read(url, directory, array):
    spec = {"driver": "zarr3", "kvstore": f"file://{url}/{directory}/{array}/"}
    return ts.open(spec, read=True).result().read().result()


@pytest.fixture
def run(tmp_path):
    return new_run(open_store(str(tmp_path / "run")))


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_array_is_equal_to_the_bit(run, dtype, compression):
    layout = Layout.of({"emb": (3 * CHUNK // 64 + 3, 64), "b": (7,)})
    arrays = (StateArray("params", layout, dtype), StateArray("slots/m", Layout.of({"m": (11,)}), dtype))
    flat = buffers(arrays)
    directory, _ = save(
        run, run.claim_attempt(), 1, arrays, flat, max_shard_nbytes=8 << 20, compression=compression
    )
    for array in arrays:
        found = read(run.store.url, directory, array.name)
        assert found.dtype == array.dtype
        assert found.tobytes() == flat[array.name][: array.length].tobytes()


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_flipped_bit_is_an_error_and_a_missing_shard_is_nan(run, tmp_path, compression):
    arrays = (StateArray("params", Layout.of({"w": (3 * CHUNK,)})),)
    directory, _ = save(
        run, run.claim_attempt(), 1, arrays, max_shard_nbytes=4 << 20, compression=compression
    )
    shard = tmp_path / "run" / directory / "params" / "c" / "1"
    good = shard.read_bytes()
    bad = bytearray(good)
    bad[1000] ^= 1
    shard.write_bytes(bad)
    with pytest.raises(ValueError, match=r"(?i)crc|digest|corrupt|checksum"):
        read(run.store.url, directory, "params")
    shard.unlink()
    found = read(run.store.url, directory, "params")
    assert np.isnan(found[CHUNK : 2 * CHUNK]).all()
    assert not np.isnan(found[:CHUNK]).any()
