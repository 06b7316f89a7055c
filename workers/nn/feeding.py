"""Where `fit`, `evaluate` and `predict` take their batches from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from storage.errors import ConfigurationError
from workers.data import ArrayDataset, Dataset
from workers.nn.lookup import check
from workers.nn.tensor import leaves, map_structure
from workers.schedule import batch_indices, steps_per_epoch

DEFAULT_BATCH_SIZE = 32


class Feed(Protocol):
    """Batches `(x,)`, `(x, y)` or `(x, y, sample_weight)`."""

    @property
    def steps(self) -> int | None:
        """Batches in an epoch; None if that is not known."""

    def first(self) -> Any:
        """A few samples, to see their shapes."""

    def epoch(self, step: int, seed: int, done: int = 0) -> Iterator[Any]:
        """The batches of steps from `step` on, to the end of that epoch, without the first `done` of them."""

    def resume(self, batches: int) -> None:
        """In place. Go on behind so many batches that an earlier process has taken in all."""

    def get_state(self) -> Any:
        """The position of what gives the batches, as JSON values, if it tells; else None."""

    def set_state(self, state: Any) -> None:
        """In place. Go on from what `get_state` gave."""

    def in_order(self) -> Iterator[Any]:
        """All batches, in the order of the data."""


class DatasetFeed:
    """Batches of a dataset."""

    def __init__(self, dataset: Dataset, batch_size: int, steps: int | None, *, shuffle: bool) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._all = steps_per_epoch(len(dataset), batch_size)
        self.steps: int | None = self._all if steps is None else steps

    def first(self) -> Any:
        """One sample."""
        return self._dataset.take(np.arange(1))

    def epoch(self, step: int, seed: int, done: int = 0) -> Iterator[Any]:
        """The batches of steps from `step` on, to the end of that epoch, without the first `done` of them."""
        assert self.steps is not None
        last = step + self.steps - step % self.steps
        for number in range(step + done, last):
            yield self._dataset.take(
                batch_indices(len(self._dataset), self._batch_size, seed, number, shuffle=self._shuffle)
            )

    def in_order(self) -> Iterator[Any]:
        """All batches, in the order of the data."""
        assert self.steps is not None
        for number in range(min(self.steps, self._all)):
            low = number * self._batch_size
            yield self._dataset.take(np.arange(low, min(low + self._batch_size, len(self._dataset))))

    def resume(self, batches: int) -> None:
        """Nothing: the batches of a step are a function of the step."""

    def get_state(self) -> None:
        """Nothing, for the same reason."""

    def set_state(self, state: Any) -> None:
        """Nothing."""


class IterableFeed:
    """Batches that somebody else makes; an iterator goes on from epoch to epoch, other iterables begin
    anew."""

    def __init__(self, batches: Iterable[Any], steps: int | None) -> None:
        self._batches = batches
        self._iterator: Iterator[Any] | None = None
        self._seen: list[Any] = []
        given = len(batches) if isinstance(batches, Sequence) else None
        self.steps = given if steps is None else steps
        check(
            self.steps is not None or not isinstance(batches, Iterator),
            "a generator may go on for ever: say how many batches an epoch has with steps_per_epoch",
        )

    def first(self) -> Any:
        """The next batch, which is not lost."""
        if not self._seen:
            self._iterator = self._iterator or iter(self._batches)
            self._seen.append(_batch(next(self._iterator)))
        return self._seen[0]

    def epoch(self, step: int, seed: int, done: int = 0) -> Iterator[Any]:
        """The batches until the iterable's end, or as many as an epoch has.

        An iterator stands behind the `done` ones already; of another iterable they are taken once more.
        """
        iterator = self._iterator or iter(self._batches)
        goes_on = isinstance(self._batches, Iterator)
        self._iterator = iterator if goes_on else None
        number = done if goes_on else 0
        while self.steps is None or number < self.steps:
            if self._seen:
                batch = self._seen.pop()
            else:
                try:
                    batch = _batch(next(iterator))
                except StopIteration:
                    return
            number += 1
            if number > done:
                yield batch

    def resume(self, batches: int) -> None:
        """In place. An iterator is run through as far as an earlier one; others begin anew in each epoch."""
        if isinstance(self._batches, Iterator):
            for _ in range(batches):
                if self._seen:
                    self._seen.pop()
                else:
                    next(self._batches, None)

    def get_state(self) -> Any:
        """The position of an iterator with a `get_state` of its own."""
        batches: Any = self._batches
        return (
            batches.get_state() if isinstance(batches, Iterator) and hasattr(batches, "get_state") else None
        )

    def set_state(self, state: Any) -> None:
        """In place. Go on from what `get_state` gave."""
        batches: Any = self._batches
        check(hasattr(batches, "set_state"), "the batches come of an iterator that has no set_state any more")
        self._seen = []
        batches.set_state(state)

    def in_order(self) -> Iterator[Any]:
        """The same."""
        return self.epoch(0, 0)


def as_feed(
    x: Any, y: Any, sample_weight: Any, batch_size: int | None, steps: int | None, *, shuffle: bool
) -> Feed:
    """The batches of arrays, of a dataset, or of an iterable of batches. ConfigurationError for anything
    else."""
    if batch_size is not None:
        check(
            isinstance(batch_size, int | np.integer) and int(batch_size) > 0,
            f"batch_size must be a positive integer, not {batch_size!r}",
        )
    if isinstance(x, Dataset) or _is_arrays(x):
        dataset = as_dataset(x, y, sample_weight)
        return DatasetFeed(dataset, batch_size or DEFAULT_BATCH_SIZE, steps, shuffle=shuffle)
    if isinstance(x, Iterable) and not isinstance(x, str | bytes | Mapping):
        check(y is None, "y is a part of the batches: give x alone")
        return IterableFeed(x, steps)
    raise ConfigurationError(f"data are arrays, a dataset or batches, not {type(x).__name__}")


def as_dataset(x: Any, y: Any, sample_weight: Any) -> Dataset:
    """A dataset, which has all of its parts, or one of these arrays; ConfigurationError for anything else."""
    if isinstance(x, Dataset):
        check(
            y is None and sample_weight is None, "y and sample_weight are parts of the dataset: give x alone"
        )
        return x
    if not _is_arrays(x):
        raise ConfigurationError(f"data are arrays or a dataset, not {type(x).__name__}")
    given = [_as_parts(map_structure(np.asarray, part)) for part in (x, y, sample_weight)]
    while given[-1] is None:
        given.pop()
    check(len(given) < 3 or given[1] is not None, "sample_weight was given without y")
    return ArrayDataset(*given)


def _as_parts(given: Any) -> Any:
    """The structure with tuples for lists of arrays, as those of several inputs; lists of numbers stay."""
    if isinstance(given, Mapping):
        return {key: _as_parts(part) for key, part in given.items()}
    if isinstance(given, tuple) or (isinstance(given, list) and all(np.ndim(part) for part in given)):
        return tuple(_as_parts(part) for part in given)
    return given


def validation_parts(data: Any) -> tuple[Any, Any, Any]:
    """x, y and sample weights of `validation_data`: a tuple of them, or a dataset."""
    if not isinstance(data, tuple | list):
        return data, None, None
    check(len(data) in (2, 3), "validation_data is (x, y), (x, y, sample_weight) or a dataset")
    return (*data, None)[:3]


def held_out(
    x: Any, y: Any, sample_weight: Any, share: float
) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """The data without their last part, and that part, as `validation_split` has it."""
    check(_is_arrays(x), "validation_split is for arrays: give validation_data for a dataset")
    arrays = [map_structure(np.asarray, part) for part in (x, y, sample_weight)]
    rows = len(leaves(arrays[0])[0])
    at = int(rows * (1 - share))
    check(0 < at < rows, f"validation_split {share} of {rows} samples leaves one part empty")
    first = [map_structure(lambda a: a[:at], part) for part in arrays]
    rest = [map_structure(lambda a: a[at:], part) for part in arrays]
    return (first[0], first[1], first[2]), (rest[0], rest[1], rest[2])


def with_class_weight(y: Any, sample_weight: Any, class_weight: Mapping[int, float]) -> Any:
    """Sample weights times the weight of each sample's class; classes not named weigh 1."""
    labels = np.asarray(y)
    if labels.ndim > 1 and labels.shape[-1] > 1:
        labels = labels.argmax(axis=-1)
    labels = labels.reshape(len(labels)).astype(np.int64)
    check(bool(labels.size) and labels.min() >= 0, "class_weight needs labels that are class numbers from 0")
    table = np.ones(max(int(labels.max()), *class_weight) + 1, np.float32)
    for number, weight in class_weight.items():
        table[number] = weight
    weights = table[labels]
    return weights if sample_weight is None else weights * np.asarray(sample_weight, np.float32)


def _is_arrays(x: Any) -> bool:
    if isinstance(x, list) and x and isinstance(x[0], tuple):
        return False  # batches
    parts = leaves(x) if isinstance(x, dict | list | tuple) else [x]
    return bool(parts) and all(hasattr(part, "shape") or isinstance(part, int | float) for part in parts)


def _batch(batch: Any) -> Any:
    given = batch if isinstance(batch, tuple) else (batch,)
    return tuple(map_structure(np.asarray, part) for part in given)
