"""Models by their architecture alone: configs, JSON, clones, and weights in order."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn

X = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


def sequential() -> Any:
    return nn.Sequential([nn.Input((8,)), nn.Dense(6, activation="relu"), nn.Dropout(0.2), nn.Dense(3)])


def functional() -> Any:
    inputs = nn.Input((8,), name="digits")
    shared = nn.Dense(8, activation="tanh", name="shared")
    return nn.Model(inputs, nn.Dense(3)(shared(inputs) + shared(shared(inputs))), name="net")


class Subclassed(nn.Model):
    """The layers of `sequential`."""

    def __init__(self, units: int = 6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.first = nn.Dense(units, activation="relu")
        self.drop = nn.Dropout(0.2)
        self.last = nn.Dense(3)

    def call(self, inputs: Any) -> Any:
        """Scores."""
        return self.last(self.drop(self.first(inputs)))

    def get_config(self) -> dict[str, Any]:
        """The settings."""
        return super().get_config() | {"units": self.units}


MODELS: Any = {"sequential": sequential, "functional": functional}


@pytest.mark.parametrize("kind", [*MODELS])
def test_row_11_from_config_gives_fresh_weights_and_no_compile_settings(kind: str) -> None:
    model = MODELS[kind]()
    model.compile("adam", "mse")
    again = type(model).from_config(json.loads(json.dumps(model.get_config())))
    assert again.get_config() == model.get_config()
    assert again.optimizer is None
    assert again.count_params() == model.count_params()
    assert not np.array_equal(again.get_weights()[0], model.get_weights()[0])
    again.set_weights(model.get_weights())
    assert np.array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_row_11_of_a_class_of_ones_own_it_is_the_constructor() -> None:
    model = Subclassed(4, name="mine")
    again = Subclassed.from_config(model.get_config())
    assert (again.units, again.name) == (4, "mine")
    again(X)
    assert again.count_params() == 8 * 4 + 4 + 4 * 3 + 3


@pytest.mark.parametrize("kind", [*MODELS])
def test_row_15_to_json_and_back(kind: str) -> None:
    model = MODELS[kind]()
    model.compile("adam", "mse")
    text = model.to_json()
    again = nn.model_from_json(text)
    assert again.to_json() == text
    assert again.optimizer is None
    assert "compile_config" not in json.loads(text)
    assert json.loads(model.to_json(indent=2)) == json.loads(text)
    layer = nn.layers.serialize(model.layers[-1])
    assert nn.layers.serialize(nn.layers.deserialize(json.loads(json.dumps(layer)))) == layer


def test_row_15_json_of_a_class_of_ones_own() -> None:
    model = Subclassed(4)
    model(X)
    again = nn.model_from_json(model.to_json(), custom_objects={"Subclassed": Subclassed})
    assert [v.path for v in again.weights] == [v.path for v in model.weights]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "model_from_json: Expecting"),
        ('{"class_name": "Sequentiel", "config": {}}', "unknown class 'Sequentiel'"),
    ],
)
def test_row_15_what_is_no_model_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        nn.model_from_json(text)


@pytest.mark.parametrize("kind", [*MODELS])
def test_row_15_a_clone_has_weights_of_its_own(kind: str) -> None:
    model = MODELS[kind]()
    model.compile("adam", "mse")
    clone = nn.models.clone_model(model)
    assert type(clone) is type(model)
    assert clone.optimizer is None
    assert [v.path for v in clone.weights] == [v.path for v in model.weights]
    assert not np.array_equal(clone.get_weights()[0], model.get_weights()[0])
    before = model.get_weights()
    clone.set_weights([value + 1 for value in before])
    assert all(map(np.array_equal, before, model.get_weights()))
    clone.set_weights(before)
    assert np.array_equal(clone.predict(X, verbose=0), model.predict(X, verbose=0))


def test_row_15_a_clone_function_makes_other_layers() -> None:
    def wider(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, nn.Dropout):
            config["rate"] = 0.5
        return type(layer).from_config(config)

    assert nn.clone_model(sequential(), clone_function=wider).layers[1].rate == 0.5
    assert nn.clone_model(functional(), nn.Input((8,), name="other"), wider).layers[0].name == "other"
    model = Subclassed(4)
    assert nn.clone_model(model).units == 4
    with pytest.raises(ConfigurationError, match="cloned as a whole"):
        nn.clone_model(model, clone_function=wider)
    with pytest.raises(ConfigurationError, match="input_tensors are for functional models"):
        nn.clone_model(sequential(), nn.Input((8,)))


def test_row_16_weights_go_from_a_functional_model_to_a_subclassed_one_and_back() -> None:
    inputs = nn.Input((8,))
    hidden = nn.Dropout(0.2)(nn.Dense(6, activation="relu")(inputs))
    whole = nn.Model(inputs, nn.Dense(3)(hidden))
    own = Subclassed()
    own(X)
    own.set_weights(whole.get_weights())
    assert np.array_equal(own.predict(X, verbose=0), whole.predict(X, verbose=0))
    whole.set_weights([2 * value for value in own.get_weights()])
    assert np.array_equal(whole.get_weights()[0], 2 * own.get_weights()[0])


def test_row_16_of_a_layer() -> None:
    a, b = nn.Dense(3), nn.Dense(3)
    a(X)
    b(X)
    b.set_weights(a.get_weights())
    assert np.array_equal(a(X).numpy(), b(X).numpy())
    with pytest.raises(ValueError, match="dense has 2 weights, and 1 were given"):
        b.set_weights(a.get_weights()[:1])
    with pytest.raises(ValueError, match=r"kernel has shape \(8, 3\), and \(3, 8\) was found"):
        b.set_weights([a.get_weights()[0].T, a.get_weights()[1]])


def test_row_17_layers_without_state_change_neither_order_nor_count() -> None:
    plain = nn.Sequential([nn.Input((8,)), nn.Dense(6, activation="relu"), nn.Dense(3)])
    assert [v.path for v in plain.weights] == [v.path for v in sequential().weights]
    plain.set_weights(sequential().get_weights())


def test_names_under_which_keras_has_them() -> None:
    assert nn.models.load_model is nn.load_model is nn.saving.load_model
    assert nn.models.Sequential is nn.Sequential
    assert nn.models.model_from_json is nn.model_from_json
    assert nn.backend.floatx() == "float32"
    model = sequential()
    nn.backend.clear_session()
    assert model.predict(X, verbose=0).shape == (5, 3)
    with nn.saving.custom_object_scope({"Subclassed": Subclassed}):
        assert nn.saving.get_registered_object("Subclassed") is Subclassed
    assert nn.saving.get_registered_object("Subclassed") is None


def test_a_layers_input_and_output_in_a_functional_model() -> None:
    model = functional()
    features = nn.Model(model.input, model.layers[-1].input)
    assert features.output_shape == (None, 8)
    assert nn.Model(model.inputs, model.get_layer("shared").output).output_shape == (None, 8)
    with pytest.raises(ConfigurationError, match="was not called on the tensors of a functional model"):
        _ = nn.Dense(2).output
