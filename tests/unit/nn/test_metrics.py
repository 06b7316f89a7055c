"""Metrics: plain definitions, sums that add up over any cut into microbatches, and use by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer  # type: ignore[import-untyped]

from storage.errors import ConfigurationError
from workers import nn, reports
from workers.nn import metrics
from workers.nn.tensor import Tensor

N, CLASSES = 40, 3


def drawn(kind: str) -> tuple[Any, Any]:
    """Labels and predictions of a kind."""
    rng = np.random.default_rng(11)
    scores = rng.uniform(size=(N, CLASSES)).astype(np.float32)
    numbers = rng.integers(0, CLASSES, N)
    return {
        "bits": (rng.integers(0, 2, (N, 1)), scores[:, :1]),
        "columns of bits": (rng.integers(0, 2, (N, CLASSES)), scores),
        "numbers": (rng.normal(size=(N, CLASSES)).astype(np.float32), scores),
        "positive": (rng.uniform(0.5, 2, (N, CLASSES)).astype(np.float32), scores),
        "classes": (numbers, scores),
        "one-hot": (np.eye(CLASSES, dtype=np.float32)[numbers], scores),
        "two classes": (numbers, rng.integers(0, CLASSES, N)),
    }[kind]


def squared(y_true: Any, y_pred: Any) -> Any:
    """A user's function."""
    return (y_true - y_pred) * (y_true - y_pred)


CASES: dict[str, tuple[Any, str]] = {
    "accuracy": (metrics.Accuracy, "two classes"),
    "binary": (lambda: metrics.BinaryAccuracy(threshold=0.4), "bits"),
    "categorical": (metrics.CategoricalAccuracy, "one-hot"),
    "sparse": (metrics.SparseCategoricalAccuracy, "classes"),
    "top k": (lambda: metrics.TopKCategoricalAccuracy(2), "one-hot"),
    "sparse top k": (lambda: metrics.SparseTopKCategoricalAccuracy(2), "classes"),
    "by shape": (lambda: metrics.get("accuracy"), "classes"),
    "mse": (metrics.MeanSquaredError, "numbers"),
    "rmse": (metrics.RootMeanSquaredError, "numbers"),
    "mae": (metrics.MeanAbsoluteError, "numbers"),
    "mape": (metrics.MeanAbsolutePercentageError, "numbers"),
    "msle": (metrics.MeanSquaredLogarithmicError, "positive"),
    "log_cosh": (metrics.LogCoshError, "numbers"),
    "cosine": (metrics.CosineSimilarity, "numbers"),
    "poisson": (metrics.Poisson, "positive"),
    "kld": (metrics.KLDivergence, "one-hot"),
    "bce": (lambda: metrics.BinaryCrossentropy(label_smoothing=0.1), "bits"),
    "cce": (lambda: metrics.CategoricalCrossentropy(from_logits=True), "one-hot"),
    "scce": (lambda: metrics.SparseCategoricalCrossentropy(ignore_class=1), "classes"),
    "hinge": (metrics.Hinge, "columns of bits"),
    "squared_hinge": (metrics.SquaredHinge, "columns of bits"),
    "categorical_hinge": (metrics.CategoricalHinge, "one-hot"),
    "tp": (metrics.TruePositives, "bits"),
    "tn": (metrics.TrueNegatives, "bits"),
    "fp": (lambda: metrics.FalsePositives([0.7, 0.2]), "bits"),
    "fn": (lambda: metrics.FalseNegatives(0.3), "bits"),
    "precision": (lambda: metrics.Precision([0.8, 0.2, 0.5]), "columns of bits"),
    "precision top k": (lambda: metrics.Precision(top_k=2), "columns of bits"),
    "recall": (lambda: metrics.Recall(class_id=1), "columns of bits"),
    "at specificity": (lambda: metrics.SensitivityAtSpecificity(0.4), "bits"),
    "at sensitivity": (lambda: metrics.SpecificityAtSensitivity(0.4), "bits"),
    "at recall": (lambda: metrics.PrecisionAtRecall(0.4, num_thresholds=20), "bits"),
    "at precision": (lambda: metrics.RecallAtPrecision(0.4, class_id=2), "columns of bits"),
    "auc": (metrics.AUC, "bits"),
    "auc pr": (lambda: metrics.AUC(50, "PR"), "bits"),
    "auc thresholds": (
        lambda: metrics.AUC(curve="PR", summation_method="majoring", thresholds=[0.6, 0.3]),
        "bits",
    ),
    "auc labels": (lambda: metrics.AUC(multi_label=True, label_weights=[1, 2, 3]), "columns of bits"),
    "auc weights": (lambda: metrics.AUC(20, label_weights=[1, 2, 3], from_logits=True), "columns of bits"),
    "f1": (metrics.F1Score, "one-hot"),
    "f1 micro": (lambda: metrics.F1Score("micro", 0.5), "columns of bits"),
    "fbeta": (lambda: metrics.FBetaScore("weighted", 2.0), "one-hot"),
    "r2": (metrics.R2Score, "numbers"),
    "r2 adjusted": (lambda: metrics.R2Score(None, 2), "numbers"),
    "iou": (lambda: metrics.IoU(CLASSES, [0, 2]), "two classes"),
    "mean iou": (lambda: metrics.MeanIoU(CLASSES, ignore_class=1), "two classes"),
    "binary iou": (lambda: metrics.BinaryIoU(threshold=0.3), "bits"),
    "one-hot iou": (lambda: metrics.OneHotIoU(CLASSES, [1]), "one-hot"),
    "one-hot mean iou": (lambda: metrics.OneHotMeanIoU(CLASSES), "one-hot"),
}
OWN = {
    "a function": (lambda: metrics.get(squared), "numbers"),
    "a loss": (lambda: metrics.get(nn.losses.Huber(0.3)), "numbers"),
}


@pytest.mark.parametrize("name", [*CASES, *OWN])
@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, N), max_size=5), weighted=st.booleans())
def test_rows_of_microbatches_add_up_to_those_of_the_whole(
    name: str, cuts: list[int], weighted: bool
) -> None:
    make, kind = (CASES | OWN)[name]
    y_true, y_pred = drawn(kind)
    weight = np.arange(N) / 8 if weighted else None  # sums of these are exact
    whole = make()
    whole.update_state(y_true, y_pred, weight)
    parts, metric = [], make()
    for start, end in pairwise([0, *sorted(cuts), N]):
        rows = slice(start, end)
        metric.build(y_pred[rows].shape)
        parts.append(metric.sums(y_true[rows], y_pred[rows], None if weight is None else weight[rows]))
    assert {part.shape for part in parts} == {(metric.rows, 2)}
    assert {part.dtype for part in parts} == {np.dtype(np.float64)}
    report = json.loads(json.dumps(metric.report()))
    found = reports.results(
        [reports.mean("loss"), report], np.concatenate([[[1.0, 2.0]], sum(parts)]), "val_"
    )
    assert found.pop("val_loss") == 0.5
    assert {key.split("_")[0] for key in found} == {"val"}
    # float32 values are added in another order, so that they are not equal to the last bit.
    np.testing.assert_allclose(list(found.values()), np.ravel(whole.result()), rtol=1e-6, atol=1e-9)
    assert np.isfinite(whole.result()).all()


# The adjustment of R2 counts samples, not their weights.
@pytest.mark.parametrize("name", [name for name in (*CASES, *OWN) if name != "r2 adjusted"])
def test_a_weight_of_two_is_the_sample_twice_and_a_mask_is_a_weight_of_none(name: str) -> None:
    make, kind = (CASES | OWN)[name]
    y_true, y_pred = drawn(kind)
    times = np.random.default_rng(5).integers(0, 3, N)
    weighted, repeated, masked = make(), make(), make()
    weighted.update_state(y_true, y_pred, times)
    repeated.update_state(np.repeat(y_true, times, axis=0), np.repeat(y_pred, times, axis=0))
    np.testing.assert_allclose(weighted.result(), repeated.result(), rtol=1e-6)
    tensor = Tensor(y_pred)
    tensor.mask = Tensor(times > 0)
    masked.update_state(y_true, tensor, np.maximum(times, 1))
    np.testing.assert_allclose(masked.result(), weighted.result(), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_metric_comes_back_from_its_config(name: str) -> None:
    make, kind = CASES[name]
    metric = make()
    stored = json.loads(json.dumps(metrics.serialize(metric)))
    again = metrics.deserialize(stored)
    assert metrics.serialize(again) == stored
    np.testing.assert_array_equal(again(*drawn(kind)), metric(*drawn(kind)))


@pytest.mark.parametrize("name", CASES)
def test_state_is_forgotten_and_merged(name: str) -> None:
    make, kind = CASES[name]
    y_true, y_pred = drawn(kind)
    whole, one, other = make(), make(), make()
    assert whole.result() == 0
    expected = whole(y_true, y_pred)
    assert one(y_true[:9], y_pred[:9]) is not None
    other.update_state(y_true[9:], y_pred[9:])
    one.merge_state([other])
    np.testing.assert_allclose(one.result(), expected, rtol=1e-6)
    assert len(one.variables) == 1
    one.reset_state()
    assert one.result() == 0
    np.testing.assert_array_equal(one(y_true, y_pred), expected)


# -- against plain definitions ----------------------------------------------------------------------------


def cells(y_true: Any, y_pred: Any, threshold: float, weight: Any = 1.0) -> tuple[float, float, float, float]:
    """True and false positives, false and true negatives, by their definition."""
    true, yes = y_true.ravel() != 0, y_pred.ravel() > np.float32(threshold)
    weight = np.broadcast_to(weight, true.shape)
    return tuple(weight[where].sum() for where in (true & yes, ~true & yes, true & ~yes, ~true & ~yes))  # type: ignore[return-value]


@given(
    data=st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.75, 1.0])), min_size=1),
    thresholds=st.lists(st.sampled_from([0.0, 0.2, 0.25, 0.5, 1.0]), min_size=1, unique=True),
)
def test_decisions_are_counted_as_defined_also_at_the_threshold(data: Any, thresholds: list[float]) -> None:
    y_true = np.array([[label] for label, _ in data])
    y_pred = np.array([[score] for _, score in data], np.float32)
    kinds = (
        metrics.TruePositives,
        metrics.FalsePositives,
        metrics.FalseNegatives,
        metrics.TrueNegatives,
    )
    expected = np.array([cells(y_true, y_pred, threshold) for threshold in thresholds]).T
    for kind, counts in zip(kinds, expected, strict=True):
        np.testing.assert_array_equal(np.ravel(kind(thresholds)(y_true, y_pred)), counts)


def test_precision_and_recall_are_those_of_the_peer() -> None:
    y_true, y_pred = drawn("columns of bits")
    yes = y_pred > 0.5
    assert metrics.Precision()(y_true, y_pred) == pytest.approx(
        peer.precision_score(y_true.ravel(), yes.ravel())
    )
    assert metrics.Recall()(y_true, y_pred) == pytest.approx(peer.recall_score(y_true.ravel(), yes.ravel()))
    largest = np.argsort(-y_pred, axis=-1)[:, :2]
    chosen = np.zeros_like(yes)
    np.put_along_axis(chosen, largest, True, axis=-1)
    top = metrics.Recall(top_k=2, class_id=0)(y_true, y_pred)
    assert top == pytest.approx(peer.recall_score(y_true[:, 0], chosen[:, 0]))


def test_area_under_roc_comes_to_the_exact_one() -> None:
    y_true, y_pred = drawn("bits")
    assert metrics.AUC(20001)(y_true, y_pred) == pytest.approx(peer.roc_auc_score(y_true, y_pred), abs=1e-3)
    y_true, y_pred = drawn("columns of bits")
    weights = [0.2, 0.3, 0.5]
    each = [peer.roc_auc_score(y_true[:, i], y_pred[:, i]) for i in range(CLASSES)]
    found = metrics.AUC(20001, multi_label=True, label_weights=weights)(y_true, y_pred)
    assert found == pytest.approx(np.dot(each, weights), abs=1e-3)


def test_areas_are_sums_between_thresholds_as_defined() -> None:
    y_true, y_pred = drawn("bits")
    thresholds = [-1e-7, 0.2, 0.5, 0.9, 1 + 1e-7]
    counts = [cells(y_true, y_pred, threshold) for threshold in thresholds]
    recall = [tp / (tp + fn) for tp, _, fn, _ in counts]
    fall_out = [fp / (fp + tn) for _, fp, _, tn in counts]
    precision = [tp / (tp + fp) if tp + fp else 0 for tp, fp, _, _ in counts]
    for curve, x, y in (("ROC", fall_out, recall), ("PR", recall, precision)):
        for method, height in (("interpolation", np.mean), ("minoring", np.min), ("majoring", np.max)):
            if (curve, method) == ("PR", "interpolation"):
                continue
            area = sum((x[i] - x[i + 1]) * height(y[i : i + 2]) for i in range(4))
            found = metrics.AUC(curve=curve, summation_method=method, thresholds=[0.9, 0.2, 0.5])
            assert found(y_true, y_pred) == pytest.approx(area)


def test_area_under_precision_is_the_integral_of_interpolated_counts() -> None:
    """Davis and Goadrich: between two thresholds false positives grow in proportion to true ones."""
    y_true, y_pred = drawn("bits")
    counts = [cells(y_true, y_pred, threshold) for threshold in (-1e-7, 0.2, 0.5, 0.9, 1 + 1e-7)]
    area = 0.0
    for (tp, fp, fn, _), (low_tp, low_fp, _, _) in pairwise(counts):
        part = (np.arange(20000) + 0.5) / 20000
        true = low_tp + part * (tp - low_tp)
        area += np.mean(true / (true + low_fp + part * (fp - low_fp))) * (tp - low_tp) / (tp + fn)
    found = metrics.AUC(curve="PR", thresholds=[0.2, 0.5, 0.9])(y_true, y_pred)
    assert found == pytest.approx(area, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "better", "bound", "value"),
    [
        (metrics.SensitivityAtSpecificity, "recall", "specificity", 0.6),
        (metrics.SpecificityAtSensitivity, "specificity", "recall", 0.6),
        (metrics.PrecisionAtRecall, "precision", "recall", 0.6),
        (metrics.RecallAtPrecision, "recall", "precision", 0.4),
    ],
)
def test_rates_at_others_are_the_best_that_a_threshold_gives(
    make: Any, better: str, bound: str, value: float
) -> None:
    y_true, y_pred = drawn("bits")
    found = []
    for i in range(30):
        tp, fp, fn, tn = cells(y_true, y_pred, i / 29)
        rates = {
            "recall": tp / (tp + fn),
            "precision": tp / (tp + fp) if tp + fp else 0.0,
            "specificity": tn / (tn + fp),
        }
        if rates[bound] >= value:
            found.append(rates[better])
    assert make(value, num_thresholds=30)(y_true, y_pred) == pytest.approx(max(found))


@pytest.mark.parametrize("average", [None, "micro", "macro", "weighted"])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_f_scores_are_those_of_the_peer(average: str | None, beta: float) -> None:
    y_true, y_pred = drawn("columns of bits")
    yes = y_pred > 0.5
    expected = peer.fbeta_score(y_true, yes, beta=beta, average=average)
    found = metrics.FBetaScore(average, beta, threshold=0.5)(y_true, y_pred)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_r2_is_that_of_the_peer() -> None:
    y_true, y_pred = drawn("numbers")
    for ours, theirs in (
        ("uniform_average", "uniform_average"),
        ("variance_weighted_average", "variance_weighted"),
        (None, "raw_values"),
    ):
        expected = peer.r2_score(y_true, y_pred, multioutput=theirs)
        np.testing.assert_allclose(metrics.R2Score(ours)(y_true, y_pred), expected, rtol=1e-5)
    adjusted = 1 - (1 - peer.r2_score(y_true, y_pred)) * (N - 1) / (N - 3 - 1)
    assert metrics.R2Score(num_regressors=3)(y_true, y_pred) == pytest.approx(adjusted)


def test_iou_is_that_of_the_peer() -> None:
    y_true, y_pred = drawn("two classes")
    expected = peer.jaccard_score(y_true, y_pred, average=None)
    assert metrics.MeanIoU(CLASSES)(y_true, y_pred) == pytest.approx(expected.mean())
    assert metrics.IoU(CLASSES, [0, 2])(y_true, y_pred) == pytest.approx(expected[[0, 2]].mean())
    void = np.where(y_true == 1, 255, y_true)
    assert metrics.MeanIoU(CLASSES, ignore_class=255)(void, y_pred) == pytest.approx(
        metrics.MeanIoU(CLASSES, ignore_class=1)(y_true, y_pred)
    )


def test_of_equal_predictions_all_are_in_the_top_k() -> None:
    y_pred = np.array([[0.4, 0.4, 0.2, 0.4]])
    for label, right in ((0, 1), (1, 1), (2, 0), (3, 1), (7, 0), (-1, 0)):
        assert metrics.SparseTopKCategoricalAccuracy(2)([label], y_pred) == right
    ids = metrics.SparseTopKCategoricalAccuracy(2, from_sorted_ids=True)
    assert ids([3, 0], [[1, 3, 0], [1, 3, 0]]) == 0.5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bits", metrics.BinaryAccuracy),
        ("classes", metrics.SparseCategoricalAccuracy),
        ("one-hot", metrics.CategoricalAccuracy),
    ],
)
def test_accuracy_is_the_one_that_fits_the_shapes(kind: str, expected: Any) -> None:
    y_true, y_pred = drawn(kind)
    metric = metrics.get("acc")
    assert metric.name == "acc"
    assert metric(y_true, y_pred) == expected()(y_true, y_pred)
    if kind == "classes":
        assert metrics.get("accuracy")(y_true[:, None], y_pred) == expected()(y_true, y_pred)


# -- by hand ----------------------------------------------------------------------------------------------


def test_means_and_sums_of_values() -> None:
    mean = metrics.Mean()
    mean.update_state([1, 3, 5, 7])
    assert mean.result() == 4
    assert mean([[1, 3], [5, 7]], sample_weight=[1, 0]) == pytest.approx((16 + 2) / 5)
    total = metrics.Sum()
    total.update_state([1, 3, 5, 7], sample_weight=[1, 1, 0, 0])
    assert total(2) == 6


class Largest(metrics.Metric):
    """A user's metric with a state of its own."""

    def __init__(self, name: str = "largest") -> None:
        super().__init__(name=name)
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.count.assign(max(float(self.count.numpy()), float(np.max(y_pred))))

    def result(self) -> Any:
        return float(self.count.numpy())


def test_a_metric_with_a_state_of_its_own_works_by_hand_and_not_in_training() -> None:
    metric = Largest()
    assert metric([0.0], [3.0]) == 3
    assert metric([0.0], [2.0]) == 3
    metric.reset_state()
    assert metric.result() == 0
    model = nn.Sequential([nn.Input((2,)), nn.Dense(1)])
    model.compile("sgd", "mse", [metric])
    with pytest.raises(ConfigurationError, match=r"'largest'.*give it values\(y_true, y_pred\)"):
        model.engine()


class Above(metrics.Metric):
    """A user's metric of one value per sample."""

    def values(self, y_true: Any, y_pred: Any) -> Any:
        return (y_pred > y_true).astype(np.float32)


def test_metrics_of_several_rows_are_measured_in_training() -> None:
    model = nn.Sequential([nn.Input((2,)), nn.Dense(2, activation="sigmoid")])
    made = [Above(), metrics.AUC(20), metrics.F1Score(), metrics.R2Score(), squared]
    model.compile("sgd", "mse", made)
    engine = model.engine()
    assert engine.metrics == ("loss", "above", "auc", "f1_score", "r2_score", "squared")
    params = np.zeros(engine.layout.length, np.float32)
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(30, 2)), rng.integers(0, 2, (30, 2))
    engine.layout.views(params)["dense/kernel"][...] = rng.normal(size=(2, 2))
    described = reports.reports_of(engine)
    sums = sum(engine.evaluate(params, (x[rows], y[rows])) for rows in (slice(0, 7), slice(7, 30)))
    assert sums.shape == (reports.num_rows(described), 2)
    found = reports.results(described, sums)
    assert set(found) == {"loss", "above", "auc", "f1_score_0", "f1_score_1", "r2_score", "squared"}
    y_pred = engine.predict(params, x)
    assert found["auc"] == pytest.approx(metrics.AUC(20)(y, y_pred))
    assert found["f1_score_1"] == pytest.approx(metrics.F1Score()(y, y_pred)[1])
    assert found["loss"] == pytest.approx(found["squared"])


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.get("x"), "unknown metric 'x'.*accuracy"),
        (lambda: metrics.get("mean_io_u"), "needs settings"),
        (lambda: metrics.Precision(2), "thresholds must be between 0 and 1, not 2"),
        (lambda: metrics.Precision(top_k=0), "top_k must be positive"),
        (lambda: metrics.Recall(class_id=3)(*drawn("columns of bits")), "there is no class 3"),
        (lambda: metrics.AUC(curve="DET"), "curve must be 'ROC' or 'PR'"),
        (lambda: metrics.AUC(summation_method="x"), "summation_method must be"),
        (lambda: metrics.AUC(1), "num_thresholds must be above 1"),
        (lambda: metrics.AUC(num_labels=3), "num_labels is for multi_label"),
        (lambda: metrics.AUC(multi_label=True).rows, "has seen no predictions"),
        (lambda: metrics.AUC(multi_label=True, num_labels=2)(*drawn("columns of bits")), r"\(samples, 2\)"),
        (lambda: metrics.F1Score("mean"), "average must be"),
        (lambda: metrics.FBetaScore(beta=0), "beta must be above 0"),
        (lambda: metrics.F1Score(threshold=0), "threshold must be above 0"),
        (lambda: metrics.F1Score()([1, 0], [0.5, 0.2]), r"shape \(samples, columns\)"),
        (lambda: metrics.F1Score().rows, "has seen no predictions"),
        (lambda: metrics.R2Score("x"), "class_aggregation must be"),
        (lambda: metrics.IoU(2, [2]), "target_class_ids"),
        (lambda: metrics.MeanIoU(2)([0, 1], [0, 1, 1]), "do not fit"),
        (lambda: metrics.SensitivityAtSpecificity(2), "a rate is between 0 and 1"),
        (lambda: metrics.TopKCategoricalAccuracy(0), "k must be a positive integer"),
        (lambda: metrics.BinaryAccuracy(threshold=1), "threshold must be between 0 and 1"),
        (lambda: metrics.SparseCategoricalAccuracy()([[0, 1]], [[0.5, 0.5]]), r"labels of shape \(1, 2\)"),
        (lambda: metrics.MeanSquaredError()([1, 2, 3], [1.0, 2.0]), "do not fit predictions"),
        (lambda: metrics.MeanSquaredError()([1, 2], [1.0, 2.0], [1, 2, 3]), "sample weights of shape"),
        (lambda: metrics.Mean().merge_state([metrics.Sum()]), "cannot take in another one"),
        (lambda: metrics.Metric().add_variable(aggregation="mean"), "only 'sum'"),
        (lambda: metrics.Metric().report(), "give it values"),
    ],
)
def test_a_mistake_is_told_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
