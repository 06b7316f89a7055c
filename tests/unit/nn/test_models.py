"""Models as their users write them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn

SUMMARY = """\
Model: "sequential"
┏━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┓
┃ Layer (type)                    ┃ Output Shape           ┃       Param # ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━┩
│ dense (Dense)                   │ (None, 512)            │       401,920 │
├─────────────────────────────────┼────────────────────────┼───────────────┤
│ dropout (Dropout)               │ (None, 512)            │             0 │
├─────────────────────────────────┼────────────────────────┼───────────────┤
│ dense_1 (Dense)                 │ (None, 10)             │         5,130 │
└─────────────────────────────────┴────────────────────────┴───────────────┘
 Total params: 407,050 (1.55 MB)
 Trainable params: 407,050 (1.55 MB)
 Non-trainable params: 0 (0.00 B)
"""


def guide() -> Any:
    return nn.Sequential([nn.Input((784,)), nn.Dense(512, activation="relu"), nn.Dropout(0.2), nn.Dense(10)])


def test_summary_is_that_of_keras(capsys: pytest.CaptureFixture[str]) -> None:
    guide().summary()
    assert capsys.readouterr().out == SUMMARY
    lines: list[str] = []
    guide().summary(print_fn=lines.append)
    assert "\n".join(lines) + "\n" == SUMMARY


def test_names_are_numbered_within_each_model_and_given_ones_are_kept() -> None:
    for _ in range(2):
        assert [layer.name for layer in guide().layers] == ["dense", "dropout", "dense_1"]
    model = nn.Sequential([nn.Input((4,)), nn.Dense(4, name="dense_1"), nn.Dense(4), nn.Dense(4)])
    assert [layer.name for layer in model.layers] == ["dense_1", "dense", "dense_2"]


def test_input_shape_of_the_first_layer_stands_for_an_input() -> None:
    model = nn.Sequential([nn.Dense(512, activation="relu", input_shape=(784,)), nn.Dense(10)])
    assert model.count_params() == 407_050
    assert model.input_shape == (None, 784)
    assert model.output_shape == (None, 10)


def test_a_model_from_its_config_has_the_same_architecture() -> None:
    model = nn.Sequential(
        [
            nn.Input((2, 3)),
            nn.Rescaling(2.0, 1.0),
            nn.Flatten(),
            nn.Dense(4, activation="tanh", use_bias=False, kernel_initializer="he_normal", name="head"),
            nn.Dropout(0.5),
        ],
        name="small",
    )
    config = json.loads(json.dumps(model.get_config()))
    again = nn.Sequential.from_config(config)
    assert again.get_config() == config
    assert again.output_shape == (None, 4)


def test_engine_config_tells_model_optimizer_loss_and_metrics_in_json() -> None:
    model = guide()
    model.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
    config = model.engine().config()
    assert json.loads(json.dumps(config)) == config
    assert config["compile_config"]["optimizer"]["config"]["learning_rate"] == 0.001
    assert config["compile_config"]["loss"]["config"]["from_logits"] is True
    again = nn.Sequential.from_config(config["config"])
    again.compile(**config["compile_config"])
    assert again.engine().config() == config


def test_keras_names_stand_for_objects() -> None:
    model = guide()
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy", metrics=["acc", "mse"])
    assert model.engine().metrics == ("loss", "acc", "mse")
    assert isinstance(model.optimizer, nn.optimizers.SGD)
    for name in ("adam", "sgd", "Adam"):
        nn.optimizers.get(name)
    for name in ("mse", "mean_squared_error", "MeanSquaredError"):
        assert isinstance(nn.losses.get(name), nn.losses.MeanSquaredError)


SCCE = "sparse_categorical_crossentropy"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Dense(0), "units must be a positive integer, not 0"),
        (lambda: nn.Dense(2.5), "units must be a positive integer, not 2.5"),
        (lambda: nn.Dense(2, activation="rleu"), "unknown activation 'rleu': use one of linear, relu,"),
        (lambda: nn.Dense(2, kernel_initializer="x"), "unknown initializer 'x'.*glorot_uniform"),
        (lambda: nn.Dense(2, name="a/b"), "layer name 'a/b'"),
        (lambda: nn.Dropout(1.5), "rate must be a number from 0 to 1, not 1.5"),
        (lambda: nn.Input(4), "shape must be a tuple of positive integers, not 4"),
        (lambda: nn.Input((4, 0)), "shape must be a tuple of positive integers"),
        (lambda: nn.Sequential([nn.Dense(2), nn.Input((4,))]), "nn.Input must be the first"),
        (lambda: nn.Sequential([nn.Input((4,)), nn.Input((4,))]), "has an nn.Input already"),
        (lambda: nn.Sequential([nn.Input((4,)), "dense"]), "made of layers.*not str"),
        (lambda: nn.Sequential([nn.Dense(2, name="a"), nn.Dense(2, name="a")]), "two layers are named 'a'"),
        (lambda: nn.Sequential([nn.Dense(2)]).summary(), "begin it with nn.Input"),
        (lambda: nn.Sequential([nn.Dense(2)]).input_spec, "begin it with nn.Input"),
        (lambda: guide().engine(), "not compiled: call compile first"),
        (lambda: guide().compile("adamm", "mse"), "unknown optimizer 'adamm'.*adam, .*sgd"),
        (lambda: guide().compile("adam", "mes"), "unknown loss 'mes'.*mse"),
        (lambda: guide().compile("adam", "mse", ["x"]), "unknown metric 'x'.*accuracy"),
        (
            lambda: guide().compile("adam", SCCE, "accuracy"),
            r"metrics must be a list, such as \['accuracy'\]",
        ),
        (lambda: guide().compile("adam", SCCE, ["acc", "acc"]), "two metrics have the same name"),
        (lambda: nn.optimizers.Adam(-1), "learning_rate must be a number from 0 up, not -1"),
        (lambda: nn.optimizers.Adam(beta_1=1), "beta_1 must be"),
        (lambda: nn.optimizers.SGD(momentum=2), "momentum must be from 0 to 1, not 2"),
        (lambda: nn.initializers.VarianceScaling(mode="x"), "mode 'x' is not one of fan_in"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_model_without_variables_cannot_be_trained() -> None:
    model = nn.Sequential([nn.Input((4,)), nn.Dropout(0.5)])
    model.compile("adam", "mse")
    with pytest.raises(ConfigurationError, match="nothing to train"):
        model.engine()


@pytest.mark.parametrize(
    ("name", "bound", "variance"),
    [
        ("glorot_uniform", (6 / 500) ** 0.5, 2 / 500),
        ("glorot_normal", 2 * (2 / 500) ** 0.5 / 0.87962566, 2 / 500),
        ("he_uniform", (6 / 300) ** 0.5, 2 / 300),
        ("he_normal", 2 * (2 / 300) ** 0.5 / 0.87962566, 2 / 300),
        ("truncated_normal", 0.1, (0.05 * 0.87962566) ** 2),
        ("random_uniform", 0.05, 0.05**2 / 3),
        ("random_normal", np.inf, 0.05**2),
        ("ones", 1, 0),
        ("zeros", 0, 0),
    ],
)
def test_initializers_have_keras_bounds_and_variance(name: str, bound: float, variance: float) -> None:
    values = nn.initializers.get(name)((300, 200), np.random.default_rng(0))
    assert values.dtype == np.float32
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert values.var() == pytest.approx(variance, rel=0.03)


def test_fans_of_a_convolution_count_its_receptive_field() -> None:
    values = nn.initializers.GlorotUniform()((3, 3, 40, 60), np.random.default_rng(0))
    limit = (6 / (9 * 100)) ** 0.5
    assert 0.99 * limit < np.abs(values).max() <= limit
