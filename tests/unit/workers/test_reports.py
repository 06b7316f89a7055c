"""What an engine says that its rows mean."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import reports


def test_an_engine_that_names_its_metrics_has_one_mean_for_each() -> None:
    found = reports.reports_of(SimpleNamespace(metrics=("loss", "error")))
    assert found == [reports.mean("loss"), reports.mean("error")]
    assert reports.num_rows(found) == 2
    sums = np.array([[6.0, 3.0], [1.0, 4.0]])
    assert reports.results(found, sums) == {"loss": 2.0, "error": 0.25}
    assert reports.results(found, sums, "val_") == {"val_loss": 2.0, "val_error": 0.25}


def test_a_mean_of_nothing_is_not_a_number() -> None:
    assert math.isnan(reports.results([reports.mean("loss")], np.zeros((1, 2)))["loss"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the first of an engine's reports"),
        ([reports.mean("error")], "the first of an engine's reports"),
        ([reports.mean("loss"), {"name": "x", "kind": "median", "rows": 1}], "median.*knows"),
        ([reports.mean("loss"), {"name": "x", "kind": "mean", "rows": 0}], "none that workers.reports knows"),
    ],
)
def test_reports_that_nobody_can_read_are_refused(given: list[Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        reports.reports_of(SimpleNamespace(metrics=("loss",), reports=lambda: given))


def test_confusion_matrices_of_odd_sizes_are_padded() -> None:
    rows = reports.padded(np.arange(9))
    assert rows.shape == (5, 2)
    assert rows.ravel().tolist() == [*range(9), 0]
