"""Full, failing and slow storage, and damage to the newest checkpoint.

Errors are put into the processes of a run by a `sitecustomize` that they all import: while the file `faulty`
is there, `fsync` fails or takes long in the process that writes. What services answer (5xx), and listings
that lag, are in tests/sim and tests/unit/storage.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import assert_latest_verifies, assert_no_step_lost, assert_same_bits
from tests.chaos.small_places import mounted
from tests.integration.harness import Progress, latest, saved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = pytest.mark.chaos

full = pytest.mark.full
storage = pytest.mark.row("storage")
damage = pytest.mark.row("damage")

FAULTY = """
import os, time

real = os.fsync

def fsync(fd):
    try:
        with open(os.environ["FAULTY"]) as file:
            what = file.read()
    except FileNotFoundError:
        return real(fd)
    if what == "slow":
        time.sleep(0.7)
        return real(fd)
    raise OSError(int(what), os.strerror(int(what)))

os.fsync = fsync
"""


def faulty_env(place: Place) -> tuple[dict[str, str], Path]:
    """What a run is given so that its storage fails as the file says, while there is one."""
    folder = place.root / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FAULTY)
    flag = place.root / "faulty"
    return {"FAULTY": str(flag), "PYTHONPATH": str(folder)}, flag


@storage
@pytest.mark.parametrize(
    "what",
    [pytest.param("slow", marks=full), "5", pytest.param("28", marks=full)],
    ids=["slow", "EIO", "ENOSPC"],
)
def test_training_goes_on_while_storage_fails_or_is_slow(
    place: Place, reference: Reference, what: str
) -> None:
    env, flag = faulty_env(place)
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "every": 10, "progress": progress}
    words = place.command(steps=200, settings=settings)
    run = place.start(words, env=env)
    run.until(lambda: progress.steps > 15, "15 steps")
    flag.write_text(what)
    reached = progress.steps
    run.until(lambda: progress.steps > reached + 50, "50 steps more")
    flag.unlink()
    outcome = run.wait()
    result = assert_same_bits(outcome, reference(steps=200)["state_digest"])
    assert (result["restarts"], result["attempt"]) == (0, 1), str(outcome)
    assert_no_step_lost(outcome)
    said = "skipped" if what == "slow" else "given up|could not be written"
    assert any(word in outcome.stderr for word in said.split("|")), f"nobody said so{outcome}"
    assert latest(place.root / "run").step == 200
    assert_latest_verifies(place)
    place.assert_nothing_left()


@storage
@full
def test_a_run_whose_last_checkpoint_fails_goes_on_from_memory_when_storage_works(
    place: Place, reference: Reference
) -> None:
    env, flag = faulty_env(place)
    progress = Progress(place.root / "progress")
    words = place.command(steps=60, settings={"delay_s": 0.01, "every": 1000, "progress": progress})
    run = place.start(words, env=env)
    run.until(lambda: progress.steps > 15, "15 steps")
    flag.write_text("28")
    run.until(lambda: "checkpoint of step 60 given up" in run.said(), "the last checkpoint to fail")
    flag.unlink()
    outcome = run.wait()
    if outcome.code == 75:
        outcome = place.start(words, env=env).wait()
    assert_same_bits(outcome, reference()["state_digest"])
    assert_no_step_lost(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    with mounted(tmp_path / "disk", "3m") as folder:
        yield folder


@storage
def test_a_full_disk_costs_checkpoints_and_no_step(
    place: Place, reference: Reference, small_disk: Path
) -> None:
    """A checkpoint of 2 MB fits once; when there is room again, the last one is written."""
    progress = Progress(place.root / "progress")
    settings = {"hidden": 8192, "delay_s": 0.01, "every": 10, "progress": progress}
    ballast = small_disk / "ballast"
    run = place.begin(run_dir=small_disk / "run", steps=100, settings=settings)
    run.until(lambda: progress.steps > 5, "5 steps")
    with ballast.open("wb") as file:
        file.write(bytes(2 << 20))
    run.until(lambda: "given up" in run.said(), "a checkpoint that does not fit")
    reached = progress.steps
    run.until(lambda: progress.steps > reached + 10, "10 steps more")
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True, timeout=20)
    outcome = run.wait()
    assert_same_bits(outcome, reference(steps=100, hidden=8192)["state_digest"])
    assert_no_step_lost(outcome)
    assert latest(small_disk / "run").step == 100
    assert_latest_verifies(place, str(small_disk / "run"))
    place.assert_nothing_left()


def flip_a_byte(checkpoint: Path) -> None:
    target = _largest(checkpoint)
    data = bytearray(target.read_bytes())
    data[len(data) // 3] ^= 0x10
    target.write_bytes(data)


def truncate_an_object(checkpoint: Path) -> None:
    os.truncate(_largest(checkpoint), _largest(checkpoint).stat().st_size // 2)


def remove_an_object(checkpoint: Path) -> None:
    _largest(checkpoint).unlink()


def truncate_the_manifest(checkpoint: Path) -> None:
    manifest = checkpoint / "manifest.json"
    os.truncate(manifest, manifest.stat().st_size // 2)


def _largest(checkpoint: Path) -> Path:
    return max(
        (path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


@damage
@pytest.mark.parametrize(
    "spoil",
    [
        flip_a_byte,
        pytest.param(truncate_an_object, marks=full),
        pytest.param(remove_an_object, marks=full),
        truncate_the_manifest,
    ],
)
def test_damage_to_the_newest_checkpoint_costs_the_steps_since_the_one_before(
    place: Place, reference: Reference, spoil: Callable[[Path], None]
) -> None:
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "every": 20, "progress": progress}
    run = place.begin(steps=100, settings=settings)
    run.until(lambda: [each.complete for each in saved(place.root / "run")].count(True) > 2, "3 checkpoints")
    run.kill_everything()
    place.forget_memory()
    newest = latest(place.root / "run")
    spoil(newest.path)
    outcome = place.run(steps=100, settings=settings)
    assert_same_bits(outcome, reference(steps=100)["state_digest"])
    assert f"going on from the checkpoint of step {newest.step - 20}" in outcome.stderr, str(outcome)
    assert f"{newest.path.name} is bad" in outcome.stderr, str(outcome)
    kept = [path.name for path in (place.root / "run" / "quarantine").iterdir()]
    assert any(newest.path.name in name for name in kept), f"not in quarantine: {kept}{outcome}"
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)
