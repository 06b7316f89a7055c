import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.layout import ALIGNMENT, CHUNK, MAX_LENGTH, Layout, StateArray, Variable, check_name

names = st.from_regex(
    r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,8}(/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,8}){0,3}", fullmatch=True
)
shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)
layouts = st.dictionaries(names, shapes, max_size=8).map(Layout.of)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(layouts)
def test_variables_are_aligned_in_order_and_apart(layout):
    end = 0
    for v in layout.variables:
        assert v.offset % ALIGNMENT == 0
        assert end <= v.offset < end + ALIGNMENT
        end = v.offset + v.size
    assert layout.length % ALIGNMENT == 0
    assert end <= layout.length < end + ALIGNMENT


@given(layouts)
def test_views_are_the_buffer_itself_and_disjoint(layout):
    flat = np.zeros(layout.length + 5, np.float32)
    for i, (name, view) in enumerate(layout.views(flat).items()):
        assert name == layout.variables[i].name
        assert view.shape == layout.variables[i].shape
        view += i + 1
    expected = np.zeros_like(flat)
    for i, v in enumerate(layout.variables):
        expected[v.offset : v.offset + v.size] = i + 1
    assert np.array_equal(flat, expected)


@given(layouts)
def test_a_layout_survives_json_with_its_fingerprint(layout):
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert again.fingerprint == layout.fingerprint
    assert layout.differences(again) == []
    array = StateArray("slots/adam_m", layout)
    assert StateArray.from_json(json.loads(json.dumps(array.to_json()))) == array


@given(layouts, layouts)
def test_layouts_differ_exactly_when_their_fingerprints_do(a, b):
    assert (a == b) == (a.fingerprint == b.fingerprint) == (a.differences(b) == [])
    lines = a.differences(b)
    assert all(line and "\n" not in line for line in lines)


@given(json_values)
def test_any_other_json_is_a_value_error(value):
    with pytest.raises(ValueError, match=r".+"):
        Layout.from_json(value)
    with pytest.raises(ValueError, match=r".+"):
        StateArray.from_json(value)


@given(layouts, st.data())
def test_a_layout_with_one_field_replaced_is_refused_or_another_layout(layout, data):
    doc = layout.to_json()
    target = data.draw(st.sampled_from([doc, *doc["variables"]]))
    key = data.draw(st.sampled_from(sorted(target)))
    target[key] = data.draw(json_values)
    with contextlib.suppress(ValueError):
        assert Layout.from_json(doc).to_json() == doc


@given(st.integers(0, 40 * CHUNK), st.sampled_from(["float32", "float64", "float16", "int8"]))
def test_buffers_are_padded_to_whole_inner_chunks(length, dtype):
    array = StateArray("params", Layout((), length), dtype)
    assert array.chunk == (CHUNK if length > CHUNK - 1024 else max(1024, math.ceil(length / 1024) * 1024))
    assert array.padded_length % array.chunk == 0
    assert 0 <= array.padded_length - length < array.chunk
    assert array.nbytes == array.padded_length * np.dtype(dtype).itemsize


def test_the_difference_names_variable_and_both_shapes():
    a = Layout.of({"dense/kernel": (64, 128), "dense/bias": (128,)})
    b = Layout.of({"dense/kernel": (64, 256), "dense/bias": (128,)})
    assert a.differences(b) == ["dense/kernel: shape (64, 128) here, (64, 256) there"]
    assert a.differences(Layout.of({})) == [
        "dense/kernel: float32 of shape (64, 128) here, missing there",
        "dense/bias: float32 of shape (128,) here, missing there",
    ]
    c = Layout.of({"dense/kernel": (64, 128), "dense/bias": (128,), "x": ()})
    assert a.differences(c) == ["x: missing here, float32 of shape () there"]
    frozen = Layout((Variable("w", 0, (2,), trainable=False),), 16)
    assert Layout.of({"w": (2,)}).differences(frozen) == ["w: trainable True here, False there"]


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "a//b", ".", "..", "a/..", "a/.b", "-a", "a b", "a\\b", "a\0", "ä", "a\n"]
)
def test_a_bad_name_is_refused(name):
    with pytest.raises(ValueError, match="bad name"):
        check_name(name)
    with pytest.raises(ValueError, match="bad name"):
        Layout.of({name: (1,)})


@pytest.mark.parametrize(
    ("variables", "length", "fault"),
    [
        ((Variable("a", 0, (4,)), Variable("a", 16, (4,))), 32, "two variables are named 'a'"),
        ((Variable("a", 0, (20,)), Variable("b", 16, (4,))), 32, "b at 16 overlaps"),
        ((Variable("a", 16, (4,)), Variable("b", 0, (4,))), 32, "b at 0 overlaps"),
        ((Variable("a", 0, (20,)),), 16, "length 16 does not hold"),
        ((), -1, "length -1"),
        ((), MAX_LENGTH + 1, "length"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(variables, length, fault):
    with pytest.raises(ValueError, match=fault):
        Layout(variables, length)


def test_a_bad_variable_is_refused():
    with pytest.raises(ValueError, match=r"bad shape \(-1,\)"):
        Layout.of({"a": (-1,)})
    with pytest.raises(ValueError, match="dtype 'object'"):
        Variable("a", 0, (1,), "object")
    with pytest.raises(ValueError, match="out of range"):
        Variable("a", 0, (1 << 40, 1 << 40))


def test_views_need_a_flat_buffer_that_is_long_enough():
    layout = Layout.of({"a": (4,)})
    for flat in (np.zeros(3, np.float32), np.zeros((16, 1), np.float32), np.zeros(64, np.float32)[::2]):
        with pytest.raises(ValueError, match="contiguous 1-D buffer of 16"):
            layout.views(flat)
