"""The distribution holds what it should, and the files that pin versions agree with pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCK: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text())

STORAGE_FORMATS_AND_DISPLAY = {
    "s3",
    "gcs",
    "azure",
    "ssh",
    "images",
    "hdf5",
    "safetensors",
    "onnx",
    "ui",
    "plot",
    "tensorboard",
}


def name_of(requirement: str) -> str:
    """The normalised name of the distribution that a requirement is about."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def constraints() -> dict[str, list[str]]:
    """Name -> the versions that constraints.txt pins, one for each range of Pythons."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = re.fullmatch(r"([a-z0-9-]+)==([^\s;]+)( ; .+)?", line)
            assert pin, f"constraints.txt: {line!r} is not NAME==VERSION, maybe with a marker"
            found.setdefault(pin[1], []).append(pin[2])
    return found


def closure(extra: str) -> set[str]:
    """The names of the extras that an extra consists of, itself included."""
    inner = [each for each in EXTRAS[extra] if name_of(each) == PROJECT["name"]]
    names = {name for each in inner for name in each[each.index("[") + 1 : each.index("]")].split(",")}
    return {extra}.union(*(closure(name) for name in names)) if names else {extra}


def test_every_core_dependency_is_pinned() -> None:
    assert {name_of(each) for each in PROJECT["dependencies"]} <= constraints().keys()


def test_every_dependency_of_an_extra_is_pinned_but_torch() -> None:
    """Everybody chooses their own build of torch, so neither it nor its CUDA libraries are pinned."""
    wanted = {name_of(each) for extra in EXTRAS.values() for each in extra} - {PROJECT["name"]}
    assert wanted - constraints().keys() == {"torch"}
    assert not [name for name in constraints() if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_constraints_are_the_versions_of_the_lock_file() -> None:
    locked: dict[str, set[str]] = {}
    for package in LOCK["package"]:
        locked.setdefault(package["name"], set()).add(package.get("version", ""))
    for name, versions in constraints().items():
        assert set(versions) == locked[name], f"{name}: say `make constraints`"


def test_lock_file_knows_the_requirements_of_pyproject() -> None:
    (project,) = [package for package in LOCK["package"] if package["name"] == PROJECT["name"]]
    told = project["metadata"]["requires-dist"]
    assert set(project["metadata"]["provides-extras"]) == EXTRAS.keys()
    expected = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    own = PROJECT["name"]
    assert {each["name"] for each in told} - {own} == {name_of(each) for each in expected} - {own}
    assert LOCK["requires-python"].replace(" ", "") == PROJECT["requires-python"].replace(" ", "")


def test_lock_file_and_constraints_name_no_host_but_those_of_the_public_index() -> None:
    text = (ROOT / "uv.lock").read_text() + (ROOT / "constraints.txt").read_text()
    hosts = set(re.findall(r"\b([a-z+]+://[^/\"\s]*)", text))
    assert hosts <= {"https://pypi.org", "https://files.pythonhosted.org"}
    sources = {key for package in LOCK["package"] for key in package["source"]}
    assert sources <= {"registry", "editable"}


def test_extras_are_those_that_are_documented() -> None:
    assert EXTRAS.keys() == STORAGE_FORMATS_AND_DISPLAY | {"torch", "jax", "submit", "all", "test"}
    assert closure("all") == STORAGE_FORMATS_AND_DISPLAY | {"all"}


def test_the_test_extra_never_brings_the_dashboard_of_ray() -> None:
    for extra in closure("test"):
        assert not [each for each in EXTRAS[extra] if each.startswith("ray")], extra
    assert [each for each in PROJECT["dependencies"] if name_of(each) == "ray"] == ["ray>=2.50"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the wheel."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: pip install hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_the_packages_and_their_data(wheel: dict[str, bytes]) -> None:
    for package in ("orchestrator", "workers", "storage"):
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert sources, package
        assert sources | {f"{package}/py.typed"} <= wheel.keys()
    assert {"orchestrator/examples/digits.npz", "storage/FORMAT.md"} <= wheel.keys()


def test_wheel_holds_nothing_else(wheel: dict[str, bytes]) -> None:
    info = f"{PROJECT['name']}-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in wheel} == {"orchestrator", "workers", "storage", info}
    assert not [name for name in wheel if "__pycache__" in name or name.endswith(".pyc")]


def test_wheel_holds_the_licence_and_the_notice(wheel: dict[str, bytes]) -> None:
    info = f"{PROJECT['name']}-{PROJECT['version']}.dist-info"
    for name in ("LICENSE", "NOTICE"):
        assert wheel[f"{info}/licenses/{name}"] == (ROOT / name).read_bytes()
    assert b"Alpaydin" in wheel[f"{info}/licenses/NOTICE"]
    assert b"orchestrator.entry:main" in wheel[f"{info}/entry_points.txt"]
