"""Whether the coordinator that gave a sign of life still lives, as far as this machine can tell."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from workers.processes import ProcessId, is_alive

if TYPE_CHECKING:
    from collections.abc import Mapping


def boot_id() -> str:
    """What tells this boot of this machine from any other; empty where it cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def own_life() -> dict[str, Any]:
    """The part of a sign of life that names this process."""
    process = ProcessId.current()
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": process.pid,
        "started": process.started,
    }


def lives(beat: Mapping[str, Any]) -> bool | None:
    """Whether the process that gave a sign of life runs; None if it is of another machine or boot."""
    if (beat["host"], beat["boot_id"]) != (socket.gethostname(), boot_id()):
        return None
    return is_alive(ProcessId(beat["pid"], beat["started"]))
