"""TensorFlow's guide to saving and loading models, walked through on real digits: only imports are others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from workers import nn
from workers.data import IdxDataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Digits = tuple[tuple["NDArray[Any]", "NDArray[Any]"], tuple["NDArray[Any]", "NDArray[Any]"]]


@pytest.fixture(scope="module")
def digits(reference_data: Path) -> Digits:
    """A thousand images for training, a thousand others for testing, each of 784 numbers up to 1."""
    folder = reference_data / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST files at {folder}")
    images, labels = (next(iter(sorted(folder.glob(f"*{part}*")))) for part in ("images", "labels"))
    x, y = IdxDataset(str(images), str(labels)).take(np.arange(2000))
    x = (np.asarray(x).reshape(-1, 28 * 28) / 255.0).astype(np.float32)
    return (x[:1000], y[:1000]), (x[1000:], y[1000:])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nn.utils.set_random_seed(1)


def create_model() -> Any:
    model = nn.Sequential(
        [
            nn.Input((784,)),
            nn.layers.Dense(512, activation="relu"),
            nn.layers.Dropout(0.2),
            nn.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer="adam",
        loss=nn.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[nn.metrics.SparseCategoricalAccuracy()],
    )
    return model


def test_row_01_the_model_of_the_guide() -> None:
    model = create_model()
    assert model.count_params() == 407_050
    text = []
    model.summary(print_fn=text.append)
    shown = "\n".join(text)
    for number in ("401,920", "5,130", "Total params: 407,050"):
        assert number in shown


def test_row_02_a_checkpoint_after_every_epoch_and_a_restored_accuracy_equal_to_the_last_bit(
    digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    (train_images, train_labels), test = digits
    checkpoint_path = "training_1/cp.ckpt"
    cp_callback = nn.callbacks.ModelCheckpoint(filepath=checkpoint_path, save_weights_only=True, verbose=1)
    model = create_model()
    history = model.fit(
        train_images,
        train_labels,
        epochs=10,
        validation_data=test,
        callbacks=[cp_callback],
        verbose=0,
    )
    assert capsys.readouterr().out.count("saving model to training_1/cp.ckpt") == 10
    assert len(history.history["val_sparse_categorical_accuracy"]) == 10
    assert int(model.optimizer.iterations) == 320  # 32 steps an epoch, the last of 8 samples
    loss, acc = model.evaluate(*test, verbose=0)
    assert acc > 0.8

    fresh = create_model()
    _, untrained = fresh.evaluate(*test, verbose=0)
    assert untrained < 0.3
    fresh.load_weights(checkpoint_path)
    assert fresh.evaluate(*test, verbose=0) == [loss, acc]
    assert os.listdir("training_1") == ["cp.ckpt"]


def test_row_05_fifty_epochs_with_names_every_five_and_the_latest_one(digits: Digits) -> None:
    (train_images, train_labels), test = digits
    train_images, train_labels = train_images[:200], train_labels[:200]
    checkpoint_path = "training_2/cp-{epoch:04d}.ckpt"
    batch_size = 32
    n_batches = -(-len(train_images) // batch_size)
    cp_callback = nn.callbacks.ModelCheckpoint(
        filepath=checkpoint_path, save_weights_only=True, save_freq=5 * n_batches
    )
    model = create_model()
    model.save_weights(checkpoint_path.format(epoch=0))
    model.fit(
        train_images, train_labels, epochs=50, batch_size=batch_size, callbacks=[cp_callback], verbose=0
    )
    names = [f"cp-{epoch:04d}.ckpt" for epoch in range(0, 51, 5)]
    assert len(names) == 11
    assert sorted(os.listdir("training_2")) == names

    latest = nn.train.latest_checkpoint("training_2")
    assert latest is not None
    assert os.path.basename(latest) == "cp-0050.ckpt"
    again = create_model()
    again.load_weights(latest)
    assert again.evaluate(*test, verbose=0) == model.evaluate(*test, verbose=0)


def test_row_06_a_checkpoint_is_shards_and_an_index() -> None:
    model = create_model()
    model.save_weights("./checkpoints/my_checkpoint")
    files = [os.path.join(folder, name) for folder, _, names in os.walk("checkpoints") for name in names]
    assert any(path.endswith("manifest.json") for path in files)
    assert any("/dense/kernel/c/" in path for path in files)
    shapes = nn.train.load_checkpoint("checkpoints").get_variable_to_shape_map()
    assert shapes["dense/kernel"] == [784, 512]


def test_row_07_weights_by_hand(digits: Digits) -> None:
    _, test = digits
    model = create_model()
    model.save_weights("./checkpoints/my_checkpoint")
    other = create_model()
    other.load_weights("./checkpoints/my_checkpoint")
    assert other.evaluate(*test, verbose=0) == model.evaluate(*test, verbose=0)


@pytest.mark.parametrize("name", ["saved_model/my_model", "my_model.keras", "my_model.h5"])
def test_row_08_a_whole_model(digits: Digits, name: str) -> None:
    (train_images, train_labels), test = digits
    model = create_model()
    model.fit(train_images, train_labels, epochs=5, verbose=0)
    model.save(name)
    new_model = nn.models.load_model(name)
    assert new_model.count_params() == 407_050
    assert new_model.evaluate(*test, verbose=0) == model.evaluate(*test, verbose=0)
    assert new_model.predict(test[0], verbose=0).shape == (1000, 10)
    for each in (model, new_model):
        each.fit(train_images, train_labels, epochs=6, initial_epoch=5, verbose=0)
    assert new_model.evaluate(*test, verbose=0) == model.evaluate(*test, verbose=0)


def test_row_12_a_model_with_a_custom_object_needs_its_name(digits: Digits) -> None:
    @nn.saving.register_keras_serializable(package="SaveAndLoad")
    class Scale(nn.layers.Layer):
        def __init__(self, by: float = 2.0, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.by = by

        def call(self, inputs: Any) -> Any:
            return inputs * self.by

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "by": self.by}

    _, (images, _) = digits
    model = nn.Sequential([nn.Input((784,)), Scale(3.0), nn.layers.Dense(10)])
    model.save("custom.keras")
    again = nn.models.load_model("custom.keras")
    assert again.layers[0].by == 3.0
    np.testing.assert_array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))
