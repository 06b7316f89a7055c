"""Keras's guide to saving and loading, walked through: only the imports are others."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import zarr

from storage.errors import ConfigurationError, IncompatibleCheckpoint
from workers import nn

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory of its own, with the same random numbers each time."""
    monkeypatch.chdir(tmp_path)
    nn.utils.set_random_seed(0)


def get_model() -> Any:
    inputs = nn.Input(shape=(32,))
    outputs = nn.layers.Dense(1)(inputs)
    model = nn.Model(inputs, outputs)
    model.compile(optimizer="adam", loss="mean_squared_error")
    return model


TEST_INPUT = np.random.default_rng(0).random((128, 32), dtype=np.float32)
TEST_TARGET = np.random.default_rng(1).random((128, 1), dtype=np.float32)


class CustomModel(nn.Model):
    def __init__(self, hidden_units: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_units = hidden_units
        self.dense_layers = [nn.layers.Dense(units) for units in hidden_units]

    def call(self, inputs: Any) -> Any:
        x = inputs
        for layer in self.dense_layers:
            x = layer(x)
        return x

    def get_config(self) -> dict[str, Any]:
        return {"hidden_units": self.hidden_units}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CustomModel:
        return cls(**config)


class CustomLayer(nn.layers.Layer):
    def __init__(self, units: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: Any) -> None:
        self.w = self.add_weight(
            shape=(input_shape[-1], self.units), initializer="random_normal", trainable=True
        )
        self.b = self.add_weight(shape=(self.units,), initializer="random_normal", trainable=True)

    def call(self, inputs: Any) -> Any:
        return nn.ops.matmul(inputs, self.w) + self.b

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def custom_activation(x: Any) -> Any:
    return nn.ops.tanh(x) ** 2


# -- whole models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my_model", "my_model.keras", "my_h5_model.h5"])
def test_a_whole_model_is_reconstructed_and_training_resumes(name: str) -> None:
    model = get_model()
    model.fit(TEST_INPUT, TEST_TARGET, verbose=0)
    model.save(name)
    reconstructed_model = nn.models.load_model(name)
    np.testing.assert_allclose(
        model.predict(TEST_INPUT, verbose=0), reconstructed_model.predict(TEST_INPUT, verbose=0)
    )
    assert int(reconstructed_model.optimizer.iterations) == 4
    both = [
        each.fit(TEST_INPUT, TEST_TARGET, verbose=0, shuffle=False) for each in (model, reconstructed_model)
    ]
    assert both[0].history == both[1].history


def test_what_a_directory_holds() -> None:
    get_model().save("my_model")
    (newest,) = (os.path.dirname(path) for path in _below("my_model", "manifest.json"))
    assert {"model.json", "graph.json", "variables"} <= {*os.listdir(newest)}
    assert zarr.open_group(newest, mode="r")["variables/dense/kernel"].shape == (32, 1)


def _below(root: str, name: str) -> list[str]:
    return [os.path.join(folder, name) for folder, _, names in os.walk(root) if name in names]


def test_custom_objects_load_with_their_class_and_without_it() -> None:
    model = CustomModel([16, 16, 10])
    input_arr = np.random.default_rng(2).random((1, 5), dtype=np.float32)
    outputs = model(input_arr)
    model.save("my_model")
    loaded_1 = nn.models.load_model("my_model", custom_objects={"CustomModel": CustomModel})
    assert isinstance(loaded_1, CustomModel)
    loaded_2 = nn.models.load_model("my_model")
    assert not isinstance(loaded_2, CustomModel)
    for loaded in (loaded_1, loaded_2):
        np.testing.assert_array_equal(np.asarray(loaded(input_arr)), np.asarray(outputs))


def test_without_traces_the_class_is_needed() -> None:
    model = CustomModel([16, 10])
    model(np.ones((1, 5), np.float32))
    model.save("my_model", save_traces=False)
    with pytest.raises(ConfigurationError, match=r"CustomModel.*save_traces=False"):
        nn.models.load_model("my_model")
    with nn.saving.custom_object_scope({"CustomModel": CustomModel}):
        assert isinstance(nn.models.load_model("my_model"), CustomModel)


# -- architecture alone -------------------------------------------------------------------------------------


def test_a_layer_from_its_config() -> None:
    layer = nn.layers.Dense(3, activation="relu")
    new_layer = nn.layers.Dense.from_config(layer.get_config())
    assert new_layer.get_config() == layer.get_config()


def test_a_sequential_model_from_its_config() -> None:
    model = nn.Sequential([nn.Input((32,)), nn.layers.Dense(1)])
    new_model = nn.Sequential.from_config(model.get_config())
    assert new_model.count_params() == 33
    assert not new_model.optimizer


def test_a_functional_model_from_its_config() -> None:
    inputs = nn.Input((32,))
    model = nn.Model(inputs, nn.layers.Dense(1)(inputs))
    new_model = nn.Model.from_config(model.get_config())
    assert [layer.name for layer in new_model.layers] == [layer.name for layer in model.layers]


def test_to_json_and_back() -> None:
    model = nn.Sequential([nn.Input((32,)), nn.layers.Dense(1)])
    json_config = model.to_json()
    assert json.loads(json_config)["class_name"] == "Sequential"
    new_model = nn.models.model_from_json(json_config)
    assert new_model.to_json() == json_config


def test_a_custom_layer_and_function_by_scope_and_by_registration() -> None:
    inputs = nn.Input((32,))
    x = CustomLayer(32)(inputs)
    outputs = nn.layers.Activation(custom_activation)(x)
    model = nn.Model(inputs, outputs)
    config = model.get_config()
    custom_objects = {"CustomLayer": CustomLayer, "custom_activation": custom_activation}
    with nn.saving.custom_object_scope(custom_objects):
        new_model = nn.Model.from_config(config)
    new_model.set_weights(model.get_weights())
    x = TEST_INPUT[:4]
    np.testing.assert_array_equal(np.asarray(new_model(x)), np.asarray(model(x)))
    with pytest.raises(ConfigurationError, match="CustomLayer"):
        nn.Model.from_config(config)
    registered = nn.saving.register_keras_serializable(package="MyLayers", name="GuidesLayer")(
        type("GuidesLayer", (CustomLayer,), {})
    )
    written = nn.saving.serialize(registered(8))
    assert written["registered_name"] == "MyLayers>GuidesLayer"
    assert nn.saving.deserialize(written).units == 8


def test_a_clone_in_memory() -> None:
    inputs = nn.Input((32,))
    model = nn.Model(inputs, CustomLayer(4)(inputs))
    with nn.saving.custom_object_scope({"CustomLayer": CustomLayer}):
        new_model = nn.models.clone_model(model)
    assert new_model.count_params() == model.count_params()
    assert not np.array_equal(new_model.get_weights()[0], model.get_weights()[0])


# -- weights alone ------------------------------------------------------------------------------------------


def create_layer() -> Any:
    layer = nn.layers.Dense(64, activation="relu", name="dense_2")
    layer.build((None, 784))
    return layer


def create_functional_model(name: str = "3_layer_mlp") -> Any:
    inputs = nn.Input(shape=(784,), name="digits")
    x = nn.layers.Dense(64, activation="relu", name="dense_1")(inputs)
    x = nn.layers.Dense(64, activation="relu", name="dense_2")(x)
    outputs = nn.layers.Dense(10, name="predictions")(x)
    return nn.Model(inputs=inputs, outputs=outputs, name=name)


class SubclassedModel(nn.Model):
    def __init__(self, output_dim: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.output_dim = output_dim
        self.dense_1 = nn.layers.Dense(64, activation="relu", name="dense_1")
        self.dense_2 = nn.layers.Dense(64, activation="relu", name="dense_2")
        self.dense_3 = nn.layers.Dense(output_dim, name="predictions")

    def call(self, inputs: Any) -> Any:
        return self.dense_3(self.dense_2(self.dense_1(inputs)))


def test_weights_in_memory_from_one_layer_to_another() -> None:
    layer_1, layer_2 = create_layer(), create_layer()
    layer_2.set_weights(layer_1.get_weights())
    for a, b in zip(layer_1.get_weights(), layer_2.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_in_memory_from_a_functional_model_to_a_subclassed_one() -> None:
    functional_model, subclassed_model = create_functional_model(), SubclassedModel(10)
    subclassed_model(np.ones((1, 784), np.float32))
    subclassed_model.set_weights(functional_model.get_weights())
    assert len(functional_model.weights) == len(subclassed_model.weights)
    for a, b in zip(functional_model.weights, subclassed_model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_layer_without_state_changes_nothing_of_it() -> None:
    inputs = nn.Input(shape=(784,), name="digits")
    x = nn.layers.Dense(64, activation="relu", name="dense_1")(inputs)
    x = nn.layers.Dense(64, activation="relu", name="dense_2")(x)
    x = nn.layers.Dropout(0.5)(x)
    with_dropout = nn.Model(inputs, nn.layers.Dense(10, name="predictions")(x))
    with_dropout.set_weights(create_functional_model().get_weights())
    assert with_dropout.count_params() == create_functional_model().count_params()


def test_weights_go_to_a_file_and_are_all_consumed() -> None:
    sequential_model = nn.Sequential(
        [
            nn.Input(shape=(784,), name="digits"),
            nn.layers.Dense(64, activation="relu", name="dense_1"),
            nn.layers.Dense(64, activation="relu", name="dense_2"),
            nn.layers.Dense(10, name="predictions"),
        ]
    )
    sequential_model.save_weights("ckpt")
    load_status = sequential_model.load_weights("ckpt")
    load_status.assert_consumed()


def test_what_is_in_the_file_of_a_custom_layer_has_the_names_of_its_attributes() -> None:
    layer = CustomLayer(5)
    layer.build((None, 4))
    checkpoint = nn.train.Checkpoint(layer=layer)
    path = checkpoint.save("custom_layer")
    reader = nn.train.load_checkpoint(path)
    assert reader.get_variable_to_dtype_map().keys() == {"layer/w", "layer/b", "save_counter"}
    assert reader.get_variable_to_shape_map()["layer/w"] == [4, 5]
    np.testing.assert_array_equal(reader.get_tensor("layer/w/.ATTRIBUTES/VARIABLE_VALUE"), layer.w.numpy())


def test_transfer_learning() -> None:
    functional_model = create_functional_model()
    pretrained = nn.Model(
        functional_model.inputs, functional_model.layers[-2].output, name="pretrained_model"
    )
    for w in pretrained.weights:
        w.assign(np.random.default_rng(3).standard_normal(w.shape).astype(np.float32))
    pretrained.save_weights("pretrained_ckpt")
    assert pretrained.count_params() == 54_400

    inputs = nn.Input(shape=(784,), name="digits")
    x = nn.layers.Dense(64, activation="relu", name="dense_1")(inputs)
    x = nn.layers.Dense(64, activation="relu", name="dense_2")(x)
    model = nn.Model(inputs=inputs, outputs=nn.layers.Dense(5, name="predictions")(x), name="new_model")
    model.load_weights("pretrained_ckpt").assert_nontrivial_match()
    assert model.count_params() == 54_725
    for a, b in zip(pretrained.weights, model.weights, strict=False):
        np.testing.assert_array_equal(a.numpy(), b.numpy())

    # the part first, the head on top of it
    inputs = nn.Input(shape=(784,), name="digits")
    x = nn.layers.Dense(64, activation="relu", name="dense_1")(inputs)
    part = nn.Model(inputs, nn.layers.Dense(64, activation="relu", name="dense_2")(x), name="part")
    part.load_weights("pretrained_ckpt").assert_consumed()
    model = nn.Sequential([part, nn.layers.Dense(5, name="predictions")])
    assert model.count_params() == 54_725
    np.testing.assert_array_equal(model.get_weights()[0], pretrained.get_weights()[0])

    # into the wrong nesting
    before = model.get_weights()
    with pytest.raises(IncompatibleCheckpoint, match="nested otherwise"):
        model.load_weights("pretrained_ckpt")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# -- HDF5 ---------------------------------------------------------------------------------------------------


def test_weights_in_hdf5_by_order_and_by_name() -> None:
    model = create_functional_model()
    model.save_weights("weights.h5")
    other = create_functional_model()
    other.load_weights("weights.h5")
    np.testing.assert_array_equal(other.get_weights()[4], model.get_weights()[4])
    inputs = nn.Input(shape=(784,))
    renamed = nn.Model(inputs, nn.layers.Dense(64, activation="relu", name="dense_1")(inputs))
    renamed.load_weights("weights.h5", by_name=True).expect_partial()
    np.testing.assert_array_equal(renamed.get_weights()[0], model.get_weights()[0])


class NestedDenseLayer(nn.layers.Layer):
    def __init__(self, units: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.dense_1 = nn.layers.Dense(units, name="dense_1")
        self.dense_2 = nn.layers.Dense(units, name="dense_2")

    def call(self, inputs: Any) -> Any:
        return self.dense_2(self.dense_1(inputs))


def test_freezing_a_nested_layer_changes_the_order_of_hdf5_and_nothing_here() -> None:
    nested_model = nn.Sequential([nn.Input((784,)), NestedDenseLayer(10, "nested")])
    weights = nested_model.get_weights()
    nested_model.save_weights("nested.h5")
    nested_model.get_layer("nested").dense_1.trainable = False
    nested_model.save_weights("frozen.h5")
    names = [_weight_names(file) for file in ("nested.h5", "frozen.h5")]
    assert names[0] != names[1]
    assert sorted(names[0]) == sorted(names[1])
    nested_model.set_weights([np.zeros_like(each) for each in weights])
    nested_model.load_weights("nested.h5").assert_consumed()
    for a, b in zip(nested_model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)


def _weight_names(file: str) -> list[str]:
    with h5py.File(file) as opened:
        return [str(name) for name in opened["nested"].attrs["weight_names"]]


def test_transfer_in_hdf5_by_a_layer_at_a_time() -> None:
    pretrained = create_functional_model()
    pretrained.save_weights("weights.h5")
    first = nn.Model(pretrained.inputs, pretrained.layers[-2].output)
    new_model = nn.Sequential([nn.models.clone_model(first), nn.layers.Dense(5)])
    new_model.build((None, 784))
    new_model.layers[0].set_weights(first.get_weights())
    np.testing.assert_array_equal(new_model.get_weights()[0], pretrained.get_weights()[0])
