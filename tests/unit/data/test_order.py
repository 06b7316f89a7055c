"""The order of an epoch by groups: every sample once, near to its neighbours, from seed and epoch alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.data import ArrayDataset
from workers.data.order import WindowedOrder, order_of
from workers.schedule import batch_indices, permutation, steps_per_epoch

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=12)
SEEDS = {"window": st.integers(1, 14), "seed": st.integers(0, 2**64 - 1), "epoch": st.integers(0, 10**6)}


@given(sizes=SIZES, **SEEDS)
def test_each_epoch_visits_every_sample_once(sizes: list[int], window: int, seed: int, epoch: int) -> None:
    order = WindowedOrder(sizes, window, seed, epoch)
    assert sorted(order[0 : sum(sizes)].tolist()) == [*range(sum(sizes))]


@given(sizes=SIZES, **SEEDS, data=st.data())
def test_a_part_of_the_order_is_that_part_of_the_whole_whatever_was_asked_before(
    sizes: list[int], window: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    whole = WindowedOrder(sizes, window, seed, epoch)[0 : sum(sizes)]
    order = WindowedOrder(sizes, window, seed, epoch)
    for _ in range(5):
        low = data.draw(st.integers(0, sum(sizes)))
        high = data.draw(st.integers(low, sum(sizes)))
        assert order[low:high].tolist() == whole[low:high].tolist()


@given(sizes=SIZES, **SEEDS)
def test_the_samples_of_a_window_are_those_of_so_many_groups(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    groups = group_of[WindowedOrder(sizes, window, seed, epoch)[0 : sum(sizes)]].tolist()
    first = [groups.index(group) for group in range(len(sizes))]
    by_appearance = sorted(range(len(sizes)), key=lambda group: first[group])
    low = 0
    while low < len(groups):
        here = {*by_appearance[:window]}
        high = low + sum(sizes[group] for group in here)
        assert {*groups[low:high]} == here
        low, by_appearance = high, by_appearance[window:]


@given(sizes=SIZES, **SEEDS, batch_size=st.integers(1, 40))
def test_batches_of_such_an_order_cover_the_epoch(
    sizes: list[int], window: int, seed: int, epoch: int, batch_size: int
) -> None:
    def order(seed: int, epoch: int) -> WindowedOrder:
        return WindowedOrder(sizes, window, seed, epoch)

    count = steps_per_epoch(sum(sizes), batch_size)
    batches = [
        batch_indices(sum(sizes), batch_size, seed, epoch * count + i, shuffle=True, order=order)
        for i in range(count)
    ]
    assert sorted(np.concatenate(batches).tolist()) == [*range(sum(sizes))]


def test_seeds_and_epochs_have_orders_of_their_own_that_mix_groups_and_samples() -> None:
    sizes = [50] * 20
    orders = [tuple(WindowedOrder(sizes, 4, seed, epoch)[0:1000]) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    first = np.array(orders[0][:200])
    assert len(np.unique(first // 50)) == 4
    assert np.abs(np.diff(first)).mean() > 50


def test_a_dataset_without_an_order_of_its_own_is_permuted_as_a_whole() -> None:
    found = order_of(ArrayDataset(np.arange(30)), 5, 2)[0:30]
    assert found.tolist() == permutation(30, 5, 2).tolist()
