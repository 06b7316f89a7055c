"""What has happened to a run and what it has cost, added up from its journal. Pure.

The journal of an attempt is a list of entries: {"kind", "text", "time", "t", ...}. `time` is that of the
clock, `t` counts the seconds since the machine was started, whose boot the entry "began" names: differences
are taken of `t` wherever both ends are of one boot. `Ledger.after` takes in one entry more. The coordinator
does so when it writes one, and everybody else when they read it: there is no second book to disagree with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.failures import GONE, Kind, died
from orchestrator.restart import COORDINATOR, JOB, Restart
from orchestrator.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

LISTED = 100
"""Disturbances that a ledger holds; older ones only count."""

AGAIN = "restart"
NEW = "new"
RESUMED = "resumed"
COORDINATOR_KILLED = "coordinator killed"
RUN_KILLED = "run killed"
"""What an attempt comes after: the field `after` of the entry "began"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """Something that kept a run from training, or that it was kept from being disturbed by."""

    kind: str
    """Its class, in the words of `failures.Kind`."""

    what: str
    """What happened to whom, in words."""

    time: str
    """When it was noticed, by the clock."""

    attempt: int
    step: int
    """The last step that was known to be committed then."""

    node: int | None = None
    process: str | None = None
    cause: str = ""
    detection_s: float | None = None
    """Seconds at most from when it happened to when it was noticed; None where nobody was there to notice."""

    recovery_s: float | None = None
    """Seconds from when it was noticed to the next committed step; None as long as there is none."""

    steps_lost: int = 0
    action: str = ""
    """What was done about it."""

    detail: str = ""
    t: float | None = None
    boot: str = ""
    generation: int | None = None
    pid: int | None = None
    open: bool = True
    """Whether the next committed step has yet to come."""

    def to_json(self) -> dict[str, Any]:
        """As `holdfast status --json` prints it."""
        return {
            "time": self.time,
            "attempt": self.attempt,
            "class": self.kind,
            "what": self.what,
            "cause": self.cause,
            "action": self.action,
            "node": self.node,
            "process": self.process,
            "step": self.step,
            "detection_s": _rounded(self.detection_s),
            "recovery_s": _rounded(self.recovery_s),
            "steps_lost": self.steps_lost,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a run trains, over the whole time and while nothing disturbs it.

    The whole time begins with the first step that is trained. It leaves out the time in which nobody ran it.
    """

    whole_s: float = 0.0
    steps: int = 0
    calm_s: float = 0.0
    calm_steps: int = 0

    @property
    def goodput(self) -> float | None:
        """Steps per second over the whole time, divided by those while nothing disturbs; 1 at most."""
        calm = self.undisturbed_steps_per_s
        if calm is None or not self.whole_s:
            return None
        return min(1.0, self.steps / self.whole_s / calm)

    @property
    def undisturbed_steps_per_s(self) -> float | None:
        """Steps per second between disturbances; None before any was measured."""
        return self.calm_steps / self.calm_s if self.calm_s > 0 and self.calm_steps else None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "whole_s": round(self.whole_s, 3),
            "steps": self.steps,
            "calm_s": round(self.calm_s, 3),
            "calm_steps": self.calm_steps,
        }

    @classmethod
    def from_json(cls, value: object) -> Pace:
        """What `to_json` made; nothing where it is anything else."""
        if not isinstance(value, dict):
            return cls()
        return cls(
            whole_s=_seconds(value.get("whole_s")) or 0.0,
            steps=_count(value.get("steps")),
            calm_s=_seconds(value.get("calm_s")) or 0.0,
            calm_steps=_count(value.get("calm_steps")),
        )


class Meter:
    """Measures the pace of a run from what is seen of its step, now and then."""

    def __init__(self, past: Pace, highest_step: int) -> None:
        self.pace = past
        self._highest = highest_step
        self._last: float | None = None
        self._anchor: tuple[float, int] | None = None

    def begin(self, now: float) -> None:
        """The time counts from here on, although nothing is trained yet: the run has trained before."""
        self._last = now if self._last is None else self._last

    def look(self, now: float, step: int, *, calm: bool) -> None:
        """Training is under way, and has come to `step`. `calm` says that nothing disturbs it."""
        since = now - self._last if self._last is not None else 0.0
        gained = max(0, step - self._highest) if self._last is not None else 0
        self._last, self._highest = now, max(self._highest, step)
        self.pace = replace(self.pace, whole_s=self.pace.whole_s + since, steps=self.pace.steps + gained)
        if not calm:
            self._anchor = None
        elif self._anchor is None:
            self._anchor = (now, step)
        elif step > self._anchor[1]:
            began, at = self._anchor
            self._anchor = (now, step)
            calm_s, calm_steps = self.pace.calm_s + now - began, self.pace.calm_steps + step - at
            self.pace = replace(self.pace, calm_s=calm_s, calm_steps=calm_steps)

    def pause(self) -> None:
        """What is measured next has nothing to do with what was measured last."""
        self._anchor = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """A run's history: what its budgets are decided by, and what `holdfast status` tells."""

    attempt: int = 0
    restarts: int = 0
    worker_deaths: int = 0
    steps_lost: int = 0
    highest_step: int = 0
    reached: int = 0
    """The last step that is known to be committed on the line of history that the run is on."""

    granted: tuple[Restart, ...] = ()
    since: int = 0
    """How many of those were granted before a person ran the command that is at work now."""

    invocation: str = ""
    coordinators: int = 0
    """Deaths of coordinators that this command has paid for."""

    disturbances: tuple[Disturbance, ...] = ()
    earlier: int = 0
    """Disturbances before those that are listed."""

    boot: str = ""
    t: float | None = None
    time: str = ""
    end: dict[str, Any] | None = None
    """What the newest attempt wrote when it ended; None if it has not, or was killed."""

    @property
    def totals(self) -> Totals:
        """The numbers, as a sign of life carries them."""
        return Totals(
            restarts=self.restarts,
            worker_deaths=self.worker_deaths,
            steps_lost=self.steps_lost,
            highest_step=self.highest_step,
            budgeted=tuple(restart.highest_step for restart in self.granted),
        )

    @property
    def calm(self) -> bool:
        """Whether the run has made a step since whatever has happened to it."""
        return not any(each.open for each in self.disturbances)

    def at_least(self, totals: Totals, step: int) -> Ledger:
        """With what the last sign of life knows and the journal does not; it may be all there is."""
        granted = self.granted
        if len(totals.budgeted) > len(granted):
            granted = tuple(Restart(step) for step in totals.budgeted)
        return replace(
            self,
            restarts=max(self.restarts, totals.restarts),
            worker_deaths=max(self.worker_deaths, totals.worker_deaths),
            steps_lost=max(self.steps_lost, totals.steps_lost),
            highest_step=max(self.highest_step, totals.highest_step, step),
            reached=max(self.reached, step),
            granted=granted,
        )

    def after_all(self, entries: Iterable[Mapping[str, Any]]) -> Ledger:
        """With all of these entries; those that make no sense are left out, they may come from anyone."""
        ledger = self
        for entry in entries:
            try:
                ledger = ledger.after(entry)
            except (KeyError, TypeError, ValueError):
                continue
        return ledger

    def after(self, entry: Mapping[str, Any]) -> Ledger:
        """With one entry more. Raises KeyError, TypeError or ValueError where it is none of ours."""
        kind = str(entry["kind"])
        known = self if kind == "based" else self.at_step(_count(entry.get("step")))
        changed = _EFFECTS.get(kind, _nothing)(known, entry)
        t = _seconds(entry.get("t"))
        return replace(changed, t=self.t if t is None else t, time=str(entry.get("time", "")))

    def at_step(self, step: int) -> Ledger:
        """Training has come to a step."""
        if step <= self.reached:
            return self
        return replace(self, reached=step, highest_step=max(self.highest_step, step))

    def disturbed(self, entry: Mapping[str, Any], kind: Kind, what: str, **more: Any) -> Ledger:
        """With a disturbance more, which an entry tells of."""
        given: dict[str, Any] = {
            "node": _optional(entry.get("node")),
            "cause": str(entry.get("cause", "")),
            "detection_s": _seconds(entry.get("detection_s")),
            "detail": str(entry.get("detail", "")),
            "step": self.reached,
            "t": _seconds(entry.get("t")),
            "boot": self.boot,
            **more,
        }
        found = Disturbance(
            kind=kind.value, what=what, time=str(entry.get("time", "")), attempt=self.attempt, **given
        )
        listed = (*self.disturbances, found)
        return replace(
            self, disturbances=listed[-LISTED:], earlier=self.earlier + max(0, len(listed) - LISTED)
        )


# -- what each kind of entry changes -----------------------------------------------------------------------


def _nothing(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    return ledger


def _began(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """An attempt begins, after whatever `after` says."""
    invocation, after = str(entry["invocation"]), str(entry["after"])
    again = invocation == ledger.invocation
    ledger = replace(
        ledger,
        boot=str(entry.get("boot", "")),
        attempt=_count(entry["attempt"]),
        restarts=ledger.restarts + bool(entry["restart"]),
        invocation=invocation,
        since=ledger.since if again else len(ledger.granted),
        coordinators=ledger.coordinators if again else 0,
        end=None,
    )
    died_at = _seconds(entry.get("died_at"))
    if after == COORDINATOR_KILLED:
        what = f"the coordinator {died(str(entry.get('cause', '')))}"
        return ledger.disturbed(entry, Kind.INFRASTRUCTURE, what, t=died_at)
    if after == RUN_KILLED:
        return ledger.disturbed(entry, Kind.INFRASTRUCTURE, "the run was killed", t=None)
    return ledger


def _granted(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """The policy has granted a restart: of the job, of its coordinator, or of a node."""
    of, step = str(entry["of"]), _count(entry["highest_step"])
    restart = Restart(step, of, _seconds(entry.get("delay_s")) or 0.0, str(entry.get("cause", "")))
    ledger = replace(
        ledger,
        granted=(*ledger.granted, restart),
        coordinators=max(ledger.coordinators, _count(entry.get("coordinators"))),
    )
    number = f"restart {_count(entry['number'])}"
    when = f"after {restart.delay_s:.1f} s" if restart.delay_s else "at once"
    again = {JOB: "restarted", COORDINATOR: "succeeded by another one"}.get(of, "started again")
    return _acted(ledger, f"{again} {when} ({number})")


def _recover(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    return _acted(ledger, "not started again: the restarts are used up")


def _acted(ledger: Ledger, action: str) -> Ledger:
    """With what was done about the last disturbance."""
    if not ledger.disturbances:
        return ledger
    *others, last = ledger.disturbances
    return replace(ledger, disturbances=(*others, replace(last, action=action)))


def _based(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """An attempt goes on from a step; what was committed beyond it is lost."""
    step, lost = _count(entry["step"]), _count(entry["steps_lost"])
    disturbances = ledger.disturbances
    if lost and disturbances:
        last = disturbances[-1]
        disturbances = (*disturbances[:-1], replace(last, steps_lost=last.steps_lost + lost))
    return replace(
        ledger,
        reached=step,
        highest_step=max(ledger.highest_step, step),
        steps_lost=ledger.steps_lost + lost,
        disturbances=disturbances,
    )


def _replaced(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """A worker or writer has ended and is replaced."""
    role, rank = str(entry["role"]), _count(entry["rank"])
    worker = role == "worker"
    kind = Kind.WORKER_DEATH if worker else Kind.INFRASTRUCTURE
    ledger = replace(ledger, worker_deaths=ledger.worker_deaths + worker)
    generation = _count(entry.get("generation"))
    what = f"{role} {rank} {died(str(entry.get('cause', '')))}"
    held_up = bool(entry.get("ready", True)) and worker
    process = f"{role} {rank}"
    more: dict[str, Any] = {"process": process, "generation": generation, "open": held_up}
    return ledger.disturbed(entry, kind, what, action="replaced", **more)


def _missed(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """A death that an agent remembers: it counts unless an earlier coordinator has put it on record."""
    process, pid = f"{entry['role']} {_count(entry['rank'])}", _count(entry["pid"])
    for each in ledger.disturbances:
        if each.process == process and each.pid in (pid, None):
            return ledger
    return _lost(_replaced(ledger, entry), entry)


def _lost(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """What its agent knows of the end of a worker or writer: when it was, in steps and phases."""
    more: dict[str, Any] = {
        "detection_s": _seconds(entry.get("detection_s")),
        "pid": _optional(entry.get("pid")),
    }
    where = f"in {entry['phase']} after step {_count(entry['step'])}"
    return _amended(ledger, entry, lambda each: {**more, "what": f"{each.what} {where}"})


def _ended(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """What the runtime knows of it: why."""
    cause, detail = str(entry["cause"]), str(entry.get("detail", ""))

    def change(each: Disturbance) -> dict[str, Any]:
        if each.cause not in ("", GONE):
            return {}  # that is why it was killed
        return {"cause": cause, "detail": detail, "what": each.what.replace(died(GONE), died(cause), 1)}

    return _amended(ledger, entry, change)


def _amended(
    ledger: Ledger, entry: Mapping[str, Any], change: Callable[[Disturbance], dict[str, Any]]
) -> Ledger:
    """With more about the end of the process that an entry names."""
    process, generation = f"{entry['role']} {_count(entry['rank'])}", _count(entry["generation"])
    listed = list(ledger.disturbances)
    for i in range(len(listed) - 1, -1, -1):
        each = listed[i]
        if (each.process, each.generation, each.attempt) == (process, generation, ledger.attempt):
            listed[i] = replace(each, **change(each))
            return replace(ledger, disturbances=tuple(listed))
    return ledger


def _node_lost(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    return ledger.disturbed(
        entry, Kind.INFRASTRUCTURE, f"node {_count(entry['node'])} was lost: {entry.get('cause', '')}"
    )


def _preempted(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    if entry.get("status") == "interrupted":
        return ledger  # somebody wanted that
    what = str(entry["text"]).removeprefix("preempted: ")
    return ledger.disturbed(entry, Kind.PREEMPTION, what, open=False)


def _raised(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    return ledger.disturbed(entry, Kind.USER_ERROR, str(entry["text"]), open=False)


def _unreadable(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    return ledger.disturbed(entry, Kind.DATA_ERROR, str(entry["text"]), open=False)


def _faulty(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    return ledger.disturbed(entry, Kind.DIVERGENCE, str(entry["text"]), open=False)


def _recovered(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """A step was committed: so the run has recovered from whatever happened before it.

    `seconds` is what an agent has measured since the death of a worker; else the times of the entries tell.
    """
    t, seconds = _seconds(entry.get("t")), _seconds(entry.get("seconds"))

    def closed(each: Disturbance) -> Disturbance:
        if not each.open:
            return each
        since = None
        if each.process is not None and seconds is not None:
            since = seconds
        elif each.t is not None and t is not None and each.boot == ledger.boot:
            since = max(0.0, t - each.t)
        elif each.time:
            since = between(each.time, str(entry.get("time", "")))
        return replace(each, open=False, recovery_s=since)

    return replace(ledger, disturbances=tuple(closed(each) for each in ledger.disturbances))


def _end(ledger: Ledger, entry: Mapping[str, Any]) -> Ledger:
    """An attempt has ended by itself."""
    ledger = replace(ledger, end={name: entry.get(name) for name in ("status", "error", "class")})
    last = ledger.disturbances[-1] if ledger.disturbances else None
    known = last is not None and last.attempt == ledger.attempt and last.open and last.process is None
    if entry["status"] == "failed" and entry.get("class") == Kind.INFRASTRUCTURE.value and not known:
        return ledger.disturbed(entry, Kind.INFRASTRUCTURE, f"the job failed: {entry.get('cause', '')}")
    return ledger


_EFFECTS = {
    "began": _began,
    "granted": _granted,
    "recover": _recover,
    "based": _based,
    "replaced": _replaced,
    "missed": _missed,
    "lost": _lost,
    "ended": _ended,
    "node-lost": _node_lost,
    "draining": _preempted,
    "stopping": _preempted,
    "retried": _raised,
    "data-error": _unreadable,
    "faulty": _faulty,
    "recovered": _recovered,
    "end": _end,
}


# -- words and numbers -------------------------------------------------------------------------------------


def _count(value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return int(value)


def _optional(value: object) -> int | None:
    return None if value is None else _count(value)


def _seconds(value: object) -> float | None:
    """A number of seconds; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    return float(value)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def between(earlier: str, later: str) -> float | None:
    """Seconds from one time in ISO format to another, 0 at least; None where one of them is none."""
    try:
        return max(0.0, (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds())
    except (ValueError, TypeError):
        return None
