"""`orchestrator.fit` gives a model the bits that its own `fit` does, with any number of workers."""

from __future__ import annotations

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
    result = orchestrator.fit(
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
    assert (result.status, result.step) == ("done", 15)
    assert state(local) == state(distributed)
    assert set(result.metrics) >= {"accuracy", "val_loss", "val_accuracy"}
    loss, accuracy = distributed.evaluate(X[:50], Y[:50], 64, verbose=0)
    assert (result.metrics["val_loss"], result.metrics["val_accuracy"]) == (loss, accuracy)
    local.fit(X, Y, 64, 4, initial_epoch=3, verbose=0, microbatches=4)
    distributed.fit(X, Y, 64, 4, initial_epoch=3, verbose=0, microbatches=4)
    assert state(local) == state(distributed)


def test_mistakes_are_refused_in_one_line(tmp_path: Path) -> None:
    trained = model()
    trained.fit(X, Y, verbose=0)
    uncompiled = nn.Sequential([nn.Input((8, 8)), nn.Flatten(), nn.Dense(10)])
    for made, message in ((trained, "has been trained for 10 steps"), (uncompiled, "not compiled")):
        with pytest.raises(ConfigurationError, match=message) as caught:
            orchestrator.fit(made, X, Y, workers=1, run_dir=tmp_path / "run", runtime="process")
        assert "\n" not in str(caught.value)
