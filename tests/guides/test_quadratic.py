"""TensorFlow 1's guide to `Saver` and `SavedModelBuilder`: y = (x - h)^2 + v, trained a sample at a time."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
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


def test_row_23_a_saver_after_each_epoch_keeps_what_tensorflow_kept(
    reference_data: Path, tmp_path: Path
) -> None:
    folder = reference_data / "golden" / "tf1_saver"
    expected = json.loads((folder / "case.json").read_text())
    x, y = np.load(folder / "x_train.npy"), np.load(folder / "y_train.npy")
    h = nn.Variable(np.float32(0), name="hor_estimate")
    v = nn.Variable(np.float32(0), name="ver_estimate")
    saver = nn.train.Saver([h, v])
    for epoch in range(100):
        train(h, v, x, y)
        if epoch >= 90:  # each save is durable: a hundred would take seconds
            saver.save(tmp_path / "model_iter", global_step=epoch)
    final = saver.save(tmp_path / "model_final")
    assert [os.path.basename(path) for path in saver.last_checkpoints] == expected["kept"]
    assert nn.train.latest_checkpoint(tmp_path) == final
    for name in expected["kept"]:
        held = nn.train.load_checkpoint(tmp_path / name)
        for variable, value in expected["values_per_checkpoint"][name].items():
            assert float(held.get_tensor(variable)) == pytest.approx(value, abs=1e-6)

    # another process: the same names, any values
    h = nn.Variable(np.float32(9), name="hor_estimate")
    v = nn.Variable(np.float32(9), name="ver_estimate")
    nn.train.Saver([h, v]).restore(final)
    predicted = np.asarray(nn.ops.square(np.load(folder / "inputs.npy") - h) + v)
    np.testing.assert_allclose(predicted, np.load(folder / "expected.npy"), atol=1e-5)

    # only one of them, under another name
    shift = nn.Variable(np.float32(9))
    nn.train.Saver({"hor_estimate": shift}).restore(final)
    assert float(shift) == float(h)


class Quadratic(nn.Model):
    """The model with its two variables."""

    def __init__(self, h: float, v: float) -> None:
        super().__init__()
        self.h = self.add_weight(shape=(), initializer=nn.initializers.Constant(h), name="h")
        self.v = self.add_weight(shape=(), initializer=nn.initializers.Constant(v), name="v")

    def call(self, x: Any) -> Any:
        return nn.ops.square(x - self.h) + self.v


def test_row_25_a_saved_model_with_tags_signatures_and_assets(tmp_path: Path) -> None:
    x = np.linspace(-2, 4, 7, dtype=np.float32)
    model = Quadratic(1.0, -2.0)
    expected = np.asarray(model(x))
    words = tmp_path / "units.txt"
    words.write_text("metres")
    builder = nn.train.SavedModelBuilder(tmp_path / "exported")
    builder.add_meta_graph_and_variables(
        model,
        [nn.saved_model.TRAINING],
        signature_def_map={"model": model},
        assets_collection=[words],
    )
    builder.add_meta_graph(
        [nn.saved_model.SERVING],
        signature_def_map={"prediction": lambda x: {"y": model(x)}, "shift": lambda x: {"y": x - model.h}},
    )
    builder.save()

    loaded = nn.saved_model.load(tmp_path / "exported", [nn.saved_model.SERVING])
    np.testing.assert_array_equal(loaded.signatures["prediction"](x)["y"], expected)
    np.testing.assert_array_equal(loaded.signatures["shift"](x)["y"], x - np.float32(1))
    assert loaded.read_asset("assets/units.txt") == b"metres"
    assert {name: float(each) for name, each in loaded.variables.items()} == {"h": 1.0, "v": -2.0}
    with pytest.raises(ConfigurationError, match=r"nothing was saved with the tags \['gpu'\]"):
        nn.saved_model.load(tmp_path / "exported", ["gpu"])
