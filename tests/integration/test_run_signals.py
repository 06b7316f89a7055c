"""A run that is asked to stop does so in order, and the same command goes on with the same bits."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.integration.harness import Progress, latest, wait_for

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Place

STEPS = 120


def test_sigterm_checkpoints_the_step_and_exits_75(place: Place, reference: Reference) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "every": 1000, "progress": progress}
    run = place.begin(steps=STEPS, settings=settings)
    run.until(lambda: progress.steps > 10, "training")
    os.kill(run.popen.pid, signal.SIGTERM)
    outcome = run.wait(30).expect(75)
    result = outcome.result
    assert result["status"] == "preempted", str(outcome)
    assert 5 < result["step"] < STEPS, str(outcome)
    checkpoint = latest(place.root / "run")
    assert checkpoint.step == result["step"], str(outcome)
    place.assert_no_process()
    status = place.cli("status", "run", "--json").expect(0).result
    assert (status["status"], status["step"]) == ("preempted", result["step"])
    place.forget_memory()  # the checkpoint must do
    progress.clear()
    again = place.run(workers=3, steps=STEPS, settings=settings).done()
    assert again["attempt"] == 2
    assert again["steps_lost"] == 0
    assert again["state_digest"] == reference(steps=STEPS)["state_digest"]
    assert progress.steps < STEPS - result["step"] + 10, "steps before the checkpoint were computed again"
    place.assert_nothing_left()


@pytest.mark.parametrize("group", [False, True], ids=["driver", "whole group, as Ctrl-C in a terminal"])
def test_sigint_exits_130_and_the_same_command_resumes(
    place: Place, reference: Reference, group: bool
) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "every": 20, "progress": progress}
    run = place.begin(steps=STEPS, settings=settings)
    run.until(lambda: progress.steps > 30, "training")
    (os.killpg if group else os.kill)(run.popen.pid, signal.SIGINT)
    outcome = run.wait(30).expect(130)
    assert outcome.result["status"] == "interrupted", str(outcome)
    assert "Traceback" not in outcome.stderr, str(outcome)
    place.assert_no_process()
    again = place.run(steps=STEPS, settings=settings).done()
    assert again["attempt"] == 2
    assert again["state_digest"] == reference(steps=STEPS)["state_digest"]
    place.assert_nothing_left()


def test_signals_twice_and_during_the_start_leave_a_run_that_resumes(
    place: Place, reference: Reference
) -> None:
    run = place.begin(steps=60)
    run.until(lambda: (place.root / "run" / "run.json").exists(), "run.json")
    os.kill(run.popen.pid, signal.SIGTERM)
    if run.running():
        run.driver.send_signal(signal.SIGTERM)
    code = run.wait(30).code
    assert code in (0, 75, -signal.SIGTERM), str(run.outcome())
    place.assert_no_process()
    assert place.run(steps=60).done()["state_digest"] == reference()["state_digest"]
    place.assert_nothing_left(sockets=False)


VALIDATED = """
import dataclasses
import time
import numpy as np
from tiny import job as plain


def job(delay_s: float = 0.0, progress: str = "", steps: int = 60, every: int = 20):
    made = plain(steps=steps, every=1000)

    class Slow:
        def __init__(self, inner):
            self.inner = inner

        def __len__(self):
            return len(self.inner)

        def take(self, indices):
            time.sleep(delay_s)
            if progress:
                with open(progress, "ab") as file:
                    file.write(b".")
            return self.inner.take(indices)

        def identity(self):
            return self.inner.identity()

    return dataclasses.replace(made, validation=lambda: Slow(made.data()), validate_every=every)
"""


@pytest.mark.parametrize("every", [20, 60], ids=["in between", "after the last step"])
def test_sigterm_within_a_long_validation_does_not_wait_for_its_end(
    place: Place, reference: Reference, every: int
) -> None:
    place.file("validated.py", VALIDATED)
    progress = Progress(place.root / "progress")
    slow = {"delay_s": 2, "progress": progress, "every": every}  # 8 batches for 2 workers
    run = place.begin("validated.py", settings=slow)
    run.until(lambda: progress.microbatches >= 1, "validation")
    os.kill(run.popen.pid, signal.SIGTERM)
    result = run.wait(60).expect(75).result
    assert progress.microbatches < 8, "the rest of the validation data was not looked at"
    assert (result["status"], result["step"]) == ("preempted", every)
    assert latest(place.root / "run").step == every
    place.assert_no_process()
    place.forget_memory()
    again = place.run("validated.py", settings={"every": every}).done()
    assert again["attempt"] == 2
    assert again["steps_lost"] == 0
    assert again["state_digest"] == reference()["state_digest"]
    assert "val_accuracy" in again["metrics"]
    place.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.5, 1.0])
def test_a_signal_before_the_run_begins_still_gives_one_result(
    place: Place, number: signal.Signals, after_s: float
) -> None:
    run = place.begin(settings={"load_s": 60})
    supervisor = psutil.Process(run.popen.pid)
    run.until(supervisor.children, "it starts its coordinator")
    time.sleep(after_s)
    os.kill(run.popen.pid, number)
    code, status = (130, "interrupted") if number is signal.SIGINT else (75, "preempted")
    outcome = run.wait(60).expect(code)
    assert outcome.json["status"] == status, str(outcome)
    assert "Traceback" not in outcome.stderr, str(outcome)
    place.assert_no_process()


def test_what_a_killed_command_has_just_started_ends_soon(place: Place) -> None:
    run = place.begin(settings={"load_s": 60})
    run.until(lambda: len(run.processes("worker")) == 2, "it starts workers")
    os.kill(run.popen.pid, signal.SIGKILL)
    wait_for(lambda: not place.strays(), "the processes to end", 20)
