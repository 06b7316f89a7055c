"""The invariants A to E, as the tests of this folder look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.integration.harness import saved

if TYPE_CHECKING:
    from tests.integration.harness import Outcome, Place


def assert_same_bits(outcome: Outcome, digest: str) -> dict[str, Any]:
    """A: the run is done and its digest is that of the undisturbed one; its result."""
    result = outcome.done()
    assert result["state_digest"] == digest, f"expected the digest {digest}{outcome}"
    return result


def assert_no_step_lost(outcome: Outcome) -> None:
    """B: no committed step was trained again."""
    assert outcome.result["steps_lost"] == 0, str(outcome)


def assert_no_checkpoint_read(outcome: Outcome) -> None:
    """C: what goes on does so from a node's memory."""
    assert "going on from the checkpoint" not in outcome.stderr, str(outcome)


def assert_latest_verifies(place: Place, run_dir: str = "run") -> None:
    """D: every byte of the latest checkpoint is as it was written; nothing is said where there is none."""
    if any(each.complete for each in saved(place.root / run_dir)):
        place.cli("ckpt", "verify", run_dir, "--read-data").expect(0)
