"""Settings of a file and of the environment, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.settings import Setting, flags, of_environment, of_file, path_of
from storage.errors import ConfigurationError

KEYS = {"run": {"workers", "run-dir", "nodes", "autoscale"}, "submit": {"workers", "run-dir", "name"}}
IS_FLAG = {"workers": False, "run-dir": False, "autoscale": True}


def read(text: str, command: str = "run") -> dict[str, str | bool]:
    return {key: each.value for key, each in of_file(text, "x.toml", command, KEYS).items()}


def test_keys_stand_for_every_command_that_has_them() -> None:
    text = 'workers = "2:4"\nrun_dir = "runs/a"\nname = "night"\nnodes = 2'
    assert read(text) == {"workers": "2:4", "run-dir": "runs/a", "nodes": "2"}
    assert read(text, "submit") == {"workers": "2:4", "run-dir": "runs/a", "name": "night"}


def test_a_commands_own_table_goes_before_what_all_share() -> None:
    text = "workers = 2\nautoscale = true\n[run]\nworkers = 3\n[set]\nhidden = 64\nfast = true"
    assert read(text) == {"workers": "3", "autoscale": True, "set.hidden": "64", "set.fast": "True"}
    assert read(text, "submit")["workers"] == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrokers = 2", "x.toml: wrokers is not known: did you mean workers?"),
        (
            "[run]\nname = 'a'",
            "x.toml: [run]: name is not known: it knows autoscale, nodes, run-dir, workers",
        ),
        ("[rnu]\nnodes = 2", "x.toml: rnu is not known: did you mean [run]?"),
        ("workers = [1, 2]", "x.toml: workers: give a string, a number, true or false, not [1, 2]"),
        ("[set]\nhidden = {a = 1}", "x.toml: set.hidden: give a string, a number, true or false"),
        ("workers = ", "x.toml is no TOML: "),
        ("run-dir = 'a'\nrun_dir = 'b'", "x.toml: run_dir stands there with - and with _"),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest_name(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        of_file(text, "x.toml", "run", KEYS)
    assert str(caught.value).startswith(message)


def test_the_environment_names_settings_in_capitals() -> None:
    environment = {
        "HOLDFAST_RUN_DIR": "a",
        "HOLDFAST_AUTOSCALE": "1",
        "HOLDFAST_SET": "x=1 'y=a b'",
        "HOME": "/",
    }
    found = of_environment(environment, IS_FLAG)
    assert found == {
        "run-dir": Setting("a", "HOLDFAST_RUN_DIR"),
        "autoscale": Setting(True, "HOLDFAST_AUTOSCALE"),
        "set.x": Setting("1", "HOLDFAST_SET"),
        "set.y": Setting("a b", "HOLDFAST_SET"),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "HOLDFAST_WORKER",
            "2",
            "HOLDFAST_WORKER in the environment is not known: did you mean HOLDFAST_WORKERS?",
        ),
        ("HOLDFAST_AUTOSCALE", "maybe", "HOLDFAST_AUTOSCALE=maybe in the environment: give true or false"),
        ("HOLDFAST_SET", "hidden", "HOLDFAST_SET in the environment: hidden: give NAME=VALUE"),
        (
            "HOLDFAST_SET",
            'hidden="64',
            "HOLDFAST_SET in the environment: No closing quotation: close what is quoted",
        ),
    ],
)
def test_slips_in_the_environment_are_told(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        of_environment({name: value}, IS_FLAG)
    assert str(caught.value) == message


def test_names_that_others_give_are_left_alone() -> None:
    assert of_environment({"HOLDFAST_PORT": "tcp://10.0.0.1:80", "HOLDFAST_SHM_DIR": "x"}, IS_FLAG) == {}


def test_settings_as_flags() -> None:
    found = {
        "workers": Setting("2", "x"),
        "autoscale": Setting(True, "x"),
        "nodes": Setting(False, "x"),
        "set.hidden": Setting("64", "x"),
    }
    assert flags(found) == ["--workers=2", "--autoscale", "--set=hidden=64"]


def test_the_file_is_beside_the_job_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of("jobs/train.py:job", None) is None
    Path("jobs").mkdir()
    Path("jobs/holdfast.toml").touch()
    assert path_of("jobs/train.py:job", None) == Path("jobs/holdfast.toml")
    assert path_of("digits", None) is None
    with pytest.raises(ConfigurationError, match=r"--config other\.toml: there is no such file"):
        path_of("jobs/train.py", "other.toml")
