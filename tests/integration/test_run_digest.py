"""The main promise: a job ends in the same bits, whoever runs it, in one go or in several."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.integration.harness import KEYS, TINY, Progress, arrays, latest, saved

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Outcome, Place


@pytest.fixture(scope="module")
def by_workers(shared_place: Place) -> dict[int, Outcome]:
    """The same job with 1 to 4 workers."""
    found = {}
    for workers in (1, 2, 3, 4):
        found[workers] = shared_place.run(run_dir=f"w{workers}", workers=workers)
        found[workers].expect(0)
        shared_place.assert_nothing_left()
    return found


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_any_number_of_workers_ends_in_the_same_digest(by_workers: dict[int, Outcome], workers: int) -> None:
    one, many = by_workers[1].done(), by_workers[workers].done()
    assert many["state_digest"] == one["state_digest"]
    assert many["loss"] == one["loss"]
    assert many["metrics"] == one["metrics"]


def test_any_number_of_workers_saves_the_same_arrays(
    by_workers: dict[int, Outcome], shared_place: Place
) -> None:
    one, four = (arrays(shared_place.root / name) for name in ("w1", "w4"))
    assert set(one) == set(four) == {"params", "slots/adam_m", "slots/adam_v"}
    for name, array in one.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, four[name], err_msg=name)
    assert not np.array_equal(one["params"], np.zeros_like(one["params"]))


def test_an_undisturbed_run_reports_its_end(by_workers: dict[int, Outcome], shared_place: Place) -> None:
    result = by_workers[2].done()
    assert result["step"] == 60
    assert result["attempt"] == 1
    assert (result["restarts"], result["worker_deaths"], result["steps_lost"]) == (0, 0, 0)
    assert result["steps_per_s"] > 0
    assert 0 < result["loss"] < 3
    assert 0 <= result["metrics"]["accuracy"] <= 1


def test_a_run_checkpoints_every_n_steps_and_its_last_step(
    by_workers: dict[int, Outcome], shared_place: Place
) -> None:
    found = saved(shared_place.root / "w2")
    assert found[-1].step == 60
    assert found[-1].complete
    assert {each.step for each in found} <= {20, 40, 60}
    assert {each.attempt for each in found} == {1}


def test_the_manifest_holds_the_digest_that_the_run_reports(
    by_workers: dict[int, Outcome], shared_place: Place
) -> None:
    manifest = json.loads((latest(shared_place.root / "w3").path / "manifest.json").read_bytes())
    assert manifest["step"] == 60
    assert manifest["state_digest"] == by_workers[3].done()["state_digest"]


def test_the_digest_tells_states_apart(reference: Reference) -> None:
    digests = {
        reference()["state_digest"],
        reference(steps=61)["state_digest"],
        reference(seed=1)["state_digest"],
        reference(shift=0.001)["state_digest"],
    }
    assert len(digests) == 4


def test_a_finished_command_run_again_is_done_at_once(
    by_workers: dict[int, Outcome], shared_place: Place
) -> None:
    before = [each.path for each in saved(shared_place.root / "w2")]
    again = shared_place.run(run_dir="w2", workers=3)
    result = again.done()
    assert result["state_digest"] == by_workers[1].done()["state_digest"]
    assert result["step"] == 60
    assert [each.path for each in saved(shared_place.root / "w2")] == before
    shared_place.assert_nothing_left()


def test_more_steps_go_on_from_the_end(
    by_workers: dict[int, Outcome], place: Place, reference: Reference
) -> None:
    progress = Progress(place.root / "progress")
    place.run(workers=2, settings={"progress": progress}).done()
    progress.clear()
    result = place.run(workers=3, steps=90, settings={"progress": progress}).done()
    assert result["step"] == 90
    assert result["attempt"] == 2
    assert result["state_digest"] == reference(steps=90)["state_digest"]
    assert progress.steps < 45, "steps that were done already were computed again"
    assert latest(place.root / "run").step == 90
    place.assert_nothing_left()


def test_a_file_url_is_the_directory_it_names(place: Place, reference: Reference) -> None:
    first = place.run(run_dir=f"file://{place.root}/run", steps=20).done()
    again = place.run(run_dir=place.root / "run", steps=20).done()
    assert first["state_digest"] == again["state_digest"] == reference(steps=20)["state_digest"]


def test_options_override_the_job_file(place: Place, reference: Reference) -> None:
    result = place.run(steps=24, more=["--seed", "3", "--checkpoint-every", "7"]).done()
    assert result["state_digest"] == reference(steps=24, seed=3)["state_digest"]
    assert {each.step for each in saved(place.root / "run")} <= {7, 14, 21, 24}


def test_keep_limits_how_many_checkpoints_stay(place: Place) -> None:
    place.run(steps=60, settings={"every": 5, "delay_s": 0.005}).done()
    complete = [each.step for each in saved(place.root / "run") if each.complete]
    assert len(complete) <= 3, f"keep=3, found {complete}"
    assert complete[-1] == 60


JOB_CONSTANTS = TINY + "\n\nother = job(steps=25)\njob = job(steps=20)\n"


def test_a_file_may_hold_jobs_by_name(place: Place, reference: Reference) -> None:
    place.file("constant.py", JOB_CONSTANTS)
    result = place.run("constant.py", "a").done()
    assert result["state_digest"] == reference(steps=20)["state_digest"]
    other = place.run("constant.py:other", "b").done()
    assert other["state_digest"] == reference(steps=25)["state_digest"]


API = (
    TINY
    + """

if __name__ == "__main__":
    import json

    import orchestrator as orc

    result = orc.run(job(steps=20), %r, workers=2, runtime="process")
    print(json.dumps({key: getattr(result, key) for key in %r}))
"""
)


def test_the_python_interface_gives_the_same_result(place: Place, reference: Reference) -> None:
    place.file("script.py", API % ("api", sorted(KEYS)))
    result = place.python("script.py").done()
    assert result["state_digest"] == reference(steps=20)["state_digest"]
    place.assert_nothing_left()


def test_a_job_without_a_file_is_shipped_by_value(place: Place, reference: Reference) -> None:
    result = place.python("-", stdin=API % ("notebook", sorted(KEYS))).done()
    assert result["state_digest"] == reference(steps=20)["state_digest"]
    place.assert_nothing_left()


API_ERRORS = """
import orchestrator as orc
from storage import errors
from tiny import job as make

if __name__ == "__main__":
    for words in ({"workers": 0}, {"workers": 6}, {"runtime": "nosuch"}):
        try:
            orc.run(make(steps=5), "errors", **({"workers": 2, "runtime": "process"} | words))
        except errors.ConfigurationError as exc:
            print(words, "->", exc)
        else:
            raise SystemExit(f"{words} was accepted")
"""


def test_the_python_interface_raises_configuration_errors(place: Place) -> None:
    place.file("script.py", API_ERRORS)
    assert place.python("script.py").expect(0).stdout.count("->") == 3


def test_importing_the_packages_loads_no_heavy_library(place: Place) -> None:
    program = (
        "import sys, orchestrator, workers, storage\n"
        "print([name for name in ('ray', 'zarr', 'fsspec') if name in sys.modules])"
    )
    outcome = place.python("-", stdin=program).expect(0)
    assert outcome.stdout.strip() == "[]", str(outcome)


def test_the_state_lives_in_shared_memory_that_only_the_user_can_read(place: Place) -> None:
    progress = Progress(place.root / "progress")
    run = place.begin(steps=200, settings={"delay_s": 0.005, "progress": progress})
    run.until(lambda: progress.steps > 5, "training")
    files = place.memory()
    assert files, "no file named holdfast-* in HOLDFAST_SHM_DIR"
    assert all(path.stat().st_mode & 0o077 == 0 for path in files), "others may read the memory"
    run.wait().done()
    place.assert_nothing_left()


def test_without_a_setting_the_memory_is_in_dev_shm(place: Place) -> None:
    progress = Progress(place.root / "progress")
    del place.env["HOLDFAST_SHM_DIR"]
    run = place.begin(steps=150, settings={"delay_s": 0.005, "progress": progress})
    run.until(lambda: progress.steps > 5, "training")
    mapped: set[str] = set()
    for process in run.tree():
        mapped |= {each.path for each in process.memory_maps() if each.path.startswith("/dev/shm/holdfast-")}
    assert mapped, "no process of the run maps a file /dev/shm/holdfast-*"
    run.wait().done()
    assert not [path for path in mapped if Path(path).exists()]


def test_a_second_run_on_the_same_directory_is_told_where_the_first_is_alive(
    place: Place, reference: Reference
) -> None:
    progress = Progress(place.root / "progress")
    settings: dict[str, Any] = {"delay_s": 0.01, "progress": progress}
    first = place.begin(steps=150, settings=settings)
    first.until(lambda: progress.steps > 5, "training")
    began = time.monotonic()
    second = place.run(steps=150, settings=settings, as_json=False)
    assert first.running(), f"the first run ended too early for this test{first.outcome()}"
    second.one_clear_line(4, platform.node())
    assert time.monotonic() - began < 20
    result = first.wait().done()
    assert result["attempt"] == 1
    assert result["state_digest"] == reference(steps=150)["state_digest"]
    place.assert_nothing_left()
