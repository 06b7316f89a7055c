"""Everything is killed at once while a process is at a chosen point; the same command ends in the same bits.

The process stops itself there, which the test sees, and then kills the whole run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.judging import assert_latest_verifies, assert_no_step_lost, assert_same_bits

if TYPE_CHECKING:
    from tests.conftest import Reference
    from tests.integration.harness import Place

pytestmark = [pytest.mark.chaos, pytest.mark.row("all")]

full = pytest.mark.full
WIDE = {"hidden": 16384, "delay_s": 0.005}
POINTS = {
    ("worker", "forward"): 25,
    ("worker", "backward"): 25,
    ("worker", "reduce"): 25,
    ("worker", "update"): 25,
    ("agent", "initialise"): 0,
    ("agent", "gradient"): 25,
    ("agent", "reduce"): 25,
    ("agent", "exchange"): 25,
    ("agent", "update"): 25,
    ("agent", "drain"): 60,
    ("writer", "before"): 40,
    ("writer", "after"): 40,
    ("coordinator", "plan"): 0,
    ("coordinator", "before"): 40,
    ("coordinator", "after"): 40,
    ("coordinator", "collection"): 40,
}
IN_CI = {("worker", "update"), ("coordinator", "after")}


@pytest.mark.parametrize("memory", ["memory survives", pytest.param("memory is lost", marks=full)])
@pytest.mark.parametrize(
    ("role", "phase"), [pytest.param(*point, marks=() if point in IN_CI else full) for point in POINTS]
)
def test_everything_killed_at_each_point_ends_in_the_same_bits(
    place: Place, reference: Reference, role: str, phase: str, memory: str
) -> None:
    nodes = ["--nodes", "2"] if phase in ("reduce", "exchange") else []
    fault = {"hang": role, "step": POINTS[role, phase], "phase": phase, "once": str(place.root / "once")}
    run = place.begin(settings=WIDE, more=nodes, faults=[fault])
    where = "driver" if role == "coordinator" else role
    run.until(lambda: run.stopped(where), f"{role} to stop itself in {phase}")
    run.kill_everything()
    place.assert_no_process()
    assert_latest_verifies(place)
    if memory == "memory is lost":
        place.forget_memory()
    outcome = place.run(workers=3, settings=WIDE)
    assert_same_bits(outcome, reference(hidden=WIDE["hidden"])["state_digest"])
    if memory == "memory survives":
        assert_no_step_lost(outcome)
    assert_latest_verifies(place)
    place.assert_nothing_left(sockets=False)
