"""What agents report of their nodes that is for the journal and the user alone. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from orchestrator.events import Note
from orchestrator.failures import GONE, died
from storage.strict_json import spelled
from workers import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.events import Action

Report: TypeAlias = m.Missed | m.Retried | m.Doubted | m.Unreadable | m.Recovered


def noted(node: int, report: Report) -> list[Action]:
    """The journal's entry about a report; of a process that was never ready there is none."""
    match report:
        case m.Missed(lost):
            fields = {**of_process(node, lost), "cause": lost.cause or GONE, "ready": False}
            text = f"{lost.role} {lost.rank} {died(lost.cause)}, as its agent remembers"
            return [Note("missed", text, fields)] if lost.ready else []
        case m.Retried(name, message):
            text = f"{name} raised and is done once more: {message}"
            return [Note("retried", text, {"item": name, "node": node})]
        case m.Doubted(rank, pid, name):
            text = (
                f"worker {rank} (process {pid}) computed {name} with other bits than another worker: it is "
                "not trusted any more and replaced; if this happens again, look at the memory of the machine"
            )
            return [Note("faulty", text, {"rank": rank, "pid": pid, "node": node, "item": name})]
        case m.Unreadable(name, message, skipped):
            what = "is left out" if skipped else "could not be read and is read again"
            return [Note("data-error", f"{name} {what}: {message}", {"item": name, "skipped": skipped})]
        case m.Recovered(step, seconds):
            return [Note("recovered", "", {"node": node, "step": step, "seconds": round(seconds, 4)})]
        case _:
            assert_never(report)


def evaluated(step: int, metrics: Mapping[str, float]) -> Note:
    """The journal's entry about an evaluation."""
    text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return Note("evaluated", f"step {step}: {text}", {"step": step, "metrics": metrics})


def epoch_ended(event: m.EpochEnded) -> Note:
    """The journal's entry about a pass over the data."""
    text = ", ".join(f"{name} {value:.4g}" for name, value in event.logs.items())
    stopped = ": a callback ends the training" if event.stopped else ""
    fields = {"number": event.number, "logs": spelled(event.logs), "stopped": event.stopped}
    return Note("epoch-end", f"end of epoch {event.number + 1}: {text}{stopped}", fields)


def of_process(node: int, lost: m.Lost) -> dict[str, Any]:
    """The journal's fields about a process that has ended."""
    return {
        "role": lost.role,
        "rank": lost.rank,
        "pid": lost.pid,
        "node": node,
        "step": lost.step,
        "phase": lost.phase,
        "generation": lost.generation,
        "detection_s": lost.detection_s,
    }
