"""Keras 2's `.h5`: golden files go on training here, ours come back whole, and what does not fit is told."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.formats.hdf5 import CHECKS
from tests.unit.nn.saving.test_keras_files import check_goes_on, compiled, data, state
from workers import nn
from workers.nn.saving import legacy_h5
from workers.nn.saving.keras2 import compile_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def changed(path: Path) -> Iterator[Any]:
    """A file of ours to be changed, as if another had written it: without checksums."""
    with h5py.File(path, "a") as file:
        file.attrs.pop(CHECKS, None)
        yield file


def trained() -> Any:
    model = compiled()
    model.fit(*data(), epochs=2, verbose=0, seed=3)
    return model


def test_row_28_a_whole_model_of_keras_2_goes_on_training_here(reference_data: Path) -> None:
    folder = reference_data / "golden" / "legacy_h5_model"
    model = nn.load_model(folder / "model.h5")
    _check_tensors(model, folder / "model.h5", folder / "expected_tensors.npz")
    check_goes_on(model, folder)


def test_row_28_weights_of_keras_2_predict_here(reference_data: Path, tmp_path: Path) -> None:
    folder = reference_data / "golden" / "legacy_h5_weights"
    layers = [nn.Dense(14, activation="relu", name="first"), nn.BatchNormalization(name="norm")]
    inputs, expected = np.load(folder / "inputs.npy"), np.load(folder / "expected.npy")
    model = nn.Sequential([nn.Input((18,)), *layers, nn.Dense(3, name="last")])
    model.load_weights(folder / "weights.h5").assert_consumed()
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, atol=1e-5)
    model.save_weights(tmp_path / "w.h5")
    _check_tensors(model, tmp_path / "w.h5", folder / "expected_tensors.npz")


def _check_tensors(model: Any, path: Path, expected: Path) -> None:
    """The arrays of a file are just those that are expected, and the model has each of them."""
    tensors = np.load(expected)
    values = [variable.numpy() for variable in [*model.weights, *getattr(model.optimizer, "variables", ())]]
    with h5py.File(path) as file:
        for name in tensors.files:
            assert np.array_equal(file[name][()], tensors[name]), name
            assert any(np.array_equal(tensors[name], value) for value in values), name


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "memory://legacy/m.h5"])
def test_row_08_a_model_comes_back_from_h5_and_trains_to_the_same_bits(tmp_path: Path, name: str) -> None:
    path = name if "://" in name else str(tmp_path / name)
    model = trained()
    model.save(path)
    again = nn.load_model(path)
    assert state(again) == state(model)
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert float(again.optimizer.learning_rate) == 0.01
    for each in (model, again):
        each.fit(*data(), epochs=4, initial_epoch=2, verbose=0)  # the seed is in the file
    assert state(again) == state(model)


def test_row_08_save_format_says_h5_whatever_the_name(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "model", save_format="h5")
    assert legacy_h5.recognises(str(tmp_path / "model"))
    assert state(nn.load_model(tmp_path / "model")) == state(model)
    model.save(tmp_path / "bare.h5", include_optimizer=False)
    assert nn.load_model(tmp_path / "bare.h5").optimizer is None
    assert nn.load_model(tmp_path / "model", compile=False).optimizer is None


def test_section5_a_compiled_sequential_keeps_adam_in_h5(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Input((6,)), nn.Dense(4), nn.Dense(3)])
    model.compile("adam", "mse", ["mae"])
    model.fit(*data(), verbose=0)
    model.save(tmp_path / "m.h5")
    again = nn.load_model(tmp_path / "m.h5")
    assert len(again.optimizer.variables) == 2 + 2 * 4
    assert again.optimizer.steps == model.optimizer.steps == 2
    again.fit(*data(), verbose=0)


@pytest.mark.parametrize("loss", ["mse", nn.losses.mean_squared_error, nn.losses.MeanSquaredError()])
def test_section5_a_loss_by_its_name_loads_from_h5(tmp_path: Path, loss: Any) -> None:
    model = compiled()
    model.compile("sgd", loss, ["mae", "accuracy"], weighted_metrics=["mse"])
    model.save(tmp_path / "m.h5")
    again = nn.load_model(tmp_path / "m.h5")
    found = [each.evaluate(*data(), verbose=0, return_dict=True) for each in (model, again)]
    assert found[0] == found[1]


def test_section5_saving_h5_changes_nothing_of_the_live_model(tmp_path: Path) -> None:
    model = trained()
    before = model.get_compile_config(), state(model), {v.path for v in model.weights}
    model.save(tmp_path / "m.h5")
    assert (model.get_compile_config(), state(model), {v.path for v in model.weights}) == before
    assert model.get_compile_config()["optimizer"]["class_name"] == "AdamW"


# -- order --------------------------------------------------------------------------------------------------


def nested(*, frozen: bool) -> Any:
    nn.utils.set_random_seed(1 + frozen)
    inner = nn.Sequential([nn.Input((6,)), nn.Dense(6, name="a"), nn.Dense(6, name="b")], name="inner")
    inner.get_layer("a").trainable = not frozen
    return nn.Sequential([nn.Input((6,)), inner, nn.Dense(2, name="head")])


def test_row_28_what_is_frozen_comes_last_within_a_layer(tmp_path: Path) -> None:
    orders = {}
    for frozen in (False, True):
        nested(frozen=frozen).save_weights(tmp_path / "w.h5")
        with h5py.File(tmp_path / "w.h5") as file:
            assert [*file.attrs["layer_names"]] == ["inner", "head"]
            orders[frozen] = [*file["inner"].attrs["weight_names"]]
    a, b = ["inner/a/kernel:0", "inner/a/bias:0"], ["inner/b/kernel:0", "inner/b/bias:0"]
    assert orders == {False: [*a, *b], True: [*b, *a]}


def test_row_28_a_frozen_model_loads_into_one_that_is_not(tmp_path: Path) -> None:
    model, other = nested(frozen=True), nested(frozen=False)
    model.save_weights(tmp_path / "w.h5")
    other.load_weights(tmp_path / "w.h5").assert_consumed()
    for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_row_28_layers_are_matched_by_their_order_not_their_names(tmp_path: Path) -> None:
    def chain(*names: str) -> Any:
        return nn.Sequential([nn.Input((4,)), *(nn.Dense(4, name=name) for name in names)])

    model, other = chain("x", "y"), chain("y", "z")
    model.save_weights(tmp_path / "w.h5")
    other.load_weights(tmp_path / "w.h5")
    assert all(np.array_equal(a, b) for a, b in zip(other.get_weights(), model.get_weights(), strict=True))
    by_name = chain("y", "z")
    before = by_name.get_weights()
    by_name.load_weights(tmp_path / "w.h5", by_name=True).expect_partial()
    assert np.array_equal(by_name.get_weights()[0], model.get_weights()[2])
    assert np.array_equal(by_name.get_weights()[2], before[2])


@pytest.mark.parametrize("suffix", ["", ":0"])
def test_row_28_names_of_keras_2_and_3_are_read(tmp_path: Path, suffix: str) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense_7"]
        group = file.create_group("dense_7")
        names = [f"sequential/dense_7/{name}{suffix}" for name in ("kernel", "bias")]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, value in zip(names, (np.ones((3, 2), "f4"), np.zeros(2, "f4")), strict=True):
            group[name] = value
    model = nn.Sequential([nn.Input((3,)), nn.Dense(2)])
    model.load_weights(tmp_path / "w.h5").assert_consumed()
    assert np.array_equal(model.predict(np.ones((1, 3)), verbose=0), [[3, 3]])


def test_row_28_long_lists_of_names_are_cut_as_keras_cuts_them(tmp_path: Path) -> None:
    names = [f"layer_with_quite_a_long_name_{i:04}" * 3 for i in range(700)]
    model = nn.Sequential([nn.Input((2,)), *(nn.Dense(1 + i % 2, name=n) for i, n in enumerate(names))])
    model.save_weights(tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5") as file:
        assert "layer_names" not in file.attrs
        pieces = [file.attrs["layer_names0"], file.attrs["layer_names1"]]
        assert all(piece.nbytes <= 64512 for piece in pieces)
        assert [each.decode() for piece in pieces for each in piece] == names
    other = nn.Sequential([nn.Input((2,)), *(nn.Dense(1 + i % 2) for i in range(700))])
    other.load_weights(tmp_path / "w.h5").assert_consumed()
    assert np.array_equal(other.get_weights()[-2], model.get_weights()[-2])


def test_row_08_optimizers_of_all_ages_are_read(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "m.h5")
    with changed(tmp_path / "m.h5") as file:
        group = file["optimizer_weights"]
        names = [*group.attrs["weight_names"]]
        values = {name: group[name][()] for name in names}
    m, v = [n for n in names if n.endswith("/m:0")], [n for n in names if n.endswith("/v:0")]
    together = [name for pair in zip(m, v, strict=True) for name in pair]
    orders = {
        "TensorFlow before 2.11": [names[0], *m, *v],
        "tf_keras": [names[0], *together],
        "Keras 3": [names[0], "adam/learning_rate", *together],
    }
    values["adam/learning_rate"] = np.float32(0.01)
    for order in orders.values():
        with h5py.File(tmp_path / "m.h5", "a") as file:
            del file["optimizer_weights"]
            group = file.create_group("optimizer_weights")
            renamed = [
                _anonymous(i, name) if order is orders["Keras 3"] else name for i, name in enumerate(order)
            ]
            group.attrs["weight_names"] = [name.encode() for name in renamed]
            for name, stored in zip(renamed, order, strict=True):
                group[name] = values[stored]
        assert state(nn.load_model(tmp_path / "m.h5")) == state(model)


def _anonymous(i: int, name: str) -> str:
    return name if "learning_rate" in name else f"adam/variable_{i}"


def test_row_08_compile_settings_of_keras_2() -> None:
    found = compile_config(
        {
            "optimizer_config": {"class_name": "SGD", "config": {"learning_rate": 0.5, "decay": 0.25}},
            "loss": "mse",
            "metrics": [
                [{"class_name": "MeanMetricWrapper", "config": {"name": "acc", "fn": "categorical_accuracy"}}]
            ],
            "loss_weights": None,
        }
    )
    model = nn.Sequential([nn.Input((3,)), nn.Dense(2)])
    model.compile_from_config(found)
    assert float(model.optimizer.rate(2)) == pytest.approx(0.5 / 1.5)
    history = model.fit(np.ones((4, 3), "f4"), np.ones((4, 2), "f4"), verbose=0).history
    assert set(history) == {"loss", "acc"}


@nn.saving.register_keras_serializable("legacy")
class Doubled(nn.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs * 2.0


def test_row_08_classes_of_the_user_go_by_their_registered_names(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Input((2,)), Doubled(), nn.Dense(1)])
    model.save(tmp_path / "m.h5")
    again = nn.load_model(tmp_path / "m.h5")
    assert type(again.layers[0]) is Doubled
    with changed(tmp_path / "m.h5") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace("legacy>Doubled", "Trebled")
    with pytest.raises(ConfigurationError, match="unknown layer 'Trebled': give it with custom_objects="):
        nn.load_model(tmp_path / "m.h5")


# -- what does not fit --------------------------------------------------------------------------------------


def test_row_28_other_models_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    model = compiled()
    model.save_weights(tmp_path / "w.h5")
    cases = {
        r"has 3 layers with weights \(.*\), and the model 1": [nn.Dense(5)],
        r"has 4 weights in the file .* and 2 in the model": [nn.Dense(5), nn.Dense(5), nn.Dense(5)],
    }
    for message, layers in cases.items():
        other = nn.Sequential([nn.Input((6,)), *layers])
        before = other.get_weights()
        with pytest.raises(IncompatibleCheckpoint, match=message):
            other.load_weights(tmp_path / "w.h5")
        assert all(np.array_equal(a, b) for a, b in zip(other.get_weights(), before, strict=True))


def test_row_28_skip_mismatch_leaves_out_what_has_another_shape(tmp_path: Path) -> None:
    def pair(units: int) -> Any:
        return nn.Sequential([nn.Input((4,)), nn.Dense(4), nn.Dense(units)])

    model, other = pair(2), pair(3)
    model.save_weights(tmp_path / "w.h5")
    with pytest.raises(
        IncompatibleCheckpoint, match=r"dense_1/kernel has shape \(4, 3\), and \(4, 2\) was found"
    ):
        other.load_weights(tmp_path / "w.h5")
    status = other.load_weights(tmp_path / "w.h5", skip_mismatch=True).expect_partial()
    assert np.array_equal(other.get_weights()[0], model.get_weights()[0])
    assert len(status.missing) == 2


def test_row_08_a_file_of_weights_is_no_model(tmp_path: Path) -> None:
    compiled().save_weights(tmp_path / "w.h5")
    with pytest.raises(
        ConfigurationError, match=r"w.h5 holds weights alone: make the model, and load_weights"
    ):
        nn.load_model(tmp_path / "w.h5")
    unbuilt = nn.Sequential([nn.Dense(2)])
    with pytest.raises(ConfigurationError, match="is not built"):
        unbuilt.save_weights(tmp_path / "other.h5")


def _no_list(file: Any) -> None:
    file["model_weights"].attrs["layer_names"] = 3


def _absent_layer(file: Any) -> None:
    del file["model_weights/dense"]


def _absent_weight(file: Any) -> None:
    del file["model_weights/dense/dense/kernel:0"]


def _no_json(file: Any) -> None:
    file.attrs["model_config"] = "{"


def _no_object(file: Any) -> None:
    file.attrs["training_config"] = "[]"


def _few(file: Any) -> None:
    group = file["optimizer_weights"]
    group.attrs["weight_names"] = group.attrs["weight_names"][:-1]


def _lambda(file: Any) -> None:
    config = json.loads(file.attrs["model_config"])
    config["config"]["layers"][1] |= {"class_name": "Lambda", "config": {"function": ["4wAAA", None, None]}}
    file.attrs["model_config"] = json.dumps(config)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_no_list, CorruptCheckpoint, "layer_names is no list of names"),
        (_absent_layer, CorruptCheckpoint, "has no group model_weights/dense, which it names"),
        (_absent_weight, CorruptCheckpoint, "names a weight dense/kernel:0, which is not there"),
        (_no_json, CorruptCheckpoint, "model_config: "),
        (_no_object, CorruptCheckpoint, "training_config is no JSON object"),
        (_few, IncompatibleCheckpoint, "has 15 arrays of the optimizer's state, and AdamW .* has 16.*"
         "compile=False loads"),
        (_lambda, ConfigurationError, "a Lambda"),
    ],
)  # fmt: skip
def test_row_08_files_that_are_wrong_are_refused(
    tmp_path: Path, change: Any, error: Any, message: str
) -> None:
    trained().save(tmp_path / "m.h5")
    with changed(tmp_path / "m.h5") as file:
        change(file)
    with pytest.raises(error, match=message):
        nn.load_model(tmp_path / "m.h5")


def test_section4_what_changed_since_it_was_written_is_found(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "m.h5")
    changes: dict[str, Any] = {
        "kernel:0 is damaged: it is not what was written": lambda file: file[KERNEL].write_direct(
            np.ones(file[KERNEL].shape, np.float32)
        ),
        "the attribute training_config is damaged": lambda file: file.attrs.modify("training_config", "{}"),
        "it has lost model_weights/dense/dense/kernel:0": lambda file: file.pop(KERNEL),
        "holds no numbers by name": lambda file: file.attrs.modify(CHECKS, "[]"),
    }
    for message, change in changes.items():
        (tmp_path / "changed.h5").write_bytes((tmp_path / "m.h5").read_bytes())
        with h5py.File(tmp_path / "changed.h5", "a") as file:
            change(file)
        with pytest.raises(CorruptCheckpoint, match=message):
            nn.load_model(tmp_path / "changed.h5")


KERNEL = "model_weights/dense/dense/kernel:0"
