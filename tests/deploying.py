"""What the tests of `deploy/` share: its files, parsed, and the linters."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import typer.main
import yaml  # type: ignore[import-untyped]

from orchestrator.cli import app
from tests.integration.servers import missing

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
SCHEMAS = Path(os.environ.get("REFERENCE_DATA", ROOT.parent / "shared")) / "schemas"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"{PROJECT['name']}:{PROJECT['version']}"

FILES = sorted(str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file())
"""All files of `deploy/`, by their paths in it."""

CLOSE_S = 20.0
"""Seconds that a run may take, after its last checkpoint, to end its processes: twice 10 on Ray."""


def text(name: str) -> str:
    """A file of `deploy/`."""
    return (DEPLOY / name).read_text()


@cache
def documents(name: str) -> list[Any]:
    """The YAML documents in a file of `deploy/`."""
    return list(yaml.safe_load_all(text(name)))


def document(name: str) -> Any:
    """The only YAML document in a file of `deploy/`."""
    (only,) = documents(name)
    return only


def pinned(package: str) -> str:
    """The version of a package that constraints.txt pins."""
    match = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert match, f"constraints.txt does not pin {package}"
    return match[1]


def lint(tool: str, distribution: str, *arguments: str) -> None:
    """Run a linter, which is in the environment or in PATH, and expect that it finds nothing."""
    path = shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if path is None:
        missing(f"{tool} is not installed: pip install {distribution}")
    assert path is not None
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{tool} {' '.join(arguments)}:\n{done.stdout}{done.stderr}"


def check(instance: object, schema: Mapping[str, Any], where: str) -> None:
    """Expect that a document is what a JSON schema says; all that is wrong with it is told at once."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(instance)
    found = [f"{where}: {'.'.join(map(str, each.absolute_path))}: {each.message[:300]}" for each in errors]
    assert not found, "\n".join(found)


@cache
def custom_resource(plural: str) -> dict[str, Any]:
    """The schema of one of KubeRay's resources, in which no field is allowed that it does not name."""
    path = SCHEMAS / f"ray.io_{plural}.yaml.gz"
    if not path.is_file():
        pytest.skip(f"no schema at {path}: set REFERENCE_DATA")
    with gzip.open(path, "rt") as file:
        definition = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    schema: dict[str, Any] = strict(version["schema"]["openAPIV3Schema"])
    return schema


def strict(schema: Any) -> Any:
    """The same schema, in which an object has no properties but those that are named."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def option_values(command: str) -> dict[str, Any]:
    """What `holdfast` understands of a command line. Fails where it would refuse it."""
    program, name, *words = shlex.split(command)
    assert program == "holdfast", command
    asked = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    values: dict[str, Any] = asked.make_context(name, words).params
    return values


def least_and_most(command: str) -> tuple[int, int]:
    """The fewest and the most workers that a command line asks for."""
    least, _, most = option_values(command)["workers"].partition(":")
    return int(least), int(most or least)


def nbytes(quantity: str) -> float:
    """The bytes of a quantity of Kubernetes or Docker: 512Mi, 8Gi, 8g, 2gb or a plain number."""
    match = re.fullmatch(r"([\d.]+)\s*([kmg]?)(i?)b?", quantity, re.IGNORECASE)
    assert match, quantity
    return float(match[1]) * 1024.0 ** " kmg".index(match[2].lower() or " ")
