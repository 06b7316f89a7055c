"""Keras's files: those that Keras wrote predict and train here as there, and ours come back as they were."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.formats import hdf5
from workers import nn
from workers.nn.saving import keras_file, weights_h5

if TYPE_CHECKING:
    from pathlib import Path

LOSS = nn.losses.SparseCategoricalCrossentropy(from_logits=True)


class Tower(nn.Layer):
    """A layer of layers, as in `weights_h5_subclassed`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_in = nn.Dense(12, activation="relu")
        self.norm = nn.LayerNormalization()
        self.fc_out = nn.Dense(12)

    def call(self, x: Any) -> Any:
        return self.fc_out(self.norm(self.fc_in(x)))


class Net(nn.Model):
    """The model of `weights_h5_subclassed`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Tower()
        self.blocks = [nn.Dense(12, activation="tanh"), nn.Dense(8, activation="relu")]
        self.head = nn.Dense(4)

    def call(self, x: Any) -> Any:
        return self.head(self.blocks[1](self.blocks[0](self.encoder(x))))


def check_goes_on(model: Any, folder: Path, predictions: float = 1e-5) -> None:
    """It predicts as the peer did, and after the same steps of training again."""
    inputs = np.load(folder / "inputs.npy")
    np.testing.assert_allclose(
        model.predict(inputs, verbose=0), np.load(folder / "expected.npy"), atol=predictions
    )
    about = json.loads((folder / "case.json").read_text())["continue_training"]
    for layer in model.layers_within():
        if isinstance(layer, nn.Dropout):
            layer.rate = 0.0
    x, y = np.load(folder / "train_x.npy"), np.load(folder / "train_y.npy")
    history = model.fit(x, y, batch_size=len(x), epochs=about["steps"], shuffle=False, verbose=0)
    losses = np.load(folder / "expected_after_loss.npy")
    np.testing.assert_allclose(history.history["loss"], losses, atol=2e-5)
    after = np.load(folder / "expected_after.npy")
    np.testing.assert_allclose(model.predict(inputs, verbose=0), after, atol=2e-5)


@pytest.mark.parametrize(
    "case", ["keras3_sequential", "keras3_functional", "keras3_conv", "keras3_embedding"]
)
def test_row_8_a_model_that_keras_saved_goes_on_training_here(reference_data: Path, case: str) -> None:
    folder = reference_data / "golden" / case
    model = nn.load_model(folder / "model.keras")
    tensors = np.load(folder / "expected_tensors.npz")
    arrays, _ = weights_h5.contents(model)
    for name in tensors.files:
        if "seed_generator" not in name:
            assert np.array_equal(arrays[name], tensors[name]), name  # JAX has an iteration of int32
    check_goes_on(model, folder)


@pytest.mark.parametrize("case", ["weights_h5_sequential", "weights_h5_subclassed"])
def test_row_7_weights_that_keras_saved_go_on_training_here(reference_data: Path, case: str) -> None:
    folder = reference_data / "golden" / case
    about = json.loads((folder / "case.json").read_text())
    if case == "weights_h5_subclassed":
        model: Any = Net()
        model.compile(nn.optimizers.SGD(0.05, momentum=0.9), LOSS)
    else:
        layers = [nn.Dense(16, activation="relu"), nn.Dense(12, activation="tanh"), nn.Dense(4)]
        model = nn.Sequential([nn.Input((20,)), *layers])
        model.compile(nn.optimizers.Adam(0.01), LOSS)
    optimizer = nn.optimizers.get({"class_name": type(model.optimizer).__name__, "config": {}})
    assert type(optimizer) is type(model.optimizer)
    settings = {k: v for k, v in about["optimizer_config"].items() if k in model.optimizer.get_config()}
    model.compile(type(model.optimizer)(**settings), LOSS)
    model(np.load(folder / "inputs.npy"))
    model.load_weights(folder / "model.weights.h5").assert_consumed()
    check_goes_on(model, folder)


def compiled() -> Any:
    nn.utils.set_random_seed(1)
    x = nn.Input((6,))
    h = nn.Dropout(0.3)(nn.BatchNormalization()(nn.Dense(5, activation="gelu")(x)))
    inner = nn.Sequential([nn.Input((5,)), nn.Dense(4), nn.Dense(3)])
    model = nn.Model(x, inner(h))
    model.compile(nn.optimizers.AdamW(0.01), "mse", metrics=["mae"])
    return model


def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((40, 6), np.float32), rng.standard_normal((40, 3), np.float32)


def state(model: Any) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in [*model.weights, *model.optimizer.variables[2:]]]


@pytest.mark.parametrize("name", ["model.keras", "memory://keras-files/model.keras"])
def test_row_8_five_epochs_and_five_more_from_the_file_are_ten(tmp_path: Path, name: str) -> None:
    path = name if "://" in name else str(tmp_path / name)
    whole, first = compiled(), compiled()
    x, y = data()
    whole.fit(x, y, epochs=10, verbose=0, seed=3)
    first.fit(x, y, epochs=5, verbose=0, seed=3)
    first.save(path)
    again = nn.load_model(path)
    assert state(again) == state(first)
    again.fit(x, y, epochs=10, initial_epoch=5, verbose=0, seed=3)
    for ours, expected in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)  # its learning rate is a float32


def test_row_7_weights_come_back_and_others_are_refused(tmp_path: Path) -> None:
    model, other = compiled(), compiled()
    model.fit(*data(), verbose=0)
    path = tmp_path / "w.weights.h5"
    model.save_weights(path)
    other.load_weights(path).assert_consumed()
    assert state(other) == state(model)
    narrow = nn.Sequential([nn.Input((6,)), nn.Dense(4)])
    before = narrow.get_weights()
    with pytest.raises(
        IncompatibleCheckpoint, match=r"dense/kernel has shape \(6, 4\), and \(6, 5\) was found"
    ):
        narrow.load_weights(path)
    assert all(np.array_equal(a, b) for a, b in zip(narrow.get_weights(), before, strict=True))
    with pytest.raises(ConfigurationError, match="holds weights alone"):
        nn.load_model(path)


def test_a_model_gets_no_name_of_a_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model.weights.h5: .* holds weights alone"):
        compiled().save(tmp_path / "model.weights.h5")
    assert not list(tmp_path.iterdir())


def test_a_lambda_in_a_file_is_never_run(tmp_path: Path) -> None:
    model = compiled()
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    config["config"]["layers"][1] |= {
        "class_name": "Lambda",
        "config": {"function": {"class_name": "__lambda__"}},
    }
    entries["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ConfigurationError, match="Lambda"):
        nn.load_model(tmp_path / "m.keras")


def _zip(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def test_bombs_and_what_is_no_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.keras"
    monkeypatch.setattr(keras_file, "MAX_CONFIG_NBYTES", 1 << 20)
    cases = {
        "no zip file": b"PK\x03\x04 and nothing",
        "0 entries config.json": _zip(metadata__json=b"{}"),
        "config.json promises 2097152 bytes": _zip(config__json=b" " * (2 << 20), model__weights__h5=b""),
        "config.json: ": _zip(config__json=b"{", model__weights__h5=b""),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(CorruptCheckpoint, match=message):
            keras_file.load_model(str(path))
    with pytest.raises(CheckpointError, match="there is no file"):
        keras_file.load_model(str(tmp_path / "other.keras"))


def _linked(file: Any) -> None:
    file["x"] = h5py.SoftLink("/y")


def _external_link(file: Any) -> None:
    file["x"] = h5py.ExternalLink("/etc/passwd", "/")


def _external(file: Any) -> None:
    file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("x", layout)


def _bomb(file: Any) -> None:
    file.create_dataset("x", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")


def _circle(file: Any) -> None:
    file.create_group("a")["b"] = file


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_linked, "x is a link to something else"),
        (_external_link, "x is a link to something else"),
        (_external, "x is stored in other files"),
        (_virtual, "x is stored in other files"),
        (_bomb, "x promises 4398046511104 bytes, of which 0 are stored"),
        (_circle, "lies within itself"),
        (lambda file: file.create_dataset("x", data=[b"text"]), "x holds no numbers"),
    ],
)
def test_files_that_point_elsewhere_or_promise_too_much_are_refused(
    tmp_path: Path, make: Any, message: str
) -> None:
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(CorruptCheckpoint, match=message), hdf5.reading(str(path)):
        pass
