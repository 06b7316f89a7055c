"""Data that cannot be read is read again; what then cannot be read is a DataError."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError, DataError, StorageError
from workers.data import ArrayDataset, is_unreadable, read_patiently
from workers.data import dataset as module


class Unreliable(ArrayDataset):
    """Raises so many times before it gives what it is asked for."""

    def __init__(self, times: int, error: Exception) -> None:
        super().__init__(np.arange(4.0))
        self.left, self.asked, self.error = times, 0, error

    def take(self, indices: Any) -> Any:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise self.error
        return super().take(indices)


def arrow_error() -> Exception:
    pyarrow = pytest.importorskip("pyarrow")
    error: Exception = pyarrow.ArrowInvalid("row group 3 of x.parquet is damaged")
    return error


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("times", range(4))
@pytest.mark.parametrize(
    "error", [FileNotFoundError("x.npy"), StorageError("no answer"), DataError("x.parquet"), arrow_error()]
)
def test_what_cannot_be_read_is_read_again_three_times(times: int, error: Exception) -> None:
    dataset, told = Unreliable(times, error), list[str]()
    (found,) = read_patiently(dataset, np.array([2]), told.append)
    assert found == [2.0]
    assert len(told) == times
    assert all(str(error) in text for text in told)


@pytest.mark.usefixtures("impatient")
def test_the_fourth_failure_is_a_data_error_that_names_what_the_dataset_did() -> None:
    dataset = Unreliable(9, OSError(5, "Input/output error", "x.parquet"))
    with pytest.raises(DataError, match=r"tried 4 times: OSError: .*Input/output error: 'x\.parquet'"):
        read_patiently(dataset, np.array([2]), lambda _: None)
    assert dataset.asked == 4


@pytest.mark.parametrize(
    "error", [ValueError("x"), ConfigurationError("x"), IndexError(3), ZeroDivisionError()]
)
def test_the_jobs_own_mistakes_are_no_data_errors(error: Exception) -> None:
    dataset = Unreliable(1, error)
    with pytest.raises(type(error)):
        read_patiently(dataset, np.array([2]), lambda _: None)
    assert dataset.asked == 1
    assert not is_unreadable(error)


@pytest.mark.usefixtures("impatient")
def test_what_a_dataset_says_as_a_data_error_is_told_as_it_is() -> None:
    dataset = Unreliable(9, DataError("x.parquet, row group 3: damaged"))
    with pytest.raises(DataError, match=r"tried 4 times: x\.parquet, row group 3: damaged$"):
        read_patiently(dataset, np.array([2]), lambda _: None)
