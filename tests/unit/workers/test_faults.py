"""Planned faults strike where they were planned, once, and a malformed plan is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from storage.errors import ConfigurationError
from workers.faults import Fault, planned_fault


def plan(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    monkeypatch.setenv("HOLDFAST_FAULTS", value if isinstance(value, str) else json.dumps(value))


def test_without_a_plan_nothing_strikes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_FAULTS", raising=False)
    assert planned_fault("worker", 0, 0) is None
    monkeypatch.setenv("HOLDFAST_FAULTS", "")
    assert planned_fault("worker", 0, 0) is None


def test_the_kth_process_of_a_role_and_rank_obeys_the_kth_entry_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan(
        monkeypatch,
        [
            {"kill": "worker", "rank": 1, "step": 5, "phase": "forward"},
            {"kill": "writer", "step": 9, "phase": "after"},
            {"hang": "worker", "rank": 1, "step": 7, "phase": "update"},
            {"kill": "worker", "step": 6, "phase": "reduce"},
        ],
    )
    assert planned_fault("worker", 1, 0) == Fault(5, "forward")
    assert planned_fault("worker", 1, 1) == Fault(7, "update", "hang")
    assert planned_fault("worker", 1, 2) is None
    assert planned_fault("worker", 0, 0) == Fault(6, "reduce")
    assert planned_fault("worker", 2, 0) is None
    assert planned_fault("writer", 0, 0) == Fault(9, "after")
    assert planned_fault("agent", 0, 0) is None


@pytest.mark.parametrize(
    "value",
    [
        "{",
        "5",
        "null",
        '"x"',
        [3],
        ["kill"],
        [{}],
        [{"kill": "worker"}],
        {"kill": "worker", "step": 1, "phase": "forward"},
        [{"kill": "worker", "step": "soon", "phase": "forward"}],
        [{"kill": "worker", "step": None, "phase": "forward"}],
        [{"kill": "worker", "step": 1, "phase": "before"}],
        [{"hang": "worker", "step": 1, "phase": "before"}],
        [{"flip": "writer", "step": 1, "phase": "before"}],
        [{"hang": "nobody", "step": 1, "phase": "forward"}],
        [{"kill": "nobody", "step": 1, "phase": "forward"}],
    ],
)
def test_a_malformed_plan_is_refused_naming_the_variable(
    monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    plan(monkeypatch, value)
    with pytest.raises(ConfigurationError, match="HOLDFAST_FAULTS"):
        planned_fault("worker", 0, 0)


def test_a_fault_strikes_at_its_step_or_the_first_after_it_and_in_its_phase_only() -> None:
    program = (
        "from workers.faults import Fault\n"
        "fault = Fault(5, 'update')\n"
        "for step in (3, 4, 7):\n"
        "    for phase in ('forward', 'update'):\n"
        "        print(step, phase, flush=True)\n"
        "        fault.strike(step, phase)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.splitlines()[-1] == "7 update"
