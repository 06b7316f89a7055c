"""`nn.callbacks.TensorBoard`: events as TensorBoard reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.tensorboard_events import values_in
from workers import nn

if TYPE_CHECKING:
    from pathlib import Path

X = np.random.default_rng(0).random((40, 4), dtype=np.float32)
Y = np.arange(40) % 2


def model() -> Any:
    made = nn.Sequential([nn.Input((4,)), nn.Dense(2)])
    made.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
    return made


def test_row_30_scalars_and_histograms_of_each_epoch(tmp_path: Path) -> None:
    board = nn.callbacks.TensorBoard(tmp_path, histogram_freq=2, write_steps_per_second=True)
    history = model().fit(X, Y, epochs=3, verbose=0, validation_data=(X, Y), callbacks=[board]).history
    train, validation = values_in(tmp_path / "train"), values_in(tmp_path / "validation")
    for epoch in range(3):
        assert train["epoch_loss", epoch] == pytest.approx(history["loss"][epoch])
        assert validation["epoch_accuracy", epoch] == pytest.approx(history["val_accuracy"][epoch])
        assert train["epoch_steps_per_second", epoch] > 0
    assert {step for tag, step in train if tag == "dense/kernel/histogram"} == {0, 2}
    assert train["dense/kernel/histogram", 2].num == 8


def test_row_30_of_a_training_that_goes_on_no_epoch_stands_twice(tmp_path: Path) -> None:
    made, board = model(), nn.callbacks.TensorBoard(tmp_path)
    made.fit(X, Y, 10, epochs=2, verbose=0, callbacks=[board])
    made.fit(X, Y, 10, epochs=3, initial_epoch=1, verbose=0, callbacks=[board])
    assert [step for tag, step in values_in(tmp_path / "train") if tag == "epoch_loss"] == [0, 1, 2]


def test_row_30_batches_by_their_number(tmp_path: Path) -> None:
    board = nn.callbacks.TensorBoard(tmp_path, update_freq=3)
    model().fit(X, Y, 10, epochs=2, verbose=0, callbacks=[board])
    assert {step for tag, step in values_in(tmp_path / "train") if tag == "batch_loss"} == {3, 6}


def test_mistakes_are_refused_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="update_freq=0"):
        nn.callbacks.TensorBoard(tmp_path, update_freq=0)
    with pytest.raises(ConfigurationError, match="s3://b/logs: give a directory"):
        nn.callbacks.TensorBoard("s3://b/logs")
    with pytest.warns(UserWarning, match="profile_batch is not written here"):
        nn.callbacks.TensorBoard(tmp_path, profile_batch=2)
