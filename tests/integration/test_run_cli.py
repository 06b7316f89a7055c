"""What the commands print: one JSON object or readable text, with the right exit code."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import KEYS, TINY, Progress, saved

if TYPE_CHECKING:
    from tests.integration.harness import Outcome, Place


@pytest.fixture(scope="module")
def finished(shared_place: Place) -> Outcome:
    """A run that is done, in the directory `run` of the shared place."""
    outcome = shared_place.run(workers=2)
    outcome.expect(0)
    return outcome


def entries(value: Any) -> list[dict[str, Any]]:
    """The checkpoints that `ckpt ls --json` lists."""
    found = value["checkpoints"] if isinstance(value, dict) else value
    assert isinstance(found, list)
    return found


def test_json_output_holds_one_object_with_the_documented_keys(finished: Outcome) -> None:
    result = finished.done()
    assert result["run_dir"].rstrip("/").endswith("run")
    kinds: dict[str, tuple[type, ...]] = {
        "run_dir": (str,),
        "status": (str,),
        "error": (type(None),),
        "step": (int,),
        "attempt": (int,),
        "loss": (float,),
        "metrics": (dict,),
        "state_digest": (str,),
        "digest_step": (int,),
        "restarts": (int,),
        "worker_deaths": (int,),
        "steps_lost": (int,),
        "steps_per_s": (float, int),
        "failure": (type(None),),
        "silent_s": (type(None),),
        "next": (type(None),),
        "restarts_left": (int,),
        "goodput": (float, int, type(None)),
        "disturbances": (list,),
    }
    assert set(kinds) == KEYS
    for key, kind in kinds.items():
        assert isinstance(result[key], kind), f"{key} is {result[key]!r}"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "nonesuch", "--run-dir", "x", "--workers", "2", "--runtime", "process", "--json"],
        ["run", "tiny.py", "--run-dir", "x", "--workers", "0", "--runtime", "process", "--json"],
        [
            "run",
            "tiny.py",
            "--run-dir",
            "x",
            "--workers",
            "2",
            "--runtime",
            "process",
            "--set",
            "no=1",
            "--json",
        ],
    ],
    ids=["unknown example", "no workers", "bad setting"],
)
def test_json_output_is_one_object_on_a_configuration_error_too(
    shared_place: Place, words: list[str]
) -> None:
    outcome = shared_place.cli(*words).expect(2)
    assert outcome.result["status"] == "failed", str(outcome)
    assert outcome.result["error"], str(outcome)
    assert outcome.result["state_digest"] is None, str(outcome)
    assert "\n" not in outcome.result["error"].strip(), str(outcome)


def test_without_json_a_run_ends_in_a_readable_summary(place: Place) -> None:
    outcome = place.run(steps=20, as_json=False).expect(0)
    text = outcome.stdout + outcome.stderr
    assert "\x1b" not in text, f"control sequences without a terminal{outcome}"
    assert re.search(r"\b20\b", text), f"the last step is not named{outcome}"
    assert len(text.splitlines()) < 100, f"too much output{outcome}"


def test_status_tells_how_a_finished_run_ended(finished: Outcome, shared_place: Place) -> None:
    outcome = shared_place.cli("status", "run", "--json").expect(0)
    status, result = outcome.result, finished.result
    for key in ("status", "error", "step", "attempt", "state_digest"):
        assert status[key] == result[key], f"{key}{outcome}"
    text = shared_place.cli("status", "run").expect(0).stdout
    assert "done" in text
    assert "60" in text


def test_status_of_a_running_run_says_so(place: Place) -> None:
    progress = Progress(place.root / "progress")
    run = place.begin(steps=300, settings={"delay_s": 0.01, "every": 10, "progress": progress})
    run.until(lambda: any(each.complete for each in saved(place.root / "run")), "the first checkpoint")
    outcome = place.cli("status", "run", "--json").expect(0)
    assert run.running(), f"the run ended too early for this test{run.outcome()}"
    assert outcome.result["status"] == "running", str(outcome)
    assert outcome.result["attempt"] == 1
    assert 10 <= outcome.result["step"] < 300, str(outcome)
    run.kill_everything()
    outcome = place.cli("status", "run", "--json").expect(0)
    assert outcome.result["status"] != "running", f"its processes are dead{outcome}"
    assert outcome.result["status"] in {"failed", "interrupted", "preempted"}, str(outcome)


def test_ckpt_ls_lists_the_checkpoints(finished: Outcome, shared_place: Place) -> None:
    outcome = shared_place.cli("ckpt", "ls", "run", "--json").expect(0)
    found = entries(outcome.json)
    assert [entry["step"] for entry in found] == [each.step for each in saved(shared_place.root / "run")], (
        str(outcome)
    )
    assert {entry["attempt"] for entry in found} == {1}, str(outcome)
    assert found[-1]["step"] == 60
    assert found[-1]["status"] == "latest", str(outcome)
    text = shared_place.cli("ckpt", "ls", "run").expect(0).stdout
    for entry in found:
        assert re.search(rf"\b0*{entry['step']}\b", text), text
    assert "latest" in text


def test_ckpt_ls_of_a_run_without_checkpoints_is_empty(place: Place) -> None:
    progress = Progress(place.root / "progress")
    run = place.begin(steps=300, settings={"delay_s": 0.01, "every": 300, "progress": progress})
    run.until(lambda: progress.steps > 5, "training")
    outcome = place.cli("ckpt", "ls", "run", "--json").expect(0)
    assert entries(outcome.json) == [], str(outcome)
    run.kill_everything()


@pytest.mark.parametrize("words", [["status"], ["ckpt", "ls"]], ids=["status", "ckpt ls"])
def test_a_place_without_a_run_is_named(shared_place: Place, words: list[str]) -> None:
    shared_place.cli(*words, "no-run-here").one_clear_line(2, "no-run-here")


def test_examples_lists_the_shipped_ones(shared_place: Place) -> None:
    outcome = shared_place.cli("examples").expect(0)
    for name in ("digits", "mnist", "quadratic"):
        assert re.search(rf"^\W*{name}\b.*\w{{3,}}", outcome.stdout, re.MULTILINE), str(outcome)


@pytest.mark.parametrize(
    "words", [[], ["run"], ["status"], ["ckpt"], ["ckpt", "ls"], ["examples"]], ids=" ".join
)
def test_every_command_explains_itself(shared_place: Place, words: list[str]) -> None:
    outcome = shared_place.cli(*words, "--help").expect(0)
    assert "usage" in outcome.stdout.lower(), str(outcome)
    assert len(outcome.stdout.splitlines()) > 3, str(outcome)


TYPED = (
    TINY.replace("def job(", "def tiny(")
    + """

def job(whole: int = 0, real: float = 0.0, text: str = "", flag: bool = False) -> Job:
    import json
    from pathlib import Path

    values = {"whole": whole, "real": real, "text": text, "flag": flag}
    Path(__file__).with_name("seen.json").write_text(json.dumps(values))
    return tiny(steps=5)
"""
)


def test_settings_are_converted_by_their_annotations(place: Place) -> None:
    place.file("typed.py", TYPED)
    place.run("typed.py", "a", settings={"whole": "3", "real": "1e-3", "text": "7", "flag": "true"}).done()
    seen = json.loads((place.root / "seen.json").read_text())
    assert seen == {"whole": 3, "real": 0.001, "text": "7", "flag": True}
    assert isinstance(seen["whole"], int)
    place.run("typed.py", "b", settings={"flag": "false", "text": "a=b"}).done()
    seen = json.loads((place.root / "seen.json").read_text())
    assert seen == {"whole": 0, "real": 0.0, "text": "a=b", "flag": False}
