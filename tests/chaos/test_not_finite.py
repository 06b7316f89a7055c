"""Losses and gradients that are not finite: one worker's fault changes no bit, a divergence ends the run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import journal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("finite")]


def entries(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """What the journals say of this kind."""
    return [entry for entry in journal(run_dir) if entry["kind"] == kind]


@pytest.mark.parametrize(("workers", "nodes"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("phase", ["forward", "backward", "reduce"])
def test_a_worker_that_computes_wrong_is_found_out_and_changes_no_bit(
    place: Place, reference: Reference, workers: int, nodes: int, phase: str
) -> None:
    fault = {"flip": "worker", "step": 5, "phase": phase}
    more = ("--nodes", str(nodes))
    outcome = place.run(workers=workers, settings={"delay_s": 0.01}, faults=[fault], more=more)
    result = outcome.done()
    assert (result["worker_deaths"], result["steps_lost"], result["restarts"]) == (1, 0, 0), str(outcome)
    assert result["state_digest"] == reference()["state_digest"], str(outcome)
    (faulty,) = entries(place.root / "run", "faulty")
    assert "with other bits than another worker" in faulty["text"]
    assert "step 5" in faulty["text"]
    place.assert_nothing_left()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_wrong_number_is_found_out_where_every_microbatch_is_computed_twice(
    place: Place, reference: Reference, workers: int
) -> None:
    fault = {"skew": "worker", "step": 5, "phase": "backward"}
    more = ("--paranoid", "1")
    outcome = place.run(workers=workers, settings={"delay_s": 0.01}, faults=[fault], more=more)
    result = outcome.done()
    assert (result["worker_deaths"], result["steps_lost"], result["restarts"]) == (1, 0, 0), str(outcome)
    assert result["state_digest"] == reference()["state_digest"], str(outcome)
    (faulty,) = entries(place.root / "run", "faulty")
    assert "step 5" in faulty["text"]
    place.assert_nothing_left()


def test_a_wrong_number_changes_bits_where_nothing_is_compared(place: Place, reference: Reference) -> None:
    """Else the test above would prove nothing."""
    fault = {"skew": "worker", "step": 5, "phase": "backward"}
    outcome = place.run(workers=2, settings={"delay_s": 0.01}, faults=[fault])
    assert outcome.done()["state_digest"] != reference()["state_digest"], str(outcome)


DIVERGES = '''
import numpy as np

from orchestrator import Checkpoints, Job
from storage.layout import Layout
from workers import nn
from workers.data import ArrayDataset


class Counter:
    """Its parameter is the number of the step, at one of which the loss or the gradient is not finite."""

    def __init__(self, what, at):
        self.what, self.at = what, at
        self.layout = Layout.of({"count": (1,)})
        self.optimizer = nn.optimizers.SGD(1.0)
        self.metrics = ("loss",)

    def init(self, params, streams):
        params[:] = 0

    def loss_and_grad(self, params, batch, streams, out):
        bad = params[0] == self.at and 17.0 in batch[0]
        out[:1] = np.nan if bad and self.what == "gradient" else -len(batch[0])
        if params[0] == self.at and self.what == "sum":
            out[:1] = 3e38
        return np.array([[np.inf if bad and self.what == "loss" else 1.0, len(batch[0])]])

    def evaluate(self, params, batch):
        return np.array([[0.0, len(batch[0])]])

    def config(self):
        return {"kind": "counter"}


def job(what: str = "loss", on_divergence: str = "stop") -> Job:
    return Job(
        model=lambda: Counter(what, 7),
        data=lambda: ArrayDataset(np.arange(40, dtype=np.float32)[:, None]),
        batch_size=40,
        microbatches=4,
        shuffle=False,
        steps=12,
        on_divergence=on_divergence,
        checkpoints=Checkpoints(every_steps=5, keep=3),
    )
'''


@pytest.mark.parametrize(("workers", "nodes"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("what", ["loss", "gradient", "sum"])
def test_a_divergence_ends_the_run_and_leaves_a_record(
    place: Place, workers: int, nodes: int, what: str
) -> None:
    place.file("diverges.py", DIVERGES)
    more = ("--nodes", str(nodes))
    outcome = place.run("diverges.py", workers=workers, settings={"what": what}, more=more).expect(1)
    result = outcome.result
    assert (result["status"], result["restarts"]) == ("failed", 0), str(outcome)
    # Of a node that nothing happened on, the step is known that it was at when it last gave a sign of life.
    assert result["step"] == 7 or (nodes > 1 and result["step"] < 7), str(outcome)
    key = "divergence/step-000000000007-a00000001.json"
    assert "diverges at step 7" in result["error"], str(outcome)
    assert "loss" in result["error"]
    assert "learning rate" in result["error"]
    assert key in result["error"]
    record = json.loads((place.root / "run" / key).read_text())
    microbatch = None if what == "sum" else 1
    assert (record["step"], record["microbatch"], record["attempt"]) == (7, microbatch, 1)
    assert record["loss"] == {"loss": "Infinity", "gradient": 0.1, "sum": 0.1}[what]
    assert record["gradient_finite"] is (what != "gradient")
    assert len(record["gradient_blake3"]) == 64
    (entry,) = entries(place.root / "run", "divergence")
    assert entry["gradient_blake3"] == record["gradient_blake3"]
    assert not entries(place.root / "run", "faulty")
    again = place.run("diverges.py", workers=workers, settings={"what": what}, more=more).expect(1).result
    assert "diverges at step 7" in again["error"], "the same state must diverge again"


def test_a_job_may_train_on(place: Place) -> None:
    place.file("diverges.py", DIVERGES)
    result = place.run("diverges.py", settings={"what": "loss", "on_divergence": "ignore"}).done()
    assert result["step"] == 12
    assert not (place.root / "run" / "divergence").exists()
