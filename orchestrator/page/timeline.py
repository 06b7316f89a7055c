"""When a run was at work, with whom, and what happened to it: from the entries of its journals. Pure.

Times are Unix seconds. What makes no sense is left out: a journal may come from anyone.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.failures import last_line
from storage.strict_json import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

GAP_S = 60.0
"""A time in which nobody ran the run is cut short if it is longer, and a twentieth of the rest, too."""

GAP_SHARE = 0.05
CUT = 0.03
"""What is shown of a time that is cut short, as a share of the whole width."""

MOST_MARKS = 600
MOST_SPANS = 300
MOST_LANES = 64
MOST_ATTEMPTS = 300
MOST_LOG = 250
LONGEST = 2000

KINDS = {
    "replaced": "death",
    "missed": "death",
    "node-lost": "death",
    "recovered": "recovery",
    "checkpoint": "checkpoint",
    "checkpoint-failed": "trouble",
    "checkpoint-skipped": "trouble",
    "fall-back": "trouble",
    "storage": "trouble",
    "retried": "trouble",
    "data-error": "trouble",
    "faulty": "trouble",
    "divergence": "trouble",
    "granted": "restart",
    "draining": "preemption",
    "stopping": "preemption",
    "scaled": "scaled",
}
"""Kinds of entries that are marked on the timeline, and as what."""


@dataclass(slots=True)
class _Attempt:
    number: int
    begin: float
    after: str
    end: float | None = None
    status: str = ""
    step: int | None = None
    lines: int = 0


@dataclass(slots=True)
class _Span:
    begin: float
    pid: int | None
    end: float | None = None
    how: str = ""


@dataclass(slots=True)
class _Story:
    """What has been read so far."""

    attempts: deque[_Attempt] = field(default_factory=lambda: deque(maxlen=MOST_ATTEMPTS))
    lanes: dict[tuple[int, str, int], deque[_Span]] = field(default_factory=dict)
    marks: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_MARKS))
    log: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_LOG))
    last: float | None = None


def tell(entries: Iterable[Mapping[str, Any]], beat: Mapping[str, Any], *, running: bool) -> dict[str, Any]:
    """The timeline as JSON values.

    `beat` is the last sign of life ({} if there was none), whose processes are at work if it is `running`.

    - `attempts`: number, begin, end, after, status, step (the one it went on from);
    - `lanes`: node, role, rank and `spans` of begin, end, pid, how (it ended; "" if it is at work);
    - `marks` and `log`: time, kind, text, step, attempt;
    - `parts`: [begin, end, from, to] of times that are shown, with their places between 0 and 1.
    """
    story = _Story()
    for entry in entries:
        try:
            _take(story, entry)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    _finish(story, beat, running=running)
    parts = _parts([(each.begin, each.end or each.begin) for each in story.attempts])
    return {
        "attempts": [
            {name: getattr(each, name) for name in ("number", "begin", "end", "after", "status", "step")}
            for each in story.attempts
        ],
        "lanes": [_lane(key, spans) for key, spans in sorted(story.lanes.items(), key=_lane_order)],
        "marks": [*story.marks],
        "log": [*story.log],
        "parts": parts,
    }


def _take(story: _Story, entry: Mapping[str, Any]) -> None:
    kind, now = str(entry["kind"]), seconds(entry["time"])
    if now is None:
        return
    step = entry.get("step")
    step = step if type(step) is int and step >= 0 else None
    if kind == "began":
        _began(story, now, int(entry["attempt"]), str(entry.get("after", "")))
    attempt = story.attempts[-1] if story.attempts else None
    if attempt is not None:
        attempt.end = max(attempt.begin, now)
    story.last = now if story.last is None else max(story.last, now)
    number = attempt.number if attempt is not None else 0
    match kind:
        case "based" if step is not None and attempt is not None:
            attempt.step = step
        case "ready":
            _ready(story, entry, now)
        case "replaced" | "missed":
            _gone(story, entry, now)
        case "node-lost":
            _node_gone(story, entry, now)
        case "end" if attempt is not None:
            attempt.status = str(entry.get("status", ""))
    text = _text(kind, entry)
    if kind in KINDS:
        if kind == "recovered" and not any(m["kind"] in ("death", "restart") for m in story.marks):
            return  # the first step of all
        mark = {"time": now, "kind": KINDS[kind], "text": text, "step": step, "attempt": number}
        story.marks.append(mark)
    if text and kind not in ("ready", "ended", "lost", "evaluated"):
        story.log.append({"time": now, "kind": kind, "text": text, "step": step, "attempt": number})


def _began(story: _Story, now: float, number: int, after: str) -> None:
    """An attempt begins. Where only the coordinator was killed, the workers of the one before are at work."""
    before = story.attempts[-1] if story.attempts else None
    if before is not None and not before.status:
        before.status = after
        if after == "coordinator killed":
            before.end = max(before.begin, now)
    if before is not None and after != "coordinator killed":
        _close_all(story, before.end or before.begin, "ended with its attempt")
    story.attempts.append(_Attempt(number, now, printable(after, 80)))


def _ready(story: _Story, entry: Mapping[str, Any], now: float) -> None:
    key = (int(entry.get("node") or 0), str(entry["role"]), int(entry["rank"]))
    if key not in story.lanes and len(story.lanes) >= MOST_LANES:
        return
    spans = story.lanes.setdefault(key, deque(maxlen=MOST_SPANS))
    if spans and spans[-1].end is None:
        spans[-1].end, spans[-1].how = now, "another took its place"
    pid = entry.get("pid")
    spans.append(_Span(now, pid if type(pid) is int else None))


def _gone(story: _Story, entry: Mapping[str, Any], now: float) -> None:
    role, rank = str(entry["role"]), int(entry["rank"])
    for (_, its_role, its_rank), spans in story.lanes.items():
        if (its_role, its_rank) == (role, rank) and spans and spans[-1].end is None:
            spans[-1].end, spans[-1].how = now, printable(str(entry.get("cause") or "it was gone"), 200)


def _node_gone(story: _Story, entry: Mapping[str, Any], now: float) -> None:
    for (node, _, _), spans in story.lanes.items():
        if node == entry.get("node") and spans and spans[-1].end is None:
            spans[-1].end, spans[-1].how = now, "its node was lost"


def _close_all(story: _Story, now: float, how: str) -> None:
    for spans in story.lanes.values():
        if spans and spans[-1].end is None:
            spans[-1].end, spans[-1].how = max(now, spans[-1].begin), how


def _finish(story: _Story, beat: Mapping[str, Any], *, running: bool) -> None:
    """Up to the last sign of life: what is at work then, if the run is, has no end."""
    if not story.attempts:
        return
    newest = story.attempts[-1]
    seen = seconds(beat.get("time")) if beat.get("attempt") == newest.number else None
    if seen is not None and not newest.status:
        newest.end = max(newest.end or newest.begin, seen)
    end = newest.end or newest.begin
    alive = _at_work(beat) if seen is not None else {}
    for key, pid in alive.items():
        spans = story.lanes.get(key)
        if spans is None and len(story.lanes) < MOST_LANES:
            spans = story.lanes[key] = deque(maxlen=MOST_SPANS)
        if spans is not None and not (spans and (spans[-1].end is None or spans[-1].end > newest.begin)):
            spans.append(_Span(newest.begin, pid))  # it was at work when this coordinator came
    if not running:
        _close_all(story, end, "ended with its attempt")
        return
    newest.status = "running"
    for key, spans in story.lanes.items():
        if alive and key not in alive and spans and spans[-1].end is None:
            spans[-1].end, spans[-1].how = end, "let go"


def _at_work(beat: Mapping[str, Any]) -> dict[tuple[int, str, int], int | None]:
    """The workers and writers that a sign of life names: node, role, rank -> process."""
    listed = beat.get("processes")
    found: dict[tuple[int, str, int], int | None] = {}
    for each in listed if isinstance(listed, list) else ():
        try:
            key = (int(each["node"]), str(each["role"]), int(each["rank"]))
        except (KeyError, TypeError, ValueError):
            continue
        if key[1] in ("worker", "writer"):
            found[key] = each["pid"] if type(each.get("pid")) is int else None
    return found


def _lane(key: tuple[int, str, int], spans: Sequence[_Span] | deque[_Span]) -> dict[str, Any]:
    node, role, rank = key
    listed = [{"begin": s.begin, "end": s.end, "pid": s.pid, "how": s.how} for s in spans]
    return {"node": node, "role": printable(role, 40), "rank": rank, "spans": listed}


def _lane_order(item: tuple[tuple[int, str, int], Any]) -> tuple[int, bool, str, int]:
    node, role, rank = item[0]
    return node, role != "worker", role, rank


def _text(kind: str, entry: Mapping[str, Any]) -> str:
    """What an entry says, in one line."""
    text = str(entry.get("text") or "")
    if not text and kind == "began":
        text = f"attempt {entry['attempt']} begins: {entry.get('after', '')}"
    elif not text and kind == "recovered" and (took := entry.get("seconds")) is not None:
        text = f"the next step came {float(took):.2g} s later"
    elif not text and kind == "recovered":
        text = "the next step was made"
    elif not text and kind == "end":
        text = ": ".join(last_line(str(entry[name])) for name in ("status", "error") if entry.get(name))
    elif not text and kind == "node-lost":
        text = f"node {entry.get('node')} was lost: {entry.get('cause', '')}"
    elif not text and kind == "based" and entry.get("step"):
        text = f"it goes on from step {entry['step']}"
    return printable(last_line(text), LONGEST)


def _parts(spans: Sequence[tuple[float, float]]) -> list[list[float]]:
    """The times that are shown, and where: what lies between attempts is cut short where it is long."""
    if not spans:
        return []
    joined: list[list[float]] = []
    at_work = sum(end - begin for begin, end in spans)
    longest = max(GAP_S, GAP_SHARE * at_work)
    for begin, end in sorted(spans):
        if joined and begin - joined[-1][1] <= longest:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    for part in joined:
        part[1] = max(part[1], part[0] + 1e-3)
    cut = min(CUT, 0.3 / len(joined))
    room = 1.0 - cut * (len(joined) - 1)
    whole = sum(end - begin for begin, end in joined)
    parts, at = [], 0.0
    for begin, end in joined:
        width = room * (end - begin) / whole
        parts.append([begin, end, round(at, 6), round(at + width, 6)])
        at += width + cut
    return parts


def seconds(text: object) -> float | None:
    """Unix seconds of a time in ISO format; None for what is none."""
    if not isinstance(text, str):
        return None
    try:
        value = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return round(value, 3) if math.isfinite(value) else None
