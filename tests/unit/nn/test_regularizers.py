"""Regularizers, next to their definitions, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn
from workers.nn import regularizers

X = np.array([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]], np.float32)


def orthogonal(x: np.ndarray, factor: float) -> float:
    """The mean of |cos| over pairs of different rows."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = [abs(unit[i] @ unit[j]) for i in range(len(x)) for j in range(i)]
    return float(factor * np.mean(cosines))


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (regularizers.L1(0.5), 0.5 * 11.5),
        (regularizers.L2(0.5), 0.5 * 31.25),
        (regularizers.L1L2(0.5, 0.25), 0.5 * 11.5 + 0.25 * 31.25),
        (regularizers.L1L2(), 0),
        (regularizers.OrthogonalRegularizer(0.5), orthogonal(X, 0.5)),
        (regularizers.OrthogonalRegularizer(0.5, "columns"), orthogonal(X.T, 0.5)),
    ],
)
def test_the_penalty_and_its_gradient(regularizer: Any, expected: float) -> None:
    assert float(regularizer(nn.Variable(X))) == pytest.approx(expected, rel=1e-5)
    variable = nn.Variable(X.astype(np.float64), dtype="float64")
    with nn.GradientTape() as tape:
        penalty = regularizer(variable)
    gradient = tape.gradient(penalty, variable)
    for place in np.ndindex(X.shape):
        moved = [X.astype(np.float64) for _ in range(2)]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        up, down = (float(regularizer(nn.Variable(m, dtype="float64"))) for m in moved)
        assert gradient.numpy()[place] == pytest.approx((up - down) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["l1", "L2", "l1_l2", "orthogonal_regularizer"])
def test_names_and_configs_stand_for_regularizers(name: str) -> None:
    found: Any = regularizers.get(name)
    again: Any = regularizers.get({"class_name": type(found).__name__, "config": found.get_config()})
    assert again.get_config() == found.get_config()
    assert float(again(nn.Variable(X))) == float(found(nn.Variable(X)))


def test_get_takes_nothing_and_functions() -> None:
    assert regularizers.get(None) is None
    assert regularizers.get(np.sum) is np.sum


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regularizers.L1(-1), "L1: l1 must be a number from 0 up, not -1"),
        (lambda: regularizers.L2(float("nan")), "L2: l2 must be a number from 0 up, not nan"),
        (lambda: regularizers.OrthogonalRegularizer(mode="x"), "mode 'x' is not 'rows' or 'columns'"),
        (lambda: regularizers.OrthogonalRegularizer()(nn.Variable(X[0])), "for matrices, not for shape"),
        (lambda: regularizers.get("x"), "unknown regularizer 'x'"),
    ],
)
def test_a_bad_argument_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
