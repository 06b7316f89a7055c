"""What depends on the variable: norms, decay, learning rates, constraints, and what is not trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.layout import Layout
from tests.unit.nn.stepping import step_once, trajectory
from workers import nn

SHAPES = {"first/kernel": (4, 6), "first/bias": (6,), "second/kernel": (6, 3), "second/bias": (3,)}
LAYOUT = Layout.of(SHAPES)


def variables(**settings: dict[str, Any]) -> list[nn.Variable]:
    """A variable for each of the layout, with attributes by its path ("first_kernel")."""
    found = []
    for path in SHAPES:
        variable = nn.Variable("zeros", SHAPES[path], name=path.split("/")[1])
        variable.path = path
        for key, value in settings.get(path.replace("/", "_"), {}).items():
            setattr(variable, key, value)
        found.append(variable)
    return found


def filled(seed: int) -> np.ndarray:
    """Numbers where the variables are, and zeros between them."""
    buffer, rng = np.zeros(LAYOUT.length, np.float32), np.random.default_rng(seed)
    for view in LAYOUT.views(buffer).values():
        view[...] = rng.standard_normal(view.shape)
    return buffer


def after_one_step(optimizer: Any, of: list[nn.Variable], **how: Any) -> dict[str, np.ndarray]:
    rules = nn.optimizers.for_model(optimizer, LAYOUT, of)
    slots = [np.zeros(LAYOUT.length, np.float32) for _ in rules.slots]
    new, _ = step_once(rules, 0, filled(0), slots, filled(1), **how)
    return LAYOUT.views(new)


PARAMS, GRADS = LAYOUT.views(filled(0)), LAYOUT.views(filled(1))


def test_each_variable_is_clipped_by_its_own_norm() -> None:
    found = after_one_step(nn.optimizers.SGD(1.0, clipnorm=2.0), variables())
    for path in SHAPES:
        g = GRADS[path]
        np.testing.assert_allclose(
            found[path], PARAMS[path] - g * min(1, 2 / np.linalg.norm(g)), rtol=1e-6, atol=1e-6
        )


def test_the_global_norm_is_that_of_what_is_trained() -> None:
    of = variables(first_kernel={"trainable": False})
    found = after_one_step(nn.optimizers.SGD(1.0, global_clipnorm=0.5), of)
    norm = np.sqrt(sum(np.sum(GRADS[path] ** 2) for path in SHAPES if path != "first/kernel"))
    np.testing.assert_array_equal(found["first/kernel"], PARAMS["first/kernel"])
    np.testing.assert_allclose(
        found["second/bias"], PARAMS["second/bias"] - GRADS["second/bias"] * 0.5 / norm, rtol=1e-5
    )


@given(
    cuts=st.lists(st.integers(0, LAYOUT.length), max_size=6),
    kind=st.sampled_from(["clipnorm", "global_clipnorm"]),
    in_place=st.booleans(),
)
def test_clipping_does_not_depend_on_cuts(cuts: list[int], kind: str, in_place: bool) -> None:
    of = variables(
        first_kernel={"constraint": nn.constraints.MaxNorm(1.0)},
        first_bias={"constraint": nn.constraints.NonNeg()},
        second_bias={"trainable": False},
    )
    optimizer = nn.optimizers.Adam(0.1, **{kind: 0.3}, use_ema=True)
    rules = nn.optimizers.for_model(optimizer, LAYOUT, of)
    grads = [filled(i) for i in range(1, 4)]
    whole, slots = trajectory(rules, filled(0), grads)
    cut, slots_cut = trajectory(rules, filled(0), grads, cuts=cuts, in_place=in_place)
    for path in SHAPES:
        assert LAYOUT.views(whole[-1])[path].tobytes() == LAYOUT.views(cut[-1])[path].tobytes()
        for slot in slots:
            assert LAYOUT.views(slots[slot])[path].tobytes() == LAYOUT.views(slots_cut[slot])[path].tobytes()


def test_excluded_variables_do_not_decay() -> None:
    of = variables()
    optimizer = nn.optimizers.SGD(0.5, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_list=[of[2]], var_names=["bias"])
    found = after_one_step(optimizer, of)
    for path in SHAPES:
        kept = 0.9 if path == "first/kernel" else 1.0
        np.testing.assert_allclose(found[path], kept * PARAMS[path] - 0.5 * GRADS[path], rtol=1e-5, atol=1e-6)


def test_a_multiplier_is_of_the_learning_rate() -> None:
    found = after_one_step(
        nn.optimizers.SGD(0.5), variables(second_kernel={"learning_rate_multiplier": 0.25})
    )
    for path in SHAPES:
        rate = 0.125 if path == "second/kernel" else 0.5
        np.testing.assert_allclose(found[path], PARAMS[path] - rate * GRADS[path], rtol=1e-5, atol=1e-6)


def test_a_constraint_holds_after_the_update_and_averages_come_before_it() -> None:
    of = variables(first_kernel={"constraint": nn.constraints.MaxNorm(0.5)})
    rules = nn.optimizers.for_model(nn.optimizers.SGD(0.5, use_ema=True), LAYOUT, of)
    average = np.zeros(LAYOUT.length, np.float32)
    new, (average,) = step_once(rules, 0, filled(0), [average], filled(1), in_place=True)
    free = PARAMS["first/kernel"] - 0.5 * GRADS["first/kernel"]
    np.testing.assert_allclose(LAYOUT.views(average)["first/kernel"], free, rtol=1e-5, atol=1e-6)
    norms = np.linalg.norm(free, axis=0)
    expected = free * np.minimum(norms, 0.5) / norms
    np.testing.assert_allclose(LAYOUT.views(new)["first/kernel"], expected, rtol=1e-5, atol=1e-6)


def test_a_constraint_may_be_any_function() -> None:
    of = variables(first_kernel={"constraint": lambda w: w / w.max()})
    found = after_one_step(nn.optimizers.SGD(0.0), of)
    np.testing.assert_allclose(found["first/kernel"], PARAMS["first/kernel"] / PARAMS["first/kernel"].max())


def test_only_constraints_on_several_elements_and_lamb_keep_variables_whole() -> None:
    place = {place.name: (place.offset, place.offset + place.size) for place in LAYOUT.variables}
    of = variables(
        first_kernel={"constraint": nn.constraints.UnitNorm()},
        first_bias={"constraint": nn.constraints.NonNeg()},
        second_kernel={"trainable": False, "constraint": nn.constraints.UnitNorm()},
    )
    assert nn.optimizers.for_model(nn.optimizers.SGD(), LAYOUT, of).whole == (place["first/kernel"],)
    lamb = nn.optimizers.for_model(nn.optimizers.Lamb(), LAYOUT, of)
    assert lamb.whole == (place["first/kernel"], place["first/bias"], place["second/bias"])


def test_what_is_assigned_becomes_the_mean_and_what_is_frozen_stays_with_its_slots() -> None:
    of = variables(second_kernel={"trainable": False}, second_bias={"trainable": False})
    rules = nn.optimizers.for_model(nn.optimizers.SGD(0.5, momentum=0.5), LAYOUT, of, assigned=[3])
    new, (momentum,) = step_once(rules, 0, filled(0), [filled(2)], filled(1))
    found = LAYOUT.views(new)
    np.testing.assert_array_equal(found["second/kernel"], PARAMS["second/kernel"])
    np.testing.assert_array_equal(found["second/bias"], GRADS["second/bias"])
    for path in ("second/kernel", "second/bias"):
        np.testing.assert_array_equal(LAYOUT.views(momentum)[path], LAYOUT.views(filled(2))[path])
    assert (found["first/kernel"] != PARAMS["first/kernel"]).all()


def test_a_layout_alone_says_what_is_trained() -> None:
    layout = Layout(tuple(LAYOUT.variables[:1]), LAYOUT.length)
    frozen = Layout(
        tuple(type(v)(v.name, v.offset, v.shape, v.dtype, False) for v in LAYOUT.variables), LAYOUT.length
    )
    params, grad = filled(0), filled(1)
    new, _ = step_once(nn.optimizers.for_model(nn.optimizers.SGD(), frozen), 0, params, [], grad)
    np.testing.assert_array_equal(frozen.views(new)["first/bias"], PARAMS["first/bias"])
    new, _ = step_once(nn.optimizers.for_model(nn.optimizers.SGD(), layout), 0, params, [], grad)
    assert (layout.views(new)["first/kernel"] != PARAMS["first/kernel"]).all()


@pytest.mark.parametrize("optimizer", [nn.optimizers.Adagrad(), nn.optimizers.Ftrl(), nn.optimizers.Lamb()])
def test_elements_between_variables_stay_zero(optimizer: nn.optimizers.Optimizer) -> None:
    rules = nn.optimizers.for_model(optimizer, LAYOUT)
    weights, slots = trajectory(rules, filled(0), [filled(1), filled(2)], in_place=True)
    between = np.ones(LAYOUT.length, bool)
    for view in LAYOUT.views(between).values():
        view[...] = False
    assert between.any()
    assert all((array[between] == 0).all() for array in (*weights, *slots.values()))
