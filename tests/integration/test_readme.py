"""Every command and every snippet of README.md works, in the order in which a reader meets them."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import ROOT
from tests.readme import README, Step, assert_shown, indented, steps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.integration.harness import Outcome, Place

STEPS = list(steps())
INDENTED = list(indented())


def of_kind(kind: str) -> list[Step]:
    """Those that one test runs; there are some."""
    found = [step for step in STEPS if step.kind == kind]
    assert found, f"README.md shows nothing of the kind {kind!r} any more"
    return found


def do(step: Step, place: Place) -> Outcome | None:
    """Run it as the reader would; None where there is only a file to save."""
    if name := re.match(r"# (\w+\.(?:py|toml))\n", step.code):
        place.file(name[1], step.code)
        return None
    if step.code:
        place.file("snippet.py", step.code)
        return place.python("snippet.py").expect(0)
    program, *words = step.command
    if program == "python":
        return place.python(*words).expect(0)
    assert program == "holdfast", f"{step}: no test knows how to run it"
    return place.cli(*words).expect(0)


def digest(place: Place, run_dir: str) -> str:
    """The state digest that a run ended with."""
    return str(place.cli("status", run_dir, "--json").done()["state_digest"])


@pytest.fixture(scope="module")
def walked(shared_place: Place) -> Place:
    """A place in which all was done that needs neither Ray nor reference data; asserts what was shown."""
    needs_sklearn()
    for step in of_kind("here"):
        outcome = do(step, shared_place)
        if outcome is not None:
            assert_shown(step, outcome)
    return shared_place


def needs_sklearn() -> None:
    """Skip where the data of the readme's job are not installed."""
    if find_spec("sklearn") is None:
        pytest.skip("the job of README.md needs scikit-learn: pip install scikit-learn")


def test_commands_and_snippets_print_what_is_shown(walked: Place) -> None:
    assert (walked.root / "train.py").exists()
    assert len(digest(walked, "runs/digits")) >= 32
    walked.assert_nothing_left()


def test_every_command_outside_of_blocks_is_one_that_a_test_runs() -> None:
    """Here scale and chaos, in tests/e2e what needs a cluster."""
    on_a_cluster = [step for step in INDENTED if any("http://" in word for word in step.command)]
    assert [step.command[:2] for step in INDENTED if step not in on_a_cluster] == [
        ("holdfast", "scale"),
        ("export", "RAY_AUTH_MODE=token"),
        ("holdfast", "chaos"),
    ]
    assert {step.command[1] for step in on_a_cluster} == {"submit", "stop", "resume", "clone"}


def the_indented(command: str) -> Step:
    return next(step for step in INDENTED if step.command[:2] == ("holdfast", command))


def test_a_run_at_work_is_scaled(walked: Place) -> None:
    (run,) = [step for step in STEPS if "runs/two-nodes" in step.command and "run" in step.command]
    started = walked.start([*run.command[1:], "--steps", "1000000"])
    started.until(lambda: " loss " in started.said(), "it trains")
    step = the_indented("scale")
    assert_shown(step, walked.cli(*step.command[1:]).expect(0))
    assert len(started.processes("worker")) >= 2
    started.driver.send_signal(signal.SIGINT)
    started.wait().expect(130)
    walked.assert_nothing_left()


def test_chaos_shows_what_is_shown(walked: Place) -> None:
    step = the_indented("chaos")
    assert_shown(step, walked.cli(*step.command[1:], timeout_s=240).expect(0))


@pytest.mark.ray
def test_ray_ends_in_the_digest_of_the_process_runtime(walked: Place, ray_place: Place) -> None:
    shutil.copy(walked.root / "train.py", ray_place.root)
    (step,) = of_kind("ray")
    outcome = do(step, ray_place)
    assert outcome is not None
    assert_shown(step, outcome)
    assert digest(ray_place, "runs/on-ray") == digest(walked, "runs/digits")


def test_mnist_trains_on_a_folder_of_idx_files(place: Place, reference_data: Path) -> None:
    folder = reference_data / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST files at {folder}")
    (place.root / "mnist").symlink_to(folder)
    for step in of_kind("mnist"):
        outcome = do(step, place)
        assert outcome is not None
        assert_shown(step, outcome)
    assert digest(place, "runs/mnist")
    place.assert_nothing_left()


@pytest.mark.parametrize("step", [step for step in STEPS if step.kind == "install"], ids=str)
def test_installation_commands_are_such_as_make_and_pip_accept(step: Step) -> None:
    """Without the network: make says what it would do; pip builds, but installs nothing."""
    program, *words = step.command
    command: Sequence[str]
    if program == "make":
        command = ["make", "--dry-run", *words]
    else:
        if find_spec("pip") is None:
            pytest.skip("this environment has no pip")
        offline = ["--dry-run", "--no-deps", "--no-build-isolation", "--no-index"]
        command = [sys.executable, "-m", "pip", *words, *offline]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target


def test_options_and_exit_codes_are_those_of_the_command(place: Place) -> None:
    reference = README.partition("## The command line")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(--[a-z-]+)`", reference))
    known = set(re.findall(r"^  (--[a-z-]+)", place.cli("run", "--help").stdout, re.MULTILINE))
    assert told == known - {"--help"} - {"--run-dir", "--workers"}
    codes = set(re.findall(r"^\| (\d+) \|", reference, re.MULTILINE))
    assert codes == {"0", "1", "2", "3", "4", "75", "130"}


def test_figures_of_the_comparison_are_those_that_were_measured() -> None:
    comparison = README.partition("## Beside Ray Train")[2].partition("\n## ")[0]
    figures = re.findall(r"\b\d+(?:\.\d+)? m?s\b", comparison)
    assert len(figures) >= 8
    faults = README.partition("## What survives what")[2].partition("\nA deadline follows")[0]
    pairs = re.findall(r"\d+ ms \(\d+ ms\)", faults)
    assert len(pairs) == 7
    figures += pairs
    measured = (ROOT / "tests" / "bench" / "RESULTS.md").read_text()
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\w)", measured), figure
