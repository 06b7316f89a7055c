"""The same promises on Ray: one instance serves all tests here."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import Progress, latest, signal_all, wait_for

if TYPE_CHECKING:
    from tests.conftest import RayHost, Reference
    from tests.integration.harness import Outcome, Place, Started

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

HALF = ("--cpus-per-worker", "0.5")


def begin(place: Place, **kwargs: Any) -> Started:
    """Start the tiny job on Ray, half a CPU for each worker."""
    return place.begin(runtime="ray", more=HALF, **kwargs)


def run(place: Place, **kwargs: Any) -> Outcome:
    """Run it to its end."""
    return begin(place, **kwargs).wait()


def assert_nothing_left(place: Place, ray_host: RayHost) -> None:
    """No actor, file in shared memory or process outlives a finished run."""
    wait_for(lambda: not ray_host.actors(), "the actors to end", 20)
    assert not place.memory()
    assert not place.strays()


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_on_ray_any_number_of_workers_ends_in_the_digest_of_the_process_runtime(
    ray_place: Place, ray_host: RayHost, reference: Reference, workers: int
) -> None:
    result = run(ray_place, workers=workers).done()
    assert result["state_digest"] == reference()["state_digest"]
    assert result["loss"] == reference()["loss"]
    assert (result["worker_deaths"], result["steps_lost"], result["restarts"]) == (0, 0, 0)
    assert_nothing_left(ray_place, ray_host)


def test_on_ray_the_address_may_be_an_option(
    ray_place: Place, ray_host: RayHost, reference: Reference
) -> None:
    del ray_place.env["RAY_ADDRESS"]
    assert ray_host.address
    outcome = ray_place.run(steps=20, runtime="ray", more=[*HALF, "--address", ray_host.address])
    assert outcome.done()["state_digest"] == reference(steps=20)["state_digest"]


@pytest.mark.chaos
def test_on_ray_killed_workers_cost_no_step(
    ray_place: Place, ray_host: RayHost, reference: Reference
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    progress = Progress(ray_place.root / "progress")
    started = begin(ray_place, workers=3, steps=300, settings={"delay_s": 0.01, "progress": progress})
    started.until(lambda: progress.steps > 5, "training")
    killed = 0
    for _ in range(2):
        workers = ray_host.actors("worker")
        assert workers, f"no worker actor found{started.outcome()}"
        killed += signal_all([rng.choice(workers)], signal.SIGKILL)
        time.sleep(rng.uniform(0.2, 0.8))
    killed += signal_all(ray_host.actors("worker"), signal.SIGKILL)  # all at once
    result = started.wait().done()
    assert 3 <= result["worker_deaths"] <= killed, f"{killed} killed{started.outcome()}"
    assert (result["steps_lost"], result["restarts"], result["attempt"]) == (0, 0, 1)
    assert result["state_digest"] == reference(steps=300)["state_digest"]
    assert_nothing_left(ray_place, ray_host)


@pytest.mark.chaos
def test_on_ray_a_worker_killed_in_each_phase_costs_no_step(
    ray_place: Place, ray_host: RayHost, reference: Reference
) -> None:
    phases = ("forward", "backward", "reduce", "update")
    faults = [{"kill": "worker", "step": 3 + 4 * i, "phase": phase} for i, phase in enumerate(phases)]
    # The segment of each worker has several blocks; a new actor needs a second or two to join.
    wide = {"hidden": 16384, "delay_s": 0.04}
    outcome = run(ray_place, workers=2, settings=wide, faults=faults)
    result = outcome.done()
    assert (result["worker_deaths"], result["steps_lost"]) == (4, 0), str(outcome)
    assert result["state_digest"] == reference(hidden=16384)["state_digest"]
    assert_nothing_left(ray_place, ray_host)


@pytest.mark.chaos
def test_on_ray_everything_killed_resumes_with_the_same_command(
    ray_place: Place, ray_host: RayHost, reference: Reference
) -> None:
    progress = Progress(ray_place.root / "progress")
    kwargs: dict[str, Any] = {"steps": 150, "settings": {"delay_s": 0.01, "progress": progress}}
    started = begin(ray_place, workers=2, **kwargs)
    started.until(lambda: progress.steps > 30, "training")
    signal_all([*started.tree(), *ray_host.actors()], signal.SIGKILL)
    started.popen.wait(10)
    progress.clear()
    again = run(ray_place, workers=3, **kwargs)
    result = again.done()
    assert result["attempt"] == 2, str(again)
    assert result["state_digest"] == reference(steps=150)["state_digest"]
    assert progress.steps < 140, "the resumed run began at zero"
    assert_nothing_left(ray_place, ray_host)


@pytest.mark.chaos
def test_on_ray_a_killed_driver_leaves_a_run_that_resumes(
    ray_place: Place, ray_host: RayHost, reference: Reference
) -> None:
    progress = Progress(ray_place.root / "progress")
    kwargs: dict[str, Any] = {"steps": 150, "settings": {"delay_s": 0.01, "progress": progress}}
    started = begin(ray_place, workers=2, **kwargs)
    started.until(lambda: progress.steps > 30, "training")
    started.driver.kill()
    started.popen.wait(10)
    again = run(ray_place, workers=2, **kwargs)
    assert again.done()["state_digest"] == reference(steps=150)["state_digest"]
    assert_nothing_left(ray_place, ray_host)


def test_on_ray_sigterm_checkpoints_and_the_process_runtime_goes_on(
    ray_place: Place, ray_host: RayHost, reference: Reference
) -> None:
    progress = Progress(ray_place.root / "progress")
    settings = {"delay_s": 0.01, "every": 1000, "progress": progress}
    started = begin(ray_place, steps=150, settings=settings)
    started.until(lambda: progress.steps > 10, "training")
    os.kill(started.popen.pid, signal.SIGTERM)
    outcome = started.wait(40).expect(75)
    assert outcome.result["status"] == "preempted", str(outcome)
    assert latest(ray_place.root / "run").step == outcome.result["step"]
    wait_for(lambda: not ray_host.actors(), "the actors to end", 20)
    again = ray_place.run(steps=150, settings=settings).done()
    assert again["state_digest"] == reference(steps=150)["state_digest"]


def test_on_ray_an_error_in_the_model_is_shown_as_on_the_process_runtime(ray_place: Place) -> None:
    ray_place.file(
        "broken.py",
        ray_place.root.joinpath("tiny.py")
        .read_text()
        .replace("    def model():\n", "    def model():\n        raise ValueError('the model is broken')\n"),
    )
    outcome = run(ray_place, job="broken.py").expect(1)
    assert outcome.result["status"] == "failed"
    assert "the model is broken" in outcome.result["error"], str(outcome)
    assert "broken.py" in outcome.stderr, str(outcome)


@pytest.mark.slow
def test_on_ray_an_address_where_nothing_listens_is_named(ray_place: Place) -> None:
    words = ray_place.command(runtime="ray", more=["--address", "127.0.0.1:1"], as_json=False)
    outcome = ray_place.cli(*words, timeout_s=90)
    assert outcome.code in (2, 75), str(outcome)
    assert "127.0.0.1:1" in outcome.stderr, str(outcome)
    assert "Traceback" not in outcome.stderr, str(outcome)


def test_the_doctor_looks_at_a_cluster(ray_place: Place) -> None:
    address = ray_place.env["RAY_ADDRESS"]
    found = ray_place.cli("doctor", "--address", address, "--json").expect(0).json
    assert [each["level"] for each in found if each["what"].startswith("Ray at")] == ["ok"]
    ray_place.cli("doctor", "--address", "127.0.0.1:9").expect(3)


PRINTING = """
import json
import os
from dataclasses import replace

from orchestrator.examples.quadratic import Quadratic, job as base


class Printing(Quadratic):
    def loss_and_grad(self, *arguments, **named):
        if not hasattr(self, "began"):
            self.began = True
            os.write(2, b"raw words\\n")
        return super().loss_and_grad(*arguments, **named)


def model():
    print("loading s3://key:secret-of-it@host")
    return Printing(0.01)


def job():
    return replace(base(), model=model)
"""


def test_on_ray_what_workers_print_is_shown_and_kept(ray_place: Place, ray_host: RayHost) -> None:
    ray_place.file("printing.py", PRINTING)
    outcome = ray_place.run("printing.py", "printing", steps=40, runtime="ray", more=HALF, workers=2)
    outcome.done()
    assert "worker 0: loading" in outcome.stderr, str(outcome)
    assert "worker 1: raw words" in outcome.stderr, str(outcome)
    lines = [
        json.loads(line) for line in ray_place.cli("logs", "printing", "--json").expect(0).stdout.splitlines()
    ]
    for rank in (0, 1):
        mine = [line for line in lines if (line["role"], line["rank"]) == ("worker", rank)]
        assert [line["text"] for line in mine if line["stream"] == "stdout"] == ["loading s3://key:***@host"]
        assert "raw words" in [line["text"] for line in mine if line["stream"] == "raw"]
    assert_nothing_left(ray_place, ray_host)


SECRETIVE = """
from dataclasses import replace

from orchestrator.examples.quadratic import job as base


def job(password: str, fail: bool = False):
    def model():
        print("the password is", password, flush=True)
        if fail:
            raise RuntimeError(f"no access with {password}")
        return base().model()

    return replace(base(), model=model)
"""


@pytest.mark.parametrize("fail", [False, True])
def test_on_ray_a_secret_given_by_name_is_with_the_workers_and_nowhere_to_be_read(
    ray_place: Place, ray_host: RayHost, fail: bool
) -> None:
    ray_place.file("secretive.py", SECRETIVE)
    ray_place.env["PLAIN_NAME"] = "canary-plain-4720"  # which the cluster's own processes do not have
    settings = {"password": "env:PLAIN_NAME", "fail": fail}
    outcome = ray_place.run("secretive.py", runtime="ray", more=HALF, settings=settings, workers=1, steps=10)
    outcome.expect(int(fail))
    assert "worker 0: the password is ***" in outcome.stderr, str(outcome)
    assert not fail or "RuntimeError: no access with ***" in outcome.result["error"]
    assert "the password is ***" in ray_place.cli("logs", "run").expect().stdout
    files = [path for path in ray_place.root.rglob("*") if path.is_file()]
    files += [path for path in ray_host.place.tmp.rglob("session_*/logs/**/*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in files)
    assert any("session_" in str(path) for path in files)
    assert not [path for path in files if b"canary-plain-4720" in path.read_bytes()]
