"""Optimizers used as in Keras: built for variables, and applied step by step."""

from __future__ import annotations

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn


def two() -> list[nn.Variable]:
    found = [nn.Variable(np.ones((2, 2)), name="kernel"), nn.Variable(np.ones(2), name="bias")]
    for variable in found:
        variable.path = f"dense/{variable.name}"
    return found


def names(optimizer: nn.optimizers.Optimizer) -> list[str]:
    return [variable.name for variable in optimizer.variables]


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (nn.optimizers.SGD(), ""),
        (nn.optimizers.SGD(momentum=0.5), "kernel_momentum bias_momentum"),
        (
            nn.optimizers.Adam(amsgrad=True),
            "kernel_momentum kernel_velocity bias_momentum bias_velocity "
            "kernel_velocity_hat bias_velocity_hat",
        ),
        (
            nn.optimizers.SGD(use_ema=True, gradient_accumulation_steps=2, momentum=0.5),
            "kernel_average bias_average kernel_gradient_accumulator bias_gradient_accumulator "
            "kernel_momentum bias_momentum",
        ),
        (
            nn.optimizers.RMSprop(momentum=0.5, centered=True),
            "kernel_velocity bias_velocity kernel_momentum bias_momentum "
            "kernel_average_gradient bias_average_gradient",
        ),
    ],
)
def test_the_state_is_in_the_order_in_which_keras_stores_it(
    optimizer: nn.optimizers.Optimizer, slots: str
) -> None:
    assert names(optimizer) == ["iteration", "learning_rate"]
    optimizer.build(two())
    assert names(optimizer) == ["iteration", "learning_rate", *(f"dense_{slot}" for slot in slots.split())]


def test_a_schedule_is_no_variable_and_nadams_product_is_the_last() -> None:
    optimizer = nn.optimizers.Nadam(nn.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5))
    variables = two()
    optimizer.apply([np.ones((2, 2)), np.ones(2)], variables)
    assert [names(optimizer)[0], names(optimizer)[-1]] == ["iteration", "u_product"]
    assert len(optimizer.variables) == 6
    assert float(optimizer.variables[-1]) == pytest.approx(0.9 * (1 - 0.5 * 0.96))
    assert optimizer.learning_rate == 0.05


def test_slots_begin_as_in_keras_and_keep_what_is_assigned() -> None:
    optimizer, variables = nn.optimizers.Adagrad(1.0, initial_accumulator_value=0.5), two()
    optimizer.build(variables)
    accumulators = optimizer.slot_variables["adagrad_accumulator"]
    assert [float(a.numpy().max()) for a in accumulators] == [0.5, 0.5]
    optimizer.apply([np.ones((2, 2)), np.ones(2)])
    accumulators[1].assign(np.full(2, 8.0))
    before = variables[1].numpy().copy()
    optimizer.apply([np.ones((2, 2)), np.ones(2)])
    np.testing.assert_allclose(before - variables[1].numpy(), 1 / 3, rtol=1e-5)


def test_apply_gradients_counts_iterations() -> None:
    optimizer, variables = nn.optimizers.SGD(1.0, gradient_accumulation_steps=2), two()
    for _ in range(3):
        iteration = optimizer.apply_gradients(zip([np.ones((2, 2)), np.ones(2)], variables, strict=True))
    assert int(iteration) == 3
    assert int(optimizer.iterations) == 1
    np.testing.assert_array_equal(variables[1].numpy(), [0, 0])


def test_a_variable_without_a_gradient_is_left_and_its_average_is_its_value() -> None:
    optimizer, variables = nn.optimizers.SGD(1.0, use_ema=True), two()
    with pytest.warns(UserWarning, match="no gradients for dense/bias"):
        optimizer.apply([np.ones((2, 2)), None], variables)
    np.testing.assert_array_equal(variables[1].numpy(), [1, 1])
    assert [float(average.max()) for average in optimizer.averages(variables)] == [0, 1]


def test_averages_become_the_final_values() -> None:
    optimizer, variables = nn.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5), two()
    for _ in range(2):
        optimizer.apply([np.ones((2, 2)), np.ones(2)], variables)
    np.testing.assert_array_equal(variables[1].numpy(), [-1, -1])
    optimizer.finalize_variable_values(variables)
    np.testing.assert_array_equal(variables[1].numpy(), [-0.5, -0.5])


def test_rules_of_variables_apply() -> None:
    optimizer, variables = nn.optimizers.SGD(1.0, clipnorm=1.0, weight_decay=0.5), two()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    variables[1].constraint = nn.constraints.NonNeg()
    variables[0].learning_rate_multiplier = 0.5
    optimizer.apply([np.ones((2, 2)), np.full(2, 10.0)], variables)
    np.testing.assert_array_equal(variables[0].numpy(), np.full((2, 2), 1 - 0.25 - 0.25))
    np.testing.assert_allclose(variables[1].numpy(), 1 - np.sqrt(0.5), rtol=1e-6)


def test_what_cannot_be_applied_is_refused() -> None:
    optimizer, variables = nn.optimizers.SGD(), two()
    with pytest.raises(ConfigurationError, match="no variable has a gradient"):
        optimizer.apply([None, None], variables)
    with pytest.raises(
        ConfigurationError, match=r"'dense/kernel' has shape \(2, 2\), and its gradient \(3,\)"
    ):
        optimizer.apply([np.ones(3), np.ones(2)], variables)
    with pytest.raises(ConfigurationError, match="1 gradients for 2 variables"):
        optimizer.apply([np.ones(3)], variables)
    with pytest.raises(ConfigurationError, match="'other' is not one that the optimizer was built for"):
        optimizer.apply([np.ones(2)], [nn.Variable(np.ones(2), name="other")])
    with pytest.raises(ConfigurationError, match="call it before the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    with pytest.raises(ConfigurationError, match="variable variable is float64: use float32"):
        nn.optimizers.SGD().build([nn.Variable(np.ones(2), dtype="float64")])
    with pytest.raises(ConfigurationError, match="sgd has no moving averages"):
        optimizer.averages(variables)
