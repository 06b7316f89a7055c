"""Callbacks have Keras's names, arguments and defaults, in its order."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from workers import nn

KERAS = {
    "ModelCheckpoint": {
        "filepath": None,
        "monitor": "val_loss",
        "verbose": 0,
        "save_best_only": False,
        "save_weights_only": False,
        "mode": "auto",
        "save_freq": "epoch",
        "initial_value_threshold": None,
    },
    "BackupAndRestore": {
        "backup_dir": None,
        "save_freq": "epoch",
        "double_checkpoint": False,
        "delete_checkpoint": True,
    },
    "EarlyStopping": {
        "monitor": "val_loss",
        "min_delta": 0,
        "patience": 0,
        "verbose": 0,
        "mode": "auto",
        "baseline": None,
        "restore_best_weights": False,
        "start_from_epoch": 0,
    },
    "ReduceLROnPlateau": {
        "monitor": "val_loss",
        "factor": 0.1,
        "patience": 10,
        "verbose": 0,
        "mode": "auto",
        "min_delta": 1e-4,
        "cooldown": 0,
        "min_lr": 0.0,
    },
    "LearningRateScheduler": {"schedule": None, "verbose": 0},
    "CSVLogger": {"filename": None, "separator": ",", "append": False},
    "TerminateOnNaN": {},
    "TensorBoard": {
        "log_dir": "logs",
        "histogram_freq": 0,
        "write_graph": True,
        "write_images": False,
        "write_steps_per_second": False,
        "update_freq": "epoch",
        "profile_batch": 0,
        "embeddings_freq": 0,
        "embeddings_metadata": None,
    },
    "SwapEMAWeights": {"swap_on_epoch": False},
}
"""Of Keras 3.15; None stands for an argument without a default, too."""


@pytest.mark.parametrize("name", KERAS)
def test_row_30_names_and_defaults_are_those_of_keras(name: str) -> None:
    parameters = inspect.signature(getattr(nn.callbacks, name)).parameters
    own = {
        key: None if each.default is inspect.Parameter.empty else each.default
        for key, each in parameters.items()
        if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }
    assert [*own.items()] == [*KERAS[name].items()]


def test_row_30_lambda_callback_calls_functions_of_every_moment() -> None:
    called: list[str] = []

    def noted(moment: str) -> Any:
        return lambda *_: called.append(moment)

    moments = ("train_begin", "epoch_begin", "train_batch_begin", "train_batch_end", "epoch_end", "train_end")
    callback = nn.callbacks.LambdaCallback(**{f"on_{moment}": noted(moment) for moment in moments})
    model = nn.Sequential([nn.Input((2,)), nn.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32), 4, verbose=0, callbacks=[callback])
    assert called == [*moments]


def test_section5_swap_ema_weights_swaps_back_after_predict_and_evaluate() -> None:
    x, y = np.ones((8, 2), np.float32), np.ones((8, 1), np.float32)
    model = nn.Sequential([nn.Input((2,)), nn.Dense(1)])
    model.compile(nn.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    model.fit(x, y, 4, epochs=2, verbose=0)
    last = model.get_weights()
    averages = [each.copy() for each in model.optimizer.averages(model.trainable_weights)]
    swap = nn.callbacks.SwapEMAWeights()
    swap.set_model(model)
    predicted = model.predict(x, verbose=0, callbacks=[swap])
    np.testing.assert_allclose(predicted, x @ averages[0] + averages[1], rtol=1e-6)
    for a, b in zip(model.get_weights(), last, strict=True):
        np.testing.assert_array_equal(a, b)
    loss = model.evaluate(x, y, verbose=0, callbacks=[swap])
    assert loss == pytest.approx(float(np.mean((predicted - y) ** 2)), rel=1e-5)
    for a, b in zip(model.get_weights(), last, strict=True):
        np.testing.assert_array_equal(a, b)
