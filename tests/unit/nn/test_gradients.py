"""The gradient tape: TensorFlow's behaviour, for what is computed eagerly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn
from workers.nn import ops


def tensor(*values: float) -> Any:
    return ops.convert_to_tensor(list(values))


def test_several_sources_in_their_structure_and_none_for_what_has_no_part_in_it() -> None:
    a, b, unused = (nn.Variable(np.array(each, np.float32)) for each in ([1, 2], [3, 4], [5, 6]))
    with nn.GradientTape() as tape:
        loss = ops.sum(a * b + a)
    found = tape.gradient(loss, {"a": a, "rest": [b, unused]})
    assert found["a"].numpy().tolist() == [4, 5]
    assert found["rest"][0].numpy().tolist() == [1, 2]
    assert found["rest"][1] is None


def test_tensors_count_only_where_they_are_watched() -> None:
    x = tensor(1.0, 2.0, 3.0)
    with nn.GradientTape() as tape:
        y = x * x
    assert tape.gradient(y, x) is None
    with nn.GradientTape() as tape:
        tape.watch(x)
        y = x * x
    assert tape.gradient(y, x).numpy().tolist() == [2, 4, 6]


def test_a_result_on_the_way_may_be_a_source() -> None:
    x = nn.Variable(np.array([1.0, 2.0]))
    with nn.GradientTape() as tape:
        y = ops.exp(x)
        z = ops.negative(y) * 3.0
    of_x, of_y = tape.gradient(z, [x, y])
    np.testing.assert_allclose(of_x.numpy(), -3 * np.exp([1, 2]), rtol=1e-6)
    assert of_y.numpy().tolist() == [-3, -3]


def test_variables_that_are_not_trainable_or_not_watched_have_no_gradient() -> None:
    fixed = nn.Variable(np.ones(2), trainable=False)
    learned = nn.Variable(np.ones(2))
    with nn.GradientTape() as tape:
        y = fixed * learned
    assert tape.gradient(y, [fixed, learned])[1].numpy().tolist() == [1, 1]
    with nn.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(learned)
        y = fixed * learned
        z = learned * 2.0
    assert [each.numpy().tolist() for each in tape.gradient([y, z], [learned])] == [[3, 3]]
    with nn.GradientTape(watch_accessed_variables=False) as tape:
        y = fixed * learned
    assert tape.gradient(y, learned) is None


def test_a_tape_gives_gradients_once_unless_it_is_persistent() -> None:
    x = nn.Variable(np.array([1.0, 2.0]))
    with nn.GradientTape() as tape:
        y = x * x
    tape.gradient(y, x)
    with pytest.raises(ConfigurationError, match="persistent=True"):
        tape.gradient(y, x)


def test_gradients_of_a_persistent_tape_stay_when_it_is_asked_again() -> None:
    kernel, x = nn.Variable(np.ones((2, 2))), ops.convert_to_tensor(np.ones((3, 2), np.float32))
    with nn.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = ops.dense(x, kernel, activation="gelu")
        z = ops.sum(y, axis=0) * 2.0
    once = tape.gradient(y, [kernel, x])
    kept = [each.numpy().copy() for each in once]
    twice = tape.gradient(z, [kernel, x])
    for before, after, doubled in zip(kept, once, twice, strict=True):
        np.testing.assert_array_equal(after.numpy(), before)
        np.testing.assert_allclose(doubled.numpy(), 2 * before, rtol=1e-6)


def test_output_gradients_weigh_the_target() -> None:
    x = nn.Variable(np.array([1.0, 2.0]))
    with nn.GradientTape() as tape:
        y = x * 3.0
    given = np.array([10.0, 0.5])
    assert tape.gradient(y, x, given).numpy().tolist() == [30, 1.5]
    assert given.tolist() == [10, 0.5]


def test_two_tapes_record_at_once_and_each_what_it_watches() -> None:
    x, y = tensor(2.0), tensor(5.0)
    with nn.GradientTape() as outer, nn.GradientTape() as inner:
        outer.watch(x)
        inner.watch(y)
        z = x * y
    assert outer.gradient(z, [x, y])[0].numpy().tolist() == [5]
    assert inner.gradient(z, [x, y])[1].numpy().tolist() == [2]


def test_nothing_comes_through_whole_numbers_or_stop_gradient() -> None:
    x = nn.Variable(np.array([1.5, 2.5]))
    with nn.GradientTape(persistent=True) as tape:
        whole = ops.cast(x, "int32") * 2
        y = ops.cast(whole, "float32") + ops.stop_gradient(x)
        z = y * x
    assert tape.gradient(y, x) is None
    assert tape.gradient(z, x).numpy().tolist() == [3.5, 6.5]
