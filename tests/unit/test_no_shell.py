"""No command goes by way of a shell: words of a list cannot be taken for anything else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import orchestrator
import storage
import workers

SHELLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}
STARTERS = {"run", "Popen", "call", "check_call", "check_output"}


def faults(source: str) -> list[str]:
    """Calls in a program that start a shell, or might."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("subprocess", "os", "asyncio"):
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in SHELLS]
            found += [f"from {node.module}" for a in node.names if a.name in STARTERS]  # it could not be seen
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = ast.unparse(node.func)
        if name in SHELLS:
            found.append(name)
        if any(word.arg == "shell" for word in node.keywords) and name.startswith("subprocess."):
            found.append(f"{name} with shell")
        if name.startswith("subprocess.") and node.func.attr in STARTERS:
            words = node.args[0] if node.args else None
            if words is None or isinstance(words, ast.Constant | ast.JoinedStr | ast.BinOp):
                found.append(f"{name} with a string")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "os.system('ls')",
        "subprocess.run('ls')",
        "subprocess.Popen(f'ls {x}', stdout=2)",
        "subprocess.run(['ls'], shell=True)",
        "from subprocess import run",
        "from os import system",
    ],
)
def test_what_starts_a_shell_is_found(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize("package", [orchestrator, workers, storage])
def test_no_package_starts_a_shell(package: object) -> None:
    root = Path(str(package.__file__)).parent  # type: ignore[attr-defined]
    files = [*root.rglob("*.py")]
    assert files
    assert {str(path): found for path in files if (found := faults(path.read_text()))} == {}
