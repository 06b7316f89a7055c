import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CheckpointError
from storage.layout import BLOCK_NBYTES, CHUNK, Layout, StateArray
from storage.shards import MAX_SHARD_NBYTES, Shard, check_cover, plan

lengths = st.integers(0, 300 * CHUNK)
dtypes = st.sampled_from(["float32", "float64", "float16", "int8"])


@given(st.lists(st.tuples(lengths, dtypes), max_size=4), st.integers(1, 9), st.integers(1, 64))
def test_a_plan_covers_every_array_once_in_uniform_aligned_bounded_shards(specs, num_writers, max_mib):
    arrays = tuple(StateArray(f"a{i}", Layout((), n), dtype) for i, (n, dtype) in enumerate(specs))
    shards = plan(arrays, num_writers, max_mib << 20)
    check_cover(arrays, shards)
    for array in arrays:
        own = [s for s in shards if s.array == array.name]
        unit = max(array.chunk * array.itemsize, BLOCK_NBYTES)
        assert len(own) >= min(num_writers, array.nbytes // unit)
        for shard in own:
            assert shard.uniform_length == own[0].stop
            assert shard.start * array.itemsize % BLOCK_NBYTES == 0
            assert (shard.stop - shard.start) * array.itemsize <= max(max_mib << 20, unit)
            assert 0 <= shard.writer < num_writers
            assert Shard.from_json(json.loads(json.dumps(shard.to_json()))) == shard


def test_writers_get_nearly_the_same_number_of_bytes():
    arrays = tuple(StateArray(name, Layout((), 150_000_000)) for name in ("params", "m", "v"))
    for num_writers in (1, 2, 3, 7):
        loads = [0] * num_writers
        for shard in plan(arrays, num_writers):
            loads[shard.writer] += (shard.stop - shard.start) * 4
        assert max(loads) - min(loads) <= MAX_SHARD_NBYTES


ARRAY = StateArray("p", Layout((), 4 * CHUNK))


def piece(index, start, stop, array="p"):
    return Shard(array, index, start * CHUNK, stop * CHUNK, 0)


@pytest.mark.parametrize(
    ("shards", "fault"),
    [
        ([], f"elements 0 to {4 * CHUNK} were not written"),
        ([piece(0, 0, 2)], f"elements {2 * CHUNK} to {4 * CHUNK} were not written"),
        ([piece(1, 2, 4)], f"elements 0 to {2 * CHUNK} were not written"),
        ([piece(0, 0, 2), piece(1, 2, 4), piece(1, 2, 4)], "were written twice"),
        ([piece(0, 0, 3), piece(1, 2, 4)], "were written twice"),
        ([piece(0, 0, 2), piece(1, 2, 5)], "do not exist"),
        ([piece(0, 0, 1), piece(1, 1, 4), piece(0, 0, 1, "q")], "of no array"),
        ([piece(0, 0, 2), Shard("p", 2, 2 * CHUNK, 4 * CHUNK, 0)], "shards differ"),
        ([Shard("p", 0, 0, 512, 0)], "whole chunks"),
    ],
)
def test_a_gap_or_overlap_is_named(shards, fault):
    with pytest.raises(CheckpointError, match=fault):
        check_cover([ARRAY], shards)


@pytest.mark.parametrize(
    "args", [("p", 0, 1, 2, 0), ("p", 1, 2, 2, 0), ("p", -1, 0, 2, 0), ("../p", 0, 0, 2, 0)]
)
def test_a_shard_that_cannot_be_is_refused(args):
    with pytest.raises(ValueError, match=r".+"):
        Shard(*args)


def test_no_writers_is_refused():
    with pytest.raises(ValueError, match="0 writers"):
        plan([ARRAY], 0)
