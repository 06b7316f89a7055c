"""Faults as data, for tests: a process kills or stops itself at a named point.

HOLDFAST_FAULTS holds a JSON list such as `[{"kill": "worker", "rank": 1, "step": 5, "phase": "forward"}]`;
with "hang" for "kill" the process stops itself, and with "flip" a worker puts a NaN into its result once:
into the loss (forward), the gradient (backward) or the sum of gradients (reduce), with "skew" another number
into the gradient. `rank` is 0 unless given. A
process started as the k-th of its role and rank obeys the k-th entry for them, so that each entry strikes
once although what it killed is replaced and the work redone. Where the count begins anew, as that of agents
does with an attempt, `once` is the path of a file that must not exist: whoever creates it is struck.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from math import nan
from typing import Any

from storage.errors import ConfigurationError

PHASES = {
    "worker": ("forward", "backward", "reduce", "update", "callbacks"),
    "writer": ("before", "after", "restore"),
    "agent": (
        "initialise",
        "restore",
        "copy",
        "gradient",
        "reduce",
        "exchange",
        "update",
        "evaluate",
        "callbacks",
        "drain",
    ),
    "coordinator": ("plan", "restore", "before", "after", "collection"),
}


SIGNALS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}
SPOILS = ("flip", "skew")
KINDS = (*SIGNALS, *SPOILS)


@dataclass(slots=True)
class Fault:
    """What a process does to itself at the first point that is in `phase`, at `step` or later."""

    step: int
    phase: str
    kind: str = "kill"
    once: str = ""
    struck: bool = False

    def strike(self, step: int, phase: str) -> bool:
        """Call at every point; does nothing unless this is the one. True if the result is to be spoilt."""
        if phase != self.phase or step < self.step or self.struck:
            return False
        self.struck = True  # one that is continued goes on
        if self.once:
            try:
                os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
        if self.kind in SPOILS:
            return True
        os.kill(os.getpid(), SIGNALS[self.kind])
        return False

    def spoilt(self, value: float) -> float:
        """What stands in the place of a value afterwards."""
        return value + 1 if self.kind == "skew" else nan


def planned_fault(role: str, rank: int, generation: int) -> Fault | None:
    """The fault that this process must obey. Raises ConfigurationError if the variable is malformed."""
    text = os.environ.get("HOLDFAST_FAULTS")
    if not text:
        return None
    try:
        entries = [_entry(each) for each in json.loads(text)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"HOLDFAST_FAULTS is no list of faults: {error!r}") from error
    for whose, _, fault in entries:
        if fault.phase not in PHASES.get(whose, ()) or (fault.kind in SPOILS and whose != "worker"):
            raise ConfigurationError(f"HOLDFAST_FAULTS: {whose} has no phase {fault.phase!r}; see {PHASES}")
    mine = [fault for whose, r, fault in entries if whose == role and r == rank]
    return mine[generation] if generation < len(mine) else None


def _entry(value: dict[str, Any]) -> tuple[str, int, Fault]:
    """Whose fault it is (role, rank), and the fault."""
    kind = next((kind for kind in KINDS if kind in value), "kill")
    return (
        value[kind],
        value.get("rank", 0),
        Fault(int(value["step"]), value["phase"], kind, value.get("once", "")),
    )
