"""Real Keras loads what we save, predicts and trains on as we do, and we what it saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from workers import nn

keras = pytest.importorskip("keras", reason="Keras is not installed: make peers installs it")

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of Keras with JAX
]


def normalized() -> tuple[Any, Any]:
    layers = [nn.Dense(5, activation="gelu"), nn.BatchNormalization(), nn.Dropout(0.0), nn.Dense(3)]
    return nn.Sequential([nn.Input((6,)), *layers]), numbers(6)


def convolution() -> tuple[Any, Any]:
    x = nn.Input((8, 8, 2))
    h = nn.Flatten()(nn.MaxPooling2D()(nn.Conv2D(4, 3, activation="relu")(x)))
    return nn.Model(x, nn.Dense(3)(nn.LayerNormalization()(h))), numbers(8, 8, 2)


def recurrence() -> tuple[Any, Any]:
    x = nn.Input((7,), dtype="int32")
    h = nn.LSTM(5, return_sequences=True)(nn.Embedding(11, 6)(x))
    tokens = np.random.default_rng(1).integers(0, 11, (16, 7)).astype("int32")
    return nn.Model(x, nn.Dense(3)(nn.Bidirectional(nn.GRU(4))(h))), tokens


def attention() -> tuple[Any, Any]:
    x = nn.Input((7, 8))
    h = nn.Add()([x, nn.MultiHeadAttention(2, 4)(x, x)])
    return nn.Model(x, nn.Dense(3)(nn.GlobalAveragePooling1D()(h))), numbers(7, 8)


def nested() -> tuple[Any, Any]:
    inner = nn.Sequential([nn.Input((5,)), nn.Dense(4, activation="relu"), nn.Dense(4)])
    x = nn.Input((6,))
    h = inner(nn.Dense(5)(x))
    return nn.Model(x, nn.Concatenate()([h, nn.Dense(2)(h)])), numbers(6)


def numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal((16, *shape), np.float32)


@pytest.mark.parametrize("make", [normalized, convolution, recurrence, attention, nested])
def test_row_29_models_pass_to_keras_and_back_with_all_that_training_needs(tmp_path: Path, make: Any) -> None:
    model, x = make()
    y = np.random.default_rng(2).standard_normal((16, model.output_shape[-1])).astype(np.float32)
    model.compile(nn.optimizers.Adam(0.01), "mse", metrics=["mae"])
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "ours.keras")
    theirs = keras.models.load_model(tmp_path / "ours.keras")
    check_same(model, theirs, x, 2e-6)
    for each in (model, theirs):
        each.fit(x, y, epochs=5, initial_epoch=2, batch_size=16, shuffle=False, verbose=0)
    check_same(model, theirs, x, 1e-5)
    theirs.save(tmp_path / "theirs.keras")
    back = nn.load_model(tmp_path / "theirs.keras")
    check_same(back, theirs, x, 2e-6)
    for each in (back, theirs):
        each.fit(x, y, epochs=7, initial_epoch=5, batch_size=16, shuffle=False, verbose=0)
    check_same(back, theirs, x, 1e-5)
    model.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")
    check_same(model, theirs, x, 2e-6)


def check_same(model: Any, theirs: Any, x: Any, tolerance: float) -> None:
    expected = np.asarray(theirs.predict(x, verbose=0))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=tolerance)
