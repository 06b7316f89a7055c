"""Workers and writers are stopped with SIGSTOP, at chosen and at random moments: nobody waits for them."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import Progress, journal, latest, signal_all

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("stop")]

PHASES = ("forward", "backward", "reduce", "update")
TIMEOUT_S = 1.0
WIDE = {"hidden": 16384, "timeout_s": TIMEOUT_S}
"""So many parameters that the segment of each worker is updated in several blocks."""


def causes(run_dir: Path) -> list[str]:
    """Why processes were superseded, as the journal has it, whoever wrote it down how often."""
    found = {str(entry.get("cause", "")) for entry in journal(run_dir)}
    return sorted(cause for cause in found if "answer" in cause)


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_hangs_in_each_phase_costs_no_step(
    place: Place, reference: Reference, phase: str
) -> None:
    fault = {"hang": "worker", "step": 5, "phase": phase}
    outcome = place.run(workers=3, settings=WIDE, faults=[fault])
    result = outcome.done()
    assert (result["worker_deaths"], result["steps_lost"], result["restarts"]) == (1, 0, 0), str(outcome)
    assert result["state_digest"] == reference(hidden=WIDE["hidden"])["state_digest"], str(outcome)
    assert causes(place.root / "run") == [f"it did not answer within {TIMEOUT_S:g} s"], str(outcome)
    place.assert_nothing_left()


def test_the_only_worker_hangs_in_each_phase_of_one_run(place: Place, reference: Reference) -> None:
    """Its successors do the work."""
    faults = [{"hang": "worker", "step": 3 + 4 * i, "phase": phase} for i, phase in enumerate(PHASES)]
    outcome = place.run(workers=1, settings={**WIDE, "delay_s": 0.02}, faults=faults)
    result = outcome.done()
    assert (result["worker_deaths"], result["steps_lost"], result["restarts"]) == (4, 0, 0), str(outcome)
    assert result["state_digest"] == reference(hidden=WIDE["hidden"])["state_digest"], str(outcome)
    place.assert_nothing_left()


def test_without_a_setting_the_deadline_follows_from_what_was_measured(
    place: Place, reference: Reference
) -> None:
    fault = {"hang": "worker", "step": 30, "phase": "reduce"}
    outcome = place.run(workers=2, faults=[fault])
    result = outcome.done()
    assert (result["worker_deaths"], result["steps_lost"]) == (1, 0), str(outcome)
    assert result["state_digest"] == reference()["state_digest"], str(outcome)
    assert causes(place.root / "run") == ["it did not answer within 2 s"], str(outcome)


def test_a_worker_that_is_stopped_and_continued_around_its_deadline_has_no_effect(
    place: Place, reference: Reference
) -> None:
    """It goes on, or it was superseded and is gone: never both."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    steps = 300
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "progress": progress, "timeout_s": TIMEOUT_S}
    run = place.begin(workers=3, steps=steps, settings=settings)
    run.until(lambda: progress.steps > 5, "training")
    while run.running() and progress.steps < 0.8 * steps:
        if workers := run.processes("worker"):
            victims = rng.sample(workers, rng.randint(1, len(workers)))
            signal_all(victims, signal.SIGSTOP)
            time.sleep(rng.choice([rng.uniform(0.98, 1.03), rng.uniform(0.0, 1.5)]) * TIMEOUT_S)
            signal_all(victims, signal.SIGCONT)
        time.sleep(rng.uniform(0.0, 0.3))
    outcome = run.wait()
    result = outcome.done()
    assert (result["steps_lost"], result["restarts"], result["attempt"]) == (0, 0, 1), str(outcome)
    assert result["state_digest"] == reference(steps=steps)["state_digest"], str(outcome)
    place.assert_nothing_left()


@pytest.mark.parametrize(("step", "phase"), [(20, "before"), (40, "after"), (60, "before"), (60, "after")])
def test_a_writer_that_hangs_gives_its_checkpoint_up(
    place: Place, reference: Reference, step: int, phase: str
) -> None:
    """Training goes on meanwhile; the last checkpoint is tried again by its successor."""
    fault = {"hang": "writer", "step": step, "phase": phase}
    settings = {"store_timeout_s": TIMEOUT_S, "delay_s": 0.02}
    outcome = place.run(workers=2, settings=settings, faults=[fault])
    result = outcome.done()
    assert (result["worker_deaths"], result["steps_lost"], result["restarts"]) == (0, 0, 0), str(outcome)
    assert result["state_digest"] == reference()["state_digest"], str(outcome)
    assert latest(place.root / "run").step == 60
    texts = [entry["text"] for entry in journal(place.root / "run") if entry["kind"] == "checkpoint-failed"]
    assert len(texts) == 1, str(outcome)
    assert f"checkpoint of step {step} given up" in texts[0]
    assert "did not answer within 1 s" in texts[0]
    place.assert_nothing_left()


STOPS_WHILE_LOADING = """
import os
import signal
from contextlib import suppress
from pathlib import Path

from tiny import job as tiny

def job():
    if os.environ.get("STOPS") and "--rank" in Path("/proc/self/cmdline").read_text():
        with suppress(FileExistsError):  # one of them
            Path(__file__).with_suffix(".stopped").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGSTOP)
    return tiny()
"""


def test_a_worker_that_is_stopped_while_it_loads_is_replaced(place: Place, reference: Reference) -> None:
    place.file("stops.py", STOPS_WHILE_LOADING)
    env = {"HOLDFAST_START_TIMEOUT_S": "15", "STOPS": "1"}  # a loaded machine takes seconds to import
    outcome = place.start(place.command("stops.py", workers=2), env=env).wait()
    result = outcome.done()
    assert result["worker_deaths"] == 1, str(outcome)
    assert result["state_digest"] == reference()["state_digest"], str(outcome)
    assert "did not answer within 15 s" in " ".join(entry["text"] for entry in journal(place.root / "run"))
    place.assert_nothing_left()


def test_a_run_that_is_stopped_as_a_whole_and_continued_loses_nobody(
    place: Place, reference: Reference
) -> None:
    """As by Ctrl-Z: the time counts against nobody."""
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "progress": progress, "timeout_s": TIMEOUT_S}
    run = place.begin(workers=2, steps=100, settings=settings)
    run.until(lambda: progress.steps > 20, "training")
    everybody = run.tree()
    signal_all(everybody, signal.SIGSTOP)
    time.sleep(3.5)
    signal_all(everybody, signal.SIGCONT)
    outcome = run.wait()
    result = outcome.done()
    assert (result["worker_deaths"], result["restarts"]) == (0, 0), str(outcome)
    assert result["state_digest"] == reference(steps=100)["state_digest"], str(outcome)
    place.assert_nothing_left()
