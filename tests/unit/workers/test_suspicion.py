"""What is not finite is found, and two results are compared by their bits."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from workers.suspicion import Suspicion, all_finite

LENGTH = 40_000


def arena(slots: int = 4) -> Any:
    """As much of an arena as is looked at."""
    return SimpleNamespace(
        grads=[np.full(LENGTH + 8, i + 1, np.float32) for i in range(slots)],
        sums=[np.array([[i + 1.0, 2.0], [0.0, 2.0]]) for i in range(slots)],
        spec=SimpleNamespace(params=SimpleNamespace(length=LENGTH)),
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_element_that_is_not_finite_is_found_wherever_it_is(value: float) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(50):
        values = rng.standard_normal(int(rng.integers(1, 3000))).astype(np.float32)
        assert all_finite(values)
        values[rng.integers(len(values))] = value
        assert not all_finite(values)


def test_large_numbers_are_finite_though_their_squares_are_not() -> None:
    assert all_finite(np.full(1000, 3e38, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_microbatches_to_blame_are_found(value: float) -> None:
    memory, suspicion = arena(), Suspicion()
    slots = {0: 3, 1: 0, 2: 2}
    assert not suspicion.of_loss(memory, slots)
    memory.sums[1][0, 0] = value  # in no use
    assert not suspicion.of_loss(memory, slots)
    memory.sums[2][0, 0] = value
    assert suspicion.of_loss(memory, slots)
    assert suspicion.suspects == [2]
    memory.grads[3][LENGTH - 1] = value
    assert suspicion.of_gradient(memory, slots)
    assert suspicion.suspects == [0, 2]


def test_losses_of_both_infinities_do_not_cancel() -> None:
    memory, suspicion = arena(), Suspicion()
    memory.sums[0][0, 0], memory.sums[1][0, 0] = np.inf, -np.inf
    assert suspicion.of_loss(memory, {0: 0, 1: 1})
    assert suspicion.suspects == [0, 1]


def test_a_job_that_trains_on_suspects_nothing() -> None:
    memory, suspicion = arena(), Suspicion()
    suspicion.enabled = False
    memory.sums[0][0, 0] = np.nan
    suspicion.heard(0, finite=False)
    assert not suspicion.of_loss(memory, {0: 0})
    assert suspicion.sums_are_good


def test_results_are_compared_by_their_bits() -> None:
    memory, suspicion = arena(), Suspicion()
    memory.grads[1][:], memory.sums[1][:] = memory.grads[0], memory.sums[0]
    memory.grads[0][5] = memory.grads[1][5] = np.nan
    memory.grads[0][LENGTH:] = 9  # beyond the parameters
    assert suspicion.agree(memory, 0, 1)
    memory.grads[1].view(np.uint32)[5] ^= 1  # another NaN
    assert not suspicion.agree(memory, 0, 1)
    memory.grads[1][5] = memory.grads[0][5]
    memory.sums[1][1, 0] = -0.0
    assert not suspicion.agree(memory, 0, 1)
    assert suspicion.is_hopeless


@pytest.mark.parametrize("levels", [None, [1, 1, 0]], ids=["microbatches", "parts of nodes"])
def test_whose_segment_is_wrong_is_told_from_a_sum_that_overflows(levels: list[int] | None) -> None:
    memory, suspicion = arena(), Suspicion()
    sums: list[Any] = [(memory.grads[:3], 0, 20_000, None), (memory.grads[:3], 20_000, LENGTH, levels)]
    suspicion.heard(1, finite=False)
    assert suspicion.is_faulty(sums) == {1}
    memory.grads[0][30_000] = memory.grads[1][30_000] = 3e38
    assert suspicion.is_faulty(sums) == set()


def test_the_record_names_the_loss_and_the_digest_of_the_gradient() -> None:
    from blake3 import blake3

    memory = arena()
    memory.grads[1][0] = np.nan
    found = Suspicion.record(memory, 7, 2, [1])
    digest = blake3(memory.grads[1][:LENGTH].tobytes()).hexdigest()
    assert (found.step, found.microbatch, found.loss, found.finite, found.digest) == (
        7,
        2,
        1.0,
        False,
        digest,
    )
