"""What was trained is never dropped, mixed with other arithmetic, or begun anew without a word."""

from __future__ import annotations

import platform
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import TINY, Progress, saved

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Place, Started

SLOW = {"delay_s": 0.004}

METRICS = """
import tiny


def job(metrics: int = 1, delay_s: float = 0.004, progress: str = ""):
    import dataclasses

    base = tiny.job(delay_s=delay_s, progress=progress, steps=400, every=1000)

    def model():
        from workers import nn

        made = base.model()
        loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile(nn.optimizers.Adam(1e-3), loss, ["accuracy"][:metrics])
        return made

    return dataclasses.replace(base, model=model)
"""

RAISING_INIT = """
import tiny


def job():
    import dataclasses

    base = tiny.job()

    class Raising:
        def __init__(self):
            self.inner = base.model().engine()
            self.layout, self.optimizer = self.inner.layout, self.inner.optimizer
            self.metrics = self.inner.metrics

        def init(self, params, streams):
            raise OSError("the initial weights are not there")

        def loss_and_grad(self, params, batch, streams, out):
            return self.inner.loss_and_grad(params, batch, streams, out)

        def evaluate(self, params, batch):
            return self.inner.evaluate(params, batch)

        def config(self):
            return {}

    return dataclasses.replace(base, model=Raising)
"""


def killed_beyond(place: Place, after: int, progress: Progress, **begin: object) -> Started:
    """A run of which everything was killed after more than `after` steps."""
    run = place.begin(**begin)  # type: ignore[arg-type]
    run.until(lambda: progress.steps > after, f"{after} steps")
    run.kill_everything()
    return run


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another OpenBLAS core type is chosen by name")
@pytest.mark.parametrize("memory", ["memory survives", "memory is lost"])
def test_a_run_is_not_resumed_with_other_arithmetic(place: Place, memory: str) -> None:
    progress = Progress(place.root / "progress")
    settings = {**SLOW, "progress": progress}
    killed_beyond(place, 45, progress, steps=200, settings=settings)
    if memory == "memory is lost":
        place.forget_memory()
    words = place.command(steps=200, settings=settings, as_json=False)
    other = place.start(words, env={"OPENBLAS_CORETYPE": "Nehalem"}).wait()
    if other.code == 0:
        pytest.skip("this OpenBLAS computes the same on either core type")
    other.one_clear_line(2, "blas|probe", "determinism")
    place.run(steps=200, settings=settings).done()


def test_a_run_that_lost_its_base_records_is_not_begun_anew(place: Place) -> None:
    place.run(steps=40).done()
    before = [each.step for each in saved(place.root / "run")]  # one is skipped where a writer is slow
    assert before[-1] == 40
    for record in (place.root / "run" / "attempts").glob("*.base.json"):
        record.unlink()
    outcome = place.run(steps=60, as_json=False)
    assert outcome.code == 1, str(outcome)
    assert "starting from zero would lose the run" in outcome.stderr, str(outcome)
    assert [each.step for each in saved(place.root / "run")] == before


def test_another_metric_does_not_cost_the_steps_in_memory(place: Place) -> None:
    place.file("metrics.py", METRICS)
    progress = Progress(place.root / "progress")
    killed_beyond(place, 60, progress, job="metrics.py", settings={"progress": progress})
    outcome = place.run("metrics.py", settings={"progress": progress, "metrics": 0})
    assert outcome.done()["steps_lost"] == 0
    assert "found in shared memory" in outcome.stderr, str(outcome)


def test_asking_for_fewer_steps_does_not_cost_those_in_memory(place: Place, reference: Reference) -> None:
    progress = Progress(place.root / "progress")
    settings = {**SLOW, "progress": progress}
    killed_beyond(place, 50, progress, steps=120, settings=settings)
    assert place.run(steps=20, settings=settings).done()["step"] >= 20
    outcome = place.run(steps=120, settings=settings)
    assert outcome.done()["state_digest"] == reference(steps=120)["state_digest"]
    assert "found in shared memory" in outcome.stderr, str(outcome)


def test_a_copied_directory_does_not_take_the_memory_of_the_run_that_it_is_a_copy_of(
    place: Place, reference: Reference
) -> None:
    progress = Progress(place.root / "progress")
    settings = {**SLOW, "progress": progress}
    killed_beyond(place, 50, progress, steps=120, settings=settings)
    shutil.copytree(place.root / "run", place.root / "copy")
    original = place.begin(steps=120, settings=settings)
    copied = place.begin(run_dir="copy", steps=120, settings=settings)
    found = [each.wait() for each in (original, copied)]
    assert "found in shared memory" in found[0].stderr, str(found[0])
    assert "found in shared memory" not in found[1].stderr, str(found[1])
    for outcome in found:
        assert "was killed" not in outcome.stderr, str(outcome)
        assert outcome.done()["state_digest"] == reference(steps=120)["state_digest"]
    place.assert_nothing_left()


def test_who_asks_for_fewer_steps_than_there_are_is_told(place: Place) -> None:
    place.run(steps=20).done()
    outcome = place.run(steps=10)
    assert outcome.done()["step"] == 20
    assert "nothing to do: the run has come to step 20, and is asked for 10 steps" in outcome.stderr


def test_what_differs_is_named_and_a_learning_rate_may_change(place: Place) -> None:
    place.file("tiny.py", TINY)
    place.run(steps=5).done()
    refused = place.run(steps=10, settings={"shift": 1.0}, as_json=False)
    refused.one_clear_line(
        2, r"data \(arrays\)\.blake3 is", "there and", "another --run-dir, or remove this one"
    )
    place.file("tiny.py", TINY.replace("Adam(1e-3)", "Adam(1e-2)"))
    changed = place.run(steps=10)
    changed.done()
    assert re.search(r"optimizer\S*learning_rate was 0\.001 and is now 0\.01", changed.stderr), str(changed)


def test_the_best_checkpoints_are_of_a_metric_that_there_is(place: Place) -> None:
    best = "keep=3, keep_best=2, best_metric="
    place.file("tiny.py", TINY.replace("keep=3", f'{best}"accurcy"'))
    refused = place.run(steps=5, as_json=False)
    refused.one_clear_line(2, "best_metric='accurcy'", "a metric of the job's, of loss, accuracy")
    place.file("tiny.py", TINY.replace("keep=3", f'{best}"accuracy"'))
    place.run(steps=5, run_dir="other").done()


def test_an_error_in_the_initial_values_is_shown_as_the_users(place: Place) -> None:
    place.file("raising.py", RAISING_INIT)
    outcome = place.run("raising.py", as_json=False).expect(1)
    assert outcome.stderr.count("Traceback") == 1, str(outcome)
    assert "the initial weights are not there" in outcome.stderr
    place.assert_nothing_left()


def test_a_run_directory_in_the_memory_of_one_process_is_refused(place: Place) -> None:
    place.run(run_dir="memory://run", as_json=False).one_clear_line(2, "memory://run", "path")
