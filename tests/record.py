"""Run the tests of one folder, and put what came of it, with date, machine and versions, into its RESULTS.md.

python tests/record.py chaos --rounds 5
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("numpy", "ray", "zarr", "fsspec", "pyarrow")


def main() -> int:
    """Run the rounds; the exit code says whether all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", help="a folder of tests/")
    parser.add_argument("files", nargs="*", help="names of files in it; without any, all of it is run")
    parser.add_argument("--rounds", type=int, default=1, help="how often to run it")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("give --rounds 1 or more")
    folder = Path("tests") / args.folder
    began = datetime.now(UTC)
    rounds = [run_round([folder / name for name in args.files] or [folder]) for _ in range(args.rounds)]
    results = ROOT / folder / "RESULTS.md"
    title = f"# Results of `make {args.folder}`, newest first\n"
    older = results.read_text().removeprefix(title) if results.exists() else ""
    of = f"{', '.join(args.files)}: " if args.files else ""
    lines = [f"- {of}{closing}" for _, closing in rounds]
    results.write_text(
        "\n".join([title, f"## {began:%Y-%m-%d %H:%M} UTC", "", where(), "", *lines]) + "\n" + older
    )
    return int(any(code for code, _ in rounds))


def run_round(paths: list[Path]) -> tuple[int, str]:
    """The exit code of pytest, and its closing line."""
    command = [sys.executable, "-m", "pytest", *map(str, paths), "--color=no"]
    closing = "ended without a closing line"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as pytest:
        assert pytest.stdout is not None
        for line in pytest.stdout:
            print(line, end="", flush=True)
            if found := re.fullmatch(r"=+ (.* in [0-9.]+s.*?) =+", line.strip()):
                closing = found[1]
    return pytest.returncode, closing if pytest.returncode in (
        0,
        1,
    ) else f"{closing} (exit code {pytest.returncode})"


def where() -> str:
    """Commit, machine and versions, in one line."""
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    python = f"Python {platform.python_version()}"
    versions = ", ".join([python, *(f"{name} {version(name)}" for name in VERSIONS)])
    machine = f"{os.cpu_count()} CPUs ({platform.machine()}), {platform.system()}"
    return f"Commit {commit or 'unknown'}; {machine}; {versions}."


if __name__ == "__main__":
    sys.exit(main())
