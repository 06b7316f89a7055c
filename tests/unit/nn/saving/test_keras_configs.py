"""Configs that real Keras wrote."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.unit.nn.conftest import GOLDEN
from workers import nn
from workers.nn.saving import objects
from workers.nn.saving.keras2 import modern


def keras_config(case: str) -> Any:
    path = GOLDEN / case / "model.keras"
    if not path.is_file():
        pytest.skip(f"no golden file {path}: set REFERENCE_DATA")
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"))


@pytest.mark.parametrize(
    "case", ["keras3_sequential", "keras3_functional", "keras3_conv", "keras3_embedding"]
)
def test_row_15_a_model_of_keras_3_is_made_of_its_config(case: str) -> None:
    config = keras_config(case)
    model = objects.deserialize(config)
    inputs = np.load(GOLDEN / case / "inputs.npy")
    assert model.predict(inputs, verbose=0).shape == np.load(GOLDEN / case / "expected.npy").shape
    assert type(model.optimizer).__name__ == config["compile_config"]["optimizer"]["class_name"]
    written = json.loads(json.dumps(objects.serialize(model)))
    assert [layer["class_name"] for layer in written["config"]["layers"]] == [
        layer["class_name"] for layer in config["config"]["layers"]
    ]
    assert written["module"] == config["module"]
    assert objects.serialize(objects.deserialize(written)) == written


KERAS_2 = {
    "class_name": "Functional",
    "config": {
        "name": "two",
        "layers": [
            {
                "class_name": "InputLayer",
                "config": {"batch_input_shape": [None, 4], "dtype": "float32", "sparse": False, "name": "i"},
                "name": "i",
                "inbound_nodes": [],
            },
            {
                "class_name": "Dense",
                "config": {
                    "name": "d",
                    "units": 3,
                    "kernel_initializer": {"class_name": "Zeros", "config": {}},
                },
                "name": "d",
                "inbound_nodes": [[["i", 0, 0, {}]], [["i", 0, 0, {}]]],
            },
            {
                "class_name": "Add",
                "config": {"name": "a"},
                "name": "a",
                "inbound_nodes": [[["d", 0, 0, {}], ["d", 1, 0, {}]]],
            },
        ],
        "input_layers": [["i", 0, 0]],
        "output_layers": [["a", 0, 0]],
    },
}


def test_a_functional_model_of_keras_2_is_made_of_its_config() -> None:
    model = objects.deserialize(KERAS_2)
    model.set_weights([np.ones((4, 3), np.float32), np.zeros(3, np.float32)])
    assert np.all(np.asarray(model(np.ones((2, 4), np.float32))) == 8)


def test_a_model_within_a_model_of_keras_2_is_called_from_1_on() -> None:
    inner = json.loads(json.dumps(KERAS_2)) | {"name": "two", "inbound_nodes": [[["o", 0, 0, {}]]]}
    given = {"name": "o", "batch_input_shape": [None, 4], "dtype": "float32"}
    config = {
        "name": "outer",
        "layers": [{"class_name": "InputLayer", "config": given, "name": "o", "inbound_nodes": []}, inner],
        "input_layers": [["o", 0, 0]],
        "output_layers": [["two", 1, 0]],
    }
    model = objects.deserialize({"class_name": "Functional", "config": config})
    model.set_weights([np.ones((4, 3), np.float32), np.zeros(3, np.float32)])
    assert np.all(np.asarray(model(np.ones((2, 4), np.float32))) == 8)


def test_a_sequential_model_of_keras_2_is_made_of_its_config() -> None:
    dense = {"name": "d", "units": 3, "batch_input_shape": [None, 4], "dtype": "float32"}
    config = {
        "class_name": "Sequential",
        "config": {"name": "s", "layers": [{"class_name": "Dense", "config": dense}]},
    }
    assert objects.deserialize(config).count_params() == 15


def test_losses_and_optimizers_of_keras_2() -> None:
    loss = {"reduction": "auto", "name": "l", "from_logits": True, "fn": "sparse_categorical_crossentropy"}
    found = nn.losses.get(modern({"class_name": "SparseCategoricalCrossentropy", "config": loss}))
    assert found.get_config()["reduction"] == "sum_over_batch_size"
    adam = {"name": "Adam", "learning_rate": 0.5, "jit_compile": False, "is_legacy_optimizer": False}
    assert (
        float(nn.optimizers.get(modern({"class_name": "Custom>Adam", "config": adam})).learning_rate) == 0.5
    )


@pytest.mark.parametrize("node", [[], "i", [["i", 0]], [["i", "0", 0, {}]]])
def test_a_call_that_is_none_is_refused(node: Any) -> None:
    config = json.loads(json.dumps(KERAS_2))
    config["config"]["layers"][1]["inbound_nodes"] = [node]
    with pytest.raises(ConfigurationError, match=r"of a (layer|model's config) is"):
        objects.deserialize(config)
