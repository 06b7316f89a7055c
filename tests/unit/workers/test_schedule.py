"""The cuts and the one tree: the same bits for every split of the work."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.layout import ALIGNMENT
from workers.rng import Purpose, Streams
from workers.schedule import (
    batch_indices,
    batch_rows,
    blocks,
    combine,
    microbatches,
    segments,
    share,
    steps_per_epoch,
    subtrees,
    tree_depth,
    tree_sum,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Flat = np.ndarray[Any, np.dtype[np.float32]]


def leaves_of(count: int, width: int = 24) -> list[Flat]:
    """Leaves whose sum depends on association in nearly every element, and keeps -0.0 in some."""
    rng = np.random.default_rng(count)
    values = rng.standard_normal((count, width)) * 10.0 ** rng.integers(-8, 9, (count, width))
    values[:, :2] = -0.0
    values[:, 2] = [(-1) ** i * 1e30 for i in range(count)]
    return list(values.astype(np.float32))


def by_definition(leaves: list[Flat]) -> Flat:
    """The tree as the module's text defines it, level by level."""
    level = [leaf.copy() for leaf in leaves]
    while len(level) > 1:
        level = [level[i] + level[i + 1] if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


def summed(leaves: list[Flat]) -> Flat:
    return tree_sum(leaves, list(np.full((tree_depth(len(leaves)), leaves[0].size), np.nan, np.float32)))


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def cuts_of(count: int) -> Iterator[tuple[int, ...]]:
    """The inner boundaries of every split of [0, count) into contiguous pieces."""
    for size in range(count):
        yield from itertools.combinations(range(1, count), size)


@pytest.mark.parametrize("count", range(1, 18))
def test_tree_sum_is_the_tree_of_the_definition_and_leaves_its_leaves_alone(count: int) -> None:
    leaves = leaves_of(count)
    before = [leaf.tobytes() for leaf in leaves]
    for leaf in leaves:
        leaf.flags.writeable = False
    assert same_bits(summed(leaves), by_definition(leaves))
    assert [leaf.tobytes() for leaf in leaves] == before


def test_the_sums_of_these_leaves_do_depend_on_association() -> None:
    """Else the tests of this file would prove nothing."""
    for count in range(3, 18):
        leaves = leaves_of(count)
        running = leaves[0].copy()
        for leaf in leaves[1:]:
            running = running + leaf
        backwards = leaves[-1].copy()
        for leaf in reversed(leaves[:-1]):
            backwards = backwards + leaf
        assert not same_bits(running, backwards)
        assert not same_bits(summed(leaves), running) or not same_bits(summed(leaves), backwards)


@pytest.mark.parametrize("count", range(1, 18))
def test_negative_zeros_stay_negative_in_every_tree(count: int) -> None:
    total = summed([np.full(3, -0.0, np.float32)] * count)
    assert np.signbit(total).all()


@pytest.mark.parametrize("count", range(1, 18))
def test_every_split_of_the_leaves_gives_the_bits_of_the_whole_tree(count: int) -> None:
    """Each contiguous piece is summed to its subtrees by one owner; 65536 splits of 17 leaves."""
    leaves = leaves_of(count)
    expected = by_definition(leaves)
    values: dict[tuple[int, int], Flat] = {}

    def value(level: int, index: int) -> Flat:
        """A node summed from its leaves alone, as its owner would."""
        if (level, index) not in values:
            values[level, index] = summed(leaves[index << level : (index + 1) << level])
        return values[level, index]

    nodes_of = {
        (low, high): subtrees(low, high, count) for low in range(count) for high in range(low + 1, count + 1)
    }
    seen = set()
    for cut in cuts_of(count):
        bounds = [0, *cut, count]
        nodes = tuple(node for pair in itertools.pairwise(bounds) for node in nodes_of[pair])
        if nodes in seen:
            continue  # another split into the same subtrees
        seen.add(nodes)
        total = combine({node: value(*node) for node in nodes}, count, np.add)
        assert same_bits(total, expected), f"split at {cut}"


def nodes_cuts_of(count: int) -> Iterator[tuple[int, ...]]:
    """All ways to cut [0, count) into one to four contiguous pieces, which may be empty."""
    for number in range(4):
        yield from itertools.combinations_with_replacement(range(count + 1), number)


@pytest.mark.parametrize("count", range(1, 18))
def test_sums_of_parts_of_several_nodes_have_the_bits_of_the_whole_tree(count: int) -> None:
    """As nodes do it: each adds up its subtrees, and all finish the tree, whoever has how many leaves."""
    leaves = leaves_of(count)
    whole = summed(leaves)
    parts = {
        (level, index): by_definition(leaves[index << level : (index + 1) << level])
        for level in range(count.bit_length() + 1)
        for index in range((count - 1 >> level) + 1)
    }
    for cuts in nodes_cuts_of(count):
        nodes = [
            node for low, high in itertools.pairwise((0, *cuts, count)) for node in subtrees(low, high, count)
        ]
        work = list(np.full((tree_depth(len(nodes)), leaves[0].size), np.nan, np.float32))
        total = tree_sum([parts[node] for node in nodes], work, [level for level, _ in nodes])
        assert same_bits(total, whole), cuts
        assert same_bits(combine({node: parts[node] for node in nodes}, count, np.add), whole)


@pytest.mark.parametrize("count", range(1, 18))
def test_subtrees_are_the_fewest_nodes_that_cover_exactly_the_leaves(count: int) -> None:
    nodes = [(level, j) for level in range((count - 1).bit_length() + 1) for j in range(count)]
    covers = {
        node: frozenset(range(node[1] << node[0], min(count, (node[1] + 1) << node[0]))) for node in nodes
    }
    usable = [node for node in nodes if covers[node]]
    for low in range(count):
        fewest = {low: 0}
        for at in range(low, count):  # shortest path over leaves; every node starts where its cover does
            if at in fewest:
                for node in usable:
                    if min(covers[node]) == at:
                        end = max(covers[node]) + 1
                        fewest[end] = min(fewest.get(end, count), fewest[at] + 1)
        for high in range(low + 1, count + 1):
            found = subtrees(low, high, count)
            assert sorted(itertools.chain.from_iterable(covers[node] for node in found)) == list(
                range(low, high)
            )
            assert len(found) == fewest[high]


def test_no_leaves_need_no_subtrees() -> None:
    assert subtrees(3, 3, 7) == []


def test_a_missing_leaf_is_named() -> None:
    parts = {(0, i): float(i) for i in range(5) if i != 3}
    with pytest.raises(KeyError, match="leaf 3 of 5"):
        combine(parts, 5, lambda a, b: a + b)


@given(count=st.integers(1, 300))
def test_tree_depth_is_enough_and_not_one_too_many(count: int) -> None:
    leaves = [np.full(1, i, np.float64) for i in range(count)]
    total = tree_sum(leaves, list(np.empty((tree_depth(count), 1))))
    assert total[0] == count * (count - 1) / 2
    if count > 2 and count & (count - 1) == 0:  # a full tree uses them all
        with pytest.raises(IndexError):
            tree_sum(leaves, list(np.empty((tree_depth(count) - 1, 1))))


@given(count=st.integers(1, 200), seed=st.integers(0, 99))
def test_large_trees_agree_with_combine_over_single_leaves(count: int, seed: int) -> None:
    values = (np.random.default_rng(seed).standard_normal((count, 3)) * 1e6).astype(np.float32)
    total = combine({(0, i): values[i] for i in range(count)}, count, np.add)
    assert same_bits(summed(list(values)), total)


# -- cuts ------------------------------------------------------------------------------------------------


def check_cover(pieces: list[tuple[int, int]], length: int) -> None:
    assert [low for low, _ in pieces] == [0, *(high for _, high in pieces[:-1])]
    assert pieces[-1][1] == length
    assert all(low < high for low, high in pieces)


@given(length=st.integers(1, 10**12), parts=st.integers(1, 200))
def test_share_covers_exactly_in_lengths_that_differ_by_one_at_most(length: int, parts: int) -> None:
    pieces = share(length, parts)
    assert len(pieces) == parts
    assert pieces[0][0] == 0
    assert pieces[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    lengths = {high - low for low, high in pieces}
    assert max(lengths) - min(lengths) <= 1


@given(rows=st.integers(1, 10_000), count=st.integers(1, 200))
def test_microbatches_cover_the_batch_and_none_is_empty(rows: int, count: int) -> None:
    pieces = microbatches(rows, count)
    check_cover(pieces, rows)
    assert len(pieces) == min(rows, count)


@given(length=st.integers(1, 10**9), parts=st.integers(1, 200))
def test_segments_cover_the_buffer_aligned_and_none_is_empty(length: int, parts: int) -> None:
    pieces = segments(length, parts)
    check_cover(pieces, length)
    assert len(pieces) <= parts
    assert all(low % ALIGNMENT == 0 for low, _ in pieces)
    assert len(pieces) == min(parts, -(-length // ALIGNMENT))


@st.composite
def uncut(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """Ascending ranges within a buffer, of any lengths and at any distance."""
    ends = sorted(draw(st.sets(st.integers(0, length), max_size=12)))
    return [each for each in itertools.pairwise(ends) if draw(st.booleans())]


@given(data=st.data(), length=st.integers(1, 2_000), parts=st.integers(1, 12), size=st.integers(1, 300))
def test_what_must_stay_whole_lies_in_one_segment_and_one_block(
    data: st.DataObject, length: int, parts: int, size: int
) -> None:
    whole = data.draw(uncut(length))
    pieces = segments(length, parts, whole)
    check_cover(pieces, length)
    assert len(pieces) <= parts
    assert all(low % ALIGNMENT == 0 for low, _ in pieces)
    found = [block for low, high in pieces for block in blocks(low, high, size, whole)]
    check_cover(found, length)
    edges = {low for low, _ in (*pieces, *found)}
    assert not any(start < edge < stop for edge in edges for start, stop in whole)
    longest = max([size, *(stop - start for start, stop in whole)])
    assert all(high - low <= longest for low, high in found)


def test_a_cut_goes_to_the_nearer_end_of_what_must_stay_whole() -> None:
    assert segments(320, 2) == [(0, 160), (160, 320)]
    assert segments(320, 2, [(100, 200)]) == [(0, 208), (208, 320)]
    assert segments(320, 2, [(130, 300)]) == [(0, 128), (128, 320)]
    assert segments(320, 2, [(0, 320)]) == [(0, 320)]


def test_an_empty_buffer_has_no_segments() -> None:
    assert segments(0, 4) == []


# -- batches ---------------------------------------------------------------------------------------------

SIZES = {"num_samples": st.integers(1, 300), "batch_size": st.integers(1, 320)}


@given(**SIZES, seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6), shuffle=st.booleans())
def test_each_epoch_visits_every_sample_once(
    num_samples: int, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    per_epoch = steps_per_epoch(num_samples, batch_size)
    batches = [
        batch_indices(num_samples, batch_size, seed, epoch * per_epoch + i, shuffle=shuffle)
        for i in range(per_epoch)
    ]
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_samples))
    for i, batch in enumerate(batches):
        assert len(batch) == batch_rows(num_samples, batch_size, epoch * per_epoch + i)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert len(batches[-1]) == num_samples - (per_epoch - 1) * batch_size


@given(**SIZES, step=st.integers(0, 10**9))
def test_without_shuffling_samples_come_in_order(num_samples: int, batch_size: int, step: int) -> None:
    batch = batch_indices(num_samples, batch_size, 3, step, shuffle=False)
    low = step % steps_per_epoch(num_samples, batch_size) * batch_size
    assert batch.tolist() == list(range(low, low + len(batch)))


def test_a_batch_is_a_function_of_its_arguments_whatever_was_asked_before() -> None:
    steps = [0, 40, 3, 9, 3, 0, 40, 17, 1]

    def batch(step: int, seed: int = 7) -> list[int]:
        return batch_indices(100, 12, seed, step, shuffle=True).tolist()  # type: ignore[no-any-return]

    first = {step: batch(step) for step in steps}
    assert all(batch(step) == first[step] for step in reversed(steps))
    assert first[0] != batch(0, seed=8)
    assert first[0] != batch(steps_per_epoch(100, 12))  # the next epoch has an order of its own


def test_a_caller_cannot_spoil_the_order_of_an_epoch() -> None:
    before = batch_indices(50, 10, 0, 0, shuffle=True).tolist()
    batch = batch_indices(50, 10, 0, 0, shuffle=True)
    with pytest.raises(ValueError, match="read-only"):
        batch[0] = -1
    assert batch_indices(50, 10, 0, 0, shuffle=True).tolist() == before


@given(**SIZES, seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6), shuffle=st.booleans())
def test_dropping_leaves_out_what_fills_no_batch_and_padding_repeats_the_first(
    num_samples: int, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    whole = batch_indices(num_samples, num_samples, seed, epoch, shuffle=shuffle)
    for remainder, expected in (
        ("drop", whole[: num_samples // batch_size * batch_size]),
        ("pad", np.resize(whole, -(-num_samples // batch_size) * batch_size)),
    ):
        count = steps_per_epoch(num_samples, batch_size, remainder)
        steps = range(epoch * count, (epoch + 1) * count)
        batches = [
            batch_indices(num_samples, batch_size, seed, step, shuffle=shuffle, remainder=remainder)
            for step in steps
        ]
        assert [batch_rows(num_samples, batch_size, step, remainder) for step in steps] == [
            batch_size
        ] * count
        assert np.concatenate([np.empty(0, np.int64), *batches]).tolist() == expected.tolist()


def test_a_datasets_own_order_is_followed_and_only_where_samples_are_shuffled() -> None:
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.roll(np.arange(10), seed + epoch)

    def batches(**how: Any) -> list[int]:
        found = [batch_indices(10, 4, 2, step, order=order, **how) for step in range(3, 6)]
        return np.concatenate(found).tolist()  # type: ignore[no-any-return]

    assert batches(shuffle=True) == order(2, 1).tolist()
    assert batches(shuffle=True, remainder="pad") == [*order(2, 1), *order(2, 1)[:2]]
    assert batches(shuffle=False) == [*range(10)]


# -- random streams --------------------------------------------------------------------------------------


def raw(streams: Streams, stream: int = 0) -> tuple[int, ...]:
    return tuple(int(word) for word in streams.generator(stream).bit_generator.random_raw(2))


def test_streams_of_different_uses_never_give_the_same_draws() -> None:
    draws = {
        raw(Streams(seed, step, microbatch, purpose), stream)
        for seed in (0, 1, 2**63, 2**64 - 1)
        for step in (0, 1, 10**9)
        for microbatch in (0, 1, 63)
        for purpose in Purpose
        for stream in (0, 1, 2, 1000)
    }
    assert len(draws) == 4 * 3 * 3 * len(Purpose) * 4


def test_a_generator_starts_anew_each_time_it_is_asked_for() -> None:
    streams = Streams(5, 6, 7)
    one = streams.generator(2)
    one.random(1000)
    assert streams.generator(2).random(8).tolist() == Streams(5, 6, 7).generator(2).random(8).tolist()


def test_a_stream_is_2_to_the_128_blocks_long_before_it_meets_the_next_microbatch() -> None:
    bits: Any = Streams(1, 2, 3).generator().bit_generator
    bits.advance(2**128)  # NumPy's Philox counts blocks of four draws
    following: Any = Streams(1, 2, 4).generator().bit_generator
    assert bits.random_raw(4).tolist() == following.random_raw(4).tolist()


def test_draws_are_those_of_philox_on_any_machine() -> None:
    """Golden: a change here changes the bits of every run."""
    draws = Streams(1, 2, 3).generator(4).integers(0, 1 << 30, 3)
    assert draws.tolist() == [643451510, 1069758305, 343472737]
