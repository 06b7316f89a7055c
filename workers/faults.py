"""Faults as data, for tests: a process kills itself at a named point.

HOLDFAST_FAULTS holds a JSON list such as `[{"kill": "worker", "rank": 1, "step": 5, "phase": "forward"}]`.
`rank` is 0 unless given. A process started as the k-th of its role and rank obeys the k-th entry for them, so
that each entry strikes once although what it killed is replaced and the work redone.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass

from storage.errors import ConfigurationError

PHASES = {
    "worker": ("forward", "backward", "reduce", "update"),
    "writer": ("before", "after"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A process that kills itself at the first point that is in `phase`, at `step` or later."""

    step: int
    phase: str

    def strike(self, step: int, phase: str) -> None:
        """Call at every point; returns unless this is the one."""
        if phase == self.phase and step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def planned_fault(role: str, rank: int, generation: int) -> Fault | None:
    """The fault that this process must obey. Raises ConfigurationError if the variable is malformed."""
    text = os.environ.get("HOLDFAST_FAULTS")
    if not text:
        return None
    try:
        entries = [(e["kill"], e.get("rank", 0), Fault(int(e["step"]), e["phase"])) for e in json.loads(text)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"HOLDFAST_FAULTS is no list of faults: {error!r}") from error
    for kind, _, fault in entries:
        if fault.phase not in PHASES.get(kind, ()):
            raise ConfigurationError(f"HOLDFAST_FAULTS: {kind} has no phase {fault.phase!r}; see {PHASES}")
    mine = [fault for kind, r, fault in entries if kind == role and r == rank]
    return mine[generation] if generation < len(mine) else None
