"""Activations with settings, noise, normalization of data, and layers of a function."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.unit.nn.layer_checks import check_layer
from tests.unit.nn.sequences import numbers
from workers import nn
from workers.rng import Streams

X = 3 * numbers(4, 3, 5)
EXP = np.exp(X)
ACTIVATIONS: dict[str, tuple[Any, np.ndarray]] = {
    "relu": (nn.ReLU(), np.maximum(X, 0)),
    "relu with limits": (
        nn.ReLU(2.0, 0.1, 0.5),
        np.where(X >= 2, 2, np.where(X >= 0.5, X, 0.1 * (X - 0.5))),
    ),
    "leaky": (nn.LeakyReLU(), np.where(X > 0, X, 0.3 * X)),
    "leaky with a slope": (nn.LeakyReLU(2.0), np.where(X > 0, X, 2 * X)),
    "prelu": (nn.PReLU("ones"), X),
    "prelu shared": (nn.PReLU(nn.initializers.Constant(0.5), shared_axes=[1]), np.where(X > 0, X, 0.5 * X)),
    "elu": (nn.ELU(), np.where(X > 0, X, np.expm1(X))),
    "elu with alpha": (nn.ELU(0.5), np.where(X > 0, X, 0.5 * np.expm1(X))),
    "softmax": (nn.Softmax(), EXP / EXP.sum(-1, keepdims=True)),
    "softmax of an axis": (nn.Softmax(1), EXP / EXP.sum(1, keepdims=True)),
    "softmax of two axes": (nn.Softmax((1, 2)), EXP / EXP.sum((1, 2), keepdims=True)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_give_their_values_and_exact_gradients(name: str) -> None:
    layer, expected = ACTIVATIONS[name]
    np.testing.assert_allclose(layer(X).numpy(), expected, rtol=1e-5, atol=1e-6)
    check_layer(type(layer).from_config(layer.get_config()), X[:2, :, :2])


def test_prelu_learns_one_slope_for_each_place_or_for_all_of_a_shared_axis() -> None:
    for shared, shape in ((None, (3, 5)), (1, (1, 5)), ((1, 2), (1, 1))):
        layer = nn.PReLU(shared_axes=shared)
        layer(X)
        assert [w.shape for w in layer.weights] == [shape]


def test_softmax_leaves_out_what_is_masked() -> None:
    mask = np.arange(5) < 2
    y = nn.Softmax()(X, mask=nn.ops.convert_to_tensor(np.broadcast_to(mask, X.shape))).numpy()
    np.testing.assert_allclose(y[..., :2], EXP[..., :2] / EXP[..., :2].sum(-1, keepdims=True), rtol=1e-5)
    assert not y[..., 2:].any()


ONES = np.ones((200, 20, 50), np.float32)


@pytest.mark.parametrize(
    ("layer", "mean", "stddev"),
    [(nn.GaussianNoise(0.5), 1, 0.5), (nn.layers.GaussianDropout(0.2), 1, 0.5)],
    ids=["noise", "dropout"],
)
def test_noise_has_its_mean_and_deviation_in_training_alone(layer: Any, mean: float, stddev: float) -> None:
    assert (layer(ONES).numpy() == 1).all()
    y = layer(ONES, training=True).numpy()
    assert y.mean() == pytest.approx(mean, abs=0.01)
    assert y.std() == pytest.approx(stddev, rel=0.01)
    assert (y != layer(ONES, training=True).numpy()).any()


def test_alpha_dropout_keeps_mean_and_variance_of_selu() -> None:
    x = np.random.default_rng(1).standard_normal((500, 400)).astype(np.float32)
    y = nn.layers.AlphaDropout(0.3)(x, training=True).numpy()
    assert y.mean() == pytest.approx(0, abs=0.01)
    assert y.std() == pytest.approx(1, abs=0.01)
    _, counts = np.unique(y, return_counts=True)
    assert counts.max() / y.size == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.SpatialDropout1D(0.5), (8, 6, 40)), (nn.SpatialDropout2D(0.5), (8, 3, 2, 40))]
)
def test_spatial_dropout_drops_whole_features(layer: Any, shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    y = layer(x, training=True).numpy().reshape(8, -1, 40)
    assert set(np.unique(y)) == {0, 2}
    assert (y == y[:, :1]).all()
    assert (y[0] != y[1]).any()
    assert (layer(x).numpy() == 1).all()


def test_noise_is_a_function_of_step_and_microbatch_and_goes_to_the_gradient() -> None:
    model = nn.Sequential(
        [nn.Input((5,)), nn.GaussianNoise(1.0), nn.layers.GaussianDropout(0.5), nn.Dense(1)]
    )
    model.compile("sgd", "mse")
    engine = model.engine()
    params = np.ones(engine.layout.length, np.float32)
    x, y = numbers(6, 5), numbers(6, 1)

    def gradient(*where: int) -> bytes:
        out = np.zeros_like(params)
        engine.loss_and_grad(params, (x, y), Streams(*where), out)
        return out.tobytes()

    assert gradient(1, 2, 3) == gradient(1, 2, 3)
    assert len({gradient(1, 2, 3), gradient(2, 2, 3), gradient(1, 3, 3), gradient(1, 2, 4)}) == 4


def test_activity_regularization_adds_to_the_loss() -> None:
    model = nn.Sequential([nn.Input((5,)), nn.Dense(2), nn.layers.ActivityRegularization(0.1, 0.2)])
    model.compile("sgd", "mse")
    engine = model.engine()
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(0))
    x, y = numbers(4, 5), numbers(4, 2)
    found = engine.predict(params, x)
    ((total, count),) = engine.evaluate(params, (x, y))
    added = 0.1 * np.abs(found).sum() + 0.2 * np.square(found).sum()
    assert total / count == pytest.approx(np.square(found - y).mean() + added, rel=1e-5)


@pytest.mark.parametrize(
    ("axis", "reduced"), [(-1, (0, 1)), (None, (0, 1, 2)), (1, (0, 2)), ((1, 2), (0,)), ([2, -2], (0,))]
)
def test_normalization_adapts_to_an_array_or_to_batches(axis: Any, reduced: tuple[int, ...]) -> None:
    x = 5 + 3 * numbers(20, 3, 5)
    expected = (x - x.mean(reduced, keepdims=True)) / x.std(reduced, keepdims=True)
    whole, pieces = nn.Normalization(axis), nn.Normalization(axis)
    whole.adapt(x)
    pieces.adapt([x[:7], (x[7:8], "labels"), x[8:8], x[8:]])
    np.testing.assert_allclose(whole(x).numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pieces(x).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert [w.name for w in whole.weights] == ["mean", "variance", "count"]
    assert not whole.trainable_weights
    back = nn.Normalization(axis, invert=True)
    back.adapt(x)
    np.testing.assert_allclose(back(whole(x)).numpy(), x, rtol=1e-4)


def test_normalization_may_be_given_its_numbers() -> None:
    layer = nn.Normalization(mean=[1.0, 2.0], variance=[4.0, 9.0])
    x = np.array([[3.0, 8.0]], np.float32)
    np.testing.assert_allclose(layer(x).numpy(), [[1, 2]])
    assert not layer.weights
    scalar = nn.Normalization(mean=1.0, variance=4.0)
    np.testing.assert_allclose(scalar(x).numpy(), [[1, 3.5]])
    check_layer(nn.Normalization(mean=1.0, variance=4.0), X[:2, 0])
    assert not np.isnan(nn.Normalization(mean=3.0, variance=0.0)(x).numpy()).any()


def test_an_adapted_normalization_is_a_part_of_a_model_that_is_trained() -> None:
    x = 5 + 3 * numbers(20, 4)
    layer = nn.Normalization()
    layer.adapt(x)
    model = nn.Sequential([nn.Input((4,)), layer, nn.Dense(1)])
    model.compile("sgd", "mse")
    engine = model.engine()
    params, grad = (np.zeros(engine.layout.length, np.float32) for _ in range(2))
    engine.init(params, Streams(0))
    engine.loss_and_grad(params, (x, numbers(20, 1)), Streams(0), grad)
    views = engine.layout.views(params)
    np.testing.assert_allclose(views["normalization/mean"], x.mean(0), rtol=1e-5)
    assert not engine.layout.views(grad)["normalization/mean"].any()
    assert engine.layout.views(grad)["dense/kernel"].any()


def test_a_lambda_works_in_memory_and_cannot_be_saved() -> None:
    def scaled(x: Any, factor: float, training: bool) -> Any:
        return x * (factor if training else 1)

    layer = nn.Lambda(scaled, arguments={"factor": 3})
    np.testing.assert_allclose(layer(X, training=True).numpy(), 3 * X, rtol=1e-6)
    np.testing.assert_array_equal(layer(X).numpy(), X)
    model = nn.Sequential([nn.Input((3, 5)), nn.Lambda(lambda x: x * x, name="squares")])
    np.testing.assert_allclose(model(X).numpy(), X * X, rtol=1e-6)
    with pytest.raises(ConfigurationError, match="squares: a Lambda layer cannot be saved"):
        model.get_config()


CONFIGURED = [
    *(layer for layer, _ in ACTIVATIONS.values()),
    nn.GaussianNoise(0.5, seed=1),
    nn.layers.GaussianDropout(0.2),
    nn.layers.AlphaDropout(0.2, noise_shape=(None, 1)),
    nn.SpatialDropout1D(0.2),
    nn.SpatialDropout2D(0.2, name="a"),
    nn.layers.ActivityRegularization(0.1),
    nn.Normalization((1, 2), invert=True),
    nn.Normalization(mean=[1.0, 2.0], variance=[3.0, 4.0]),
]


@pytest.mark.parametrize("layer", CONFIGURED, ids=lambda layer: type(layer).__name__)
def test_a_layer_from_its_config_is_equal(layer: Any) -> None:
    config = json.loads(json.dumps(layer.get_config()))
    assert type(layer).from_config(config).get_config() == config
    assert nn.layers.LAYERS[type(layer).__name__] is type(layer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ReLU(-1), "max_value must be a number from 0 up, not -1"),
        (lambda: nn.ReLU(negative_slope=None), "negative_slope must be a number from 0 up, not None"),
        (lambda: nn.LeakyReLU(-0.1), "negative_slope must be a number from 0 up, not -0.1"),
        (lambda: nn.PReLU()(nn.Input((None, 3))), "unknown length"),
        (lambda: nn.GaussianNoise(-1), "stddev must be a number from 0 up, not -1"),
        (lambda: nn.layers.GaussianDropout(1), "rate must be from 0 to less than 1, not 1"),
        (lambda: nn.SpatialDropout2D(0.5, "channels_first"), "'channels_first' is not supported"),
        (lambda: nn.Normalization(mean=1.0), "give mean and variance together"),
        (lambda: nn.Normalization(mean=[1.0], variance=1.0), r"mean has shape \(1,\), and variance \(\)"),
        (lambda: nn.Normalization(mean=[1.0, 2], variance=[1.0, 2])(X), r"\(2,\) do not fit axis"),
        (lambda: nn.Normalization(mean=1.0, variance=1.0).adapt(X), "do not call adapt"),
        (lambda: nn.Normalization().adapt(X[:0]), "was given no samples"),
        (lambda: nn.Normalization(7)(X), "axis 7 is out of range"),
        (lambda: nn.Lambda(3), "give a function of a tensor, not 3"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
