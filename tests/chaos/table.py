"""Run the tests of this folder, all of them, and write the table of faults with results into RESULTS.md.

python tests/chaos/table.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "chaos"
TITLE = "# Results of `make chaos`, newest first\n"
LIMIT_S = 3600.0

ROWS = {
    "worker": ("kill -9 of a worker in each phase, of several, of all at once", "A B C"),
    "agent": (
        "kill -9 of the agent in each phase, with its workers; stopped, replaced, continued",
        "A B C E",
    ),
    "writer": ("kill -9 of the writer before, during, after a shard", "A B D"),
    "coordinator": ("kill -9 of the coordinator at each point", "A B D E"),
    "all": ("kill -9 of everything at once, at each point", "A D"),
    "node": ("a node dies, N-1 of N, one that joins in mid-copy", "A B C"),
    "stop": ("SIGSTOP of a worker or writer past its deadline, then SIGCONT", "A B E"),
    "two": ("two coordinators on one run directory", "D E"),
    "storage": ("disk full, EIO, slow storage", "A B D"),
    "damage": ("damage to the newest checkpoint, of each kind", "A D"),
    "memory": ("shared memory too small", "error before training"),
    "sigterm": ("SIGTERM in a step, a save, a restore; twice; to one process; a node drained", "A B F"),
    "clock": ("the clock jumps by an hour either way", "A D"),
    "errors": ("exceptions in model and data, data that cannot be read", "the report says where"),
    "finite": (
        "a loss or gradient that is not finite: by one worker's fault, or by divergence",
        "A, a record",
    ),
    "scale": ("grow and shrink between 1 and all workers, 1 to 3 nodes", "A B C"),
    "command": ("`holdfast chaos` on a job", "A to F"),
}
"""What the mark `row` of a test stands for, and what must hold."""


@dataclass(slots=True)
class Row:
    """What the tests of a row came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    kills: int = 0
    seconds: float = 0.0


def main() -> int:
    """Run the rounds; the exit code says whether every test passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="how often to run them")
    parser.add_argument("more", nargs="*", help="arguments for pytest, after --")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("give --rounds 1 or more")
    began = datetime.now(UTC)
    rows = {name: Row() for name in ROWS}
    notes: Counter[str] = Counter()
    codes = [run_round(rows, notes, args.more) for _ in range(args.rounds)]
    sys.path.insert(0, str(ROOT))
    from tests.record import where

    results = HERE / "RESULTS.md"
    older = results.read_text().removeprefix(TITLE) if results.exists() else ""
    head = [TITLE, f"## {began:%Y-%m-%d %H:%M} UTC, rounds: {args.rounds}", "", where(), ""]
    body = [*table(rows), "", *(f"- {text} ({times} times)" for text, times in sorted(notes.items()))]
    results.write_text("\n".join([*head, *body]).rstrip() + "\n" + older)
    print("\n".join(table(rows)))
    return int(any(codes))


def run_round(rows: dict[str, Row], notes: Counter[str], more: list[str]) -> int:
    """One round, added to the rows; the exit code of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *(more or [str(HERE)]), f"--junitxml={report}"]
        command += ["-o", "junit_family=xunit1", "--color=no"]
        environment = {**os.environ, "HOLDFAST_CHAOS": "full"}
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=LIMIT_S).returncode
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            add(rows, notes, case)
    return code


def add(rows: dict[str, Row], notes: Counter[str], case: ElementTree.Element) -> None:
    """Count one test of a report."""
    properties = {each.get("name"): each.get("value") for each in case.iter("property")}
    row = rows.get(properties.get("row") or "")
    name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}"
    if row is None:
        notes[f"in no row: {name}"] += 1
        return
    row.seconds += float(case.get("time") or 0)
    row.kills += int(properties.get("kills") or 0)
    skipped = case.find("skipped")
    if skipped is not None:
        row.skipped += 1
        notes[f"skipped: {name}: {skipped.get('message')}"] += 1
    elif case.find("failure") is not None or case.find("error") is not None:
        row.failed += 1
        notes[f"FAILED: {name}"] += 1
    else:
        row.passed += 1


def table(rows: dict[str, Row]) -> list[str]:
    """The rows as a table."""
    lines = [
        "| fault | must hold | kills | passed | failed | skipped | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        fault, holds = ROWS[name]
        counts = f"{row.kills} | {row.passed} | {row.failed} | {row.skipped} | {row.seconds:.0f}"
        lines.append(f"| {fault} | {holds} | {counts} |")
    each = [*rows.values()]
    sums = [sum(row.kills for row in each), sum(row.passed for row in each), sum(row.failed for row in each)]
    sums += [sum(row.skipped for row in each), round(sum(row.seconds for row in each))]
    lines.append(f"| together | | {' | '.join(str(count) for count in sums)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
