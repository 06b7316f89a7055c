"""`orchestrator.fit` gives a model the bits that its own `fit` does, with any number of workers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import orchestrator
from orchestrator.examples.digits import digits
from storage.errors import ConfigurationError
from workers import nn

if TYPE_CHECKING:
    from pathlib import Path

X, Y = digits(test=False).take(np.arange(300))


def model() -> Any:
    nn.utils.set_random_seed(3)
    made = nn.Sequential(
        [
            nn.Input((8, 8)),
            nn.Rescaling(1 / 16),
            nn.Flatten(),
            nn.Dense(24, activation="gelu"),
            nn.BatchNormalization(),
            nn.Dropout(0.3),
            nn.Dense(10),
        ]
    )
    loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(nn.optimizers.Adam(0.003, clipnorm=1.0), loss, metrics=["accuracy"])
    return made


def state(made: Any) -> list[bytes]:
    return [np.asarray(v).tobytes() for v in [*made.weights, *made.optimizer.variables]]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_job_and_fit_give_the_same_bits(tmp_path: Path, workers: int) -> None:
    local, distributed = model(), model()
    local.fit(X, Y, 64, 3, verbose=0, seed=7, microbatches=4, sample_weight=np.linspace(0, 2, 300))
    history = orchestrator.fit(
        distributed,
        X,
        Y,
        workers=workers,
        run_dir=tmp_path / "run",
        runtime="process",
        batch_size=64,
        epochs=3,
        microbatches=4,
        seed=7,
        sample_weight=np.linspace(0, 2, 300),
        validation_data=(X[:50], Y[:50]),
    )
    result = history.result
    assert (result.status, result.step) == ("done", 15)
    assert state(local) == state(distributed)
    assert set(result.metrics) >= {"accuracy", "val_loss", "val_accuracy"}
    loss, accuracy = distributed.evaluate(X[:50], Y[:50], 64, verbose=0)
    assert (result.metrics["val_loss"], result.metrics["val_accuracy"]) == (loss, accuracy)
    local.fit(X, Y, 64, 4, initial_epoch=3, verbose=0, microbatches=4)
    distributed.fit(X, Y, 64, 4, initial_epoch=3, verbose=0, microbatches=4)
    assert state(local) == state(distributed)


def test_a_job_ends_with_the_averages_as_fit_does(tmp_path: Path) -> None:
    local, distributed = model(), model()
    for made in (local, distributed):
        loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile(nn.optimizers.Adam(0.003, use_ema=True, ema_momentum=0.5), loss)
    settings: dict[str, Any] = {"batch_size": 64, "epochs": 2, "microbatches": 4, "seed": 7}
    local.fit(X, Y, verbose=0, **settings)
    orchestrator.fit(distributed, X, Y, workers=2, run_dir=tmp_path / "run", runtime="process", **settings)
    assert state(local) == state(distributed)
    averages = distributed.optimizer.averages(distributed.trainable_weights)
    for weight, average in zip(distributed.trainable_weights, averages, strict=True):
        np.testing.assert_array_equal(weight.numpy(), average)


def test_mistakes_are_refused_in_one_line(tmp_path: Path) -> None:
    trained = model()
    trained.fit(X, Y, verbose=0)
    uncompiled = nn.Sequential([nn.Input((8, 8)), nn.Flatten(), nn.Dense(10)])
    for made, message in ((trained, "has been trained for 10 steps"), (uncompiled, "not compiled")):
        with pytest.raises(ConfigurationError, match=message) as caught:
            orchestrator.fit(made, X, Y, workers=1, run_dir=tmp_path / "run", runtime="process")
        assert "\n" not in str(caught.value)


def callbacks() -> list[Any]:
    return [
        nn.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9 if epoch else rate),
        nn.callbacks.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, min_delta=0.3),
        nn.callbacks.EarlyStopping("val_loss", patience=2, min_delta=0.2, restore_best_weights=True),
    ]


def of_callbacks(made: list[Any]) -> list[dict[str, Any]]:
    return [each.get_state() for each in made]


@pytest.mark.parametrize(("workers", "nodes"), [(1, 1), (3, 1), (2, 2)])
def test_callbacks_do_the_same_in_a_job(
    tmp_path: Path, workers: int, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch's may run on another worker; two of them are killed meanwhile."""
    local, distributed = model(), model()
    ours, theirs = callbacks(), callbacks()
    settings: dict[str, Any] = {"batch_size": 64, "epochs": 20, "microbatches": 4, "seed": 7}
    settings["validation_data"] = (X[:50], Y[:50])
    expected = local.fit(X, Y, verbose=0, callbacks=ours, **settings)
    assert 3 <= len(expected.epoch) < 20, "the case is to stop early, and not at its best"
    faults = [{"kill": "worker", "step": 7, "phase": "update"}]
    asked = {"kill": "worker", "step": 10, "phase": "callbacks", "once": str(tmp_path / "struck")}
    faults += [{**asked, "rank": rank} for rank in range(3)]
    monkeypatch.setenv("HOLDFAST_FAULTS", json.dumps(faults))
    seen: list[int] = []
    there = [
        nn.callbacks.CSVLogger(tmp_path / "log.csv"),
        nn.callbacks.LambdaCallback(lambda e, _: seen.append(e)),
    ]
    found = orchestrator.fit(
        distributed,
        X,
        Y,
        workers=workers,
        nodes=nodes,
        run_dir=tmp_path / "run",
        runtime="process",
        callbacks=[*theirs, *there],
        **settings,
    )
    assert (found.result.status, found.result.step) == ("done", 5 * len(expected.epoch))
    assert found.result.worker_deaths == 2
    assert found.epoch == expected.epoch == seen
    assert found.history == expected.history
    assert state(local) == state(distributed)
    assert of_callbacks(ours) == of_callbacks(theirs)
    assert distributed.stop_training
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + len(expected.epoch)


def test_a_job_that_a_callback_has_ended_is_done_when_it_is_run_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workers": 1, "run_dir": tmp_path / "run", "runtime": "process", "epochs": 9}
    first, second = model(), model()
    stop = nn.callbacks.EarlyStopping("loss", min_delta=100, patience=1, restore_best_weights=True)
    found = orchestrator.fit(first, X, Y, callbacks=[stop], seed=7, **settings)
    assert found.epoch == [0, 1]
    again = orchestrator.fit(second, X, Y, callbacks=[stop], seed=7, **settings)
    assert again.result.attempt == found.result.attempt
    assert again.history == found.history
    assert state(first) == state(second)
    other = nn.callbacks.ReduceLROnPlateau("loss")
    with pytest.raises(ConfigurationError, match="belongs to another job"):
        orchestrator.fit(model(), X, Y, callbacks=[other], seed=7, **{**settings, "epochs": 12})


class Counts(nn.callbacks.Callback):
    """It does not say what it has to remember."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1


class Changes(nn.callbacks.Callback):
    """It changes weights."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.set_weights([weights * 0 for weights in self.model.get_weights()])


class Batches(nn.callbacks.Callback):
    """It follows batches."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        pass


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Counts(), r"Counts changed its attribute 'epochs'.* remembers = \('epochs',\)"),
        (Changes(), "a callback changed the variable"),
        (Batches(), "Batches.on_train_batch_end: the callbacks of a job are told of epochs alone"),
        (nn.callbacks.EarlyStopping("val_loss"), "there is no such metric, only loss, accuracy"),
        (3, "3 is no nn.callbacks.Callback"),
    ],
)
def test_what_callbacks_of_a_job_cannot_do_is_refused(
    tmp_path: Path, callback: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(tmp_path))  # a run that failed keeps its memory
    with pytest.raises(ConfigurationError, match=message):
        orchestrator.fit(
            model(), X, Y, workers=1, run_dir=tmp_path / "run", runtime="process", callbacks=[callback]
        )
