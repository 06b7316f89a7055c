"""Shared memory that is too small, and clocks that jump."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import assert_latest_verifies, assert_no_step_lost, assert_same_bits
from tests.chaos.small_places import mounted
from tests.integration.harness import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = pytest.mark.chaos


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 1 MB."""
    with mounted(tmp_path / "shm", "1m") as folder:
        yield folder


@pytest.mark.row("memory")
@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.full)])
def test_too_little_shared_memory_is_an_error_before_any_training(
    place: Place, small_memory: Path, nodes: int
) -> None:
    progress = Progress(place.root / "progress")
    settings = {"hidden": 65536, "progress": progress}
    words = place.command(settings=settings, more=["--nodes", str(nodes)])
    outcome = place.start(words, env={"HOLDFAST_SHM_DIR": str(small_memory)}).wait(60).expect(2)
    assert "bytes of shared memory" in outcome.result["error"], str(outcome)
    assert "bytes are available" in outcome.result["error"], str(outcome)
    assert progress.microbatches == 0, "it had begun to train"
    assert not [*small_memory.iterdir()]
    place.assert_nothing_left()


CLOCK = """
import datetime, os, time

def offset():
    try:
        with open(os.environ["CLOCK_OFFSET"]) as file:
            return float(file.read())
    except (OSError, ValueError):
        return 0.0

class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

real = time.time
time.time = lambda: real() + offset()
time.time_ns = lambda: int(time.time() * 1e9)
datetime.datetime = Jumping
"""
"""A `sitecustomize` that all processes of a run import: their wall clock is off by what a file says."""


@pytest.mark.row("clock")
@pytest.mark.parametrize("jump", ["+3600", pytest.param("-3600", marks=pytest.mark.full)])
def test_a_clock_that_jumps_by_an_hour_costs_nothing(place: Place, reference: Reference, jump: str) -> None:
    """While it trains, and for the command that goes on when everything was killed."""
    progress = Progress(place.root / "progress")
    offset = place.root / "offset"
    (place.root / "sitecustomize.py").write_text(CLOCK)
    env = {"PYTHONPATH": str(place.root), "CLOCK_OFFSET": str(offset)}
    words = place.command(steps=250, settings={"delay_s": 0.01, "every": 20, "progress": progress})
    run = place.start(words, env=env)
    run.until(lambda: progress.steps > 20, "20 steps")
    offset.write_text(jump)
    run.until(lambda: progress.steps > 100, "100 steps")
    run.kill_everything()
    beat = max((place.root / "run" / "journal").glob("*.jsonl"))
    told = datetime.fromisoformat(json.loads(beat.read_text().splitlines()[-1])["time"])
    assert abs((told - datetime.now(UTC)).total_seconds()) > 1800, "the clock did not jump"
    assert_latest_verifies(place)
    outcome = place.run(steps=250, settings={"every": 20})
    assert_same_bits(outcome, reference(steps=250)["state_digest"])
    assert_no_step_lost(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)
