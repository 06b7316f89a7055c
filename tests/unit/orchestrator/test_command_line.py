"""What holds for every command: an example in its help, `--json`, and completion by the shell."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer

from orchestrator import ray_jobs
from orchestrator.cli import app, main
from orchestrator.submission import check_address

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Any = typer.main.get_command(app)


def commands(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that call it."""
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path), command
        return
    for name, each in below.items():
        yield from commands(each, (*path, name))


ALL = dict(commands())


def test_the_commands_are_found() -> None:
    assert {"run", "status", "metrics", "ckpt ls", "model show"} <= ALL.keys()


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_json_and_an_example_with_options_that_there_are(name: str) -> None:
    command = ALL[name]
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--json" in options
    if command.context_settings.get("ignore_unknown_options"):  # `config` takes those of `run`
        options |= {option for parameter in ALL["run"].params for option in parameter.opts}
    lines = [line.strip() for line in command.help.splitlines()]
    examples = [line for line in lines if line.startswith(f"holdfast {name}")]
    assert examples, f"the help of {name} has no example"
    for example in examples:
        words = shlex.split(example, comments=True)[1 + len(name.split()) :]
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The exit code of `holdfast` with these words."""
    monkeypatch.setattr(sys, "argv", ["holdfast", *words])
    streams = sys.stdout, sys.stderr
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.stdout, sys.stderr = streams
    return ended.value.code


def test_the_examples_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, "examples", "--json") == 0
    assert "digits" in json.loads(capsys.readouterr().out)


BY_ADDRESS = {
    **dict.fromkeys(
        ["status", "logs", "metrics", "stop", "kill", "resume", "list", "ckpt ls", "ckpt gc"], ""
    ),
    "scale": "2",
    "clone": "new",
    "report": "--out=report.html",
}
"""Commands that take a cluster's address, and what else they need."""


@pytest.mark.parametrize("name", BY_ADDRESS)
def test_a_plain_address_of_another_machine_is_refused_by_every_command_unless_told(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    which = "" if name == "list" else "#run"
    words = [*name.split(), f"http://192.0.2.1:8265{which}", *BY_ADDRESS[name].split()]
    seen = []

    def reached(address: str, environment: object, *, insecure: bool) -> str:
        seen.append((address, insecure))
        return check_address(address, os.environ, insecure=False)  # else it would be connected to

    monkeypatch.setattr(ray_jobs, "check_address", reached)
    for insecure in (False, True):
        assert called(monkeypatch, *words, *(["--insecure"] if insecure else [])) == 2
        assert "http://192.0.2.1:8265 is another machine" in (told := capsys.readouterr().err)
        assert told.rstrip().endswith("say --insecure")
        assert seen.pop() == ("http://192.0.2.1:8265", insecure)


def test_every_command_that_takes_a_run_directory_takes_insecure_with_it() -> None:
    takes = {name for name, each in ALL.items() if any(one.name == "run_dir" for one in each.params)}
    allows = {name for name, each in ALL.items() if any("--insecure" in one.opts for one in each.params)}
    assert takes - {"run", "chaos", "doctor"} <= allows
    assert {*BY_ADDRESS} <= allows


CALL = "import sys; sys.argv = ['holdfast', *sys.argv[1:]]; from orchestrator.cli import main; main()"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("holdfast me", ["metrics"]), ("holdfast ckpt ve", ["verify"]), ("holdfast metrics --pl", ["--plot"])],
)
def test_bash_is_told_what_can_follow(typed: str, offered: list[str]) -> None:
    asked = {
        "_HOLDFAST_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == offered, done.stderr


def test_the_script_for_bash_completes_the_command_by_asking_it() -> None:
    asked = ["bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-c", CALL, "--show-completion"]
    done = subprocess.run(  # by a shell: which one it is for is found by who asks
        asked,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "_HOLDFAST_COMPLETE=complete_bash" in done.stdout
    assert (
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, timeout=30, check=False).returncode == 0
    )
