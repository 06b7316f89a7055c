"""Workers are killed with SIGKILL, at chosen and at random moments; no step and no bit is lost."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import Progress, journal, latest, signal_all

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Outcome, Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("worker")]

PHASES = ("forward", "backward", "reduce", "update")

WIDE = {"hidden": 16384, "delay_s": 0.02}
"""344,000 parameters: so many that the segment of each worker is updated in several blocks. The delay lets a
killed worker's successor, which obeys the next fault, join before the run ends."""


def fault(step: int, phase: str) -> dict[str, Any]:
    """A worker that kills itself there, once."""
    return {"kill": "worker", "step": step, "phase": phase}


def assert_nothing_lost(outcome: Outcome, deaths: int, digest: str) -> None:
    """So many workers died, and neither a step nor a bit was lost."""
    result = outcome.done()
    assert result["worker_deaths"] == deaths, str(outcome)
    assert (result["steps_lost"], result["restarts"], result["attempt"]) == (0, 0, 1), str(outcome)
    assert result["state_digest"] == digest, str(outcome)


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_killed_in_each_phase_costs_no_step(place: Place, reference: Reference, phase: str) -> None:
    outcome = place.run(workers=3, settings=WIDE, faults=[fault(5, phase)])
    assert_nothing_lost(outcome, 1, reference(hidden=WIDE["hidden"])["state_digest"])
    place.assert_nothing_left()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_in_each_phase_of_one_run(place: Place, reference: Reference, workers: int) -> None:
    """With one worker, nobody is left to finish the step until its successor has started."""
    faults = [fault(3 + 4 * i, phase) for i, phase in enumerate(PHASES)]
    outcome = place.run(workers=workers, settings=WIDE, faults=faults)
    assert_nothing_lost(outcome, 4, reference(hidden=WIDE["hidden"])["state_digest"])
    place.assert_nothing_left()


def test_two_workers_killed_in_the_same_step(place: Place, reference: Reference) -> None:
    outcome = place.run(workers=3, settings=WIDE, faults=[fault(5, "backward"), fault(5, "update")])
    assert_nothing_lost(outcome, 2, reference(hidden=WIDE["hidden"])["state_digest"])
    place.assert_nothing_left()


@pytest.mark.parametrize(("step", "phase"), [(0, "forward"), (0, "update"), (59, "forward"), (59, "update")])
def test_a_worker_killed_in_the_first_or_the_last_step(
    place: Place, reference: Reference, step: int, phase: str
) -> None:
    outcome = place.run(workers=2, settings=WIDE, faults=[fault(step, phase)])
    assert_nothing_lost(outcome, 1, reference(hidden=WIDE["hidden"])["state_digest"])
    assert latest(place.root / "run").step == 60
    place.assert_nothing_left()


def test_a_worker_killed_while_a_checkpoint_is_written(place: Place, reference: Reference) -> None:
    """The steps after 20 run while the buffer of step 20 is pinned."""
    outcome = place.run(
        workers=2, settings=WIDE, faults=[fault(20, "update"), fault(21, "reduce"), fault(40, "forward")]
    )
    assert_nothing_lost(outcome, 3, reference(hidden=WIDE["hidden"])["state_digest"])
    place.assert_nothing_left()


def test_all_workers_killed_at_once_are_replaced(place: Place, reference: Reference) -> None:
    progress = Progress(place.root / "progress")
    run = place.begin(workers=3, steps=150, settings={"delay_s": 0.01, "progress": progress})
    run.until(lambda: progress.steps > 20, "training")
    workers = run.processes("worker")
    assert len(workers) == 3, f"3 workers expected{run.outcome()}"
    assert signal_all(workers, signal.SIGKILL) == 3
    assert_nothing_lost(run.wait(), 3, reference(steps=150)["state_digest"])
    place.assert_nothing_left()


def test_where_all_that_compute_are_killed_who_stands_by_commits_the_next_step(
    place: Place, reference: Reference
) -> None:
    """Those that are started in their place take seconds to load the job; it goes on before."""
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "load_s": 2.0, "progress": progress}
    run = place.begin(workers=2, steps=250, settings=settings, more=["--standby", "1"])
    run.until(lambda: progress.steps > 5, "training")
    run.until(lambda: "standing by" in place.cli("status", "run").stdout, "a worker that stands by")
    assert "on 1 node with 2 workers and 1 standing by" in place.cli("status", "run").stdout
    workers = run.processes("worker")
    assert len(workers) == 3, str(run.outcome())
    before = {each: each.num_ctx_switches().voluntary for each in workers}
    time.sleep(0.5)
    computing = sorted(workers, key=lambda w: w.num_ctx_switches().voluntary - before[w])[1:]
    assert signal_all(computing, signal.SIGKILL) == 2
    assert_nothing_lost(run.wait(), 2, reference(steps=250)["state_digest"])
    kinds = [entry["kind"] for entry in journal(place.root / "run")]
    after = kinds[kinds.index("lost") :]
    assert after.index("recovered") < after.index("ready"), after
    assert after.count("ready") == 2, "both are replaced"
    place.assert_nothing_left()


def test_workers_killed_at_random_moments_cost_no_step(place: Place, reference: Reference) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    steps = 300
    progress = Progress(place.root / "progress")
    run = place.begin(workers=3, steps=steps, settings={"delay_s": 0.01, "progress": progress})
    run.until(lambda: run.processes("worker"), "a worker is started")
    started = time.monotonic()
    run.until(lambda: progress.steps > 0, "training")
    loads_s = time.monotonic() - started  # on a busy machine longer: who dies while it loads is no use
    run.until(lambda: progress.steps > 5, "training")
    killed = 0
    while run.running() and progress.steps < 0.8 * steps:
        if workers := run.processes("worker"):
            killed += signal_all([rng.choice(workers)], signal.SIGKILL)
        time.sleep(rng.uniform(0.0, 1.2 * loads_s))
    print(f"a worker loads in {loads_s:.2f} s")
    outcome = run.wait()
    result = outcome.done()
    print(f"{killed} kills, {result['worker_deaths']} deaths counted")
    assert killed >= 3, str(outcome)
    assert 1 <= result["worker_deaths"] <= killed, f"{killed} kills{outcome}"
    assert (result["steps_lost"], result["restarts"], result["attempt"]) == (0, 0, 1), str(outcome)
    assert result["state_digest"] == reference(steps=steps)["state_digest"], str(outcome)
    place.assert_nothing_left()


def test_a_stopped_worker_that_is_killed_costs_no_step(place: Place, reference: Reference) -> None:
    """It holds work, is silent for a while, and then dies without a word."""
    progress = Progress(place.root / "progress")
    run = place.begin(workers=2, steps=100, settings={"delay_s": 0.01, "progress": progress})
    run.until(lambda: progress.steps > 20, "training")
    victim = run.processes("worker")[:1]
    signal_all(victim, signal.SIGSTOP)
    time.sleep(0.5)
    signal_all(victim, signal.SIGKILL)
    outcome = run.wait()
    result = outcome.done()
    assert result["worker_deaths"] >= 1, str(outcome)
    assert result["state_digest"] == reference(steps=100)["state_digest"], str(outcome)
    place.assert_nothing_left()
