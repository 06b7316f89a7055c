"""Shared memory that is too small, and clocks that jump."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import assert_latest_verifies, assert_no_step_lost, assert_same_bits
from tests.integration.harness import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = pytest.mark.chaos


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 1 MB."""
    folder = tmp_path / "shm"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"a small file system needs the right to mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


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


@pytest.fixture
def faketime() -> str:
    """The library that makes a process's clock wrong."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed")
    return str(found[0])


@pytest.mark.row("clock")
@pytest.mark.parametrize("jump", ["+3600", pytest.param("-3600", marks=pytest.mark.full)])
def test_a_clock_that_jumps_by_an_hour_costs_nothing(
    place: Place, reference: Reference, faketime: str, jump: str
) -> None:
    """While it trains, and for the command that goes on when everything was killed."""
    progress = Progress(place.root / "progress")
    offset = place.root / "offset"
    offset.write_text("+0")
    env = {
        "LD_PRELOAD": faketime,
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    words = place.command(steps=250, settings={"delay_s": 0.01, "every": 20, "progress": progress})
    run = place.start(words, env=env)
    run.until(lambda: progress.steps > 20, "20 steps")
    offset.write_text(jump)
    run.until(lambda: progress.steps > 100, "100 steps")
    run.kill_everything()
    assert_latest_verifies(place)
    outcome = place.run(steps=250, settings={"every": 20})
    assert_same_bits(outcome, reference(steps=250)["state_digest"])
    assert_no_step_lost(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)
