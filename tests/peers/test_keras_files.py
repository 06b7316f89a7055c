"""Real Keras loads what we save, predicts and trains on as we do, and we what it saves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.bench import keras_files
from tests.peers.keras_models import (
    attention,
    check_same,
    convolution,
    frozen,
    nested,
    normalized,
    recurrence,
    targets,
)
from workers import nn

keras = pytest.importorskip("keras", reason="Keras is not installed: make peers installs it")

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of Keras with JAX
]


@pytest.mark.parametrize("make", [normalized, convolution, recurrence, attention, nested])
def test_row_29_models_pass_to_keras_and_back_with_all_that_training_needs(tmp_path: Path, make: Any) -> None:
    model, x = make()
    y = targets(model)
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


@pytest.mark.filterwarnings("ignore")  # Keras's own, about the format and what it loses
@pytest.mark.parametrize("make", [normalized, convolution, recurrence, attention, nested, frozen])
def test_row_28_legacy_files_pass_to_keras_and_back(tmp_path: Path, make: Any) -> None:
    model, x = make()
    y = targets(model)
    model.compile(nn.optimizers.Adam(0.01), "mse", metrics=["mae"])
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "ours.h5")
    theirs = keras.models.load_model(tmp_path / "ours.h5")
    check_same(model, theirs, x, 2e-6)
    theirs.compile(
        keras.optimizers.Adam(0.02), keras.losses.MeanSquaredError(), metrics=["mae"]
    )  # it lost Adam
    theirs.fit(x, y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    theirs.save(tmp_path / "theirs.h5")
    back = nn.load_model(tmp_path / "theirs.h5")
    assert back.optimizer.steps == 3
    check_same(back, theirs, x, 2e-6)
    for each in (back, theirs):
        each.fit(x, y, epochs=6, initial_epoch=3, batch_size=16, shuffle=False, verbose=0)
    check_same(back, theirs, x, 1e-5)
    weights = _values(theirs)
    model.save_weights(tmp_path / "weights.h5")
    theirs.load_weights(tmp_path / "weights.h5")
    check_same(model, theirs, x, 2e-6)
    assert not all(np.array_equal(a, b) for a, b in zip(weights, _values(theirs), strict=True))


def test_row_29_directories_and_weights_in_several_files_pass_to_keras_and_back(tmp_path: Path) -> None:
    model, x = nested()
    y = targets(model)
    model.compile(nn.optimizers.Adam(0.01), "mse", metrics=["mae"])
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "ours", zipped=False)
    theirs = keras.saving.load_model(tmp_path / "ours")
    check_same(model, theirs, x, 2e-6)
    for each in (model, theirs):
        each.fit(x, y, epochs=5, initial_epoch=2, batch_size=16, shuffle=False, verbose=0)
    check_same(model, theirs, x, 1e-5)
    keras.saving.save_model(theirs, tmp_path / "theirs", zipped=False)
    back = nn.load_model(tmp_path / "theirs")
    check_same(back, theirs, x, 2e-6)
    for each in (back, theirs):
        each.fit(x, y, epochs=7, initial_epoch=5, batch_size=16, shuffle=False, verbose=0)
    check_same(back, theirs, x, 1e-5)
    gib = 300 / 1024**3
    for _ in range(2):  # the second has names of its own for its files
        model.save_weights(tmp_path / "ours.weights.json", max_shard_size=gib)
    assert len([*tmp_path.glob("ours_*.weights.h5")]) > 3
    theirs.load_weights(tmp_path / "ours.weights.json")
    check_same(model, theirs, x, 2e-6)
    back.save_weights(tmp_path / "back.weights.h5")
    theirs.load_weights(tmp_path / "back.weights.h5")
    theirs.save_weights(tmp_path / "theirs.weights.json", max_shard_size=gib)
    model.load_weights(tmp_path / "theirs.weights.json").assert_consumed()
    check_same(model, theirs, x, 2e-6)
    for each in (model, theirs):
        each.fit(x, y, epochs=9, initial_epoch=7, batch_size=16, shuffle=False, verbose=0)
    check_same(model, theirs, x, 1e-5)


def test_row_07_bfloat16_passes_from_keras(tmp_path: Path) -> None:
    theirs = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="bfloat16")])
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    theirs.save(tmp_path / "theirs.keras")
    model = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
    model.load_weights(tmp_path / "theirs.weights.h5").assert_consumed()
    kernel = np.asarray(theirs.layers[0].kernel, np.float32)
    assert np.array_equal(model.get_weights()[0], kernel)
    assert np.array_equal(nn.load_model(tmp_path / "theirs.keras").get_weights()[0], kernel)


def test_the_benchmark_of_keras_files_runs(tmp_path: Path) -> None:
    found = keras_files.measure(sys.executable, tmp_path, mb=0.1, layers=2, rounds=1)
    assert len(found) == len(keras_files.OPERATIONS) + len(keras_files.SAVES)
    assert all("ratio" in figure for _, figure in found)


def _values(theirs: Any) -> list[Any]:
    return [np.asarray(weight) for weight in theirs.weights]
