"""The quadratic model of the TF1 guides: y = (x - h)^2 + v, trained a sample at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from storage.formats.tensor_bundle import open_bundle
from workers import nn

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def train(h: nn.Variable, v: nn.Variable, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
    """In place. One epoch of gradient descent in order."""
    optimizer = nn.optimizers.SGD(0.001)
    for sample, target in zip(x, y, strict=True):
        with nn.GradientTape() as tape:
            error = nn.ops.square(nn.ops.square(sample - h) + v - target)
        optimizer.apply(tape.gradient(error, [h, v]), [h, v])


def test_row_24_the_trajectory_is_that_of_tensorflow(reference_data: Path) -> None:
    folder = reference_data / "golden" / "tf1_saver"
    x, y = np.load(folder / "x_train.npy"), np.load(folder / "y_train.npy")
    expected = np.load(folder / "trajectory.npy")
    h, v = nn.Variable(np.float32(0)), nn.Variable(np.float32(0))
    found = [(0.0, 0.0)]
    for _ in range(100):
        train(h, v, x, y)
        found.append((float(h), float(v)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_row_23_training_goes_on_from_the_file_of_a_saver(reference_data: Path) -> None:
    folder = reference_data / "golden" / "tf1_saver"
    last = open_bundle(str(folder / "model_final"))
    h, v = (nn.Variable(last.get_tensor(f"{name}_estimate")) for name in ("hor", "ver"))
    inputs = np.load(folder / "inputs.npy")
    predicted = np.asarray(nn.ops.square(inputs - h) + v)
    np.testing.assert_allclose(predicted, np.load(folder / "expected.npy"), atol=1e-6)
    train(h, v, np.load(folder / "x_train.npy"), np.load(folder / "y_train.npy"))
    np.testing.assert_allclose((float(h), float(v)), np.load(folder / "expected_after.npy"), atol=1e-6)
