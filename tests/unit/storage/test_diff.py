import numpy as np

import storage
from storage.diff import compare
from storage.layout import CHUNK
from storage.reader import CheckpointReader, open_checkpoint
from storage.store import open_store
from storage.testing import FaultyStore


def opened(tmp_path, name, arrays):
    return storage.open(storage.save(str(tmp_path / name), arrays))


def test_what_differs_is_told_by_name_with_the_largest_and_the_mean_difference(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    y = x.copy()
    y[1, 2] += 3
    y[2, 0] -= 1
    a = opened(tmp_path, "a", {"x": x, "same": np.ones(3), "old": np.ones(1), "shape": np.ones((2, 3))})
    b = opened(tmp_path, "b", {"x": y, "same": np.ones(3), "new": np.ones(1), "shape": np.ones((3, 2))})
    found = compare(a, b)
    assert (found.only_a, found.only_b) == (("old",), ("new",))
    assert found.other_kind == (("shape", "float64 of shape (2, 3)", "float64 of shape (3, 2)"),)
    (difference,) = found.different
    assert (difference.name, difference.elements, difference.size) == ("x", 2, 12)
    assert (difference.max_abs, difference.mean_abs) == (3.0, 4 / 12)
    assert found.equal == 1
    assert not found.is_equal


def test_not_a_number_is_counted_and_equal_ones_are_equal(tmp_path):
    a = opened(tmp_path, "a", {"x": np.array([np.nan, 1.0, np.nan, np.inf])})
    b = opened(tmp_path, "b", {"x": np.array([np.nan, np.nan, 2.0, 4.0])})
    (difference,) = compare(a, b).different
    assert (difference.elements, difference.nan_in_one, difference.max_abs) == (3, 3, 0.0)
    assert compare(a, opened(tmp_path, "c", {"x": np.array([np.nan, 1.0, np.nan, np.inf])})).is_equal


def test_bits_count_so_minus_zero_differs_from_zero(tmp_path):
    a = opened(tmp_path, "a", {"x": np.array([0.0, 1.0]), "i": np.array([True, False])})
    b = opened(tmp_path, "b", {"x": np.array([-0.0, 1.0]), "i": np.array([True, True])})
    found = {d.name: (d.elements, d.max_abs) for d in compare(a, b).different}
    assert found == {"i": (1, 1.0), "x": (1, 0.0)}


def test_numbers_near_the_largest_differ_by_infinity(tmp_path):
    a, b = (
        opened(tmp_path, name, {"x": np.array([x, 1.0])}) for name, x in (("a", 1.7e308), ("b", -1.7e308))
    )
    (difference,) = compare(a, b).different
    assert (difference.elements, difference.max_abs, difference.mean_abs) == (1, np.inf, np.inf)


def test_small_variables_of_one_unit_are_read_with_it_once(tmp_path):
    saved = [{f"v{i}": np.full(3, i + j, np.float32) for i in range(300)} for j in range(2)]
    opened_twice = []
    for name, arrays in zip("ab", saved, strict=True):
        address = storage.save(str(tmp_path / name), arrays)
        parent, _, directory = address.rpartition("/checkpoints/")
        store = FaultyStore(open_store(parent))
        opened_twice.append(open_checkpoint(store, f"checkpoints/{directory}"))
    assert len(compare(*opened_twice).different) == 300
    for checkpoint in opened_twice:
        assert sum("/c/" in key for _, key in checkpoint.store.operations) == 1


def test_blocks_with_equal_digests_are_not_read(tmp_path, monkeypatch):
    x = np.random.default_rng(0).standard_normal(6 * CHUNK).astype(np.float32)
    y = x.copy()
    y[3 * CHUNK + 5] += 1
    a, b = opened(tmp_path, "a", {"x": x}), opened(tmp_path, "b", {"x": y})
    read = []
    real = CheckpointReader.read_unit

    def read_unit(self, unit, out):
        read.append(unit.start)
        real(self, unit, out)

    monkeypatch.setattr(CheckpointReader, "read_unit", read_unit)
    (difference,) = compare(a, b).different
    assert difference.elements == 1
    assert read == [3 * CHUNK, 3 * CHUNK]
