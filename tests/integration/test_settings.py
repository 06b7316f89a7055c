"""Settings in `holdfast.toml` and in the environment, as a run takes them, and `holdfast config`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.harness import Place

SETTINGS = """
run-dir = "run"
workers = 2
runtime = "process"
steps = 30

[set]
hidden = 9
"""


def test_a_run_takes_its_settings_and_is_resumed_without_them(place: Place) -> None:
    place.file("holdfast.toml", SETTINGS)
    by_file = place.cli("run", "tiny.py", "--steps", "20", "--json").done()
    assert (by_file["step"], by_file["run_dir"]) == (20, str(place.root / "run"))
    (place.root / "holdfast.toml").unlink()
    resumed = place.cli("resume", "run", "--steps", "40", "--json").done()
    whole = place.run("tiny.py", "whole", steps=40, settings={"hidden": 9}).done()
    assert resumed["state_digest"] == whole["state_digest"]
    place.assert_nothing_left()


def test_flags_go_before_the_environment_and_that_before_the_file(place: Place) -> None:
    place.file("holdfast.toml", SETTINGS)
    place.env["HOLDFAST_WORKERS"] = "3"
    place.env["HOLDFAST_STEPS"] = "25"
    shown = place.cli("config", "tiny.py", "--workers", "4", "--json").expect(0).json
    assert shown["workers"] == {"value": "4", "source": "--workers"}
    assert shown["steps"] == {"value": "25", "source": "HOLDFAST_STEPS"}
    assert shown["runtime"] == {"value": "process", "source": "holdfast.toml"}
    assert shown["set.hidden"] == {"value": "9", "source": "holdfast.toml"}
    assert shown["nodes"] == {"value": 1, "source": "default"}
    lines = place.cli("config", "tiny.py").expect(0).stdout.splitlines()
    assert [line.split() for line in lines][:2] == [
        ["run-dir", "run", "holdfast.toml"],
        ["workers", "3", "HOLDFAST_WORKERS"],
    ]


def test_a_wrong_setting_is_told_with_its_place_before_anything_is_done(place: Place) -> None:
    place.file("other.toml", SETTINGS.replace("steps", "stepps"))
    given = ("run", "tiny.py", "--config", "other.toml")
    place.cli(*given).one_clear_line(2, "other.toml: stepps", "did you mean steps?")
    place.file("other.toml", SETTINGS.replace("30", '"many"'))
    place.cli(*given).one_clear_line(2, "other.toml: steps = many", "valid integer")
    place.cli("config", "tiny.py", "--steps", "many").one_clear_line(2, "command line: steps = many")
    place.cli("config", "tiny.py", "--workers").one_clear_line(2, "requires an argument")
    place.cli("config", "nowhere.py").one_clear_line(2, "no file nowhere.py")
    place.cli("config", "--command", "scale").one_clear_line(2, "--command scale", "run")
    for name, value in (("HOLDFAST_NOTICES", "foo"), ("HOLDFAST_START_TIMEOUT_S", "-5")):
        given_then = place.start(place.command(as_json=False), env={name: value})
        given_then.wait().one_clear_line(2, f"{name}={value}")
    place.file("other.toml", SETTINGS.replace("workers = 2", 'workers = "two"'))
    place.cli("config", "tiny.py", "--config", "other.toml").one_clear_line(2, "other.toml: workers = two")
    place.cli("config", "tiny.py", "--config", ".").one_clear_line(2, "--config .: it is no file")
    place.env["HOLDFAST_STEP"] = "25"
    place.cli(*given).one_clear_line(2, "HOLDFAST_STEP", "HOLDFAST_STEPS")
    assert not (place.root / "run").exists()


def test_a_variable_names_the_file_of_settings(place: Place) -> None:
    place.file("holdfast.toml", SETTINGS)
    place.file("other.toml", "\ufeff" + SETTINGS.replace("30", "31"))  # as some editors write it
    place.env["HOLDFAST_CONFIG"] = "other.toml"
    shown = place.cli("config", "tiny.py", "--json").expect(0).json
    assert shown["steps"] == {"value": "31", "source": "other.toml"}
    shown = place.cli("config", "tiny.py", "--config", "holdfast.toml", "--json").expect(0).json
    assert shown["steps"] == {"value": "30", "source": "holdfast.toml"}
    place.env["HOLDFAST_CONFIG"] = "nowhere.toml"
    place.cli("config", "tiny.py").one_clear_line(2, "HOLDFAST_CONFIG nowhere.toml: there is no such file")
