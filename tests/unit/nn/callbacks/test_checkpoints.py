"""`nn.callbacks.ModelCheckpoint`: when it saves, as what, and what stays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from storage.testing import MemoryStore
from workers import nn
from workers.nn.callbacks import ModelCheckpoint
from workers.nn.callbacks.jobs import of_job
from workers.nn.callbacks.keeping import Rule, Saved, is_wanted, judge

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
STEPS = 5  # an epoch, with batches of 8


def model(dropout: float = 0.3) -> Any:
    nn.utils.set_random_seed(3)
    made = nn.Sequential([nn.Input((4,)), nn.Dense(8, activation="relu"), nn.Dropout(dropout), nn.Dense(2)])
    made.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
    return made


def fit(made: Any, epochs: int, *callbacks: Any, **options: Any) -> Any:
    return made.fit(X, Y, 8, epochs, verbose=0, callbacks=callbacks, seed=5, **options)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Told(nn.callbacks.Callback):
    """Puts values of its own in the place of a metric."""

    def __init__(self, values: list[float], name: str = "score") -> None:
        super().__init__()
        self.values, self.name = values, name

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs[self.name] = self.values[epoch]


def test_row_03_each_epoch_under_a_name_of_its_number_and_its_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / "cp-{epoch:04d}-{batch}-{val_loss:.3f}.ckpt"
    made = model()
    history = fit(
        made, 2, ModelCheckpoint(name, save_weights_only=True, verbose=1), validation_data=(X, Y)
    ).history
    expected = [f"cp-000{i + 1}-5-{history['val_loss'][i]:.3f}.ckpt" for i in range(2)]
    assert names(tmp_path) == expected
    for i in range(2):
        assert f"\nEpoch {i + 1}: saving model to {tmp_path / expected[i]}\n" in capsys.readouterr().out or i
    other = model()
    other.load_weights(tmp_path / expected[1]).assert_consumed()
    assert other.evaluate(X, Y, verbose=0) == made.evaluate(X, Y, verbose=0)


def test_row_03_so_many_batches_count_on_through_epochs(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}-{batch}", save_weights_only=True, save_freq=4)
    fit(model(), 2, callback)
    assert names(tmp_path) == ["1-4", "2-3"]
    fit(model(), 1, callback)  # it has seen two since
    assert names(tmp_path) == ["1-2", "1-4", "2-3"]


def test_row_03_whole_models_by_ending_and_weights_by_ending(tmp_path: Path) -> None:
    made = model()
    fit(
        made,
        1,
        ModelCheckpoint(tmp_path / "whole"),
        ModelCheckpoint(tmp_path / "whole.keras"),
        ModelCheckpoint(tmp_path / "some.weights.h5", save_weights_only=True),
    )
    expected = made.predict(X, verbose=0)
    for name in ("whole", "whole.keras"):
        assert np.array_equal(nn.load_model(tmp_path / name).predict(X, verbose=0), expected)
    other = model()
    other.load_weights(tmp_path / "some.weights.h5")
    assert np.array_equal(other.predict(X, verbose=0), expected)
    assert (tmp_path / "whole/run.json").is_file()
    assert (tmp_path / "whole.keras").is_file()


@pytest.mark.parametrize(
    ("mode", "monitor", "threshold", "saved"),
    [
        ("auto", "score", None, [1, 3]),
        ("min", "score", 0.5, [3]),
        ("max", "score", None, [1, 2]),
        ("auto", "my_accuracy", None, [1, 2]),
        ("max", "score", 5.0, []),
    ],
)
def test_row_03_the_best_alone(
    tmp_path: Path, mode: Any, monitor: str, threshold: float | None, saved: list[int]
) -> None:
    callback = ModelCheckpoint(
        tmp_path / "{epoch}",
        monitor,
        save_best_only=True,
        save_weights_only=True,
        mode=mode,
        initial_value_threshold=threshold,
    )
    fit(model(), 4, Told([0.6, 0.9, 0.4, float("nan")], monitor), callback)
    assert names(tmp_path) == [str(number) for number in saved]


def test_row_03_what_is_best_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = ModelCheckpoint(tmp_path / "best.keras", "score", 1, save_best_only=True)
    fit(model(), 3, Told([0.5, 0.25, 0.75]), callback)
    assert capsys.readouterr().out == (
        f"\nEpoch 1: score improved from None to 0.50000, saving model to {tmp_path / 'best.keras'}\n"
        f"\nEpoch 2: score improved from 0.50000 to 0.25000, saving model to {tmp_path / 'best.keras'}\n"
        "\nEpoch 3: score did not improve from 0.25000\n"
    )
    assert int(nn.load_model(tmp_path / "best.keras").optimizer.iterations) == 2 * STEPS


def test_row_03_without_the_metric_it_warns_and_saves(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "x", save_best_only=True)
    with pytest.warns(UserWarning, match=r"monitor='val_loss'.*no such metric, only loss, accuracy"):
        fit(model(), 1, callback)
    assert names(tmp_path) == ["x"]


def test_row_03_by_steps_and_by_time(tmp_path: Path) -> None:
    by_steps = ModelCheckpoint(
        tmp_path / "s/{epoch}-{batch}", save_weights_only=True, save_freq=None, every_steps=3
    )
    both = ModelCheckpoint(tmp_path / "b/{epoch}-{batch}", save_weights_only=True, every_steps=4)
    always = ModelCheckpoint(
        tmp_path / "t/{epoch}-{batch}", save_weights_only=True, save_freq=None, every_seconds=1e-9
    )
    never = ModelCheckpoint(
        tmp_path / "n/{epoch}-{batch}", save_weights_only=True, save_freq=None, every_seconds=1e6
    )
    fit(model(), 2, by_steps, both, always, never)
    assert names(tmp_path / "s") == ["1-3", "2-1", "2-4"]
    assert names(tmp_path / "b") == ["1-4", "1-5", "2-3", "2-5"]
    assert len(names(tmp_path / "t")) == 2 * STEPS
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("name", ["{epoch}", "{epoch}.keras"])
def test_row_03_the_newest_few_and_the_best_few_stay(tmp_path: Path, name: str) -> None:
    newest = ModelCheckpoint(tmp_path / "a" / name, max_to_keep=2)
    best = ModelCheckpoint(tmp_path / "b" / name, "score", best=2)
    either = ModelCheckpoint(tmp_path / "c" / name, "score", max_to_keep=1, best=1)
    fit(model(), 5, Told([0.3, 0.1, 0.5, 0.2, 0.4]), newest, best, either)
    ending = name.removeprefix("{epoch}")
    assert names(tmp_path / "a") == [f"{i}{ending}" for i in (4, 5)]
    assert names(tmp_path / "b") == [f"{i}{ending}" for i in (2, 4)]
    assert names(tmp_path / "c") == [f"{i}{ending}" for i in (2, 5)]
    assert newest.saved == [str(tmp_path / "a" / f"{i}{ending}") for i in (4, 5)]


def test_row_03_one_in_so_many_hours_stays_for_good(tmp_path: Path) -> None:
    class Hourly(ModelCheckpoint):
        """Twenty minutes pass from save to save."""

        times = iter(range(0, 10**6, 1200))
        clock = lambda self: float(next(self.times))  # noqa: E731 a clock of the test's own

    callback = Hourly(tmp_path / "{epoch}", save_weights_only=True, max_to_keep=1, keep_every_n_hours=1)
    fit(model(), 8, callback)
    assert names(tmp_path) == ["3", "6", "8"]


def test_row_03_any_url() -> None:
    store = MemoryStore()
    callback = ModelCheckpoint(f"{store.url}/cp-{{epoch}}", save_weights_only=True, max_to_keep=1)
    made = model()
    fit(made, 2, callback)
    assert nn.train.latest_checkpoint(store.url) == f"{store.url}/cp-2"
    other = model()
    other.load_weights(f"{store.url}/cp-2").assert_consumed()
    assert other.evaluate(X, Y, verbose=0) == made.evaluate(X, Y, verbose=0)


def test_section5_data_position_a_model_saved_in_mid_epoch_goes_on_with_the_next_batch(
    tmp_path: Path,
) -> None:
    """Order and dropout are functions of the step, and the step is in the file."""
    made = model()
    fit(made, 2, ModelCheckpoint(tmp_path / "{epoch}-{batch}", save_freq=7))
    again = nn.load_model(tmp_path / "2-2")
    assert int(again.optimizer.iterations) == 7
    again.fit(X, Y, 8, 2, initial_epoch=1, verbose=0)
    assert int(again.optimizer.iterations) == 2 * STEPS
    for a, b in zip(again.get_weights(), made.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_what_it_remembers_goes_through_json(tmp_path: Path) -> None:
    first = ModelCheckpoint(tmp_path / "{epoch}", "score", max_to_keep=2, save_best_only=True)
    fit(model(), 2, Told([0.3, 0.2]), first)
    second = ModelCheckpoint(tmp_path / "{epoch}", "score", max_to_keep=2, save_best_only=True)
    second.set_state(json.loads(json.dumps(first.get_state())))
    fit(model(), 4, Told([0.9, 0.9, 0.25, 0.1]), second, initial_epoch=2)
    assert names(tmp_path) == ["2", "4"]
    assert second.best == 0.1


def test_what_cannot_be_deleted_is_a_warning_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage import families
    from storage.errors import StorageError

    delete, failures = families.delete, []

    def failing(url: str, kind: str) -> None:
        if not failures:
            failures.append(url)
            raise StorageError("no way")
        delete(url, kind)

    monkeypatch.setattr(families, "delete", failing)
    callback = ModelCheckpoint(tmp_path / "{epoch}", save_weights_only=True, max_to_keep=1)
    with pytest.warns(UserWarning, match=r"saved, but .*/1 could not be deleted: no way"):
        fit(model(), 3, callback)
    assert names(tmp_path) == ["3"]


def test_the_rule_alone() -> None:
    saved = [Saved(str(i), i * 3600.0, value) for i, value in enumerate([3.0, 1.0, float("nan"), 2.0])]
    assert [each.path for each in judge(Rule(), saved, 0.0).kept] == ["0", "1", "2", "3"]
    found = judge(Rule(max_to_keep=1, best=1), saved, 1e9)
    assert ([each.path for each in found.kept], found.deleted) == (["1", "3"], ("0", "2"))
    assert judge(Rule(best=1, higher=True), saved, 1e9).kept == (saved[0],)
    found = judge(Rule(max_to_keep=1, every_hours=2), saved, 0.0)
    assert (found.deleted, found.preserved_at) == (("0", "1"), 7200.0)
    assert not is_wanted(Rule(best=2), saved, Saved("4", 0.0, 2.5))
    assert is_wanted(Rule(best=2), saved, Saved("4", 0.0, 1.5))
    assert is_wanted(Rule(best=1, max_to_keep=1), saved, Saved("4", 0.0, 9.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_freq": 0}, 'save_freq=0: give "epoch", a whole number from 1, or None'),
        ({"save_freq": True}, "save_freq=True"),
        ({"save_freq": "batch"}, "save_freq='batch'"),
        ({"every_steps": 1.5}, "every_steps=1.5: give a whole number"),
        ({"every_seconds": -1}, "every_seconds=-1: give a number above 0"),
        ({"mode": "up"}, "mode 'up' is not one of"),
        ({"max_to_keep": 0}, "max_to_keep=0: give a whole number from 1"),
        ({"best": True}, "best=True"),
        ({"keep_every_n_hours": 0}, "keep_every_n_hours=0"),
        (
            {"filepath": "x.weights.h5"},
            "x.weights.h5 is the name of a file of weights: set save_weights_only",
        ),
    ],
)
def test_mistakes_are_refused_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ModelCheckpoint(**({"filepath": "x"} | options))


@pytest.mark.parametrize(
    ("filepath", "options", "message"),
    [
        ("{val_loss}", {}, r"names val_loss, and there is only loss, accuracy, epoch, batch"),
        ("{epoch:q}", {}, r"'.*\{epoch:q\}' cannot be filled in"),
        ("{epoch", {}, "cannot be filled in"),
        (
            "x",
            {"best": 2},
            r"best=2, monitor='val_loss'\): there is no such metric here, only loss, accuracy",
        ),
        ("x#1", {}, "'#' would be taken for a step"),
    ],
)
def test_what_cannot_be_saved_says_so_in_one_line(
    tmp_path: Path, filepath: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        fit(model(), 1, ModelCheckpoint(f"{tmp_path}/{filepath}", **options))
    assert "\n" not in str(caught.value)


def test_a_job_saves_by_itself() -> None:
    with pytest.raises(ConfigurationError, match=r"ModelCheckpoint: a job saves by itself.*checkpoints="):
        of_job([ModelCheckpoint("x")])
