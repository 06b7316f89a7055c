"""`nn.callbacks.BackupAndRestore`: a `fit` that is cut short goes on to the bits of one that was not."""

from __future__ import annotations

import csv
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.testing import MemoryStore
from workers import nn
from workers.nn.callbacks import BackupAndRestore
from workers.nn.callbacks.jobs import of_job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
STEPS = 7  # an epoch, with batches of 8; the last has two samples


class Cut(Exception):
    """What the test raises in the middle of a training."""


class CutAt(nn.callbacks.Callback):
    """Raises when so many batches have ended."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if not self.left:
            raise Cut


class Logged(nn.callbacks.Callback):
    """What was told at the end of each batch and epoch, in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.told.append((batch, dict(logs)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.told.append(("epoch", epoch, dict(logs)))


def model(seed: int = 3, optimizer: Any = "adam") -> Any:
    nn.utils.set_random_seed(seed)
    made = nn.Sequential(
        [
            nn.Input((4,)),
            nn.Dense(8, activation="relu"),
            nn.BatchNormalization(),
            nn.Dropout(0.3),
            nn.Dense(2),
        ]
    )
    metrics = ["accuracy", nn.metrics.SparseTopKCategoricalAccuracy(1, name="top")]
    made.compile(optimizer, nn.losses.SparseCategoricalCrossentropy(from_logits=True), metrics)
    return made


def fit(made: Any, *callbacks: Any, epochs: int = 4, **options: Any) -> Any:
    settings = {"validation_data": (X[:20], Y[:20]), "verbose": 0} | options
    return made.fit(X, Y, 8, epochs, callbacks=callbacks, **settings)


def state(made: Any) -> bytes:
    """Weights, and all that the optimizer holds."""
    arrays = [*made.get_weights(), *(each.numpy() for each in made.optimizer.variables)]
    return b"".join(np.asarray(array).tobytes() for array in arrays)


def stateful() -> list[Any]:
    """Callbacks that remember something; the rate falls and the weights are those of the best epoch."""
    return [
        nn.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        nn.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.05),
        nn.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
    ]


@pytest.mark.parametrize(("frequency", "cut"), [(1, 10), (3, 10), (3, 8), ("epoch", 17), (STEPS, 14), (5, 3)])
def test_row_30_a_training_that_was_cut_short_ends_in_the_same_bits(
    tmp_path: Path, frequency: Any, cut: int
) -> None:
    whole, logged = model(), Logged()
    fit(whole, *stateful(), logged)

    first = model()
    with pytest.raises(Cut):
        fit(first, BackupAndRestore(tmp_path / "backup", frequency), *stateful(), CutAt(cut))
    second, again = model(), Logged()
    backup = BackupAndRestore(tmp_path / "backup", frequency)
    fit(second, backup, *stateful(), again)
    assert state(second) == state(whole)
    assert again.told == logged.told[-len(again.told) :]
    saved = cut // STEPS * STEPS if frequency == "epoch" else (cut - 1) // frequency * frequency
    assert sum(1 for each in again.told if each[0] != "epoch") == 4 * STEPS - saved
    assert not (tmp_path / "backup").exists()


def test_section5_backup_and_restore_in_mid_epoch_no_batch_is_trained_twice(tmp_path: Path) -> None:
    """Keras 3.15 replays the epoch: 11 iterations in the place of 9."""
    made = model()
    with pytest.raises(Cut):
        fit(made, BackupAndRestore(tmp_path / "b", 2), CutAt(5), epochs=1)
    again = model()
    fit(again, BackupAndRestore(tmp_path / "b", 2), epochs=1)
    assert int(again.optimizer.iterations) == STEPS


def test_section5_backup_and_restore_save_freq_false_saves_never(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fit(model(), BackupAndRestore(tmp_path / "b", False), CutAt(16))
    assert not (tmp_path / "b").exists()
    whole, other = model(), model()
    fit(whole, seed=1)
    fit(other, BackupAndRestore(tmp_path / "b", False), seed=1)
    assert state(whole) == state(other)


def test_section5_backup_and_restore_is_atomic_a_damaged_backup_is_not_taken_for_one(tmp_path: Path) -> None:
    whole = model()
    fit(whole, epochs=2)
    with pytest.raises(Cut):
        fit(model(), BackupAndRestore(tmp_path / "b", 3, double_checkpoint=True), CutAt(9))
    generations = sorted((tmp_path / "b/backup/checkpoints").iterdir())
    assert len(generations) == 2
    next(generations[-1].glob("variables/variables/dense/kernel/c/0/0")).write_bytes(b"x")
    again = model()
    fit(again, BackupAndRestore(tmp_path / "b", 3, double_checkpoint=True), epochs=2)
    assert state(again) == state(whole)

    with pytest.raises(Cut):
        fit(model(), BackupAndRestore(tmp_path / "b", 2), CutAt(9))
    (generation,) = (tmp_path / "b/backup/checkpoints").iterdir()
    next(generation.glob("variables/variables/dense/kernel/c/0/0")).write_bytes(b"x")
    with pytest.raises(CorruptCheckpoint, match=r"no backup that is whole: delete .*/b to begin anew"):
        fit(model(), BackupAndRestore(tmp_path / "b", 2))


@pytest.mark.parametrize("frequency", ["epoch", 3, False])
def test_section5_backup_and_restore_honours_sigterm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], frequency: Any
) -> None:
    def ask(batch: int, logs: Any) -> None:
        if batch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    whole = model()
    fit(whole, epochs=2)
    made = model()
    with pytest.raises(SystemExit) as caught:
        fit(
            made,
            BackupAndRestore(tmp_path / "b", frequency),
            nn.callbacks.LambdaCallback(on_train_batch_begin=ask),
            epochs=2,
        )
    assert caught.value.code == 75
    assert "SIGTERM: training is saved after 0 epochs and 4 batches in" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert int(made.optimizer.iterations) == 4
    again = model()
    fit(again, BackupAndRestore(tmp_path / "b", frequency), epochs=2)
    assert state(again) == state(whole)


class Counting(nn.callbacks.Callback):
    """Counts what it is told of validation, and asks the process to stop in the middle of one."""

    remembers = ("begun", "batches")

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at = at
        self.begun = self.batches = 0

    def on_test_begin(self, logs: Any = None) -> None:
        self.begun += 1

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if self.batches == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("at", [2, 3, 8])  # of three batches an epoch
def test_section5_on_sigterm_a_validation_is_left_for_the_next_time(
    tmp_path: Path, at: int, averages: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def callbacks(asks: int | None = None) -> list[Any]:
        log = nn.callbacks.CSVLogger(tmp_path / ("whole" if asks is None else "log"))
        swap = [nn.callbacks.SwapEMAWeights()] if averages else []
        return [*swap, log, *stateful(), Counting(asks)]

    def made() -> Any:
        return model(optimizer=nn.optimizers.Adam(use_ema=averages))

    whole, ours = made(), callbacks()
    fit(whole, *ours, epochs=4)
    cut = made()
    with pytest.raises(SystemExit) as caught:
        fit(cut, *callbacks(at), BackupAndRestore(tmp_path / "b", False), epochs=4)
    assert caught.value.code == 75
    epoch = (at - 1) // 3
    assert f"SIGTERM: training is saved after {epoch} epochs and 7 batches in" in capsys.readouterr().err
    again, theirs = made(), callbacks(99)
    fit(again, *theirs, BackupAndRestore(tmp_path / "b", False), epochs=4)
    assert state(again) == state(whole)
    assert [each.get_state() for each in theirs] == [each.get_state() for each in ours]
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()


def test_in_another_thread_signals_are_left_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    made = model()
    thread = threading.Thread(target=fit, args=(made, BackupAndRestore(tmp_path / "b")), kwargs={"epochs": 1})
    thread.start()
    thread.join(60)
    assert int(made.optimizer.iterations) == STEPS
    assert signal.getsignal(signal.SIGTERM) is before


def test_section5_callback_state_is_restored_with_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    class Worse(nn.callbacks.Callback):
        """The first epoch is the best one."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["val_loss"] = float(epoch)

    def early() -> Any:
        return nn.callbacks.EarlyStopping(patience=3, restore_best_weights=True)

    whole, stop = model(), early()
    history = fit(whole, Worse(), stop, epochs=9)
    assert len(history.epoch) == 4
    with pytest.raises(Cut):
        fit(model(), BackupAndRestore(tmp_path / "b"), Worse(), early(), CutAt(3 * STEPS - 2), epochs=9)
    again, other = model(seed=3), early()
    history = fit(again, BackupAndRestore(tmp_path / "b"), Worse(), other, epochs=9)
    assert history.epoch == [2, 3]
    assert (other.best, other.best_epoch, other.stopped_epoch) == (0.0, 0, 3)
    assert state(again) == state(whole)


def test_a_training_that_a_callback_has_ended_is_not_taken_up_again(tmp_path: Path) -> None:
    class Stop(nn.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    backup = BackupAndRestore(tmp_path / "b", delete_checkpoint=False)
    assert len(fit(model(), Stop(), backup).epoch) == 1
    assert fit(model(), backup).epoch == []
    assert nn.train.latest_checkpoint(tmp_path / "b") == str(tmp_path / "b/backup")
    assert nn.train.latest_checkpoint(tmp_path) is None


def test_epochs_go_on_where_a_training_has_ended(tmp_path: Path) -> None:
    backup = BackupAndRestore(tmp_path / "b", delete_checkpoint=False)
    fit(model(), backup, epochs=2)
    again = model()
    assert fit(again, backup, epochs=4).epoch == [2, 3]
    whole = model()
    fit(whole, epochs=4)
    assert state(again) == state(whole)


def test_csv_has_each_epoch_once(tmp_path: Path) -> None:
    """Epochs that were written after the last backup are written again, and not twice."""

    def log() -> Any:
        return nn.callbacks.CSVLogger(tmp_path / "log.csv")

    fit(model(), nn.callbacks.CSVLogger(tmp_path / "whole.csv"))
    with pytest.raises(Cut):
        fit(model(), BackupAndRestore(tmp_path / "b", 5), log(), CutAt(3 * STEPS + 1))
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    fit(model(), BackupAndRestore(tmp_path / "b", 5), log())
    assert (tmp_path / "log.csv").read_text() == (tmp_path / "whole.csv").read_text()
    with (tmp_path / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]


class Steps(nn.Model):
    """A training step of its own, with a metric that keeps its own sums."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Dense(8, activation="relu")
        self.dropout = nn.Dropout(0.4)
        self.out = nn.Dense(2)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.out(self.dropout(self.hidden(inputs), training=training))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with nn.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            metric.update_state(y, outputs)
        return {"loss": loss} | {metric.name: metric.result() for metric in self.metrics}


def test_row_30_a_train_step_of_ones_own_goes_on_with_its_metrics_and_random_numbers(tmp_path: Path) -> None:
    def made() -> Any:
        nn.utils.set_random_seed(3)
        found = Steps()
        found.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
        return found

    whole, logged = made(), Logged()
    fit(whole, logged, epochs=2)
    with pytest.raises(Cut):
        fit(made(), BackupAndRestore(tmp_path / "b", 3), CutAt(5), epochs=2)
    again, other = made(), Logged()
    fit(again, BackupAndRestore(tmp_path / "b", 3), other, epochs=2)
    assert other.told == logged.told[3:]
    assert state(again) == state(whole)


class Numbered:
    """An iterator that can say where it is."""

    def __init__(self) -> None:
        self.at = 0
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        at = self.at * 8 % 40
        self.at += 1
        self.given += 1
        return X[at : at + 8], Y[at : at + 8]

    def get_state(self) -> int:
        return self.at

    def set_state(self, state: int) -> None:
        self.at = state


def forever() -> Iterator[Any]:
    while True:
        for at in range(0, 40, 8):
            yield X[at : at + 8], Y[at : at + 8]


def listed() -> Any:
    return [*zip(np.split(X[:40], 5), np.split(Y[:40], 5), strict=True)]


@pytest.mark.parametrize("data", [forever, Numbered, listed])
@pytest.mark.parametrize("cut", [8, 11])
def test_section5_data_position_of_batches_of_ones_own(tmp_path: Path, data: Any, cut: int) -> None:
    def train(made: Any, batches: Any, *callbacks: Any) -> None:
        made.fit(batches, epochs=3, steps_per_epoch=5, verbose=0, callbacks=callbacks, seed=1)

    whole = model()
    train(whole, data())
    with pytest.raises(Cut):
        train(model(), data(), BackupAndRestore(tmp_path / "b", 2), CutAt(cut))
    again, batches = model(), data()
    train(again, batches, BackupAndRestore(tmp_path / "b", 2))
    assert state(again) == state(whole)
    if isinstance(batches, Numbered):
        assert batches.given == 15 - (cut - 1) // 2 * 2 + 1  # one to see what the data look like


def test_any_url_and_any_optimizer(tmp_path: Path) -> None:
    store = MemoryStore()
    schedule = nn.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
    optimizers = [
        lambda: nn.optimizers.SGD(schedule, momentum=0.9),
        lambda: nn.optimizers.Adam(use_ema=True, amsgrad=True),
        lambda: nn.optimizers.SGD(0.1, gradient_accumulation_steps=3),
    ]
    for i, optimizer in enumerate(optimizers):
        whole = model(optimizer=optimizer())
        fit(whole, epochs=2)
        backup = BackupAndRestore(f"{store.url}/{i}", 2)
        with pytest.raises(Cut):
            fit(model(optimizer=optimizer()), backup, CutAt(10), epochs=2)
        again = model(optimizer=optimizer())
        fit(again, backup, epochs=2)
        assert state(again) == state(whole)


def test_averaged_weights_and_the_last_ones_are_both_kept(tmp_path: Path) -> None:
    def swap() -> Any:
        return nn.callbacks.SwapEMAWeights(swap_on_epoch=True)

    def made() -> Any:
        return model(optimizer=nn.optimizers.Adam(use_ema=True))

    whole = made()
    fit(whole, swap())
    with pytest.raises(Cut):
        fit(made(), swap(), BackupAndRestore(tmp_path / "b"), CutAt(2 * STEPS + 3))
    again = made()
    fit(again, swap(), BackupAndRestore(tmp_path / "b"))
    assert state(again) == state(whole)


def test_another_training_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fit(model(), BackupAndRestore(tmp_path / "b", 2), CutAt(5), seed=4)
    backup = BackupAndRestore(tmp_path / "b", 2)
    other = nn.Sequential([nn.Input((4,)), nn.Dense(9), nn.Dense(2)])
    other.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = other.get_weights()
    with pytest.raises(IncompatibleCheckpoint):
        fit(other, backup)
    assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))
    with pytest.raises(IncompatibleCheckpoint, match="another model"):
        fit(model(optimizer="sgd"), backup)
    with pytest.raises(ConfigurationError, match="of a training with seed 4, and this one has 5"):
        fit(model(), backup, seed=5)
    with pytest.raises(ConfigurationError, match=r"7 batches an epoch, and here are 5: .*batch_size"):
        model().fit(X[:40], Y[:40], 8, verbose=0, callbacks=[backup])
    keeper = nn.callbacks.ModelCheckpoint(tmp_path / "m" / "{epoch}")
    with pytest.raises(Cut):
        fit(model(), backup, keeper, CutAt(5), seed=4)
    with pytest.warns(UserWarning, match="the state of a callback ModelCheckpoint, which fit was not given"):
        fit(model(), backup, epochs=1, seed=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("b", 0), 'save_freq=0: give "epoch", a number of batches from 1, or False'),
        (("b", True), "save_freq=True"),
        (("b", "batch"), "save_freq='batch'"),
        (("",), "backup_dir is empty"),
        (("x#1",), "'#' would be taken for a step"),
    ],
)
def test_mistakes_are_refused_when_it_is_made(given: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        BackupAndRestore(*given)


def test_a_job_saves_by_itself() -> None:
    with pytest.raises(ConfigurationError, match="BackupAndRestore: a job saves by itself"):
        of_job([BackupAndRestore("x")])
