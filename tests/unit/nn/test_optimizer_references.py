"""Optimizers against the papers' formulas, in plain double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from storage.layout import Layout
from tests.unit.nn.stepping import trajectory
from workers import nn

STEPS = 12
LAYOUT = Layout.of({"w": (4, 5)})
Reference = Callable[[np.ndarray, Iterable[np.ndarray]], list[np.ndarray]]


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    params = np.zeros(LAYOUT.length, np.float32)
    LAYOUT.views(params)["w"][...] = rng.standard_normal((4, 5))
    grads = np.zeros((STEPS, LAYOUT.length), np.float32)
    for grad in grads:
        LAYOUT.views(grad)["w"][...] = rng.standard_normal((4, 5)) * rng.choice([0.01, 1, 10])
    return params, grads


def adagrad(w: np.ndarray, grads: Iterable[np.ndarray]) -> list[np.ndarray]:
    total, found = np.full_like(w, 0.2), []
    for g in grads:
        total = total + g**2
        w = w - 0.05 * g / np.sqrt(total + 1e-7)
        found.append(w)
    return found


def adadelta(w: np.ndarray, grads: Iterable[np.ndarray]) -> list[np.ndarray]:
    squares, steps, found = 0.0 * w, 0.0 * w, []
    for g in grads:
        squares = 0.9 * squares + 0.1 * g**2
        step = np.sqrt(steps + 1e-6) / np.sqrt(squares + 1e-6) * g
        steps = 0.9 * steps + 0.1 * step**2
        w = w - 0.5 * step
        found.append(w)
    return found


def adamax(w: np.ndarray, grads: Iterable[np.ndarray]) -> list[np.ndarray]:
    m, u, found = 0.0 * w, 0.0 * w, []
    for t, g in enumerate(grads, 1):
        m = 0.8 * m + 0.2 * g
        u = np.maximum(0.95 * u, np.abs(g))
        w = w - 0.02 / (1 - 0.8**t) * m / (u + 1e-7)
        found.append(w)
    return found


def nadam(w: np.ndarray, grads: Iterable[np.ndarray]) -> list[np.ndarray]:
    m, v, product, found = 0.0 * w, 0.0 * w, 1.0, []
    for t, g in enumerate(grads, 1):
        now, later = (0.9 * (1 - 0.5 * 0.96**i) for i in (t, t + 1))
        product *= now
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g**2
        ahead = later * m / (1 - product * later) + (1 - now) * g / (1 - product)
        w = w - 0.02 * ahead / (np.sqrt(v / (1 - 0.99**t)) + 1e-7)
        found.append(w)
    return found


def lion(w: np.ndarray, grads: Iterable[np.ndarray]) -> list[np.ndarray]:
    m, found = 0.0 * w, []
    for g in grads:
        w = w - 0.01 * np.sign(0.9 * m + 0.1 * g)
        m = 0.95 * m + 0.05 * g
        found.append(w)
    return found


def ftrl(w: np.ndarray, grads: Iterable[np.ndarray]) -> list[np.ndarray]:
    rate, l1, l2, beta = 0.1, 0.05, 0.02, 0.3
    n, z, found = np.full_like(w, 0.1), 0.0 * w, []
    for g in grads:
        sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / rate
        n = n + g**2
        z = z + g - sigma * w
        w = np.where(np.abs(z) <= l1, 0, (np.sign(z) * l1 - z) / ((beta + np.sqrt(n)) / rate + 2 * l2))
        found.append(w)
    return found


def lamb(w: np.ndarray, grads: Iterable[np.ndarray]) -> list[np.ndarray]:
    m, v, found = 0.0 * w, 0.0 * w, []
    for t, g in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-7)
        w = w - 0.02 * np.linalg.norm(w) / np.linalg.norm(step) * step
        found.append(w)
    return found


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        (nn.optimizers.Adagrad(0.05, initial_accumulator_value=0.2), adagrad),
        (nn.optimizers.Adadelta(0.5, rho=0.9, epsilon=1e-6), adadelta),
        (nn.optimizers.Adamax(0.02, beta_1=0.8, beta_2=0.95), adamax),
        (nn.optimizers.Nadam(0.02, beta_2=0.99), nadam),
        (nn.optimizers.Lion(0.01, beta_2=0.95), lion),
        (
            nn.optimizers.Ftrl(
                0.1, l1_regularization_strength=0.05, l2_regularization_strength=0.02, beta=0.3
            ),
            ftrl,
        ),
        (
            nn.optimizers.Ftrl(
                0.1,
                learning_rate_power=-0.5000001,  # not the root, but as good as it
                l1_regularization_strength=0.05,
                l2_regularization_strength=0.02,
                beta=0.3,
            ),
            ftrl,
        ),
        (nn.optimizers.Lamb(0.02, beta_2=0.99), lamb),
    ],
    ids=["adagrad", "adadelta", "adamax", "nadam", "lion", "ftrl", "ftrl_power", "lamb"],
)
def test_it_follows_the_formula(optimizer: nn.optimizers.Optimizer, reference: Reference) -> None:
    params, grads = data()
    flat, _ = trajectory(nn.optimizers.for_model(optimizer, LAYOUT), params, grads)
    variable = nn.Variable(LAYOUT.views(params)["w"])
    expected = reference(
        np.array(LAYOUT.views(params)["w"], np.float64),
        [LAYOUT.views(g)["w"].astype(np.float64) for g in grads],
    )
    for found, grad, value in zip(flat, grads, expected, strict=True):
        optimizer.apply([LAYOUT.views(grad)["w"]], [variable])
        np.testing.assert_allclose(LAYOUT.views(found)["w"], value, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(variable.numpy(), value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("t", [1, 700, 1_999, 2_000, 2_001, 2_500])
def test_the_product_of_nadams_momenta_is_exact_however_many_there_are(t: int) -> None:
    from workers.nn.optimizers.adam import _momenta

    expected = np.prod([np.longdouble(0.999) * (1 - 0.5 * np.longdouble(0.96) ** i) for i in range(1, t + 1)])
    assert _momenta(0.999, t) == pytest.approx(float(expected), rel=1e-12)


def gradients() -> list[float]:
    return [1.0, 3.0, -2.0, 4.0, 5.0, 1.0]


def weights_after(optimizer: nn.optimizers.Optimizer, **how: Any) -> list[float]:
    grads = [np.full(1, g, np.float32) for g in gradients()]
    return [float(w[0]) for w in trajectory(optimizer, np.full(1, 10, np.float32), grads, **how)[0]]


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_are_accumulated_and_their_mean_is_applied(in_place: bool) -> None:
    optimizer = nn.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    assert weights_after(optimizer, in_place=in_place) == [10, 8, 8, 7, 7, 4]


def test_accumulated_gradients_are_clipped_as_one() -> None:
    optimizer = nn.optimizers.SGD(1.0, gradient_accumulation_steps=2, global_clipnorm=1.5)
    assert weights_after(optimizer) == [10, 8.5, 8.5, 7.5, 7.5, 6]


def test_a_schedule_counts_steps_where_gradients_are_accumulated() -> None:
    rates = nn.optimizers.schedules.PiecewiseConstantDecay([2], [1.0, 0.5])
    optimizer = nn.optimizers.SGD(rates, gradient_accumulation_steps=2)
    assert weights_after(optimizer) == [10, 8, 8, 7.5, 7.5, 6]


def test_the_first_average_is_the_weights_and_later_ones_follow() -> None:
    optimizer = nn.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.75)
    params, grads = np.full(1, 10, np.float32), [np.full(1, g, np.float32) for g in gradients()[:3]]
    weights, slots = trajectory(optimizer, params, grads)
    assert [float(w[0]) for w in weights] == [9, 6, 8]
    assert slots["ema"][0] == 0.75 * (0.75 * 9 + 0.25 * 6) + 0.25 * 8


def test_averages_overwrite_the_weights_in_their_turn() -> None:
    optimizer = nn.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    average = 0.5 * 9 + 0.5 * 6
    third = average + 2
    fourth = 0.5 * (0.5 * average + 0.5 * third) + 0.5 * (third - 4)
    assert weights_after(optimizer)[:4] == [9, average, third, fourth]


def test_averages_count_updates_where_gradients_are_accumulated() -> None:
    optimizer = nn.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2)
    params, grads = np.full(1, 10, np.float32), [np.full(1, g, np.float32) for g in gradients()[:3]]
    _, slots = trajectory(optimizer, params, grads)
    assert slots["ema"][0] == 8  # the weights after the first update: the average moves at every step
    assert slots["gradient_accumulator"][0] == -2


def test_weights_decay_by_the_learning_rate_before_the_update() -> None:
    assert weights_after(nn.optimizers.SGD(0.5, weight_decay=0.5))[0] == 10 - 10 * 0.5 * 0.5 - 0.5


def test_gradients_are_unscaled() -> None:
    optimizer = nn.optimizers.SGD(1.0, loss_scale_factor=4.0)
    assert weights_after(optimizer)[:2] == [9.75, 9.0]
    assert optimizer.scale_loss(3.0) == 12.0


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_global_norm_that_is_not_finite_spoils_everything_as_in_keras(bad: float) -> None:
    params, grad = np.ones(3, np.float32), np.array([1, bad, 1], np.float32)
    weights, _ = trajectory(nn.optimizers.SGD(global_clipnorm=1.0), params, [grad])
    assert np.isnan(weights[0]).all()


def test_a_norm_too_large_for_single_precision_is_clipped() -> None:
    params, grad = np.zeros(2, np.float32), np.array([3e30, 4e30], np.float32)
    weights, _ = trajectory(nn.optimizers.SGD(1.0, global_clipnorm=1.0), params, [grad])
    np.testing.assert_allclose(weights[0], [-0.6, -0.8], rtol=1e-6)
