"""Runs grow and shrink while they train, over one to three nodes: microbatches move, bits do not."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import (
    assert_latest_verifies,
    assert_no_checkpoint_read,
    assert_no_step_lost,
    assert_same_bits,
)
from tests.integration.harness import MICROBATCHES, Progress

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("scale")]


@pytest.mark.parametrize(
    "nodes", [pytest.param(1, marks=pytest.mark.full), 2, pytest.param(3, marks=pytest.mark.full)]
)
def test_a_run_that_grows_and_shrinks_ends_in_the_same_bits(
    place: Place, reference: Reference, nodes: int
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.02, "every": 1000, "progress": progress}
    run = place.begin(workers=2, steps=300, settings=settings, more=["--nodes", str(nodes)])
    run.until(lambda: progress.steps > 10, "10 steps")
    sizes = [MICROBATCHES, 1, *(rng.randint(1, MICROBATCHES) for _ in range(2))]
    for size in sizes:
        place.cli("scale", "run", str(size)).expect(0)
        run.until(lambda: len(run.processes("worker")) == size, f"{size} workers", 20)  # noqa: B023
        reached = progress.steps
        run.until(lambda: progress.steps > reached + 5, "5 steps more")  # noqa: B023
    outcome = run.wait()
    result = assert_same_bits(outcome, reference(steps=300)["state_digest"])
    assert (result["restarts"], result["attempt"]) == (0, 1), str(outcome)
    assert_no_step_lost(outcome)
    assert_no_checkpoint_read(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left()
