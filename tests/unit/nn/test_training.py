"""`fit`, `evaluate`, `predict`: what Keras's users expect of them, and exactness."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from orchestrator.examples.digits import digits
from storage.errors import ConfigurationError
from workers import nn
from workers.data import ArrayDataset

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def model(rate: float = 0.0, optimizer: Any = "adam") -> Any:
    nn.utils.set_random_seed(3)
    made = nn.Sequential([nn.Input((6,)), nn.Dense(16, activation="relu"), nn.Dropout(rate), nn.Dense(3)])
    made.compile(optimizer, nn.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return made


def weights(made: Any) -> bytes:
    return b"".join(array.tobytes() for array in made.get_weights())


def test_digits_are_learnt_and_history_tells_every_epoch() -> None:
    nn.utils.set_random_seed(0)
    x, y = digits(test=False).take(np.arange(1000))
    vx, vy = digits(test=True).take(np.arange(300))
    made = nn.Sequential(
        [nn.Input((8, 8)), nn.Rescaling(1 / 16), nn.Flatten(), nn.Dense(64, activation="relu"), nn.Dense(10)]
    )
    made.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    before = made.evaluate(vx, vy, verbose=0)
    history = made.fit(x, y, epochs=8, validation_data=(vx, vy), verbose=0)
    assert history.epoch == [*range(8)]
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert before[1] < 0.3
    assert history.history["val_accuracy"][-1] > 0.9
    assert int(made.optimizer.iterations.numpy()) == 8 * 32
    loss, accuracy = made.evaluate(vx, vy, verbose=0)
    assert (loss, accuracy) == (history.history["val_loss"][-1], history.history["val_accuracy"][-1])
    predicted = made.predict(vx, verbose=0)
    assert predicted.shape == (300, 10)
    assert (predicted.argmax(axis=1) == vy).mean() == pytest.approx(accuracy, abs=1e-7)
    assert made.evaluate(vx, vy, verbose=0, return_dict=True) == {"loss": loss, "accuracy": accuracy}


def test_five_and_five_epochs_are_ten_to_the_bit_dropout_and_order_included() -> None:
    whole, parts = model(0.3), model(0.3)
    whole.fit(X, Y, 8, 10, verbose=0, seed=5)
    parts.fit(X, Y, 8, 5, verbose=0, seed=5)
    parts.fit(X, Y, 8, 10, initial_epoch=5, verbose=0)
    assert weights(whole) == weights(parts)
    other = model(0.3)
    other.fit(X, Y, 8, 10, verbose=0, seed=6)
    assert weights(other) != weights(whole)


def test_without_a_seed_the_process_seed_decides() -> None:
    first, second = model(0.3), model(0.3)
    nn.utils.set_random_seed(9)
    first.fit(X, Y, 8, 2, verbose=0)
    nn.utils.set_random_seed(9)
    second.fit(X, Y, 8, 2, verbose=0)
    assert first.seed == second.seed
    assert weights(first) == weights(second)


def test_a_short_last_batch_counts_by_its_samples() -> None:
    made = model(optimizer=nn.optimizers.SGD(0.0))
    history = made.fit(X, Y, 32, 1, verbose=0, shuffle=False)
    loss, accuracy = made.evaluate(X, Y, 50, verbose=0)
    assert history.history["loss"][0] == pytest.approx(loss, rel=1e-6)
    assert history.history["accuracy"][0] == pytest.approx(accuracy, rel=1e-6)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_microbatches_change_no_more_than_rounding(count: int) -> None:
    one, several = model(), model()
    one.fit(X, Y, 10, 3, verbose=0, seed=1)
    several.fit(X, Y, 10, 3, verbose=0, seed=1, microbatches=count)
    for a, b in zip(one.get_weights(), several.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_class_and_sample_weights_scale_the_loss() -> None:
    by_class, by_sample = model(), model()
    by_class.fit(X, Y, 10, 2, verbose=0, seed=1, class_weight={0: 2.0, 2: 0.5})
    by_sample.fit(X, Y, 10, 2, verbose=0, seed=1, sample_weight=np.array([2.0, 1.0, 0.5], np.float32)[Y])
    plain = model()
    plain.fit(X, Y, 10, 2, verbose=0, seed=1)
    assert weights(by_class) == weights(by_sample) != weights(plain)


def test_validation_split_holds_the_last_samples_out() -> None:
    split, given = model(), model()
    a = split.fit(X, Y, 8, 2, verbose=0, seed=1, validation_split=0.2)
    b = given.fit(X[:40], Y[:40], 8, 2, verbose=0, seed=1, validation_data=(X[40:], Y[40:]))
    assert weights(split) == weights(given)
    assert a.history == b.history


def test_datasets_and_batches_of_ones_own() -> None:
    arrays, dataset, batches = model(), model(), model()
    arrays.fit(X, Y, 10, 2, verbose=0, seed=1, shuffle=False)
    dataset.fit(ArrayDataset(X, Y), batch_size=10, epochs=2, verbose=0, seed=1, shuffle=False)
    batches.fit([(X[i : i + 10], Y[i : i + 10]) for i in range(0, 50, 10)], epochs=2, verbose=0, seed=1)
    assert weights(arrays) == weights(dataset) == weights(batches)

    def for_ever() -> Any:
        while True:
            yield X[:10], Y[:10]

    history = model().fit(for_ever(), epochs=3, steps_per_epoch=4, verbose=0)
    assert len(history.epoch) == 3


def test_early_stopping_gives_back_the_best_weights() -> None:
    made = model(optimizer=nn.optimizers.SGD(5.0))
    stop = nn.callbacks.EarlyStopping(monitor="val_loss", patience=2, restore_best_weights=True)
    history = made.fit(
        X[:30], Y[:30], 5, 50, verbose=0, seed=1, validation_data=(X[30:], Y[30:]), callbacks=[stop]
    )
    losses = history.history["val_loss"]
    assert len(losses) < 50
    assert made.evaluate(X[30:], Y[30:], verbose=0)[0] == min(losses)
    assert stop.best_epoch == int(np.argmin(losses))


def test_learning_rates_follow_their_callbacks() -> None:
    made = model(optimizer=nn.optimizers.SGD(0.1))
    rates: list[float] = []
    halve = nn.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5 if epoch else rate)
    watch = nn.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: rates.append(float(made.optimizer.learning_rate))
    )
    history = made.fit(X, Y, 10, 3, verbose=0, callbacks=[halve, watch])
    assert rates == pytest.approx([0.1, 0.05, 0.025])
    assert history.history["learning_rate"] == pytest.approx(rates)
    plateau = nn.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=1, min_delta=10.0, min_lr=0.004
    )
    made.fit(X, Y, 10, 5, verbose=0, callbacks=[plateau])
    assert float(made.optimizer.learning_rate) == pytest.approx(0.004)


def test_the_learning_rate_that_a_callback_sets_is_what_steps_use() -> None:
    scheduled, plain = model(optimizer=nn.optimizers.SGD(0.3)), model(optimizer=nn.optimizers.SGD(0.1))
    scheduled.fit(
        X, Y, 10, 1, verbose=0, seed=1, callbacks=[nn.callbacks.LearningRateScheduler(lambda e, r: 0.1)]
    )
    plain.fit(X, Y, 10, 1, verbose=0, seed=1)
    assert weights(scheduled) == weights(plain)


def test_state_of_callbacks_goes_through_json() -> None:
    import json

    stop = nn.callbacks.EarlyStopping(patience=3)
    again = nn.callbacks.EarlyStopping(patience=3)
    again.set_state(json.loads(json.dumps(stop.get_state())))
    assert again.best == stop.best == float("inf")


def test_csv_and_nan(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    model().fit(X, Y, 10, 2, verbose=0, callbacks=[nn.callbacks.CSVLogger(path)])
    model().fit(
        X, Y, 10, 3, initial_epoch=2, verbose=0, callbacks=[nn.callbacks.CSVLogger(path, append=True)]
    )
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert {"loss", "accuracy"} < rows[0].keys()
    bad = X.copy()
    bad[0] = np.nan
    made = model()
    history = made.fit(bad, Y, 50, 5, verbose=0, callbacks=[nn.callbacks.TerminateOnNaN()])
    assert len(history.epoch) == 1


class Doubled(nn.Model):
    """A `train_step` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Dense(16, activation="relu")
        self.out = nn.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.out(self.hidden(inputs))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with nn.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


class Plain(Doubled):
    """The same without it."""

    train_step = nn.Model.train_step


def test_a_train_step_of_ones_own_does_what_fit_does() -> None:
    found = []
    for cls in (Doubled, Plain):
        nn.utils.set_random_seed(3)
        made = cls()
        made.compile("sgd", nn.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = made.fit(X, Y, 10, 3, verbose=0, seed=1)
        found.append((made.get_weights(), history.history["loss"][-1]))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_train_on_batch_and_its_like() -> None:
    made = model(optimizer="sgd")
    found = made.train_on_batch(X[:10], Y[:10], return_dict=True)
    assert set(found) == {"loss", "accuracy"}
    loss, _ = made.test_on_batch(X[:10], Y[:10])
    assert loss < found["loss"]
    assert made.predict_on_batch(X[:4]).shape == (4, 3)
    assert made.metrics_names == ["loss", "accuracy"]


def test_progress_is_told_in_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    model().fit(X, Y, 10, 2, verbose=1)
    out = capsys.readouterr().out
    assert "Epoch 1/2" in out
    assert "5/5" in out
    assert "accuracy: " in out
    model().fit(X, Y, 10, 2, verbose=2)
    assert "Epoch 2/2 - 5/5 - 0s - loss: " in capsys.readouterr().out
    model().fit(X, Y, 10, 1, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: nn.Sequential([nn.Input((6,)), nn.Dense(3)]).fit(X, Y), "not compiled"),
        (lambda m: m.fit(X, Y[:10], verbose=0), "50, 10 samples"),
        (
            lambda m: m.fit(X[:, :4], Y, verbose=0),
            r"samples have shape \(4,\), but the model's input is \(6,\)",
        ),
        (lambda m: m.fit(X, Y, 0, verbose=0), "batch_size must be a positive integer"),
        (lambda m: m.fit(X, Y, validation_split=1.5, verbose=0), "validation_split must be between 0 and 1"),
        (
            lambda m: m.fit(X, Y, verbose=0, callbacks=[nn.callbacks.EarlyStopping("val_loss")]),
            "no such metric.*validation_data",
        ),
        (lambda m: m.fit((b for b in [(X, Y)]), verbose=0), "steps_per_epoch"),
        (lambda m: m.fit("x", verbose=0), "arrays, a dataset or batches"),
    ],
)
def test_mistakes_are_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        call(model())
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_a_sum_is_one_over_the_whole_batch_however_it_is_cut() -> None:
    found = []
    for count in (1, 3):
        made = model(optimizer=nn.optimizers.SGD(0.01))
        loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        made.compile(nn.optimizers.SGD(0.01), loss)
        history = made.fit(X, Y, 50, 2, verbose=0, seed=1, microbatches=count)
        found.append((history.history["loss"], made.get_weights()))
    mean = model(optimizer=nn.optimizers.SGD(0.5))
    expected = mean.fit(X, Y, 50, 2, verbose=0, seed=1).history["loss"]
    for losses, arrays in found:
        np.testing.assert_allclose(losses, np.multiply(expected, 50), rtol=1e-5)
        for a, b in zip(arrays, mean.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_of_several_batches_make_one_update() -> None:
    made = model(optimizer=nn.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    start = weights(made)
    made.fit(X[:8], Y[:8], 8, 1, verbose=0, seed=5)
    assert weights(made) == start
    made.fit(X[:8], Y[:8], 8, 1, verbose=0, seed=5)
    assert weights(made) != start
    assert (int(made.optimizer.iterations.numpy()), made.optimizer.steps) == (1, 2)


def test_a_scaled_loss_gives_the_same_weights() -> None:
    """The trainer scales and the optimizer unscales, as in Keras; by a power of two, which rounds nothing."""
    found = []
    for factor in (None, 1024.0):
        made = model(0.3, nn.optimizers.SGD(0.1, momentum=0.9, loss_scale_factor=factor))
        history = made.fit(X, Y, 10, 3, verbose=0, seed=1)
        found.append((weights(made), history.history))
    assert found[0] == found[1]
