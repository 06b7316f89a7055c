"""Disturbing a job on purpose: what is done when, and what is made of what was seen. Pure.

`chaos_run` does what is planned here, with real processes and real signals.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

KINDS = {
    "worker": "kill -9 of a worker",
    "agent": "kill -9 of the agent of a node",
    "writer": "kill -9 of a writer of checkpoints",
    "coordinator": "kill -9 of the coordinator",
    "node": "kill -9 of all processes of a node at once, and its memory is gone",
    "stop": "SIGSTOP of a worker for a while, then SIGCONT",
    "all": "kill -9 of everything at once, then the same command again",
}

HOLD_S = (1.0, 3.0)
"""The shortest and the longest time for which a worker is stopped."""

TRAINING_MARGIN = 1.5
"""A run is given this many times as many steps as it makes undisturbed while faults are delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which faults, how often and how many, as a person asks for them."""

    kinds: tuple[str, ...]
    every_s: float
    """Seconds between two faults, on average."""

    count: int | None
    """Faults after which the run is left alone. None: until it ends."""

    seed: int

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ConfigurationError(f"--faults: give one or more of {', '.join(KINDS)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigurationError(f"--faults: there is no {kind!r}: give some of {', '.join(KINDS)}")
        if not (math.isfinite(self.every_s) and self.every_s > 0):
            raise ConfigurationError(f"--every {self.every_s:g}: give seconds above 0")
        if self.count is not None and self.count < len(self.kinds):
            many = len(self.kinds)
            raise ConfigurationError(
                f"--count {self.count} is too few for {many} kinds of faults: give {many} or more"
            )

    def faults(self) -> Iterator[Fault]:
        """One of each kind in random order, then any; without end."""
        rng = random.Random(self.seed)
        first = list(dict.fromkeys(self.kinds))
        rng.shuffle(first)
        while True:
            kind = first.pop() if first else rng.choice(self.kinds)
            yield Fault(kind, self.every_s * rng.uniform(0.5, 1.5), rng.random(), rng.uniform(*HOLD_S))

    def steps(self, steps_per_s: float) -> int:
        """Steps that last until `count` faults are delivered."""
        many = len(self.kinds) if self.count is None else self.count
        return math.ceil(steps_per_s * TRAINING_MARGIN * self.every_s * (many + 1))


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds of faults in a list with commas, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to be delivered `wait_s` after the one before; `pick` in [0, 1) chooses whom it strikes."""

    kind: str
    wait_s: float
    pick: float
    hold_s: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """A fault that was delivered at a time of the clock of the trace, when `step` was committed."""

    kind: str
    at_s: float
    step: int
    roles: tuple[str, ...]
    """The roles of the processes that were struck."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a run that got SIGTERM ended."""

    code: int
    seconds: float
    grace_s: float
    step: int
    checkpoint: int | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether an invariant holds, and by what that is known."""

    holds: bool
    evidence: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"holds": self.holds, "evidence": self.evidence}


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was seen of the runs."""

    digest: str | None = None
    """Of the undisturbed run."""

    disturbed_digest: str | None = None
    error: str | None = None
    """Why the disturbed run did not reach its end."""

    compared: list[tuple[int, bool]] = field(default_factory=list)
    """Steps of which both runs have a checkpoint, and whether the two are equal."""

    steps: int = 0
    steps_lost: int = 0
    trace: list[tuple[float, int]] = field(default_factory=list)
    """When the step that all nodes have committed rose, and to what."""

    setbacks: list[str] = field(default_factory=list)
    """Committed steps that were in no node's memory any more."""

    stale: list[str] = field(default_factory=list)
    """Commits of an older attempt or epoch after one of a newer."""

    faults: list[Delivered] = field(default_factory=list)
    restores: list[tuple[str, bool]] = field(default_factory=list)
    """Checkpoints that were read to go on from, and whether a node was alive then."""

    verified: list[tuple[str, str | None]] = field(default_factory=list)
    """Checkpoints that were verified, and what is wrong with them."""

    stopped: Stopped | None = None
    commands: int = 0


def judge(seen: Seen) -> dict[str, Finding]:
    """What is to be said of each invariant of the recovery."""
    return {
        "A": _same_bits(seen),
        "B": _no_step_lost(seen),
        "C": _no_checkpoint_read(seen),
        "D": _latest_verifies(seen),
        "E": _nothing_stale(seen),
        "F": _stops_in_time(seen.stopped),
    }


def _same_bits(seen: Seen) -> Finding:
    if seen.error is not None:
        return Finding(False, f"the disturbed run did not reach its end: {seen.error}")
    if different := [step for step, equal in seen.compared if not equal]:
        return Finding(False, f"the checkpoints of step {different[0]} differ")
    if seen.digest is None or seen.digest != seen.disturbed_digest:
        return Finding(False, f"the state digests differ: {seen.digest} and {seen.disturbed_digest}")
    also = ", ".join(str(step) for step, _ in seen.compared)
    return Finding(True, f"equal state digests at the end; equal checkpoints of the steps {also}")


def _no_step_lost(seen: Seen) -> Finding:
    if seen.setbacks:
        return Finding(False, "; ".join(seen.setbacks))
    if seen.steps_lost:
        return Finding(False, f"{seen.steps_lost} steps had been committed and were trained again")
    return Finding(True, f"{seen.steps} steps committed, none of them lost; the step never went back")


def _no_checkpoint_read(seen: Seen) -> Finding:
    if alive := [text for text, with_node in seen.restores if with_node]:
        return Finding(False, f"a node's memory was there, and yet: {'; '.join(alive)}")
    if seen.restores:
        return Finding(True, f"checkpoints were read only when no node was left: {len(seen.restores)} times")
    return Finding(True, "no recovery read a checkpoint")


def _latest_verifies(seen: Seen) -> Finding:
    if bad := [f"{name}: {wrong}" for name, wrong in seen.verified if wrong is not None]:
        return Finding(False, "; ".join(bad))
    if not seen.verified:
        return Finding(False, "there was no checkpoint to be verified")
    return Finding(True, f"the latest checkpoint was verified {len(seen.verified)} times, every byte of it")


def _nothing_stale(seen: Seen) -> Finding:
    if seen.stale:
        return Finding(False, "; ".join(seen.stale))
    return Finding(True, "no commit of an older attempt or epoch came after one of a newer")


def _stops_in_time(stopped: Stopped | None) -> Finding:
    if stopped is None:
        return Finding(False, "SIGTERM was not delivered")
    after = f"{stopped.seconds:.1f} s after SIGTERM, of {stopped.grace_s:g} s"
    if stopped.code != 75 or stopped.seconds > stopped.grace_s:
        return Finding(False, f"the run ended with exit code {stopped.code} {after}")
    if stopped.checkpoint != stopped.step:
        return Finding(
            False, f"no checkpoint of step {stopped.step}, the last; the latest is {stopped.checkpoint}"
        )
    return Finding(True, f"exit code 75 {after}, with a checkpoint of step {stopped.step}, the last")


def recovery_s(fault: Delivered, trace: Sequence[tuple[float, int]]) -> float | None:
    """Seconds from a fault to the next committed step; None if there was no step to be made any more."""
    after = bisect_right(trace, (fault.at_s, math.inf))
    for at_s, step in trace[after:]:
        if step > fault.step:
            return at_s - fault.at_s
    return None


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie: the nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Milliseconds."""
    names = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {n: round(quantile(values, share) * 1000, 1) if values else None for n, share in names.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it: what `holdfast chaos --json` prints."""

    plan: Plan
    run_dir: str | None
    """Where the runs were kept; None if they were removed."""

    repeat: str
    seen: Seen
    too_short: str | None = None
    """Why the job could not be disturbed as was asked for, and what to do."""

    @property
    def undelivered(self) -> list[str]:
        """The kinds of faults that were asked for in vain."""
        delivered = {fault.kind for fault in self.seen.faults}
        return [kind for kind in self.plan.kinds if kind not in delivered]

    @property
    def findings(self) -> dict[str, Finding]:
        """Of each invariant; none if the job was not even begun to be disturbed."""
        return judge(self.seen) if self.seen.commands else {}

    @property
    def holds(self) -> bool:
        """Whether all was delivered and every invariant holds."""
        return (
            self.too_short is None and not self.undelivered and all(f.holds for f in self.findings.values())
        )

    def recoveries(self) -> dict[str, list[float]]:
        """Recovery times in seconds by kind of fault."""
        found: dict[str, list[float]] = {kind: [] for kind in self.plan.kinds}
        for fault in self.seen.faults:
            if (seconds := recovery_s(fault, self.seen.trace)) is not None:
                found[fault.kind].append(seconds)
        return found

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        seen = self.seen
        recoveries = self.recoveries()
        return {
            "holds": self.holds,
            "error": self.too_short or seen.error,
            "run_dir": self.run_dir,
            "seed": self.plan.seed,
            "repeat": self.repeat,
            "invariants": {letter: finding.to_json() for letter, finding in self.findings.items()},
            "delivered": _counts(self.plan.kinds, [fault.kind for fault in seen.faults]),
            "undelivered": self.undelivered,
            "deaths": dict(self.deaths()),
            "recovery_ms": {
                **_spread([seconds for each in recoveries.values() for seconds in each]),
                "by_kind": {kind: _spread(each) for kind, each in recoveries.items()},
            },
            "steps": seen.steps,
            "steps_lost": seen.steps_lost,
            "commands": seen.commands,
            "state_digests": {"undisturbed": seen.digest, "disturbed": seen.disturbed_digest},
            "faults": [
                {
                    "kind": fault.kind,
                    "step": fault.step,
                    "what": fault.text,
                    "recovery_ms": None if seconds is None else round(seconds * 1000, 1),
                }
                for fault in seen.faults
                for seconds in [recovery_s(fault, seen.trace)]
            ],
        }

    def deaths(self) -> Counter[str]:
        """Processes that were killed, by role."""
        return Counter(role for fault in self.seen.faults if fault.kind != "stop" for role in fault.roles)

    def text(self) -> str:
        """For a person."""
        if not self.seen.commands:
            return str(self.too_short)
        seen = self.seen
        recoveries = self.recoveries()
        lines = [
            f"{'fault':<12}{'delivered':>10}{'p50':>10}{'p95':>10}{'max':>10}  to the next committed step"
        ]
        rows: list[tuple[str, int, list[float]]] = [
            (kind, count, recoveries[kind])
            for kind, count in _counts(self.plan.kinds, [fault.kind for fault in seen.faults]).items()
        ]
        rows.append(("together", len(seen.faults), [s for each in recoveries.values() for s in each]))
        for name, count, seconds in rows:
            cells = [_in_words(quantile(seconds, share)) if seconds else "-" for share in (0.5, 0.95, 1.0)]
            lines.append(f"{name:<12}{count:>10}{''.join(f'{cell:>10}' for cell in cells)}")
        deaths = ", ".join(f"{role} {count}" for role, count in sorted(self.deaths().items())) or "none"
        lines.append(f"killed: {deaths}")
        lines.append(f"steps {seen.steps}, steps lost {seen.steps_lost}, commands {seen.commands}")
        lines.append(f"state digest undisturbed {seen.digest}")
        lines.append(f"state digest disturbed   {seen.disturbed_digest}")
        for letter, finding in self.findings.items():
            lines.append(f"{letter} {'holds' if finding.holds else 'VIOLATED'}: {finding.evidence}")
        lines += [f"no {kind} fault was delivered" for kind in self.undelivered]
        if self.too_short is not None:
            lines.append(self.too_short)
        if self.run_dir is not None:
            lines.append(f"kept in {self.run_dir}")
        lines.append(f"again with the same seed: {self.repeat}")
        return "\n".join(lines)


def _counts(kinds: Sequence[str], delivered: Sequence[str]) -> Mapping[str, int]:
    counts = Counter(delivered)
    return {kind: counts[kind] for kind in kinds}


def _in_words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
