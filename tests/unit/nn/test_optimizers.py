"""Updates are out of place, elementwise, and equal to the bit for every cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import nn

OPTIMIZERS = {
    "sgd": nn.optimizers.SGD(0.1),
    "momentum": nn.optimizers.SGD(0.1, momentum=0.9),
    "nesterov": nn.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": nn.optimizers.Adam(),
    "amsgrad": nn.optimizers.Adam(amsgrad=True),
}
LENGTH = 200


def state(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.abs(rng.standard_normal(LENGTH)).astype(np.float32) for _ in range(count + 2)]


def updated(optimizer: Any, step: int, cuts: list[int]) -> list[bytes]:
    params, grad, *slots = state(len(optimizer.slots))
    new = [np.full(LENGTH, np.nan, np.float32) for _ in range(len(slots) + 1)]
    scratch = np.full(LENGTH, np.nan, np.float32)
    before = [array.tobytes() for array in (params, grad, *slots)]
    edges = [0, *sorted(cuts), LENGTH]
    for start, stop in itertools.pairwise(edges):
        piece = slice(start, stop)
        optimizer.update(
            step,
            params[piece],
            [slot[piece] for slot in slots],
            grad[piece],
            new[0][piece],
            [slot[piece] for slot in new[1:]],
            scratch[: stop - start],
        )
    assert [array.tobytes() for array in (params, grad, *slots)] == before
    assert all(np.isfinite(array).all() for array in new)
    return [array.tobytes() for array in new]


@pytest.mark.parametrize("name", OPTIMIZERS)
@given(step=st.integers(0, 100_000), cuts=st.lists(st.integers(0, LENGTH), max_size=8))
def test_bits_are_the_same_for_every_cut_into_segments(name: str, step: int, cuts: list[int]) -> None:
    optimizer = OPTIMIZERS[name]
    assert updated(optimizer, step, cuts) == updated(optimizer, step, [])


class WrittenOnce(np.ndarray):
    """An array that counts how often a ufunc writes it."""

    writes = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any, **kwargs: Any) -> Any:
        if isinstance(out[0], WrittenOnce):
            out[0].writes += 1
        plain = [np.asarray(array) for array in inputs]
        return getattr(ufunc, method)(*plain, out=tuple(map(np.asarray, out)), **kwargs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_new_value_is_written_once(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    params, grad, *slots = state(len(optimizer.slots))
    new = [np.zeros(LENGTH, np.float32).view(WrittenOnce) for _ in range(len(slots) + 1)]
    optimizer.update(3, params, slots, grad, new[0], new[1:], np.empty(LENGTH, np.float32))
    assert [array.writes for array in new] == [1] * len(new)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_config_makes_an_equal_optimizer(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    again = type(optimizer)(**optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.slots == optimizer.slots
