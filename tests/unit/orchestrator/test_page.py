"""What the page of a run shows: curves, the timeline, and nothing that is not text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import numpy as np

from orchestrator.page import curves, document, timeline


def test_a_long_curve_keeps_its_spikes_its_gaps_and_its_ends() -> None:
    steps = np.arange(100_000)
    values = np.sin(steps / 5000)
    values[41_234], values[77_777], values[50_001] = 9.0, -9.0, np.nan
    found = curves.series("loss", steps, values)
    assert len(found["steps"]) <= curves.MOST + 4
    shown = dict(zip(found["steps"], found["values"], strict=True))
    assert (shown[41_234], shown[77_777], shown[50_001]) == (9.0, -9.0, None)
    assert {0, 99_999} <= shown.keys()
    assert (found["count"], found["not_finite"]) == (100_000, 1)
    assert found["greatest"] == [41_234, 9.0]
    json.dumps(found, allow_nan=False)


def test_a_short_curve_is_shown_as_it_is_in_the_order_of_steps() -> None:
    found = curves.series("val_loss", np.array([20, 10]), np.array([0.5, 1.0]))
    assert (found["steps"], found["values"], found["chart"]) == ([10, 20], [1.0, 0.5], "loss")
    assert curves.in_order(["steps_per_s", "accuracy", "val_loss", "loss"]) == [
        "loss",
        "val_loss",
        "accuracy",
        "steps_per_s",
    ]


def entry(kind: str, second: int, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "time": f"2026-01-01T00:00:{second:02}+00:00", **fields}


STORY = [
    entry("began", 0, attempt=1, after="first"),
    entry("ready", 1, role="worker", rank=0, node=0, pid=10),
    entry("ready", 1, role="worker", rank=1, node=0, pid=11),
    entry("checkpoint", 5, step=100, text="checkpoint of step 100 committed"),
    entry(
        "replaced", 6, role="worker", rank=1, cause="was killed", text="worker 1 was killed and is replaced"
    ),
    entry("recovered", 6, step=120, seconds=0.01),
    entry("ready", 8, role="worker", rank=1, node=0, pid=12),
    {"kind": "ready", "time": "never"},
    {"time": 3},
]


def test_of_an_error_with_a_traceback_the_log_has_the_last_line() -> None:
    error = 'Traceback (most recent call last):\n  File "t.py"\nValueError: no\nthe job raised twice'
    story = [*STORY, entry("end", 9, status="failed", error=error)]
    told = timeline.tell(story, {}, running=False)
    assert told["log"][-1]["text"] == "failed: the job raised twice"


def test_the_timeline_has_attempts_lanes_and_marks() -> None:
    beat = {"attempt": 1, "time": "2026-01-01T00:00:20+00:00"}
    told = timeline.tell(STORY, beat, running=False)
    assert [(each["number"], each["end"] - each["begin"]) for each in told["attempts"]] == [(1, 20)]
    lane = next(each for each in told["lanes"] if each["rank"] == 1)
    assert [(span["pid"], span["how"]) for span in lane["spans"]] == [
        (11, "was killed"),
        (12, "ended with its attempt"),
    ]
    assert [mark["kind"] for mark in told["marks"]] == ["checkpoint", "death", "recovery"]
    assert told["parts"][0][2:] == [0.0, 1.0]
    json.dumps(told, allow_nan=False)


def test_what_is_at_work_has_no_end() -> None:
    beat = {
        "attempt": 1,
        "time": "2026-01-01T00:00:20+00:00",
        "processes": [{"node": 0, "role": "worker", "rank": rank} for rank in range(2)],
    }
    told = timeline.tell(STORY, beat, running=True)
    assert [each["spans"][-1]["end"] for each in told["lanes"]] == [None, None]
    assert told["attempts"][-1]["status"] == "running"


def test_a_worker_that_was_at_work_when_the_coordinator_came_is_shown() -> None:
    """Its `ready` was told to the one before, which was killed before it had written it down."""
    story = [*STORY[:6], entry("began", 9, attempt=2, after="coordinator killed")]
    beat = {
        "attempt": 2,
        "time": "2026-01-01T00:00:20+00:00",
        "processes": [{"node": 0, "role": "worker", "rank": 1, "pid": 12}, {"node": None}, 5],
    }
    for running, end in ((True, None), (False, 20)):
        told = timeline.tell(story, beat, running=running)
        began = told["attempts"][0]["begin"]
        lane = next(each for each in told["lanes"] if each["rank"] == 1)
        shown = [
            (each["pid"], each["begin"] - began, each["end"] and each["end"] - began)
            for each in lane["spans"]
        ]
        assert shown == [(11, 1, 6), (12, 9, end)]


def test_a_report_runs_its_own_scripts_alone_and_what_a_run_says_is_data() -> None:
    evil = "</script><script>alert(1)</script><!--"
    page = document.report({"name": evil, "run": {"error": evil}})
    assert evil not in page
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    data = re.search(r'<script type="application/json" id="view">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["name"] == evil
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_the_served_page_asks_for_parts_that_are_there() -> None:
    page = document.served()
    names = re.findall(r'(?:src|href)="static/([^"]+)"', page)
    assert {*names} == {*document.PARTS}
    for name in names:
        assert document.part(name)
    assert "innerHTML" not in document.part("page.js")
