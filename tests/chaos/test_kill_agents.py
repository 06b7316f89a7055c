"""Agents are killed in each phase, and with their workers; one that was replaced changes nothing."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.judging import (
    assert_latest_verifies,
    assert_no_checkpoint_read,
    assert_no_step_lost,
    assert_same_bits,
)
from tests.integration.harness import Progress, signal_all, wait_for

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Outcome, Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("agent")]

full = pytest.mark.full
PACED = {"delay_s": 0.005}


def fault(place: Place, phase: str, step: int, rank: int = 0) -> dict[str, Any]:
    """An agent that kills itself there, once."""
    once = str(place.root / f"once-{phase}-{rank}")
    return {"kill": "agent", "rank": rank, "step": step, "phase": phase, "once": once}


def assert_good(place: Place, outcome: Outcome, digest: str) -> dict[str, Any]:
    """A, B, C and E."""
    result = assert_same_bits(outcome, digest)
    assert_no_step_lost(outcome)
    assert_no_checkpoint_read(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)
    return result


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        pytest.param("initialise", 0, marks=full),
        pytest.param("gradient", 0, marks=full),
        ("gradient", 25),
        ("update", 25),
        pytest.param("gradient", 20, marks=full),  # while a checkpoint is written
        pytest.param("update", 59, marks=full),
        pytest.param("drain", 60, marks=full),
    ],
)
def test_the_only_agent_killed_in_each_phase_costs_no_step(
    place: Place, reference: Reference, phase: str, step: int
) -> None:
    """The job restarts by itself on the surviving memory."""
    outcome = place.run(settings=PACED, faults=[fault(place, phase, step)])
    result = assert_good(place, outcome, reference()["state_digest"])
    assert (place.root / f"once-{phase}-0").exists(), f"the fault did not strike{outcome}"
    assert (result["restarts"], result["attempt"]) == (1, 2), str(outcome)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=full), 1])
@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("gradient", marks=full),
        pytest.param("reduce", marks=full),
        "exchange",
        pytest.param("update", marks=full),
    ],
)
def test_an_agent_of_two_killed_in_each_phase_costs_no_step(
    place: Place, reference: Reference, phase: str, rank: int
) -> None:
    """The other node goes on in the same attempt. Both have as much to do: now one waits, now the other."""
    faults = [fault(place, phase, 25, rank)]
    even = {"microbatches": 4}
    outcome = place.run(settings={**PACED, **even}, steps=120, more=["--nodes", "2"], faults=faults)
    result = assert_good(place, outcome, reference(steps=120, **even)["state_digest"])
    assert (place.root / f"once-{phase}-{rank}").exists(), f"the fault did not strike{outcome}"
    assert (result["restarts"], result["attempt"]) == (0, 1), str(outcome)


@full
def test_an_agent_killed_while_a_checkpoint_is_read_reads_it_again(
    place: Place, reference: Reference
) -> None:
    place.run(steps=40).done()
    outcome = place.run(steps=60, faults=[fault(place, "restore", 0)])
    assert_same_bits(outcome, reference()["state_digest"])
    assert (place.root / "once-restore-0").exists(), f"the fault did not strike{outcome}"
    place.assert_nothing_left(sockets=False)


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=full), 2])
def test_agents_and_workers_killed_together_go_on_from_the_surviving_memory(
    place: Place, reference: Reference, nodes: int
) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "progress": progress, "every": 1000}
    run = place.begin(workers=3, steps=150, settings=settings, more=["--nodes", str(nodes)])
    run.until(lambda: progress.steps > 30, "30 steps")
    victims = [*run.processes("agent"), *run.processes("worker")]
    assert len(victims) == nodes + 3, f"{nodes} agents and 3 workers expected{run.outcome()}"
    signal_all(victims, signal.SIGSTOP)
    signal_all(victims, signal.SIGKILL)
    assert_good(place, run.wait(), reference(steps=150)["state_digest"])


@full
@pytest.mark.parametrize("nodes", [1, 2])
def test_an_agent_that_was_stopped_and_replaced_has_no_effect_when_it_goes_on(
    place: Place, reference: Reference, nodes: int
) -> None:
    """It is silent for 5 s and is then ended, its workers with it, before another takes over the memory."""
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "progress": progress}
    run = place.begin(steps=250, settings=settings, more=["--nodes", str(nodes)])
    run.until(lambda: progress.steps > 20, "20 steps")
    victim = run.processes("agent")[-1:]
    signal_all(victim, signal.SIGSTOP)
    run.until(lambda: len(run.processes("agent")) > nodes or not victim[0].is_running(), "its end", 30)
    run.until(lambda: len(run.processes("agent")) == nodes, "its successor", 30)
    signal_all(victim, signal.SIGCONT)
    assert_good(place, run.wait(), reference(steps=250)["state_digest"])


@full
def test_an_agent_stopped_for_a_moment_goes_on_itself(place: Place, reference: Reference) -> None:
    progress = Progress(place.root / "progress")
    run = place.begin(steps=120, settings={"delay_s": 0.01, "progress": progress})
    run.until(lambda: progress.steps > 20, "20 steps")
    victim = run.processes("agent")
    signal_all(victim, signal.SIGSTOP)
    time.sleep(1.5)
    wait_for(lambda: signal_all(victim, signal.SIGCONT) == 1, "the agent to be there still")
    result = assert_good(place, run.wait(), reference(steps=120)["state_digest"])
    assert (result["restarts"], result["attempt"]) == (0, 1)
