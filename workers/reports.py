"""What sums over samples mean: the values of metrics, from rows that were added up.

A metric is some rows of two numbers, float64, which are added over microbatches, workers and steps. A report
says as JSON values how they become a result, so that a process which never loads user code can tell it:

    {"name": "accuracy", "kind": "mean", "rows": 1}

The names and formulas are those of Keras 3 `keras.metrics`; a quotient by 0 is 0 there, but NaN of a mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike

Report: TypeAlias = dict[str, Any]
"""The name, the kind and the number of rows of a metric, and the settings of its kind."""

Numbers: TypeAlias = NDArray[np.float64]

EPSILON = 1e-7
"""What Keras adds to divisors."""


def mean(name: str) -> Report:
    """The report of one row: a sum, and the weight to divide it by."""
    return {"name": name, "kind": "mean", "rows": 1}


def reports_of(engine: Any) -> list[Report]:
    """What an engine's rows mean: its `reports()`, or one mean for each of its `metrics`.

    Raises ConfigurationError if it reports something else than it is named after, or kinds that are unknown.
    """
    give = getattr(engine, "reports", None)
    if give is None:
        return [mean(name) for name in engine.metrics]
    reports: list[Report] = list(give())
    for report in reports:
        if report["kind"] not in _KINDS or type(report["rows"]) is not int or report["rows"] < 1:
            raise ConfigurationError(f"the engine's report {report!r} is none that workers.reports knows")
    if not reports or reports[0] != mean("loss"):
        raise ConfigurationError('the first of an engine\'s reports must be workers.reports.mean("loss")')
    return reports


def num_rows(reports: Iterable[Mapping[str, Any]]) -> int:
    """The rows of all of these together."""
    return sum(report["rows"] for report in reports)


def results(reports: Sequence[Mapping[str, Any]], sums: Numbers, prefix: str = "") -> dict[str, float]:
    """Each metric's value; one of several values gives them as "name_0", "name_1", ..."""
    found: dict[str, float] = {}
    start = 0
    for report in reports:
        rows = report["rows"]
        values = result(report, sums[start : start + rows])
        start += rows
        name = prefix + report["name"]
        if values.ndim == 0:
            found[name] = float(values)
        else:
            found.update({f"{name}_{i}": float(value) for i, value in enumerate(values.reshape(-1))})
    return found


def value_names(reports: Sequence[Mapping[str, Any]], prefix: str = "") -> tuple[str, ...]:
    """The names that `results` gives, in its order."""
    return tuple(results(reports, np.zeros((num_rows(reports), 2)), prefix))


def result(report: Mapping[str, Any], rows: Numbers) -> Numbers:
    """The value of one metric, of shape (), or (values,) if it has several."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(_KINDS[report["kind"]](report, rows), np.float64)


# -- kinds: (report, rows) -> value -----------------------------------------------------------------------


def _mean(report: Mapping[str, Any], rows: Numbers) -> Any:
    """Row: a weighted sum, and the sum of the weights."""
    return rows[0, 0] / rows[0, 1]


def _sqrt_mean(report: Mapping[str, Any], rows: Numbers) -> Any:
    """The square root of a mean."""
    return np.sqrt(_mean(report, rows))


def _count(report: Mapping[str, Any], rows: Numbers) -> Any:
    """One cell of the confusion at each threshold."""
    return _one_or_all(_cells(rows)[report["cell"]])


def _ratio(report: Mapping[str, Any], rows: Numbers) -> Any:
    """Precision, recall and their like at each threshold."""
    return _one_or_all(_rate(report["rate"], _cells(rows)))


def _best_at(report: Mapping[str, Any], rows: Numbers) -> Any:
    """The best of one rate at the thresholds where another is at least `value`."""
    cells = _cells(rows)
    feasible = _rate(report["constrained"], cells) >= report["value"]
    return np.max(_rate(report["rate"], cells), where=feasible, initial=0)


def _auc(report: Mapping[str, Any], rows: Numbers) -> Any:
    """The area under a curve of thresholds, of each label or of all."""
    labels = report["labels"] or 1
    cells = {name: cell.reshape(-1, labels) for name, cell in _cells(rows).items()}
    curve, method = report["curve"], report["summation_method"]
    if curve == "PR" and method == "interpolation":
        areas = _interpolated_pr(cells)
    else:
        if curve == "ROC":
            x, y = _quotient(cells["fp"], cells["fp"] + cells["tn"]), _rate("recall", cells)
        else:
            x, y = _rate("recall", cells), _rate("precision", cells)
        heights = {
            "interpolation": (y[:-1] + y[1:]) / 2,
            "minoring": np.minimum(y[:-1], y[1:]),
            "majoring": np.maximum(y[:-1], y[1:]),
        }[method]
        areas = ((x[:-1] - x[1:]) * heights).sum(axis=0)
    weights = report["label_weights"]
    if not report["labels"] or weights is None:
        return areas.mean()
    return _quotient((areas * weights).sum(), np.sum(weights))


def _interpolated_pr(cells: Mapping[str, Numbers]) -> Numbers:
    """The area under precision over recall, true positives interpolated between two thresholds.

    Source: Davis and Goadrich, 2006: precision is no straight line there.
    """
    tp, positive = cells["tp"], cells["tp"] + cells["fp"]
    gained = tp[:-1] - tp[1:]
    slope = _quotient(gained, np.maximum(positive[:-1] - positive[1:], 0))
    intercept = tp[1:] - slope * positive[1:]
    both = (positive[:-1] > 0) & (positive[1:] > 0)
    ratio = np.where(both, _quotient(positive[:-1], positive[1:]), 1)
    parts = slope * (gained + intercept * np.log(ratio))
    return np.asarray(_quotient(parts, tp[1:] + cells["fn"][1:]).sum(axis=0))


def _fbeta(report: Mapping[str, Any], rows: Numbers) -> Any:
    """Rows: (true positives, false positives) of each class, then (false negatives, weight of the class)."""
    (tp, fp), (fn, weight) = _columns(rows)
    precision, recall = tp / (tp + fp + EPSILON), tp / (tp + fn + EPSILON)
    square = report["beta"] ** 2
    scores = (1 + square) * precision * recall / (square * precision + recall + EPSILON)
    match report["average"]:
        case None:
            return scores
        case "weighted":
            return (scores * weight / (weight.sum() + EPSILON)).sum()
        case _:
            return scores.mean()


def _iou(report: Mapping[str, Any], rows: Numbers) -> Any:
    """Rows: the confusion matrix, true classes by predicted ones, in reading order; see `padded`."""
    classes = report["num_classes"]
    matrix = rows.reshape(-1)[: classes * classes].reshape(classes, classes)
    overlap = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - overlap
    overlap, union = overlap[report["target_class_ids"]], union[report["target_class_ids"]]
    seen = union > 1e-9
    return np.where(seen, overlap / (union + EPSILON), 0).sum() / (seen.sum() + EPSILON)


def _r2(report: Mapping[str, Any], rows: Numbers) -> Any:
    """Rows: (sum, sum of squares) of each output, then (squared error, weight), then (samples, 0)."""
    (total, squares), (error, weight) = _columns(rows[:-1])
    spread = squares - total * total / weight
    scores = 1 - error / spread
    scores = np.where(np.isinf(scores), 0, scores)
    found: Any = scores
    if report["class_aggregation"] == "uniform_average":
        found = scores.mean()
    elif report["class_aggregation"] == "variance_weighted_average":
        found = (scores * spread).sum() / spread.sum()
    free = rows[-1, 0] - report["num_regressors"] - 1
    if report["num_regressors"] and free > 0:
        found = 1 - (1 - found) * (rows[-1, 0] - 1) / free
    return found


_KINDS: dict[str, Callable[[Mapping[str, Any], Numbers], Any]] = {
    "mean": _mean,
    "sqrt_mean": _sqrt_mean,
    "count": _count,
    "ratio": _ratio,
    "best_at": _best_at,
    "auc": _auc,
    "fbeta": _fbeta,
    "iou": _iou,
    "r2": _r2,
}


# -- parts ------------------------------------------------------------------------------------------------


def padded(numbers: NDArray[Any]) -> Numbers:
    """Numbers as rows of two, with a 0 behind them if they are odd."""
    flat = numbers.reshape(-1)
    return np.concatenate([flat, np.zeros(len(flat) % 2)]).reshape(-1, 2)


def paired(columns: Sequence[ArrayLike]) -> Numbers:
    """Four equally long columns as rows: (first, second) of each place, then (third, fourth)."""
    return np.stack(columns).reshape(2, 2, -1).transpose(0, 2, 1).reshape(-1, 2)


def _columns(rows: Numbers) -> Numbers:
    """What `paired` made the rows of, in twos: shape (2, 2, places)."""
    return rows.reshape(2, -1, 2).transpose(0, 2, 1)


def _cells(rows: Numbers) -> dict[str, Numbers]:
    """The confusion at each threshold. Rows: (true, false positives), then (false, true negatives)."""
    (tp, fp), (fn, tn) = _columns(rows)
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn}


def _rate(name: str, cells: Mapping[str, Numbers]) -> Numbers:
    part, other = {"precision": ("tp", "fp"), "recall": ("tp", "fn"), "specificity": ("tn", "fp")}[name]
    return _quotient(cells[part], cells[part] + cells[other])


def _quotient(x: Any, y: Any) -> Numbers:
    """x / y, and 0 where y is 0."""
    x, y = np.broadcast_arrays(x, y)
    found: Numbers = np.divide(x, y, out=np.zeros(x.shape), where=y != 0)
    return found


def _one_or_all(values: Numbers) -> Any:
    return values[0] if len(values) == 1 else values
