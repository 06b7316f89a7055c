"""Arrays in memory, nested or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers.data import ArrayDataset, Dataset


def test_take_gives_the_samples_in_the_order_asked_for() -> None:
    x, y = np.arange(20).reshape(10, 2), np.arange(10)
    dataset = ArrayDataset(x, y)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 10
    indices = np.array([7, 0, 7, 3])
    found_x, found_y = dataset.take(indices)
    assert (found_x == x[indices]).all()
    assert (found_y == y[indices]).all()
    with pytest.raises(IndexError):
        dataset.take(np.array([10]))


def test_identity_follows_the_content_alone() -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    identity = ArrayDataset(x).identity()
    assert identity["samples"] == 10
    assert identity["shapes"] == [[2]]
    assert identity["dtypes"] == ["<f4"]
    assert ArrayDataset(np.asfortranarray(x)).identity() == identity
    assert ArrayDataset(np.repeat(x, 2, axis=0)[::2]).identity() == identity
    others: list[Any] = [x + 1, x.astype(np.float64), x.reshape(10, 1, 2), x[:9]]
    assert all(ArrayDataset(other).identity() != identity for other in others)
    assert ArrayDataset(x, x).identity() != identity


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((), "at least one array"),
        (([[1, 2]], [1, 2, 3]), "hold 1, 3 samples"),
        ((np.zeros((0, 3)),), "no samples"),
        ((5,), "array 0 is one number"),
        ((["a", "b"],), "array 0 is <U1: give real numbers"),
    ],
)
def test_arrays_that_make_no_dataset_are_refused(arrays: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ArrayDataset(*arrays)


def test_parts_may_be_tuples_and_dicts_of_arrays() -> None:
    a, b, y = np.arange(8.0).reshape(4, 2), np.arange(4), np.arange(4) * 10
    indices = np.array([3, 0])
    (first, second), of_tuple = ArrayDataset((a, b), y).take(indices)
    assert np.array_equal(first, a[indices])
    assert np.array_equal(second, b[indices])
    assert np.array_equal(of_tuple, y[indices])
    named, _, weight = ArrayDataset({"a": a, "b": {"c": b}}, y, np.full(4, 0.5)).take(indices)
    assert named.keys() == {"a", "b"}
    assert np.array_equal(named["a"], a[indices])
    assert np.array_equal(named["b"]["c"], b[indices])
    assert np.array_equal(weight, [0.5, 0.5])


def test_identity_tells_apart_how_parts_are_nested_and_named() -> None:
    a, b = np.arange(4.0), np.arange(4.0) + 1
    datasets = [
        ArrayDataset(a, b),
        ArrayDataset((a, b)),
        ArrayDataset((a,), b),
        ArrayDataset({"a": a, "b": b}),
        ArrayDataset({"a": a, "c": b}),
        ArrayDataset({"a": b, "b": a}),
    ]
    identities = [dataset.identity() for dataset in datasets]
    assert all(one != other for i, one in enumerate(identities) for other in identities[:i])
    assert ArrayDataset({"b": b, "a": a}).identity() == identities[3]


def test_a_nested_array_that_makes_no_dataset_is_named() -> None:
    with pytest.raises(ConfigurationError, match="array 0/b/1 is <U1"):
        ArrayDataset({"a": np.zeros(2), "b": (np.zeros(2), ["x", "y"])})
    with pytest.raises(ConfigurationError, match="hold 2, 3 samples"):
        ArrayDataset((np.zeros(2), np.zeros(3)))
