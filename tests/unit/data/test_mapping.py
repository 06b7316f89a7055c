"""A function over the samples: random numbers that depend on the place alone, and what identity notices."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers.data import ArrayDataset, Dataset, DrawsRandomly, Ordered, ReadsAhead
from workers.rng import Purpose, Streams

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = ArrayDataset(np.arange(20.0), np.arange(20))
INDICES = np.array([3, 1, 7])


def noisy(batch: Any, rng: np.random.Generator) -> Any:
    x, y = batch
    return x + rng.standard_normal(len(x)), y


def test_a_microbatch_has_random_numbers_of_its_own_and_the_same_each_time() -> None:
    dataset = SOURCE.map(noisy)
    places = [(seed, step, item) for seed in (0, 1) for step in (0, 5) for item in (0, 1)]
    draws = [dataset.take_with(INDICES, Streams(*place, Purpose.MAP))[0] for place in places]
    assert len({draw.tobytes() for draw in draws}) == len(places)
    again = [dataset.take_with(INDICES, Streams(*place, Purpose.MAP))[0] for place in reversed(places)]
    assert all(np.array_equal(a, b) for a, b in zip(draws, reversed(again), strict=True))
    assert np.array_equal(dataset.take(INDICES)[0], dataset.take(INDICES)[0])
    assert np.array_equal(dataset.take(INDICES)[1], INDICES)


def test_a_map_of_a_map_draws_other_numbers() -> None:
    once, twice = SOURCE.map(noisy), SOURCE.map(noisy).map(noisy)
    streams = Streams(0, 1, 2, Purpose.MAP)
    first = once.take_with(INDICES, streams)[0] - INDICES
    both = twice.take_with(INDICES, streams)[0] - INDICES
    assert not np.allclose(both, 2 * first)


def test_a_map_is_a_dataset_and_passes_on_what_the_one_below_can_do() -> None:
    class Fancy(ArrayDataset):
        asked: list[int]

        def order(self, seed: int, epoch: int) -> Any:
            return np.arange(20)[::-1]

        def prefetch(self, indices: Any) -> None:
            self.asked = indices.tolist()

    below = Fancy(np.arange(20.0), np.arange(20))
    dataset = below.map(noisy)
    for protocol in (Dataset, DrawsRandomly, Ordered, ReadsAhead):
        assert isinstance(dataset, protocol)
    assert len(dataset) == 20
    assert dataset.order(0, 0)[0:2].tolist() == [19, 18]
    dataset.prefetch(INDICES)
    assert below.asked == [3, 1, 7]
    SOURCE.map(noisy).prefetch(INDICES)  # one below that cannot


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch, rng: batch[0], r"<lambda> returned ndarray: return a tuple such as \(x, y\)"),
        (lambda batch, rng: (batch[0][:2], batch[1]), r"returned 2 samples in array 0, of 3"),
    ],
)
def test_a_function_that_returns_no_batch_is_named(function: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SOURCE.map(function).take(INDICES)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="give a function"):
        SOURCE.map(5)  # type: ignore[arg-type]


# -- identity --------------------------------------------------------------------------------------------


def scaled(factor: float) -> Callable[..., Any]:
    def function(batch: Any, rng: Any) -> Any:
        return batch[0] * factor, batch[1]

    return function


def shifted(batch: Any, rng: Any, by: float = 1.0) -> Any:
    return batch[0] + by, batch[1]


class Scale:
    def __call__(self, batch: Any, rng: Any) -> Any:
        return batch[0] * 2, batch[1]


class Shift:
    def __call__(self, batch: Any, rng: Any) -> Any:
        return batch[0] + 2, batch[1]


def recursive() -> Callable[..., Any]:
    def function(batch: Any, rng: Any, depth: int = 0) -> Any:
        return batch if depth else function(batch, rng, 1)

    return function


FUNCTIONS: list[Callable[..., Any]] = [
    noisy,
    scaled(2.0),
    scaled(3.0),
    shifted,
    functools.partial(shifted, by=2.0),
    functools.partial(shifted, by=3.0),
    Scale(),
    Shift(),
    Shift().__call__,
    recursive(),
    lambda batch, rng: (batch[0] + 1, batch[1]),
    lambda batch, rng: (batch[0] + 2, batch[1]),
    lambda batch, rng: (batch[0] - 2, batch[1]),
    lambda batch, rng: (batch[0].clip(0), batch[1]),
    lambda batch, rng: (batch[0].round(0), batch[1]),
    lambda batch, rng: (batch[0] + len([b for b in batch if b.ndim == 1]), batch[1]),
    lambda batch, rng: (batch[0] + len([b for b in batch if b.ndim == 2]), batch[1]),
]


def test_identity_tells_functions_and_their_settings_apart() -> None:
    identities = [SOURCE.map(function).identity() for function in FUNCTIONS]
    for i, one in enumerate(identities):
        assert all(one != other for other in identities[:i]), i
    assert SOURCE.map(scaled(2.0)).identity() == identities[1]
    assert identities[0] != SOURCE.identity()
    assert identities[0]["of"] == SOURCE.identity()


PROGRAM = """
import numpy as np
from workers.data import ArrayDataset

def function(batch, rng):
    return batch if "a" in {"a", "b", "c", "dd", "eee"} else batch

print(ArrayDataset(np.arange(3)).map(function).identity())
"""


def test_identity_is_the_same_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(found) == 1
