"""All processes of a run are killed at one moment; the same command again ends in the same bits."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import MICROBATCHES, Progress, latest, saved, signal_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Reference
    from tests.integration.harness import Place, Started

pytestmark = [pytest.mark.chaos, pytest.mark.row("all")]

STEPS, EVERY = 90, 30
HIDDEN = 32768
"""8 MB of state: a checkpoint takes long enough to be hit."""

SLACK = 10
"""Steps of tolerance when counting microbatches: work in flight, fetched ahead or redone."""


def kill_before_the_first_checkpoint(run: Started, place: Place, progress: Progress) -> None:
    run.until(lambda: progress.steps > 15, "15 steps")
    run.kill_everything()
    assert not saved(place.root / "run"), "the run was faster than this test expects"


def kill_between_two_checkpoints(run: Started, place: Place, progress: Progress) -> None:
    run.until(lambda: progress.steps > 46, "46 steps")
    run.kill_everything()
    assert [each.step for each in saved(place.root / "run")] == [30], (
        "the run was faster than this test expects"
    )


def kill_while_a_checkpoint_is_written(run: Started, place: Place, progress: Progress) -> None:
    run.until(lambda: progress.steps > 40, "40 steps")
    known = run.tree()  # so that the kill follows within a millisecond
    run.until(lambda: len(saved(place.root / "run")) > 1, "the second checkpoint", poll_s=0.0005)
    run.kill_everything(known)
    print(f"in the middle of a checkpoint: {not saved(place.root / 'run')[1].complete}")


def kill_while_the_last_checkpoint_is_written(run: Started, place: Place, progress: Progress) -> None:
    run.until(lambda: progress.steps > 70, "70 steps")
    known = run.tree()
    run.until(
        lambda: any(each.step == STEPS for each in saved(place.root / "run")),
        "the last checkpoint",
        poll_s=0.0005,
    )
    run.kill_everything(known)
    print(f"in the middle of the last checkpoint: {not saved(place.root / 'run')[-1].complete}")


POINTS = {
    "before the first checkpoint": (kill_before_the_first_checkpoint, 2),
    "between two checkpoints": (kill_between_two_checkpoints, 1),
    "while a checkpoint is written": (kill_while_a_checkpoint_is_written, 3),
    "while the last checkpoint is written": (kill_while_the_last_checkpoint_is_written, 2),
}


@pytest.mark.parametrize(
    "memory", [pytest.param("memory survives", marks=pytest.mark.full), "memory is lost"]
)
@pytest.mark.parametrize("point", POINTS)
def test_everything_killed_and_run_again_ends_in_the_same_bits(
    place: Place, reference: Reference, point: str, memory: str
) -> None:
    kill: Callable[[Started, Place, Progress], None]
    kill, workers = POINTS[point]
    progress = Progress(place.root / "progress")
    settings = {"hidden": HIDDEN, "every": EVERY, "delay_s": 0.005, "progress": progress}
    expected = reference(steps=STEPS, hidden=HIDDEN)["state_digest"]

    run = place.begin(workers=2, steps=STEPS, settings=settings)
    kill(run, place, progress)
    killed = run.popen.returncode == -signal.SIGKILL
    assert killed or point == "while the last checkpoint is written", str(run.outcome())
    place.assert_no_process()
    complete = [each.step for each in saved(place.root / "run") if each.complete]
    base = complete[-1] if complete else 0
    reached = progress.steps
    finished = base == STEPS
    assert finished or place.memory(), "the memory did not survive its processes"
    if memory == "memory is lost":
        place.forget_memory()

    progress.clear()
    outcome = place.run(workers=workers, steps=STEPS, settings=settings)
    result = outcome.done()
    assert result["state_digest"] == expected, str(outcome)
    assert result["step"] == STEPS
    assert finished or result["attempt"] == 2, str(outcome)
    assert latest(place.root / "run").step == STEPS
    computed = progress.microbatches
    if memory == "memory is lost":
        assert computed >= MICROBATCHES * (STEPS - base), f"resumed from elsewhere than step {base}{outcome}"
        assert progress.steps <= STEPS - base + SLACK, f"more was computed again than needed{outcome}"
    else:
        assert progress.steps <= STEPS - reached + SLACK, f"committed steps were computed again{outcome}"
        assert result["steps_lost"] == 0, str(outcome)
    place.assert_nothing_left(sockets=False)


def test_killed_again_and_again_at_random_moments(place: Place, reference: Reference) -> None:
    """Also while it starts, claims its attempt, restores and writes."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    settings = {"delay_s": 0.005, "every": 5}
    expected = reference(steps=120)["state_digest"]
    killed, before = 0, 0
    for _ in range(7):
        run = place.begin(workers=rng.randint(1, 4), steps=120, settings=settings)
        time.sleep(rng.uniform(0.2, 2.2))
        if not run.running():
            break
        run.kill_everything()
        killed += 1
        if rng.random() < 0.3:
            place.forget_memory()
        steps = [each.step for each in saved(place.root / "run") if each.complete]
        print(f"attempt killed after {time.monotonic() - run.began:.2f} s, newest checkpoint {steps[-1:]}")
        assert not steps or steps[-1] >= before, "the newest checkpoint went backwards"
        before = steps[-1] if steps else 0
    outcome = place.run(workers=3, steps=120, settings=settings)
    assert killed >= 1
    assert outcome.done()["state_digest"] == expected, str(outcome)
    place.assert_nothing_left(sockets=False)


def test_a_run_that_resumes_from_a_dead_one_does_not_wait_for_it(place: Place) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.005, "progress": progress}
    run = place.begin(steps=100, settings=settings)
    run.until(lambda: progress.steps > 30, "30 steps")
    run.kill_everything()
    progress.clear()
    began = time.monotonic()
    again = place.begin(steps=100, settings=settings)
    again.until(lambda: progress.microbatches > 0, "the first microbatch of the second attempt")
    waited = time.monotonic() - began
    again.wait().done()
    assert waited < 10, f"{waited:.1f} s: it waited for a process that is known to be dead"
    place.assert_nothing_left(sockets=False)


@pytest.mark.parametrize("role", ["driver", "agent", "writer"])
def test_any_other_process_killed_alone_leads_to_the_same_bits(
    place: Place, reference: Reference, role: str
) -> None:
    """Either the run goes on by itself, or it says 75 (or is dead) and the same command resumes."""
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.005, "every": 10, "progress": progress}
    expected = reference(steps=150)["state_digest"]
    run = place.begin(steps=150, settings=settings)
    run.until(lambda: progress.steps > 35, "35 steps")
    victims = [run.driver] if role == "driver" else run.processes(role)
    assert victims, f"no {role} among\n{run.tree()}"
    assert signal_all(victims, signal.SIGKILL) == len(victims)
    outcome = run.wait()
    assert outcome.code in ((-signal.SIGKILL,) if role == "driver" else (0, 75)), str(outcome)
    if outcome.code:
        outcome = place.run(workers=3, steps=150, settings=settings)
    result = outcome.done()
    assert result["state_digest"] == expected, str(outcome)
    assert latest(place.root / "run").step == 150
    place.assert_nothing_left(sockets=False)
