"""What an import loads: nobody who asks for `orchestrator` waits for Ray, and pure modules stay pure."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("ray", "zarr", "fsspec", "pyarrow", "asyncio")

PROGRAM = """
import importlib, sys
for name in sys.argv[2:]:
    before = set(sys.modules)
    importlib.import_module(name)
    loaded = {each.partition(".")[0] for each in set(sys.modules) - before}
    print(name, *sorted(loaded & set(sys.argv[1].split(","))))
"""


def pure_modules() -> list[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (names,) = [c["source_modules"] for c in contracts if c["name"].startswith("pure modules")]
    return [str(name) for name in names]


def loaded(*names: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, ",".join(HEAVY), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_orchestrator_loads_nothing_heavy() -> None:
    assert loaded("orchestrator") == ["orchestrator"]


def test_pure_modules_load_nothing_impure_by_way_of_others_either() -> None:
    names = pure_modules()
    assert {"workers.schedule", "workers.barrier", "orchestrator.machine", "orchestrator.restart"} <= set(
        names
    )
    assert loaded(*names) == names


def test_the_command_line_is_there_without_ray() -> None:
    assert loaded("orchestrator.cli", "orchestrator.execution")[0] == "orchestrator.cli"
    assert not any(" ray" in line for line in loaded("orchestrator.execution", "orchestrator.coordinator"))
