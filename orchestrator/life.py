"""Whether the coordinator that gave a sign of life still lives, as far as this machine can tell."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.succession import supervisor
from storage.errors import CorruptCheckpoint
from storage.strict_json import fields, unspelled
from workers.processes import ProcessId, is_alive

if TYPE_CHECKING:
    from collections.abc import Mapping


SIGN_OF_LIFE_S = 15.0
"""Seconds after which a coordinator elsewhere that gave no sign of life is taken to be gone."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    "host": str,
    "boot_id": str,
    "pid": int,
    "started": int,
    "attempt": int,
    "counter": int,
    "closed": bool,
    "status": str,
    "error": (str, type(None)),
    "step": int,
    "trained": bool,
    "steps": int,
    "metrics": dict,
    "steps_per_s": (int, float, type(None)),
    "workers": int,
    "totals": dict,
}
_TOTALS = {"restarts": int, "worker_deaths": int, "steps_lost": int, "highest_step": int, "budgeted": list}


def check_beat(beat: Mapping[str, Any], url: str) -> None:
    """Raise CorruptCheckpoint unless a sign of life says all that is asked of it: it may come from anyone."""
    try:
        doc = fields({name: beat[name] for name in beat.keys() & _KINDS}, "the sign of life", _KINDS)
        totals = fields(doc["totals"], "its totals", _TOTALS)
        if not all(type(step) is int for step in totals["budgeted"]):
            raise ValueError("budgeted is not a list of steps")  # noqa: TRY301
        if not all(type(value) in (int, float) for value in unspelled(doc["metrics"]).values()):
            raise ValueError("a metric is not a number")  # noqa: TRY301
    except ValueError as exc:
        raise CorruptCheckpoint(f"{url}/attempts: {exc}") from exc


def boot_id() -> str:
    """What tells this boot of this machine from any other; empty where it cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def own_life() -> dict[str, Any]:
    """The part of a sign of life that names this process."""
    process, parent = ProcessId.current(), supervisor()
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": process.pid,
        "started": process.started,
        "supervisor": {"pid": parent.pid, "started": parent.started},
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "t": round(time.monotonic(), 4),
    }


def is_succeeded(beat: Mapping[str, Any]) -> bool:
    """Whether the process lives that starts another coordinator in the place of a dead one."""
    parent = supervisor_of(beat)
    if parent is None or parent.pid == beat["pid"]:
        return False
    return lives({**beat, "pid": parent.pid, "started": parent.started}) is True


def supervisor_of(beat: Mapping[str, Any]) -> ProcessId | None:
    """The process that a sign of life names as the one that starts another coordinator, if it names one."""
    parent = beat.get("supervisor")
    if not isinstance(parent, dict):
        return None
    pid, started = parent.get("pid"), parent.get("started")
    return ProcessId(pid, started) if type(pid) is int and type(started) is int else None


def lives(beat: Mapping[str, Any]) -> bool | None:
    """Whether the process that gave a sign of life runs; None if it is of another machine or boot."""
    if (beat["host"], beat["boot_id"]) != (socket.gethostname(), boot_id()):
        return None
    return is_alive(ProcessId(beat["pid"], beat["started"]))
