"""Every mistake a user can make gives one clear line and the documented exit code, never our traceback."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import COUNTER, TINY, saved

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Reference
    from tests.integration.harness import Place


@pytest.fixture(scope="module", autouse=True)
def _nothing_started_stays(shared_place: Place) -> Iterator[None]:
    """Refused commands leave nothing behind."""
    yield
    shared_place.assert_nothing_left()


def refused(
    place: Place, *needles: str, job: str = "tiny.py", run_dir: str = "refused", **kwargs: Any
) -> str:
    """The one line with which a command is refused that must not have begun to train."""
    outcome = place.run(job, run_dir, as_json=False, **kwargs)
    line = outcome.one_clear_line(2, *needles)
    assert not saved(place.root / run_dir), f"it trained all the same{outcome}"
    return line


def test_an_unknown_example_lists_the_known_ones(shared_place: Place) -> None:
    refused(shared_place, "nonesuch", "digits", "mnist", "quadratic", job="nonesuch")


def test_a_missing_file_is_named(shared_place: Place) -> None:
    refused(shared_place, r"missing\.py", job="missing.py")


def test_a_directory_is_not_a_job_file(shared_place: Place) -> None:
    (shared_place.root / "folder.py").mkdir()
    refused(shared_place, r"folder\.py", job="folder.py")


def test_a_file_without_a_job_is_told_what_it_lacks(shared_place: Place) -> None:
    shared_place.file("empty.py", "x = 1\n")
    refused(shared_place, r"empty\.py", r"\bjob\b", job="empty.py")


def test_a_name_that_the_file_lacks_is_named(shared_place: Place) -> None:
    refused(shared_place, r"tiny\.py", "nothere", job="tiny.py:nothere")


@pytest.mark.parametrize(
    "text",
    ["job = 3\n", "def job():\n    return 3\n"],
    ids=["a constant", "what a function returns"],
)
def test_a_job_of_another_type_is_refused_naming_the_type(shared_place: Place, text: str) -> None:
    shared_place.file("wrong.py", text)
    refused(shared_place, r"wrong\.py", r"\bint\b", r"\bJob\b", job="wrong.py")


def test_an_unknown_setting_is_named_with_the_known_ones(shared_place: Place) -> None:
    refused(shared_place, "hiden", "hidden", "microbatches", settings={"hiden": 3})


def test_a_setting_of_the_wrong_type_is_named_with_the_type(shared_place: Place) -> None:
    refused(shared_place, "hidden", "many", r"\bint", settings={"hidden": "many"})


def test_a_setting_without_a_value_is_refused(shared_place: Place) -> None:
    refused(shared_place, "hidden", "NAME=VALUE", more=["--set", "hidden"])


def test_settings_need_a_job_function(shared_place: Place) -> None:
    shared_place.file("constant.py", TINY + "\n\njob = job()\n")
    refused(shared_place, r"--set|setting", "hidden", job="constant.py", settings={"hidden": 3})


def test_a_batch_smaller_than_its_microbatches_is_refused(shared_place: Place) -> None:
    refused(shared_place, "batch_size", r"\b4\b", "microbatches", r"\b5\b", settings={"batch": 4})


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_must_hold_something(shared_place: Place, batch: int) -> None:
    refused(shared_place, "batch_size", rf"(?<!\d){batch}\b", settings={"batch": batch})


@pytest.mark.parametrize("workers", ["0", "-2"])
def test_a_run_needs_a_worker(shared_place: Place, workers: str) -> None:
    refused(shared_place, "workers", workers, workers=workers)


def test_more_workers_than_microbatches_names_both(shared_place: Place) -> None:
    refused(shared_place, "microbatches", r"\b5\b", r"\b6\b", workers=6)


@pytest.mark.parametrize("steps", [0, -3])
def test_a_run_needs_a_step(shared_place: Place, steps: int) -> None:
    refused(shared_place, "steps", str(steps), steps=steps)


def test_an_unknown_runtime_names_the_known_ones(shared_place: Place) -> None:
    refused(shared_place, "nosuch", "ray", "process", runtime="nosuch")


# --- the run directory belongs to another job ---------------------------------------------------------------


@pytest.fixture(scope="module")
def occupied(shared_place: Place) -> Place:
    """A place whose directory `run` holds 10 steps of the tiny job."""
    shared_place.run(steps=10).done()
    return shared_place


@pytest.mark.parametrize(
    ("settings", "needles"),
    [
        ({"seed": 7}, ("seed", r"\b0\b", r"\b7\b")),
        ({"batch": 34}, ("batch_size", r"\b33\b", r"\b34\b")),
        ({"microbatches": 6}, ("microbatches", r"\b5\b", r"\b6\b")),
        ({"hidden": 24}, ("dense/kernel", r"16, 16", r"16, 24")),
        ({"shift": 1.0}, ("data",)),
    ],
    ids=["seed", "batch size", "microbatches", "layout", "data"],
)
def test_the_directory_of_another_job_is_refused_naming_the_difference(
    occupied: Place, settings: dict[str, object], needles: tuple[str, ...]
) -> None:
    before = [each.path for each in saved(occupied.root / "run")]
    outcome = occupied.run(steps=20, settings=settings, as_json=False)
    outcome.one_clear_line(2, *needles)
    assert [each.path for each in saved(occupied.root / "run")] == before, f"it trained all the same{outcome}"


def test_a_refused_command_does_no_harm(occupied: Place, reference: Reference) -> None:
    occupied.run(steps=20, settings={"seed": 7}).expect(2)
    assert occupied.run(steps=12).done()["state_digest"] == reference(steps=12)["state_digest"]


# --- places that cannot be written --------------------------------------------------------------------------


def test_a_directory_below_a_file_is_refused(shared_place: Place) -> None:
    (shared_place.root / "plain").write_text("not a directory")
    refused(shared_place, "plain/run", run_dir="plain/run")


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="needs Linux's /proc, where nobody may create a directory"
)
def test_a_directory_that_cannot_be_created_is_refused(shared_place: Place) -> None:
    refused(shared_place, "/proc/holdfast", run_dir="/proc/holdfast/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused(shared_place: Place) -> None:
    closed = shared_place.root / "closed"
    closed.mkdir(mode=0o500)
    refused(shared_place, "closed", run_dir="closed/run")


def test_an_unknown_scheme_is_named(shared_place: Place) -> None:
    refused(shared_place, "nosuch://bucket|nosuch", run_dir="nosuch://bucket/run")


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("gs://bucket/run", "gcsfs", "gcs"),
        ("abfs://box/run", "adlfs", "azure"),
        ("ssh://h/run", "asyncssh", "ssh"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    shared_place: Place, url: str, module: str, extra: str
) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed here")
    refused(shared_place, rf"holdfast\[{extra}\]", run_dir=url)


# --- memory -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of one mebibyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount the small tmpfs that this test needs")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield folder
    for _ in range(50):
        if (
            subprocess.run(["umount", str(folder)], capture_output=True, timeout=20, check=False).returncode
            == 0
        ):
            return
        time.sleep(0.1)
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, timeout=20, check=True)


def test_shared_memory_that_is_too_small_gives_needed_and_available_bytes(
    place: Place, small_memory: Path
) -> None:
    place.env["HOLDFAST_SHM_DIR"] = str(small_memory)
    outcome = place.run(settings={"hidden": 16384}, as_json=False)
    line = outcome.one_clear_line(2, "need", "available|free")
    amounts = re.findall(r"\d[\d,._]*\s*(?:bytes|[KMGT]i?B\b)", line)
    assert len(amounts) >= 2, f"needed and available bytes are not given: {line}"
    assert str(small_memory) in line, f"the directory is not named: {line}"
    assert not list(small_memory.iterdir())
    assert not saved(place.root / "run")


# --- errors in the user's code ------------------------------------------------------------------------------


def shows_the_user_first(text: str, file: str, words: str) -> None:
    """The user's own traceback, with file and message, comes before any line of ours."""
    assert file in text, text
    assert words in text, text
    first = text.index("Traceback")
    ours = [match.start() for match in re.finditer(r"UserCodeError", text)]
    assert not ours or first < ours[0], text
    assert text.count("Traceback") == 1, f"more than the user's traceback is shown:\n{text}"


@pytest.mark.parametrize("function", ["model", "data"])
def test_a_function_of_the_job_that_raises_shows_the_users_traceback(place: Place, function: str) -> None:
    start = f"    def {function}():\n"
    assert start in TINY
    place.file(
        "broken.py", TINY.replace(start, f"{start}        raise ValueError('the {function} is broken')\n")
    )
    outcome = place.run("broken.py").expect(1)
    shows_the_user_first(outcome.stderr, "broken.py", f"the {function} is broken")
    result = outcome.result
    assert result["status"] == "failed"
    assert f"the {function} is broken" in result["error"], str(outcome)
    place.assert_no_process()


def test_a_gradient_that_raises_is_named_by_step_and_microbatch(place: Place) -> None:
    place.file("counter.py", COUNTER)
    outcome = place.run("counter.py", settings={"at": 7}).expect(1)
    shows_the_user_first(outcome.stderr, "counter.py", "the gradient fell over")
    assert re.search(r"step 7\b", outcome.stderr), str(outcome)
    assert re.search(r"microbatch [0-3]\b", outcome.stderr), str(outcome)
    result = outcome.result
    assert result["status"] == "failed"
    assert "the gradient fell over" in result["error"], str(outcome)
    assert result["step"] == 7, str(outcome)
    place.assert_no_process()


def test_a_gradient_that_raises_once_is_computed_again(place: Place) -> None:
    place.file("counter.py", COUNTER)
    undisturbed = place.run("counter.py", "a").done()
    outcome = place.run("counter.py", "b", settings={"at": 7, "once": "true"})
    assert (place.root / "counter.raised").exists(), str(outcome)
    assert outcome.done()["state_digest"] == undisturbed["state_digest"]
    place.assert_nothing_left()


def test_a_model_that_cannot_be_trained_is_refused_naming_what_is_missing(place: Place) -> None:
    lines = [line for line in TINY.splitlines(keepends=True) if "m.compile" not in line]
    place.file("uncompiled.py", "".join(lines))
    outcome = place.run("uncompiled.py", as_json=False)
    assert outcome.code in (1, 2), str(outcome)
    assert "compile" in outcome.stderr, str(outcome)
    assert not saved(place.root / "run")
    place.assert_no_process()


def test_after_the_users_mistake_is_mended_the_same_directory_goes_on(place: Place) -> None:
    place.file("counter.py", COUNTER)
    place.run("counter.py", "a").done()
    place.run("counter.py", settings={"at": 7}).expect(1)
    mended = place.run("counter.py").done()
    assert mended["step"] == 12
    assert mended["attempt"] == 2
    assert mended["state_digest"] == place.run("counter.py", "a").done()["state_digest"]
    place.assert_nothing_left()
