"""Objects by name: what is written of them, and what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn
from workers.nn.registration import custom_object_scope, get_registered_name
from workers.nn.saving import objects


class Scale(nn.Layer):
    """A layer of the user's."""

    def __init__(self, factor: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        """The scaled input."""
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        """The settings."""
        return super().get_config() | {"factor": self.factor}


@objects.register_keras_serializable("tests", "twice")
def doubled(x: Any) -> Any:
    """An activation of the user's."""
    return x + x


def halves(x: Any) -> Any:
    """Another, which is not registered."""
    return x * 0.5


def distance(y_true: Any, y_pred: Any) -> Any:
    """A loss of the user's."""
    return nn.ops.mean(nn.ops.absolute(y_true - y_pred), axis=-1)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_a_layer_is_written_in_keras_3s_form() -> None:
    written = objects.serialize(nn.Dense(3, activation="relu", name="d"))
    assert written["module"] == "keras.layers"
    assert written["class_name"] == "Dense"
    assert written["registered_name"] is None
    assert written["config"]["kernel_initializer"] == {
        "module": "keras.initializers",
        "class_name": "GlorotUniform",
        "config": {"seed": None, "input_axes": None, "output_axes": None},
        "registered_name": None,
    }
    again = objects.deserialize(through_json(written))
    assert objects.serialize(again) == written


@pytest.mark.parametrize(
    "obj",
    [
        nn.losses.Huber(delta=2.0),
        nn.metrics.AUC(name="area"),
        nn.optimizers.Adam(nn.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), beta_1=0.8),
        nn.optimizers.schedules.CosineDecay(0.1, 10),
        nn.initializers.HeNormal(seed=3),
        nn.regularizers.L1L2(0.1, 0.2),
        nn.constraints.MaxNorm(1.5),
        nn.layers.Bidirectional(nn.LSTM(4)),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_every_kind_of_object_comes_back_with_its_settings(obj: Any) -> None:
    written = through_json(objects.serialize(obj))
    again = objects.deserialize(written)
    assert type(again) is type(obj)
    assert objects.serialize(again) == written


def test_row_12_custom_objects_by_argument_by_scope_and_by_registration() -> None:
    written = through_json(objects.serialize(nn.Sequential([nn.Input((2,)), Scale(3.0)])))
    with pytest.raises(
        ConfigurationError, match=r"unknown layer 'Scale'.*custom_objects=\{'Scale'.*register"
    ):
        objects.deserialize(written)
    x = np.ones((1, 2), np.float32)
    assert np.all(np.asarray(objects.deserialize(written, {"Scale": Scale})(x)) == 3)
    with custom_object_scope({"Scale": Scale}):
        assert np.all(np.asarray(objects.deserialize(written)(x)) == 3)
    with pytest.raises(ConfigurationError, match="unknown layer 'Scale'"):
        objects.deserialize(written)


def test_row_12_a_registered_class_is_found_under_its_package() -> None:
    class Registered(Scale):
        pass

    objects.register_keras_serializable(package="mine")(Registered)
    written = through_json(objects.serialize(Registered(5.0)))
    assert written["registered_name"] == "mine>Registered"
    assert isinstance(objects.deserialize(written), Registered)
    assert objects.get_registered_object("mine>Registered") is Registered


def test_row_12_a_function_is_a_name_wherever_it_is_used() -> None:
    layer = nn.Dense(2, activation=doubled, kernel_initializer=ones_like_numpy)
    written = through_json(objects.serialize(layer))
    assert written["config"]["activation"] == {
        "module": "builtins",
        "class_name": "function",
        "config": "doubled",
        "registered_name": "tests>twice",
    }
    with pytest.raises(ConfigurationError, match="unknown initializer 'ones_like_numpy'"):
        objects.deserialize(written)
    again = objects.deserialize(written, {"ones_like_numpy": ones_like_numpy})
    assert again.activation is doubled
    assert again.kernel_initializer.function is ones_like_numpy
    with pytest.raises(ConfigurationError, match="unknown activation 'halves'"):
        objects.deserialize(through_json(objects.serialize(nn.Dense(2, activation=halves))))


def ones_like_numpy(shape: Any, dtype: Any = None) -> Any:
    """An initializer of the user's."""
    return np.ones(shape, dtype)


def test_row_12_custom_losses_and_metrics_in_compile_settings() -> None:
    model = nn.Sequential([nn.Input((2,)), nn.Dense(1)])
    model.compile("sgd", distance, [distance, "mae", nn.metrics.RootMeanSquaredError()])
    written = through_json(objects.serialize(model))
    assert written["compile_config"]["metrics"][1] == "mae"
    again = objects.deserialize(written, {"distance": distance})
    assert again.metrics_names == ["loss", "distance", "mae", "root_mean_squared_error"]
    assert objects.serialize(again)["compile_config"] == written["compile_config"]
    assert objects.deserialize(written, {"distance": distance}, compile=False).optimizer is None


def test_the_scope_goes_before_what_is_ours() -> None:
    class Dense(nn.Dense):
        pass

    written = objects.serialize(nn.Dense(2))
    assert type(objects.deserialize(written, {"Dense": Dense})) is Dense
    assert type(objects.deserialize(written)) is nn.Dense


@pytest.mark.parametrize("name", ["Lambda", "__lambda__"])
def test_nothing_that_would_hold_code_is_made(name: str) -> None:
    with pytest.raises(ConfigurationError, match="code"):
        objects.deserialize({"module": "keras.layers", "class_name": name, "config": {"value": "gASV"}})
    with pytest.raises(ConfigurationError, match="code"):
        nn.Sequential.from_config({"name": "s", "layers": [{"class_name": "Lambda", "config": {}}]})


def test_settings_of_keras_that_ask_for_nothing_are_passed_over_and_others_are_not() -> None:
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}}
    written = {"module": "keras.layers", "class_name": "Dense", "registered_name": None}
    settings = {"name": "d", "units": 2, "dtype": policy, "quantization_config": None}
    layer = objects.deserialize({**written, "config": settings})
    assert layer.dtype == "float32"
    with pytest.raises(ConfigurationError, match=r"Dense cannot be made.*lora_rank"):
        objects.deserialize({**written, "config": {**settings, "lora_rank": 4}})


def test_a_class_without_get_config_cannot_be_registered() -> None:
    with pytest.raises(ConfigurationError, match="get_config"):
        objects.register_keras_serializable()(int)
    assert get_registered_name(int) == "int"
