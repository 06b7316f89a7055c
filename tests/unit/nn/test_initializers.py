"""Initial values: bounds and spreads as in Keras, and the same draws for the same generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn

I = nn.initializers  # noqa: E741 many of them are made below
SHAPE = (200, 300)


def drawn(initializer: Any, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    values = initializer(shape, np.random.default_rng(0))
    assert values.shape == shape
    assert values.dtype == np.float32
    return values


@pytest.mark.parametrize(
    ("initializer", "variance", "bound"),
    [
        (I.RandomUniform(), 0.05**2 / 3, 0.05),
        (I.RandomNormal(), 0.05**2, np.inf),
        (I.TruncatedNormal(), (0.05 * 0.87962566) ** 2, 0.1),
        (I.GlorotUniform(), 2 / 500, np.sqrt(6 / 500)),
        (I.GlorotNormal(), 2 / 500, 2 * np.sqrt(2 / 500) / 0.87962566),
        (I.HeUniform(), 2 / 200, np.sqrt(6 / 200)),
        (I.HeNormal(), 2 / 200, 2 * np.sqrt(2 / 200) / 0.87962566),
        (I.LecunUniform(), 1 / 200, np.sqrt(3 / 200)),
        (I.LecunNormal(), 1 / 200, 2 * np.sqrt(1 / 200) / 0.87962566),
        (I.VarianceScaling(3.0, "fan_out", "untruncated_normal"), 3 / 300, np.inf),
        (I.VarianceScaling(3.0, "fan_out", "uniform"), 3 / 300, np.sqrt(9 / 300)),
        (I.VarianceScaling(0.5, "fan_avg", "normal"), 0.5 / 250, 2 * np.sqrt(0.5 / 250) / 0.87962566),
    ],
)
def test_spread_and_bounds(initializer: Any, variance: float, bound: float) -> None:
    values = drawn(initializer)
    assert values.var() == pytest.approx(variance, rel=0.03)
    assert abs(values.mean()) < 4 * np.sqrt(variance / values.size)
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    if np.isfinite(bound):
        assert np.abs(values).max() > 0.98 * bound


def test_a_convolutions_fans_count_its_receptive_field() -> None:
    limit = np.sqrt(6 / (3 * 3 * (20 + 40)))
    assert np.abs(drawn(I.GlorotUniform(), (3, 3, 20, 40))).max() == pytest.approx(limit, rel=0.01)


def test_fans_may_be_of_the_axes_that_are_given() -> None:
    limit = np.sqrt(6 / (3 * 20 + 40))
    found = drawn(I.GlorotUniform(input_axes=[0, 2], output_axes=[3]), (3, 3, 20, 40))
    assert np.abs(found).max() == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 3, 4)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = drawn(I.Orthogonal(gain=2.0), shape).reshape(-1, shape[-1])
    product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-5)


def test_orthogonal_prefers_no_sign() -> None:
    rng = np.random.default_rng(1)
    assert 60 < sum(I.Orthogonal()((1, 1), rng).item() > 0 for _ in range(200)) < 140


def test_constants() -> None:
    np.testing.assert_array_equal(drawn(I.Identity(3.0), (2, 3)), [[3, 0, 0], [0, 3, 0]])
    np.testing.assert_array_equal(drawn(I.Constant(7), (2,)), [7, 7])
    np.testing.assert_array_equal(drawn(I.Zeros(), (2,)), [0, 0])
    np.testing.assert_array_equal(drawn(I.Ones(), (2,)), [1, 1])
    given = I.get(lambda shape, dtype: np.arange(6, dtype=dtype).reshape(shape))
    np.testing.assert_array_equal(drawn(given, (6,)), range(6))


@pytest.mark.parametrize("cls", [I.GlorotUniform, I.HeNormal, I.Orthogonal, I.TruncatedNormal])
def test_a_seed_decides_the_values_and_else_the_generator(cls: Any) -> None:
    seeded, other = cls(seed=5), cls(seed=6)
    rng = np.random.default_rng(0)
    first = seeded((4, 4), rng)
    np.testing.assert_array_equal(first, seeded((4, 4), rng))
    assert (first != other((4, 4), rng)).any()
    assert (cls()((4, 4), rng) != cls()((4, 4), rng)).any()
    assert (cls()((4, 4)) != cls()((4, 4))).any()


@pytest.mark.parametrize(
    "initializer",
    [
        I.Constant(2.0),
        I.Identity(2.0),
        I.RandomUniform(-1.0, 2.0, seed=1),
        I.TruncatedNormal(1.0, 2.0, seed=1),
        I.VarianceScaling(2.0, "fan_out", "uniform", seed=1),
        I.LecunNormal(seed=3),
        I.Orthogonal(2.0, seed=1),
    ],
)
def test_config_makes_an_equal_one(initializer: Any) -> None:
    config = initializer.get_config()
    again = I.get({"class_name": type(initializer).__name__, "config": config})
    assert again.get_config() == config
    np.testing.assert_array_equal(drawn(again, (4, 4)), drawn(initializer, (4, 4)))


def test_the_seed_is_in_the_config_as_in_keras() -> None:
    assert I.GlorotUniform(seed=1).get_config() == {"seed": 1, "input_axes": None, "output_axes": None}
    assert I.RandomNormal().get_config() == {"mean": 0.0, "stddev": 0.05, "seed": None}


@pytest.mark.parametrize("name", ["zero", "one", "uniform", "normal", "he_uniform", "LecunNormal"])
def test_names_stand_for_initializers(name: str) -> None:
    assert drawn(I.get(name), (2, 2)).shape == (2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: I.Identity()((2,)), r"Identity: it is for matrices, not for shape \(2,\)"),
        (lambda: I.Orthogonal()((2,)), r"it is for two dimensions or more, not for shape \(2,\)"),
        (lambda: I.RandomNormal(seed="x"), "RandomNormal: seed must be an integer from 0 up, not 'x'"),
        (lambda: I.TruncatedNormal(stddev=-1), "TruncatedNormal: stddev must be from 0 up, not -1"),
        (lambda: I.RandomUniform(1, 0), "minval 1 is above maxval 0"),
        (lambda: I.VarianceScaling(0), "scale must be positive, not 0"),
        (lambda: I.HeNormal(input_axes=[0]), "HeNormal: give input_axes and output_axes, or neither"),
        (lambda: I.VarianceScaling(mode="x"), "mode 'x' is not one of"),
        (lambda: I.VarianceScaling(distribution="x"), "distribution 'x' is not one of"),
        (lambda: I.get(lambda shape, dtype: np.ones(3))((2,)), r"gave \(3,\) for shape \(2,\)"),
        (lambda: I.get("x"), "unknown initializer 'x'"),
    ],
)
def test_a_bad_argument_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
