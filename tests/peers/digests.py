"""A job of another engine keeps the main promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.integration.harness import Place

FAULTS = ("--faults", "worker,all", "--every", "2", "--count", "4", "--seed", "3", "--workers", "2")


JOB = """
import numpy as np
from orchestrator import Checkpoints, Job
from orchestrator.examples.digits import digits
from workers.data import ArrayDataset

def data(test=False):
    found = digits(test=test)
    x, y = found.take(np.arange(len(found)))
    return ArrayDataset(x.astype("float32") / 16, y)

def job(steps: int = 600):
    return Job(model=model, data=data, validation=lambda: data(True), batch_size=64, microbatches=4,
               steps=steps, checkpoints=Checkpoints(every_steps=50))
"""


def check_same_digest(place: Place, model: str, *more: str) -> None:
    """A job with this source of its `model` ends in the same digest under faults, with 1 or 3 workers too,
    and learns the digits.
    """
    file = place.file("job.py", model + JOB).name
    report = place.cli("chaos", file, *FAULTS, *more, "--json", timeout_s=250).expect(0).json
    assert report["holds"] is True
    assert sum(report["delivered"].values()) == 4
    assert report["state_digests"]["undisturbed"] == report["state_digests"]["disturbed"]
    alone, together = (_run(place, file, workers) for workers in (1, 3))
    assert alone["state_digest"] == together["state_digest"]
    assert alone["metrics"]["val_accuracy"] > 0.9


def _run(place: Place, file: str, workers: int) -> dict[str, Any]:
    options = ["--workers", str(workers), "--runtime", "process", "--steps", "300", "--json"]
    found: dict[str, Any] = (
        place.cli("run", file, "--run-dir", f"with-{workers}", *options, timeout_s=120).expect(0).json
    )
    return found
