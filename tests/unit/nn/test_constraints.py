"""Constraints, next to their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers.nn import constraints

W = np.array([[3.0, 0.3, -6.0], [-4.0, 0.4, 8.0]], np.float32)
"""Norms of the columns: 5, 0.5, 10."""


@pytest.mark.parametrize(
    ("constraint", "scales"),
    [
        (constraints.MaxNorm(), [2 / 5, 1, 2 / 10]),
        (constraints.MaxNorm(6), [1, 1, 6 / 10]),
        (constraints.UnitNorm(), [1 / 5, 1 / 0.5, 1 / 10]),
        (constraints.MinMaxNorm(1.0, 6.0), [1, 2, 6 / 10]),
        (constraints.MinMaxNorm(1.0, 6.0, rate=0.5), [1, 1.5, 8 / 10]),
    ],
)
def test_columns_are_scaled(constraint: Any, scales: list[float]) -> None:
    before = W.copy()
    found = constraint(W)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, W * np.array(scales), rtol=1e-5)
    np.testing.assert_array_equal(W, before)


def test_norms_go_along_the_axes_that_are_given() -> None:
    np.testing.assert_allclose(np.linalg.norm(constraints.UnitNorm(axis=1)(W), axis=1), 1, rtol=1e-5)
    kernel = np.arange(1, 25, dtype=np.float32).reshape(2, 2, 3, 2)
    found = constraints.MaxNorm(1.0, axis=[0, 1, 2])(kernel)
    np.testing.assert_allclose(np.sqrt((found**2).sum(axis=(0, 1, 2))), 1, rtol=1e-5)


def test_zeros_stay_zeros() -> None:
    assert (constraints.UnitNorm()(np.zeros((2, 2), np.float32)) == 0).all()


def test_nothing_is_below_zero() -> None:
    np.testing.assert_array_equal(constraints.NonNeg()(W), [[3, np.float32(0.3), 0], [0, np.float32(0.4), 8]])


@pytest.mark.parametrize("name", ["max_norm", "MinMaxNorm", "non_neg", "UnitNorm"])
def test_names_and_configs_stand_for_constraints(name: str) -> None:
    found: Any = constraints.get(name)
    again: Any = constraints.get({"class_name": type(found).__name__, "config": found.get_config()})
    assert again.get_config() == found.get_config()
    np.testing.assert_array_equal(again(W), found(W))


def test_get_takes_nothing_and_functions() -> None:
    assert constraints.get(None) is None
    assert constraints.get(np.abs) is np.abs
    with pytest.raises(ConfigurationError, match="unknown constraint 'x'"):
        constraints.get("x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constraints.MaxNorm(-1), "MaxNorm: max_value must be from 0 up, not -1"),
        (lambda: constraints.MinMaxNorm(2, 1), "min_value must be from 0 to max_value"),
        (lambda: constraints.MinMaxNorm(rate=2), "rate must be from 0 to 1, not 2"),
    ],
)
def test_a_bad_argument_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
