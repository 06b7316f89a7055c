"""Real Keras 2 (tf_keras) loads our `.h5` files and goes on training, and we do with its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.peers.keras_models import (
    check_same,
    convolution,
    normalized,
    numbers,
    recurrence,
    targets,
)
from workers import nn

tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is not installed")

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # TensorFlow's own, which are many


@pytest.mark.parametrize("make", [normalized, convolution, recurrence])
def test_row_28_legacy_files_pass_to_keras_2_and_back_with_the_optimizer(tmp_path: Path, make: Any) -> None:
    model, x = make()
    y = targets(model)
    model.compile(nn.optimizers.Adam(0.01), "mse", metrics=["mae"])
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "ours.h5")
    theirs = tf_keras.models.load_model(tmp_path / "ours.h5")
    check_same(model, theirs, x, 2e-6)
    assert int(theirs.optimizer.iterations) == model.optimizer.steps
    for each in (model, theirs):
        each.fit(x, y, epochs=5, initial_epoch=2, batch_size=16, shuffle=False, verbose=0)
    check_same(model, theirs, x, 1e-5)
    theirs.save(tmp_path / "theirs.h5")
    back = nn.load_model(tmp_path / "theirs.h5")
    check_same(back, theirs, x, 2e-6)
    for each in (back, theirs):
        each.fit(x, y, epochs=7, initial_epoch=5, batch_size=16, shuffle=False, verbose=0)
    check_same(back, theirs, x, 1e-5)
    model.save_weights(tmp_path / "weights.h5")
    theirs.load_weights(tmp_path / "weights.h5")
    check_same(model, theirs, x, 2e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        nn.optimizers.SGD(0.01, momentum=0.9),
        nn.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
        nn.optimizers.Adam(0.01, amsgrad=True),
        nn.optimizers.Adamax(0.01),
        nn.optimizers.Adagrad(0.01),
        nn.optimizers.Adadelta(0.1),
        nn.optimizers.Ftrl(0.01),
        nn.optimizers.Adam(nn.optimizers.schedules.ExponentialDecay(0.01, 3, 0.5)),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_row_28_each_optimizer_goes_on_in_keras_2(tmp_path: Path, optimizer: Any) -> None:
    model, x = normalized()
    y = targets(model)
    model.compile(optimizer, nn.losses.MeanSquaredError())
    model.fit(x, y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    model.save(tmp_path / "ours.h5")
    theirs = tf_keras.models.load_model(tmp_path / "ours.h5")
    for each in (model, theirs):
        each.fit(x, y, epochs=6, initial_epoch=3, batch_size=16, shuffle=False, verbose=0)
    check_same(model, theirs, x, 1e-5)
    theirs.save(tmp_path / "theirs.h5")
    back = nn.load_model(tmp_path / "theirs.h5")
    assert back.optimizer.steps == 6
    for each in (back, theirs):
        each.fit(x, y, epochs=9, initial_epoch=6, batch_size=16, shuffle=False, verbose=0)
    check_same(back, theirs, x, 1e-5)
    assert np.isfinite(back.predict(x, verbose=0)).all()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: tf_keras.optimizers.AdamW(0.01, weight_decay=0.02),
        lambda: tf_keras.optimizers.Lion(0.01),
        lambda: tf_keras.optimizers.Adam(0.01, amsgrad=True),
    ],
    ids=["AdamW", "Lion", "AMSGrad"],
)
def test_row_28_newer_optimizers_of_keras_2_go_on_here(tmp_path: Path, optimizer: Any) -> None:
    keras = tf_keras.layers
    theirs = tf_keras.Sequential([keras.Input((6,)), keras.Dense(5, "tanh"), keras.Dense(3)])
    theirs.compile(optimizer(), "mse")
    data, y = numbers(6), targets(theirs)
    theirs.fit(data, y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    theirs.save(tmp_path / "theirs.h5")
    model = nn.load_model(tmp_path / "theirs.h5")
    assert model.optimizer.steps == theirs.optimizer.iterations.numpy()
    for each in (model, theirs):
        each.fit(data, y, epochs=6, initial_epoch=3, batch_size=16, shuffle=False, verbose=0)
    check_same(model, theirs, data, 1e-5)


def test_row_28_a_model_within_a_model_of_keras_2_goes_on_here(tmp_path: Path) -> None:
    keras = tf_keras.layers
    first = keras.Dense(4, "relu", trainable=False)
    inner = tf_keras.Sequential([keras.Input((5,)), first, keras.BatchNormalization(), keras.Dense(4)])
    x = keras.Input((6,))
    theirs = tf_keras.Model(x, keras.Dense(3)(inner(keras.Dense(5)(x))))
    theirs.compile(tf_keras.optimizers.Adam(0.01), "mse", ["mae"])
    data, y = numbers(6), targets(theirs)
    theirs.fit(data, y, epochs=2, verbose=0)
    theirs.save(tmp_path / "theirs.h5")
    model = nn.load_model(tmp_path / "theirs.h5")
    assert model.optimizer.steps == 2
    check_same(model, theirs, data, 2e-6)
    for each in (model, theirs):
        each.fit(data, y, epochs=5, initial_epoch=2, batch_size=16, shuffle=False, verbose=0)
    check_same(model, theirs, data, 1e-5)
