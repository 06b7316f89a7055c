"""Losses: exact gradients, sums that microbatches add up to, and what a user may write himself."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ConfigurationError
from workers import nn
from workers.nn import losses
from workers.nn.tensor import Tensor

N, CLASSES = 6, 4


def drawn(kind: str, shape: tuple[int, ...] = (N, CLASSES), dtype: Any = np.float64) -> tuple[Any, Any]:
    """Labels and predictions of a kind, away from all places without a slope."""
    rng = np.random.default_rng(7)
    z = rng.normal(size=shape)
    probability = rng.uniform(0.1, 0.9, shape)
    share = probability / probability.sum(axis=-1, keepdims=True)
    one_hot = np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])]
    y_true, y_pred = {
        "numbers": (rng.normal(size=shape), z),
        "positive": (rng.uniform(0.5, 2, shape), rng.uniform(0.5, 2, shape)),
        "signs": (rng.choice([-1.0, 1.0], shape), z),
        "bits, logits": (rng.integers(0, 2, shape), z),
        "bits, probabilities": (rng.integers(0, 2, shape), probability),
        "one-hot, logits": (one_hot, z),
        "one-hot, probabilities": (one_hot, probability),
        "shares": (share[::-1], share),
        "classes, logits": (rng.integers(0, shape[-1], shape[:-1]), z),
        "classes, probabilities": (rng.integers(0, shape[-1], shape[:-1]), probability),
    }[kind]
    return y_true, y_pred.astype(dtype)


CASES: dict[str, tuple[losses.Loss, str]] = {
    "mse": (losses.MeanSquaredError(), "numbers"),
    "mae": (losses.MeanAbsoluteError(), "numbers"),
    "mape": (losses.MeanAbsolutePercentageError(), "numbers"),
    "msle": (losses.MeanSquaredLogarithmicError(), "positive"),
    "huber": (losses.Huber(0.7), "numbers"),
    "log_cosh": (losses.LogCosh(), "numbers"),
    "poisson": (losses.Poisson(), "positive"),
    "cosine": (losses.CosineSimilarity(), "numbers"),
    "cosine, axis": (losses.CosineSimilarity(axis=0), "numbers"),
    "hinge": (losses.Hinge(), "signs"),
    "hinge, bits": (losses.Hinge(), "bits, logits"),
    "squared_hinge": (losses.SquaredHinge(), "signs"),
    "categorical_hinge": (losses.CategoricalHinge(), "one-hot, logits"),
    "kld": (losses.KLDivergence(), "shares"),
    "bce": (losses.BinaryCrossentropy(), "bits, probabilities"),
    "bce, logits": (losses.BinaryCrossentropy(True, 0.1), "bits, logits"),
    "bce, axis": (losses.BinaryCrossentropy(axis=0), "bits, probabilities"),
    "cce": (losses.CategoricalCrossentropy(), "one-hot, probabilities"),
    "cce, logits": (losses.CategoricalCrossentropy(True, 0.2), "one-hot, logits"),
    "scce": (losses.SparseCategoricalCrossentropy(), "classes, probabilities"),
    "scce, logits": (losses.SparseCategoricalCrossentropy(True), "classes, logits"),
    "scce, ignored": (losses.SparseCategoricalCrossentropy(True, ignore_class=1), "classes, logits"),
    "focal": (losses.BinaryFocalCrossentropy(), "bits, probabilities"),
    "focal, logits": (
        losses.BinaryFocalCrossentropy(True, 0.3, 1.5, from_logits=True, label_smoothing=0.1),
        "bits, logits",
    ),
    "categorical focal": (losses.CategoricalFocalCrossentropy(), "one-hot, probabilities"),
    "categorical focal, logits": (
        losses.CategoricalFocalCrossentropy([0.1, 0.2, 0.3, 0.4], 1.5, True, 0.1),
        "one-hot, logits",
    ),
    "dice": (losses.Dice(), "bits, probabilities"),
    "dice, axis": (losses.Dice(axis=1), "bits, probabilities"),
    "tversky": (losses.Tversky(0.3, 0.6, axis=(1,)), "bits, probabilities"),
}


class Cubic(losses.Loss):
    """A user's loss."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        error = y_pred - y_true
        return error * error * error


def weighted_error(y_true: Any, y_pred: Any) -> Any:
    """A user's function: errors below count three times."""
    error = nn.ops.square(y_true - y_pred)
    return nn.ops.mean(nn.ops.where(y_pred < y_true, 3.0 * error, error), axis=-1)


def one_number(y_true: Any, y_pred: Any) -> Any:
    """A user's function that takes the mean of all itself."""
    return nn.ops.mean(nn.ops.abs(y_true - y_pred))


CASES |= {
    "a class": (Cubic(), "numbers"),
    "a function": (losses.get(weighted_error), "numbers"),
    "a number": (losses.get(one_number), "numbers"),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences_in_float64(name: str) -> None:
    loss, kind = CASES[name]
    y_true, y_pred = drawn(kind)
    one_a_sample = np.ndim(loss.values(y_true, y_pred)) > 0 and getattr(loss, "axis", -1) != 0
    weight = np.linspace(0.5, 2, N) if one_a_sample else None
    grad = np.full_like(y_pred, np.nan)
    total, _ = loss.sums(y_true, y_pred, weight, grad)
    assert total == loss.sums(y_true, y_pred, weight)[0]
    step = 1e-6
    for place in np.ndindex(y_pred.shape):
        at = []
        for sign in (1, -1):
            moved = y_pred.copy()
            moved[place] += sign * step
            at.append(loss.sums(y_true, moved, weight)[0])
        assert (at[0] - at[1]) / (2 * step) == pytest.approx(grad[place], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (losses.CategoricalCrossentropy, "one-hot, probabilities"),
        (losses.CategoricalFocalCrossentropy, "one-hot, probabilities"),
        (losses.SparseCategoricalCrossentropy, "classes, probabilities"),
    ],
)
def test_classes_may_lie_along_another_axis(make: Any, kind: str, axis: int) -> None:
    y_true, y_pred = drawn(kind, (3, 5, CLASSES))
    grad = np.empty_like(y_pred)
    expected = make().sums(y_true, y_pred, [1, 2, 3], grad)

    def moved(x: Any) -> Any:
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))

    found = np.empty_like(moved(y_pred))
    true = moved(y_true) if y_true.ndim == 3 else y_true
    assert make(axis=axis).sums(true, moved(y_pred), [1, 2, 3], found) == pytest.approx(expected)
    np.testing.assert_allclose(found, moved(grad))


def reduced(name: str, reduction: str) -> tuple[losses.Loss, str]:
    """The loss of a case with another reduction, and its kind of data."""
    loss, kind = CASES[name]
    other = copy.copy(loss)
    other.reduction = "sum_over_batch_size" if reduction == "mean" else reduction
    return other, kind


WHOLE = ("dice", "a number")
SPLITTABLE = [n for n, (loss, _) in CASES.items() if getattr(loss, "axis", -1) != 0 and n not in WHOLE]


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("name", SPLITTABLE)
@settings(max_examples=15)
@given(cuts=st.sets(st.integers(0, N)), weighted=st.booleans())
def test_microbatches_add_up_to_the_batch(name: str, reduction: str, cuts: set[int], weighted: bool) -> None:
    loss, kind = reduced(name, reduction)
    y_true, y_pred = drawn(kind)
    weight = np.linspace(0, 2, N) if weighted else None
    whole = loss(y_true, y_pred, weight)
    sums = np.zeros(2)
    for start, end in pairwise([0, *sorted(cuts), N]):
        rows = slice(start, end)
        w = None if weight is None else weight[rows]
        sums += loss.sums(y_true[rows], y_pred[rows], w, share=(end - start) / N)
    assert sums[0] / sums[1] == pytest.approx(whole, rel=1e-12, abs=1e-12)


def test_reductions_are_those_of_keras() -> None:
    y_true, y_pred, weight = np.zeros((3, 1)), np.array([[1.0], [2.0], [3.0]]), [1.0, 0.5, 0.0]
    weighted = [1.0, 2.0, 0.0]

    def with_weights(reduction: Any) -> Any:
        return losses.MeanSquaredError(reduction)(y_true, y_pred, weight)

    assert with_weights("sum_over_batch_size") == with_weights("mean") == pytest.approx(1)
    assert with_weights("sum") == pytest.approx(3)
    assert with_weights("mean_with_sample_weight") == pytest.approx(2)
    for none in ("none", None):
        np.testing.assert_allclose(with_weights(none), weighted)


def test_what_is_masked_or_ignored_does_not_count() -> None:
    y_true, z = drawn("classes, logits")
    counts = y_true != 1
    assert 0 < counts.sum() < N
    plain = losses.SparseCategoricalCrossentropy(True)
    expected = plain(y_true[counts], z[counts])
    assert losses.SparseCategoricalCrossentropy(True, 1)(y_true, z) == pytest.approx(expected)
    void = np.where(counts, y_true, 255)
    assert losses.SparseCategoricalCrossentropy(True, 255)(void, z) == pytest.approx(expected)
    grad = np.empty_like(z)
    total, divisor = plain.sums(y_true, z, grad=grad, mask=counts)
    assert (total / divisor, divisor) == (pytest.approx(expected), counts.sum())
    assert (grad[~counts] == 0).all()
    assert (grad[counts] != 0).all()
    tensor = Tensor(z)
    tensor.mask = Tensor(counts)
    assert float(plain(y_true, tensor)) == pytest.approx(expected)


def test_one_value_of_the_whole_batch_counts_for_each_row() -> None:
    y_true, y_pred = drawn("bits, probabilities")
    dice = losses.Dice()
    value = float(dice.values(y_true, y_pred))
    assert dice(y_true, y_pred) == pytest.approx(value)
    assert losses.Dice("sum")(y_true, y_pred) == pytest.approx(value)
    assert dice.sums(y_true, y_pred) == (pytest.approx(N * value), N)
    assert dice(y_true, y_pred, np.full(N, 0.5)) == pytest.approx(value / 2)
    assert losses.Dice("sum")(y_true, y_pred, np.full(N, 0.5)) == pytest.approx(value * N / 2)


@pytest.mark.parametrize(
    ("function", "y_true", "y_pred", "options", "expected"),
    [
        (losses.dice, [[1.0], [1.0], [0.0], [0.0]], [[0.0], [1.0], [0.0], [1.0]], {}, 0.5),
        (losses.huber, [[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]], {}, [0.18, 0.13]),
        (losses.cosine_similarity, [[0.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]], {}, [0, -1]),
        (losses.categorical_crossentropy, [[0, 1, 0]], [[0.05, 0.95, 0]], {}, [0.05129329]),
        (
            losses.sparse_categorical_crossentropy,
            [1, 2],
            [[0.05, 0.95, 0], [0.1, 0.8, 0.1]],
            {},
            [0.0513, 2.303],
        ),
        (losses.binary_crossentropy, [[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]], {}, [0.916, 0.714]),
        (
            losses.binary_focal_crossentropy,
            [[0, 1], [0, 0]],
            [[0.6, 0.4], [0.4, 0.6]],
            {"gamma": 2},
            [0.330, 0.206],
        ),
        (
            losses.categorical_focal_crossentropy,
            [[0, 1, 0], [0, 0, 1]],
            [[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]],
            {},
            [2.63401289e-04, 6.75912094e-01],
        ),
        (losses.log_cosh, [[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], {}, [0.216890, 0]),
        (losses.kld, [[0.0, 1.0]], [[0.6, 0.4]], {}, [0.9162892]),
        (losses.hinge, [[0.0, 1.0], [0.0, 0.0]], [[0.6, 0.4], [0.4, 0.6]], {}, [1.1, 1.5]),
        (losses.squared_hinge, [[0.0, 1.0], [0.0, 0.0]], [[0.6, 0.4], [0.4, 0.6]], {}, [1.46, 2.26]),
        (losses.categorical_hinge, [[0, 1], [0, 0]], [[0.6, 0.4], [0.4, 0.6]], {}, [1.2, 1.6]),
        (losses.poisson, [[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], {}, [1.0, 0.0]),
        (losses.tversky, [[1.0, 0.0]], [[0.5, 0.5]], {"alpha": 1.0, "beta": 0.0}, 0.5),
    ],
)
def test_functions_give_the_values_that_keras_documents(
    function: Any, y_true: Any, y_pred: Any, options: Any, expected: Any
) -> None:
    np.testing.assert_allclose(function(y_true, y_pred, **options), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("a ")])
def test_a_loss_comes_back_from_its_config(name: str) -> None:
    loss, kind = CASES[name]
    stored = json.loads(json.dumps(losses.serialize(loss)))
    again = losses.deserialize(stored)
    assert losses.serialize(again) == stored
    np.testing.assert_array_equal(again.values(*drawn(kind)), loss.values(*drawn(kind)))


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("mse", losses.MeanSquaredError),
        ("MAE", losses.MeanAbsoluteError),
        ("kld", losses.KLDivergence),
        ("huber", losses.Huber),
        ("bce", losses.BinaryCrossentropy),
        ("categorical_crossentropy", losses.CategoricalCrossentropy),
        ("BinaryFocalCrossentropy", losses.BinaryFocalCrossentropy),
    ],
)
def test_losses_have_keras_names(name: str, cls: type) -> None:
    assert type(losses.get(name)) is cls
    assert type(losses.get(cls)) is cls


# -- on tensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", "none"])
@pytest.mark.parametrize("name", ["mse", "bce, axis", "scce, ignored", "dice", "a class", "a number"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_tape_gives_the_gradient_of_the_reduced_loss(name: str, reduction: str, weighted: bool) -> None:
    loss, kind = reduced(name, reduction)
    y_true, y_pred = drawn(kind)
    weight = np.linspace(0.5, 2, N) if weighted and "axis" not in name else None
    predictions = Tensor(y_pred)
    with nn.GradientTape() as tape:
        tape.watch(predictions)
        value = loss(y_true, predictions, weight)
    np.testing.assert_allclose(value.numpy(), loss(y_true, y_pred, weight))
    gradient = tape.gradient(value, predictions).numpy()
    grad = np.empty_like(y_pred)
    with_sums, _ = reduced(name, "mean" if reduction == "none" else reduction)
    total, divisor = with_sums.sums(y_true, y_pred, weight, grad)
    if reduction == "none":
        divisor = total / value.numpy().sum()  # the tape's target is the sum of all values
    np.testing.assert_allclose(gradient, grad / divisor)


def test_a_loss_can_be_traced() -> None:
    from workers.nn.graph import trace
    from workers.nn.ops.base import Run
    from workers.nn.program import Program
    from workers.nn.tensor import Spec

    loss = losses.MeanSquaredError()
    graph = trace(lambda y, p: loss(y, p * 2.0), Spec((None, 3)), Spec((None, 3)))
    json.dumps([node.attrs for node in graph.nodes])
    y_true, y_pred = drawn("numbers", (4, 3), np.float32)
    (found,) = Program(graph, 4).forward([y_true, y_pred], [], Run())
    assert found == pytest.approx(loss(y_true.astype(np.float32), y_pred * 2))


def test_learning_through_y_true_is_refused() -> None:
    from workers.nn.graph import trace
    from workers.nn.program import Program
    from workers.nn.tensor import Spec

    variable = nn.Variable(np.zeros(3, np.float32))
    graph = trace(lambda p: losses.MeanSquaredError()(p * 0.0 + variable, p), Spec((2, 3)))
    with pytest.raises(ConfigurationError, match="no gradient by y_true"):
        Program(graph, 2, wanted=[0])


# -- losses of one's own ----------------------------------------------------------------------------------


def test_a_loss_of_ones_own_trains_as_the_same_one_here() -> None:
    def squared(y_true: Any, y_pred: Any) -> Any:
        return nn.ops.mean(nn.ops.square(y_true - y_pred), axis=-1)

    y_true, y_pred = drawn("numbers", (N, 1), np.float32)
    mine, ours = losses.get(squared), losses.MeanSquaredError()
    grads = np.empty_like(y_pred), np.empty_like(y_pred)
    assert mine.name == "squared"
    # Labels of shape (n,) stand for (n, 1), and are not broadcast to (n, n).
    assert mine.sums(y_true[:, 0], y_pred, None, grads[0]) == pytest.approx(
        ours.sums(y_true, y_pred, None, grads[1])
    )
    np.testing.assert_allclose(*grads, rtol=1e-6)


def test_a_loss_without_predictions_has_no_slope() -> None:
    y_true, y_pred = drawn("numbers")
    grad = np.full_like(y_pred, np.nan)
    losses.get(lambda y, p: y * 2.0).sums(y_true, y_pred, None, grad)
    assert (grad == 0).all()


def test_numpy_in_a_loss_of_ones_own_is_refused_with_its_line() -> None:
    loss = losses.get(lambda y_true, y_pred: np.square(np.asarray(y_pred)))
    with pytest.raises(ConfigurationError, match=r"test_losses\.py, line"):
        loss.values(*drawn("numbers"))


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.MeanSquaredError("avg"), "unknown reduction 'avg'"),
        (lambda: losses.BinaryCrossentropy(label_smoothing=2), "label_smoothing must be between 0 and 1"),
        (lambda: losses.Huber(0), "delta must be above 0"),
        (lambda: losses.CategoricalCrossentropy(axis=True), "axis must be an integer"),
        (lambda: losses.get("mes"), "unknown loss 'mes'.*mse"),
        (lambda: losses.MeanSquaredError()(np.zeros((2, 3)), np.zeros((2, 4))), "do not fit predictions"),
        (lambda: losses.SparseCategoricalCrossentropy()([3], np.ones((1, 3))), "label 3 is out of range"),
        (lambda: losses.SparseCategoricalCrossentropy()([-1], np.ones((1, 3))), "label -1 is out of range"),
        (
            lambda: losses.SparseCategoricalCrossentropy()([[0, 1]], np.ones((1, 3))),
            r"labels of shape \(1, 2\)",
        ),
        (lambda: losses.MeanSquaredError()([[0.0]], [[1.0]], [1, 2]), "sample weights of shape"),
        (lambda: losses.MeanSquaredError(None).sums(np.zeros((1, 1)), np.ones((1, 1))), "reduction 'none'"),
        (lambda: losses.Loss()([0.0], [1.0]), "must give one"),
        (lambda: losses.get(lambda y, p: 3.0)([[0.0]], [[1.0]]), "give a tensor"),
    ],
)
def test_a_mistake_is_told_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
