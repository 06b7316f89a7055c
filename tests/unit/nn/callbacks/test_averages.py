"""Optimizers that average the weights: where training, evaluation and prediction leave the averages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from workers import nn

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3)).astype(np.float32)
Y = X[:, :1] * 2 + 1


class Stopped(Exception):
    """What a callback raises in the middle of something."""


class RaisingIn(nn.callbacks.Callback):
    """Raises at the second of such moments."""

    def __init__(self, moment: str) -> None:
        super().__init__()
        self._left = 2
        setattr(self, moment, self._raise)

    def _raise(self, *_: Any) -> None:
        self._left -= 1
        if not self._left:
            raise Stopped


def model(**settings: Any) -> Any:
    nn.utils.set_random_seed(1)
    made = nn.Sequential([nn.Input((3,)), nn.Dense(4, activation="tanh"), nn.Dense(1)])
    made.compile(nn.optimizers.SGD(0.1, **({"use_ema": True, "ema_momentum": 0.9} | settings)), "mse")
    return made


def fit(made: Any, epochs: int = 3, **options: Any) -> Any:
    return made.fit(X, Y, 8, epochs, verbose=0, seed=5, **options)


class LastWeights(nn.callbacks.Callback):
    """The weights at the end of the last epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.found = self.model.get_weights()


def same(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def averages(made: Any) -> list[Any]:
    return [each.copy() for each in made.optimizer.averages(made.trainable_weights)]


@pytest.mark.parametrize("frequency", [None, 4])
def test_fit_ends_with_the_averages(frequency: int | None) -> None:
    made, last = model(ema_overwrite_frequency=frequency), LastWeights()
    fit(made, callbacks=[last])
    assert same(made.get_weights(), averages(made))
    assert not same(made.get_weights(), last.found)
    without = model(use_ema=False)
    fit(without, callbacks=[last])
    assert same(without.get_weights(), last.found)


def test_a_fit_without_a_step_leaves_the_weights() -> None:
    made = model()
    before = made.get_weights()
    fit(made, epochs=2, initial_epoch=2)
    assert same(made.get_weights(), before)


def test_variables_that_a_step_of_the_users_own_does_not_train_are_left() -> None:
    class Half(nn.Model):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Dense(1), nn.Dense(1)

        def call(self, inputs: Any) -> Any:
            return self.one(inputs) + self.other(inputs)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with nn.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x))
            self.optimizer.apply(tape.gradient(loss, self.one.trainable_weights), self.one.trainable_weights)
            return {"loss": loss}

    made: Any = Half()
    made.compile(nn.optimizers.SGD(0.1, use_ema=True), "mse")
    made.build((None, 3))
    other = made.other.get_weights()
    fit(made, epochs=1)
    assert same(made.other.get_weights(), other)
    assert same(made.one.get_weights(), made.optimizer.averages(made.one.trainable_weights))


@pytest.mark.parametrize("on_epoch", [False, True])
def test_with_the_callback_it_ends_with_them_too(on_epoch: bool) -> None:
    made, plain = model(), model()
    fit(made, callbacks=[nn.callbacks.SwapEMAWeights(on_epoch)])
    fit(plain)
    assert same(made.get_weights(), averages(made))
    assert same(made.get_weights(), plain.get_weights())


def test_a_training_that_was_cut_short_ends_with_the_same_averages(tmp_path: Path) -> None:
    whole, cut, again = model(), model(), model()
    fit(whole)
    backup = nn.callbacks.BackupAndRestore(tmp_path / "b", 2)
    with pytest.raises(Stopped):
        fit(cut, callbacks=[backup, RaisingIn("on_epoch_end")])
    fit(again, callbacks=[backup])
    assert same(again.get_weights(), whole.get_weights())


@pytest.mark.parametrize(
    "moment", ["on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end"]
)
def test_section5_an_evaluation_that_raises_leaves_the_last_weights(moment: str) -> None:
    made = model()
    fit(made)
    made.set_weights([each + 1 for each in made.get_weights()])
    before, callbacks = made.get_weights(), [nn.callbacks.SwapEMAWeights(), RaisingIn(moment)]
    made.evaluate(X, Y, 40, verbose=0, callbacks=callbacks)
    with pytest.raises(Stopped):
        made.evaluate(X, Y, 40, verbose=0, callbacks=callbacks)
    assert same(made.get_weights(), before)
    made.evaluate(X, Y, 8, verbose=0, callbacks=callbacks[:1])
    assert same(made.get_weights(), before)


def test_section5_a_prediction_that_raises_leaves_the_last_weights() -> None:
    made = model()
    fit(made)
    made.set_weights([each + 1 for each in made.get_weights()])
    before, swap = made.get_weights(), nn.callbacks.SwapEMAWeights()
    with pytest.raises(Stopped):
        made.predict(X, 8, verbose=0, callbacks=[swap, RaisingIn("on_predict_batch_end")])
    assert same(made.get_weights(), before)

    def batches() -> Any:
        yield (X[:8],)
        raise Stopped

    with pytest.raises(Stopped):
        made.predict(batches(), verbose=0, steps=2, callbacks=[swap])
    assert same(made.get_weights(), before)


def test_section5_a_training_that_raises_between_two_epochs_leaves_the_last_weights() -> None:
    made, seen = model(), LastWeights()
    swap = nn.callbacks.SwapEMAWeights(swap_on_epoch=True)
    with pytest.raises(Stopped):
        fit(made, callbacks=[seen, swap, RaisingIn("on_epoch_end")])
    assert same(made.get_weights(), seen.found)
    assert not same(made.get_weights(), averages(made))
