"""What README.md tells its reader to do, and whether what it shows was printed."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.integration.harness import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.harness import Outcome

README = (ROOT / "README.md").read_text()

HEXADECIMAL = re.compile(r"(?<![\w.])[0-9a-f]{16,}\b|(?<=\bholdfast-)[0-9a-f]{12}(?=-[0-9])")
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
PARENT = re.compile(r"/\S*/(?=runs/)")


@dataclass(frozen=True, slots=True)
class Step:
    """One command with the output that is shown for it, or one snippet of Python."""

    line: int
    command: tuple[str, ...]
    code: str
    shown: tuple[str, ...]

    def __str__(self) -> str:
        return f"README.md:{self.line}: {' '.join(self.command) or 'python'}"

    @property
    def kind(self) -> str:
        """Which test runs it."""
        if self.command[:1] in [("make",), ("pip",)]:
            return "install"
        if "mnist" in self.command:
            return "mnist"
        return "ray" if self.command[:2] == ("holdfast", "run") and "process" not in self.command else "here"


def steps() -> Iterator[Step]:
    """What the readme tells its reader to do."""
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        line = README.count("\n", 0, block.start()) + 2
        if block[1] in ("python", "toml"):
            shown = re.findall(r"print\(.*\)  # (.*)", block[2])
            yield Step(line, (), block[2], tuple(shown))
        else:
            assert block[1] == "console", f"README.md:{line}: a block of {block[1]}, which no test runs"
            for part in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block[2], re.MULTILINE):
                number = line + block[2].count("\n", 0, part.start())
                shown = [each for each in part[2].splitlines() if each != "..."]
                yield Step(number, tuple(shlex.split(part[1])), "", tuple(shown))


def indented() -> Iterator[Step]:
    """The commands that are no console block, since more than this machine is needed for them, or time."""
    for part in re.finditer(r"^    \$ ((?:.*\\\n)*.*)\n((?:    (?!\$ ).*\n)*)", README, re.MULTILINE):
        words = tuple(shlex.split(part[1].replace("\\\n", " ")))
        shown = [each.strip() for each in part[2].splitlines() if each.strip() != "..."]
        yield Step(README.count("\n", 0, part.start()) + 1, words, "", tuple(shown))


def outline(text: str) -> str:
    """The text without what differs from one run or machine to the next."""
    text = HEXADECIMAL.sub("HEX", PARENT.sub("", text))
    return " ".join(NUMBER.sub("N", text).split())


def assert_shown(step: Step, outcome: Outcome) -> None:
    """The lines that the readme shows were printed, in that order, if maybe not in a row."""
    printed = iter([outline(line) for line in (outcome.stderr + outcome.stdout).splitlines()])
    for line in step.shown:
        assert outline(line) in printed, f"{step}: it does not print, after the lines before\n{line}{outcome}"
