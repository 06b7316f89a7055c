"""Coordinators are killed at chosen points; a successor goes on with the agents, which train meanwhile."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.chaos.judging import (
    assert_latest_verifies,
    assert_no_checkpoint_read,
    assert_no_step_lost,
    assert_same_bits,
)
from tests.integration.harness import Progress, latest, saved, signal_all

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Place, Started

pytestmark = [pytest.mark.chaos, pytest.mark.row("coordinator")]

full = pytest.mark.full
SETTINGS = {"delay_s": 0.01, "every": 20}
STEPS = 150


def coordinators(run: Started) -> list[psutil.Process]:
    """The child that does the work of the command."""
    found = []
    for each in run.driver.children():
        with contextlib.suppress(psutil.Error):
            found += [each] if "orchestrator" in each.cmdline() else []
    return found


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=full)])
@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("plan", 0),
        ("before", 40),
        pytest.param("after", 40, marks=full),
        pytest.param("collection", 40, marks=full),
        pytest.param("before", STEPS, marks=full),
        ("after", STEPS),
    ],
)
def test_a_coordinator_killed_at_each_point_is_succeeded(
    place: Place, reference: Reference, phase: str, step: int, nodes: int
) -> None:
    fault = {"kill": "coordinator", "step": step, "phase": phase}
    run = place.begin(steps=STEPS, settings=SETTINGS, more=["--nodes", str(nodes)], faults=[fault])
    outcome = run.wait()
    assert "the coordinator was killed by SIGKILL" in outcome.stderr, f"the fault did not strike{outcome}"
    result = assert_same_bits(outcome, reference(steps=STEPS)["state_digest"])
    # Where everything was stored there is nothing left to be attempted.
    assert result["attempt"] == (1 if (phase, step) == ("after", STEPS) else 2), str(outcome)
    assert_no_step_lost(outcome)
    assert_no_checkpoint_read(outcome)
    assert_latest_verifies(place)
    assert latest(place.root / "run").step == STEPS
    assert [each for each in saved(place.root / "run") if each.complete], str(outcome)
    place.assert_nothing_left(sockets=False)


@pytest.mark.parametrize("phase", ["plan", "restore"])
@full
def test_a_coordinator_killed_while_a_checkpoint_is_read(
    place: Place, reference: Reference, phase: str
) -> None:
    place.run(steps=40).done()
    fault = {"kill": "coordinator", "step": 0, "phase": phase}
    outcome = place.run(steps=60, faults=[fault])
    assert "the coordinator was killed by SIGKILL" in outcome.stderr, f"the fault did not strike{outcome}"
    assert_same_bits(outcome, reference()["state_digest"])
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)


@full
def test_coordinators_killed_again_and_again_cost_no_step(place: Place, reference: Reference) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    progress = Progress(place.root / "progress")
    steps = 600
    run = place.begin(steps=steps, settings={**SETTINGS, "progress": progress})
    run.until(lambda: progress.steps > 5, "training")
    signs = place.root / "run" / "attempts"
    killed = 0
    while run.running() and killed < 6 and progress.steps < 0.7 * steps:
        time.sleep(rng.uniform(0.1, 1.5))
        if len(list(signs.glob("*.alive.json"))) > killed:  # else the next one has not begun
            killed += signal_all(coordinators(run), signal.SIGKILL)
    outcome = run.wait()
    assert killed >= 3, str(outcome)
    assert_same_bits(outcome, reference(steps=steps)["state_digest"])
    assert_no_step_lost(outcome)
    assert_no_checkpoint_read(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)
