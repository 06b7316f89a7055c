"""Layers on images, and normalization, give the numbers of real Keras 3.15 on TensorFlow."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.unit.nn.conftest import GOLDEN
from workers import nn

close = partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)

CONVOLUTIONS = ["valid", "same", "valid_s2", "same_s2", "rect", "even_same_s2", "1x1", "dilated"]
POOLINGS = ["valid", "same", "s1_same", "rect"]


def gradient_of_squares(layer: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The layer's output, and the gradient of the sum of its squares by x."""
    with nn.GradientTape() as tape:
        given = nn.ops.convert_to_tensor(x)
        tape.watch(given)
        y = layer(given)
        total = nn.ops.sum(y * y)
    return y.numpy(), tape.gradient(total, given).numpy()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_and_its_gradient_equal_keras(golden: Any, name: str) -> None:
    g = golden("layer", f"conv_{name}")
    layer = nn.Conv2D(**g.kwargs)
    layer(g.inputs["x"])  # builds it
    layer.set_weights([g.inputs[key] for key in ("kernel", "bias") if key in g.inputs])
    y, dx = gradient_of_squares(layer, g.inputs["x"])
    close(y, g.outputs["y"])
    np.testing.assert_allclose(dx, g.outputs["dx_of_sum_of_squares"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_and_its_gradient_equal_keras(golden: Any, kind: str, name: str) -> None:
    g = golden("layer", f"{kind}_{name}")
    layer = {"max": nn.MaxPooling2D, "avg": nn.AveragePooling2D}[kind](**g.kwargs)
    y, dx = gradient_of_squares(layer, g.inputs["x"])
    close(y, g.outputs["y"])
    close(dx, g.outputs["dx_of_sum_of_squares"])


@pytest.mark.parametrize("cls", [nn.GlobalAveragePooling2D, nn.GlobalMaxPooling2D])
def test_global_pooling_equals_keras(golden: Any, cls: type) -> None:
    g = golden("layer", cls.__name__.lower())
    close(cls(**g.kwargs)(g.inputs["x"]).numpy(), g.outputs["y"])


@pytest.mark.parametrize("name", ["batchnorm_2d", "batchnorm_4d"])
def test_batch_normalization_and_its_moving_averages_equal_keras(golden: Any, name: str) -> None:
    g = golden("layer", name)
    layer = nn.BatchNormalization(**g.kwargs)
    layer(g.inputs["x"])  # builds it
    layer.set_weights([g.inputs[key] for key in ("gamma", "beta", "moving_mean", "moving_variance")])
    close(layer(g.inputs["x"]).numpy(), g.outputs["infer_before"])
    for x, y, number in (("x", "train", 1), ("x2", "train2", 2)):
        close(layer(g.inputs[x], training=True).numpy(), g.outputs[y])
        close(layer.moving_mean.numpy(), g.outputs[f"moving_mean_{number}"])
        close(layer.moving_variance.numpy(), g.outputs[f"moving_variance_{number}"])
    close(layer(g.inputs["x"]).numpy(), g.outputs["infer_after"])


@pytest.mark.parametrize("name", ["layernorm", "layernorm_eps", "layernorm_axes", "layernorm_3d"])
def test_layer_normalization_equals_keras(golden: Any, name: str) -> None:
    g = golden("layer", name)
    layer = nn.LayerNormalization(**g.kwargs)
    layer(g.inputs["x"])  # builds it
    layer.set_weights([g.inputs["gamma"], g.inputs["beta"]])
    close(layer(g.inputs["x"]).numpy(), g.outputs["y"])


def saved(case: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """The tensors of a model that Keras saved, inputs, and what it predicts for them."""
    folder = GOLDEN / case
    if not folder.is_dir():
        pytest.skip(f"no model in {folder}: set REFERENCE_DATA")
    inputs, expected = (np.load(folder / f"{name}.npy") for name in ("inputs", "expected"))
    return np.load(folder / "expected_tensors.npz"), inputs, expected


def test_predictions_of_a_convolutional_network_equal_keras() -> None:
    tensors, x, expected = saved("keras3_conv")
    model = nn.Sequential(
        [
            nn.Input((14, 14, 1)),
            nn.Conv2D(6, 3, padding="same", activation="relu"),
            nn.MaxPooling2D(2),
            nn.Conv2D(8, 3, strides=2, activation="relu"),
            nn.Flatten(),
            nn.Dense(5),
        ]
    )
    groups = ("conv2d", "conv2d_1", "dense")
    model.set_weights([tensors[f"layers/{group}/vars/{i}"] for group in groups for i in (0, 1)])
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-5)


def test_predictions_of_a_network_with_normalized_branches_equal_keras() -> None:
    tensors, x, expected = saved("keras3_functional")
    features = nn.Input((12,))
    left = nn.BatchNormalization(name="left_bn")(nn.Dense(10, activation="relu", name="left_dense")(features))
    right = nn.LayerNormalization(name="right_ln")(
        nn.Dense(6, activation="tanh", name="right_dense")(features)
    )
    joined = nn.ops.concatenate([left, right], axis=-1)
    scores = nn.Dense(3, name="scores")(nn.Dense(10, activation="relu", name="mix")(joined) + left)
    model = nn.Model(features, scores)
    groups = {
        "left_dense": "dense",
        "left_bn": "batch_normalization",
        "right_dense": "dense_1",
        "right_ln": "layer_normalization",
        "mix": "dense_2",
        "scores": "dense_3",
    }
    for name, group in groups.items():
        layer = model.get_layer(name)
        layer.set_weights([tensors[f"layers/{group}/vars/{i}"] for i in range(len(layer.weights))])
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-5)
