"""Normalization against plain formulas in float64, its gradients, moving averages, masks and freezing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.unit.nn.layer_checks import check_layer, predict
from workers import nn
from workers.nn import layers
from workers.rng import Purpose, Streams

RNG = np.random.default_rng(7)


def standardized(x: np.ndarray, axes: Any, epsilon: float) -> np.ndarray:
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon)


def randomized(layer: Any, x: np.ndarray) -> list[np.ndarray]:
    """Build the layer and give it random weights, of which variances are positive."""
    layer(x)
    weights = [RNG.uniform(0.5, 2, variable.shape) for variable in layer.weights]
    layer.set_weights(weights)
    return [variable.numpy().astype(np.float64) for variable in layer.weights]


SHAPES = [(6, 3), (4, 5, 3), (3, 4, 2, 3), (2, 3, 2, 2, 3), (2, 300, 1, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_normalization_in_training_uses_the_batchs_moments(shape: tuple[int, ...]) -> None:
    x = (3 + RNG.standard_normal(shape)).astype(np.float32)
    layer = nn.BatchNormalization()
    gamma, beta, *_ = randomized(layer, x)
    expected = standardized(x.astype(np.float64), tuple(range(len(shape) - 1)), 1e-3) * gamma + beta
    np.testing.assert_allclose(predict(layer, x, training=True), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "kwargs", [{}, {"scale": False}, {"center": False}, {"center": False, "scale": False}]
)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_batch_normalization_equal_differences(kwargs: Any, training: bool) -> None:
    x = RNG.standard_normal((3, 2, 2, 3))
    check_layer(nn.BatchNormalization(**kwargs), x, training=training)


@pytest.mark.parametrize("training", [False, True])
def test_batch_normalization_along_another_axis(training: bool) -> None:
    x = RNG.standard_normal((4, 3, 5)).astype(np.float32)
    layer, turned = nn.BatchNormalization(axis=1), nn.BatchNormalization()
    weights = randomized(layer, x)
    turned(x.transpose(0, 2, 1))
    turned.set_weights(weights)
    y = predict(layer, x, training)
    np.testing.assert_array_equal(y, predict(turned, x.transpose(0, 2, 1), training).transpose(0, 2, 1))
    check_layer(nn.BatchNormalization(axis=1), x, training=training)


def test_moving_averages_move_by_the_momentum_and_count_in_inference() -> None:
    x = RNG.standard_normal((8, 3)).astype(np.float32)
    layer = nn.BatchNormalization(momentum=0.75, epsilon=0.01)
    gamma, beta, mean, variance = randomized(layer, x)
    layer(x, training=True)
    mean, variance = 0.75 * mean + 0.25 * x.mean(0), 0.75 * variance + 0.25 * x.var(0)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-6)
    expected = (x - mean) / np.sqrt(variance + 0.01) * gamma + beta
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-5)


def test_moments_of_far_away_values_lose_no_digits() -> None:
    x = (1000 + RNG.standard_normal((64, 28, 28, 3))).astype(np.float32)
    layer = nn.BatchNormalization(momentum=0.0)
    layer(x, training=True)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(layer.moving_mean.numpy(), wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), wide.var((0, 1, 2)), rtol=1e-4)


def test_a_frozen_layer_works_as_in_inference_and_keeps_its_averages() -> None:
    x = RNG.standard_normal((8, 3)).astype(np.float32)
    layer = nn.BatchNormalization()
    weights = randomized(layer, x)
    layer.trainable = False
    np.testing.assert_array_equal(layer(x, training=True).numpy(), layer(x).numpy())
    for variable, weight in zip(layer.weights, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), weight.astype(np.float32))
    assert layer.trainable_variables == []


def test_masked_places_do_not_count_for_the_moments() -> None:
    x = RNG.standard_normal((4, 5, 3)).astype(np.float32)
    mask = RNG.random((4, 5)) < 0.6
    layer = nn.BatchNormalization(momentum=0.0)
    gamma, beta, *_ = randomized(layer, x)
    y = layer(x, training=True, mask=mask).numpy()
    mean, variance = x[mask].mean(0), x[mask].var(0)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta, rtol=1e-4, atol=1e-5)


class _Masked(nn.Layer):
    """A batch normalization that counts every other step."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def call(self, inputs: Any, training: bool = False) -> Any:
        mask = np.arange(inputs.shape[1])[None] % 2 == 0
        return self.inner(inputs, training=training, mask=nn.ops.convert_to_tensor(mask))


def test_gradients_with_a_mask_equal_differences() -> None:
    check_layer(_Masked(nn.BatchNormalization()), RNG.standard_normal((3, 4, 2)), atol=1e-6)


def test_moments_have_gradients_too() -> None:
    """Of the operation, which a custom layer may use."""

    class Moments(nn.Layer):
        def call(self, inputs: Any) -> Any:
            y, mean, variance = nn.ops.normalize_batch(inputs)
            return nn.ops.concatenate([y * mean, y * variance, 0 * y + mean], axis=-1)

    check_layer(Moments(), RNG.standard_normal((4, 2, 3)))


def test_moving_averages_move_by_the_mean_over_microbatches() -> None:
    model = nn.Sequential([nn.Input((3,)), nn.BatchNormalization(), nn.Dense(1)])
    model.compile("sgd", "mse")
    engine = model.engine()
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(1, purpose=Purpose.INIT))
    x, y = RNG.standard_normal((8, 3)).astype(np.float32), np.zeros(8)
    total, weight = np.zeros_like(params), 0.0
    for piece in (slice(0, 4), slice(4, 8)):
        part = np.zeros_like(params)
        sums = engine.loss_and_grad(params, (x[piece], y[piece]), Streams(1), part)
        total += part
        weight += sums[0, 1]
    views = engine.layout.views(total / np.float32(weight))
    means = (x[:4].mean(0) + x[4:].mean(0)) / 2
    np.testing.assert_allclose(views["batch_normalization/moving_mean"], 0.01 * means, rtol=1e-4, atol=1e-8)


LAYER_AXES = [-1, 1, [1, 2], [2, 1, 3], [1, 3], [3]]


@pytest.mark.parametrize("axis", LAYER_AXES)
def test_layer_normalization_by_each_samples_moments_over_axes(axis: Any) -> None:
    x = (2 + RNG.standard_normal((3, 4, 2, 5))).astype(np.float32)
    layer = nn.LayerNormalization(axis, epsilon=0.01)
    gamma, beta = randomized(layer, x)
    axes = tuple(sorted(a % 4 for a in ([axis] if isinstance(axis, int) else axis)))
    shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    expected = standardized(x.astype(np.float64), axes, 0.01) * gamma.reshape(shape) + beta.reshape(shape)
    np.testing.assert_allclose(predict(layer, x), expected, rtol=1e-9)
    check_layer(nn.LayerNormalization(axis), x[:, :2])


@pytest.mark.parametrize("kwargs", [{"scale": False}, {"center": False}, {"center": False, "scale": False}])
def test_gradients_of_layer_normalization_without_its_variables(kwargs: Any) -> None:
    check_layer(nn.LayerNormalization(**kwargs), RNG.standard_normal((3, 4)))


@pytest.mark.parametrize("axis", [-1, [1, 2], 1])
def test_rms_normalization_divides_by_the_root_of_the_mean_square(axis: Any) -> None:
    x = (1 + RNG.standard_normal((3, 4, 5))).astype(np.float32)
    layer = layers.RMSNormalization(axis, epsilon=0.01)
    (scale,) = randomized(layer, x)
    axes = tuple(sorted(a % 3 for a in ([axis] if isinstance(axis, int) else axis)))
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axes, keepdims=True) + 0.01)
    expected *= scale.reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])
    np.testing.assert_allclose(predict(layer, x), expected, rtol=1e-9)
    check_layer(layers.RMSNormalization(axis), x)


@pytest.mark.parametrize(("groups", "axis"), [(2, -1), (1, -1), (-1, -1), (3, 3), (2, 1)])
def test_group_normalization_by_the_moments_of_groups_of_channels(groups: int, axis: int) -> None:
    x = RNG.standard_normal((3, 4, 2, 6)).astype(np.float32)
    layer = layers.GroupNormalization(groups, axis)
    gamma, beta = randomized(layer, x)
    last = np.moveaxis(x.astype(np.float64), axis, -1)
    channels = last.shape[-1]
    apart = last.reshape(*last.shape[:-1], channels if groups == -1 else groups, -1)
    y = standardized(apart, (1, 2, 4), 1e-3).reshape(last.shape) * gamma + beta
    np.testing.assert_allclose(predict(layer, x), np.moveaxis(y, -1, axis), rtol=1e-9)
    check_layer(layers.GroupNormalization(groups, axis), x[:, :, :1] if axis != 1 else x)


@pytest.mark.parametrize("axis", [-1, 1, [1, 2]])
def test_unit_normalization_gives_norm_1_and_leaves_zeros(axis: Any) -> None:
    x = RNG.standard_normal((3, 4, 5)).astype(np.float32)
    axes = tuple([axis] if isinstance(axis, int) else axis)
    y = predict(layers.UnitNormalization(axis), x)
    np.testing.assert_allclose((y**2).sum(axis=axes), 1, rtol=1e-12)
    np.testing.assert_allclose(y * np.sqrt((x.astype(np.float64) ** 2).sum(axes, keepdims=True)), x)
    assert not layers.UnitNormalization(axis)(0 * x).numpy().any()
    check_layer(layers.UnitNormalization(axis), x)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_number_of_rows_gives_each_row_its_own_result(rows: int) -> None:
    x = RNG.standard_normal((5, 3, 4)).astype(np.float32)
    for layer in (nn.BatchNormalization(), nn.LayerNormalization(), layers.RMSNormalization()):
        randomized(layer, x)
        np.testing.assert_allclose(layer(x[:rows]).numpy(), layer(x).numpy()[:rows], rtol=1e-5)
    assert nn.BatchNormalization()(x[:rows], training=True).shape == (rows, 3, 4)


def test_variables_stand_in_keras_order() -> None:
    layer = nn.BatchNormalization()
    layer(np.zeros((2, 3), np.float32))
    assert [v.name for v in layer.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [v.name for v in layer.trainable_weights] == ["gamma", "beta"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNormalization(
            axis=1, momentum=0.9, scale=False, gamma_initializer="zeros", synchronized=True
        ),
        nn.LayerNormalization([1, 2], epsilon=1e-6, center=False),
        layers.RMSNormalization([-1], 1e-5),
        layers.GroupNormalization(4, beta_initializer="ones"),
        layers.UnitNormalization([1, 2], name="unit"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_from_its_config_is_the_same(layer: Any) -> None:
    config = json.loads(json.dumps(layers.serialize(layer)))
    again = layers.deserialize(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config() == config["config"]


X = np.zeros((2, 4, 6), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.BatchNormalization(axis=[1, 2]), "axis must be an integer, not"),
        (lambda: nn.BatchNormalization(axis=3)(X), "axis 3 is out of range for 3 axes"),
        (lambda: nn.BatchNormalization(momentum=2), "momentum must be a number from 0 to 1, not 2"),
        (lambda: nn.BatchNormalization(epsilon=-1), "epsilon must be a number from 0 up, not -1"),
        (lambda: nn.BatchNormalization(renorm=True), "renorm is not supported"),
        (
            lambda: nn.BatchNormalization()(X, training=True, mask=np.ones((2, 4, 6), bool)),
            "a mask of shape .* has not one axis less",
        ),
        (lambda: nn.LayerNormalization("last"), "axis must be an integer or a list of them, not 'last'"),
        (lambda: nn.LayerNormalization([]), "axis must be an integer or a list of them"),
        (lambda: nn.LayerNormalization([1, -2])(X), "name one twice"),
        (lambda: nn.LayerNormalization(rms_scaling=True), "use RMSNormalization"),
        (lambda: nn.LayerNormalization(0)(nn.Input((3,))), "axis 0 of an input of shape .* must be known"),
        (lambda: layers.GroupNormalization(0), "groups must be a positive integer or -1, not 0"),
        (lambda: layers.GroupNormalization(4)(X), "6 channels cannot be shared out to 4 groups"),
        (
            lambda: nn.ops.batch_normalization(X, np.zeros(5, np.float32), np.ones(5, np.float32), -1),
            "do not fit",
        ),
        (lambda: nn.ops.layer_normalization(X, np.ones(5, np.float32)), "do not fit"),
        (lambda: nn.ops.normalize_batch(X[0, 0]), "too few axes"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
