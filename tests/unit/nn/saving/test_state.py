"""Named arrays of a model, and putting them back."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError, IncompatibleCheckpoint
from workers import nn
from workers.nn.saving import state

if TYPE_CHECKING:
    from pathlib import Path


def network(units: int = 3) -> Any:
    return nn.Sequential([nn.Input((4,)), nn.Dense(5, name="a"), nn.Dropout(0.5), nn.Dense(units, name="b")])


def values_of(model: Any) -> dict[str, Any]:
    return {name: variable.numpy().copy() for name, variable in state.variables(model).items()}


def test_names_are_paths_of_weights_and_of_the_optimizers_state() -> None:
    model = network()
    model.compile(nn.optimizers.Adam(0.01), "mse")
    assert list(state.variables(model)) == [
        *(f"variables/{name}" for name in ("a/kernel", "a/bias", "b/kernel", "b/bias")),
        "optimizer/iteration",
        "optimizer/learning_rate",
    ]
    names = list(state.optimizer_variables(model, build=True))
    assert names[2:6] == [
        f"{model.optimizer.slots[0]}/{p}" for p in ("a/kernel", "a/bias", "b/kernel", "b/bias")
    ]
    assert len(names) == 2 + 2 * 4


def test_a_schedule_leaves_no_learning_rate_to_restore() -> None:
    model = network()
    model.compile(nn.optimizers.SGD(nn.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)), "mse")
    assert list(state.optimizer_variables(model)) == ["iteration"]


def test_row_18_a_whole_restore_is_consumed() -> None:
    saved, model = values_of(network()), network()
    status = state.assign(state.variables(model), saved, "here")
    status.assert_consumed().assert_existing_objects_matched().assert_nontrivial_match()
    assert all(np.array_equal(value, saved[name]) for name, value in values_of(model).items())


def test_row_18_what_is_missing_and_what_is_left_over_are_told_apart() -> None:
    saved, model = values_of(network()), network()
    saved["variables/c/kernel"] = np.zeros((2, 2), np.float32)
    status = state.assign(state.variables(model), saved, "here").expect_partial()
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match="here: values without a variable: variables/c/kernel"):
        status.assert_consumed()
    del saved["variables/c/kernel"], saved["variables/b/bias"]
    status = state.assign(state.variables(model), saved, "here")
    with pytest.raises(AssertionError, match="variables without a value: variables/b/bias"):
        status.assert_existing_objects_matched()
    status.assert_nontrivial_match()


def test_row_10_a_partial_restore_that_is_dropped_warns_once_and_lists_keys() -> None:
    saved, model = values_of(network()), network()
    saved["variables/c/kernel"] = saved["variables/c/bias"] = np.zeros(2, np.float32)
    with pytest.warns(UserWarning, match=r"2 values were not restored.*c/kernel, variables/c/bias") as caught:
        state.assign(state.variables(model), saved, "here")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state.assign(state.variables(model), saved, "here").expect_partial()


def test_another_shape_changes_nothing_and_is_named() -> None:
    saved, model = values_of(network(units=2)), network(units=3)
    before = values_of(model)
    with pytest.raises(
        IncompatibleCheckpoint, match=r"here: .*b/kernel has shape \(5, 3\), and \(5, 2\) was found"
    ):
        state.assign(state.variables(model), saved, "here")
    with pytest.raises(ValueError, match="do not fit"):
        state.assign(state.variables(model), saved, "here")
    assert all(np.array_equal(value, before[name]) for name, value in values_of(model).items())
    status = state.assign(state.variables(model), saved, "here", skip_mismatch=True).expect_partial()
    assert status.restored == ("variables/a/kernel", "variables/a/bias")
    assert status.missing == status.unused == ("variables/b/kernel", "variables/b/bias")


def test_row_20_the_wrong_nesting_raises_and_changes_nothing() -> None:
    inner = network()
    saved = values_of(inner)
    outer = nn.Sequential([nn.Input((4,)), network(), nn.Dense(3, name="b")])
    before = values_of(outer)
    with pytest.raises(IncompatibleCheckpoint, match="holds a/kernel, and the model has sequential/a/kernel"):
        state.assign(state.variables(outer), saved, "here")
    assert all(np.array_equal(value, before[name]) for name, value in values_of(outer).items())


def test_nothing_in_common_raises() -> None:
    with pytest.raises(IncompatibleCheckpoint, match="has nothing for this model: it holds variables/x"):
        state.assign(state.variables(network()), {"variables/x": np.zeros(1)}, "here")


def test_text_is_no_number() -> None:
    variables = {"v": nn.Variable(np.zeros(2, np.float32))}
    with pytest.raises(IncompatibleCheckpoint, match="has dtype float32, and complex64 was found"):
        state.assign(variables, {"v": np.zeros(2, np.complex64)}, "here")


def test_row_16_in_order_a_wrong_count_or_shape_raises_and_changes_nothing() -> None:
    model = network()
    weights = model.get_weights()
    with pytest.raises(ConfigurationError, match="has 4 weights, and 3 were given: a/kernel, a/bias"):
        model.set_weights(weights[:3])
    wrong = [np.zeros_like(weights[0]), *weights[1:3], np.zeros(9, np.float32)]
    with pytest.raises(ValueError, match=r"b/bias has shape \(3,\), and \(9,\) was found"):
        model.set_weights(wrong)
    assert all(map(np.array_equal, model.get_weights(), weights))


@pytest.mark.parametrize("name", ["w", "w.npz", "w.weights.h5", "w.safetensors"])
def test_where_every_shape_differs_all_can_be_left_out(tmp_path: Path, name: str) -> None:
    one = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
    other = nn.Sequential([nn.Input((4,)), nn.Dense(5)])
    one.save_weights(tmp_path / name)
    before = other.get_weights()
    status = other.load_weights(tmp_path / name, skip_mismatch=True).expect_partial()
    assert (len(status.restored), len(status.missing)) == (0, 2)
    for a, b in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_no_path_is_told() -> None:
    model = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
    calls: list[Any] = [model.save, model.save_weights, model.load_weights, nn.load_model]
    for call in calls:
        for path in (None, 5, b"model"):
            with pytest.raises(ConfigurationError, match="is no path: give a str"):
                call(path)
