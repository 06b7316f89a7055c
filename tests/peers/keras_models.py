"""Models that both real Keras and ours are asked to hold, each with data of its kind."""

from __future__ import annotations

from typing import Any

import numpy as np

from workers import nn


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


def frozen() -> tuple[Any, Any]:
    """A nested model of which a layer in the middle is frozen, and statistics are not trained."""
    first, last = nn.Dense(4, activation="relu", trainable=False), nn.Dense(4)
    inner = nn.Sequential([nn.Input((5,)), first, nn.BatchNormalization(), last], name="inner")
    x = nn.Input((6,))
    return nn.Model(x, nn.Dense(3)(inner(nn.Dense(5)(x)))), numbers(6)


def numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal((16, *shape), np.float32)


def targets(model: Any) -> Any:
    return np.random.default_rng(2).standard_normal((16, model.output_shape[-1])).astype(np.float32)


def check_same(model: Any, theirs: Any, x: Any, tolerance: float) -> None:
    expected = np.asarray(theirs.predict(x, verbose=0))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=tolerance)
