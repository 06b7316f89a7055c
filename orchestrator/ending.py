"""Checkpoints, and how an attempt ends. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator import reports, rounds
from orchestrator.events import CommitCheckpoint, Note, RecordDivergence, Status
from orchestrator.state import Phase, failed, tell, then
from storage.catalog import divergence_key
from storage.errors import DivergenceError, HoldfastError
from workers import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.state import State, Turn

MAX_FINAL_FAILURES = 3
"""Tries at the last checkpoint."""

CHECKPOINT_MARGIN = 1.5
"""A checkpoint fits into the time that is left if this many times as long as the last one does."""


def share_written(state: State, node: int, event: m.CheckpointWritten) -> Turn:
    """A member has stored its share; with the last one the checkpoint is whole."""
    if event.step == state.stored_step:
        return state, []  # it stands already, committed in an older epoch
    written = {**state.written, node: event}
    state = replace(state, written=written, checkpoint_s=max(each.seconds for each in written.values()))
    of_this = [n for n in state.members if n in written and written[n].directory == event.directory]
    if of_this != [*state.members]:
        return state, []
    return state, [CommitCheckpoint(tuple(written[n] for n in state.members))]


def share_skipped(state: State, step: int, reason: str) -> Turn:
    """A member did not begin a checkpoint: the others' shares of it are of no use."""
    note = Note("checkpoint-skipped", f"checkpoint of step {step} skipped: {reason}", {"step": step})
    if len(state.members) == 1:
        return state, [note]
    left = replace(state, written=_without_step(state.written, step))
    return left, [note, *tell(state.members, m.Settled(step, committed=False))]


def _without_step(written: Mapping[int, m.CheckpointWritten], step: int) -> dict[int, m.CheckpointWritten]:
    """What was written, except for the checkpoint of one step."""
    return {node: each for node, each in written.items() if each.step != step}


def committed(state: State, step: int, digest: str) -> Turn:
    """The manifest of a checkpoint stands: the members may begin the next one."""
    note = Note("checkpoint", f"checkpoint of step {step} committed", {"step": step, "state_digest": digest})
    settled = replace(
        state, state_digest=digest, stored_step=step, written=_without_step(state.written, step)
    )
    return settled, [note, *tell(state.members, m.Settled(step, committed=True))]


def checkpoint_failed(state: State, step: int, error: Exception) -> Turn:
    """A checkpoint is given up; the last one is tried again, up to `MAX_FINAL_FAILURES` times."""
    note = Note("checkpoint-failed", f"checkpoint of step {step} given up: {error}", {"step": step})
    # Only the last checkpoint is tried again, so failures of one step are failures of that one.
    failures = state.failures + 1 if step == state.failed_step else 1
    final = isinstance(error, HoldfastError) and error.exit_code in (2, 4)  # no permission, superseded
    if final or failures >= MAX_FINAL_FAILURES:
        return failed(state, error), [note]
    state = replace(state, failures=failures, failed_step=step, written=_without_step(state.written, step))
    return state, [note, *tell(state.members, m.Settled(step, committed=False, tries=failures))]


def signalled(state: State, status: Status, seconds_left: float | None, attempt: int) -> Turn:
    """Stop, with a checkpoint if there is time for it; a second Ctrl-C does not wait for that."""
    if state.asked is not None and status is Status.PREEMPTED:
        return state, []  # one notice is enough
    if state.asked is not None or state.plan is None:
        return replace(state, phase=Phase.ENDED, status=status), []
    fits = seconds_left is None or state.checkpoint_s * CHECKPOINT_MARGIN <= seconds_left > 0
    takes = f", which takes {state.checkpoint_s:.1f} s" if seconds_left else ""
    how = "with a checkpoint" if fits else f"without a checkpoint{takes}"
    fields = {"status": status.value}
    note = Note("stopping", f"{status.value}: stopping at the next step, {how}", fields)
    state = replace(state, status=status, asked=m.Stop(checkpoint=fits), vain=0)
    if state.phase is not Phase.TRAINING:  # the members will be told when they are sent off, without a pause
        return then([note], rounds.pause_over(state, state.epoch))
    if len(state.members) > 1:  # they have to stop at the same step
        return then([note], rounds.begin(state, attempt))
    return replace(state, phase=Phase.STOPPING), [note, *tell(state.members, m.Stop(checkpoint=fits))]


def epoch_ended(state: State, event: m.EpochEnded) -> Turn:
    """A pass over the data has ended; what is told again, after a loss, is on record already."""
    if event.number < state.epochs_ended:
        return state, []
    return replace(state, epochs_ended=event.number + 1), [reports.epoch_ended(event)]


def member_finished(state: State, node: int, step: int, *, done: bool) -> Turn:
    """A member has stopped, its checkpoints settled; the attempt ends with the last one."""
    finished = state.finished | {node}
    if finished != {*state.members}:
        return replace(state, finished=finished), []
    status = Status.DONE if done else state.status
    return replace(state, phase=Phase.ENDED, status=status, step=step, finished=finished), []


def diverged(state: State, event: m.Diverged, attempt: int) -> Turn:
    """The same microbatch gave the same bits twice: more workers and restarts will not help."""
    what = f"loss {event.loss:.4g}, gradient {'' if event.finite else 'not '}finite"
    if event.microbatch is None:
        where, why = f"step {event.step}", "every microbatch is finite, their sum is not"
    else:
        where, why = f"step {event.step}, microbatch {event.microbatch}", "the same bits when computed again"
    text = (
        f"training diverges at {where} ({what}; {why}): try a lower learning rate, look at the samples of "
        'this batch, or give the job on_divergence="ignore" to train on; the record is '
        f"{divergence_key(event.step, attempt)}"
    )
    fields = {
        "step": event.step,
        "microbatch": event.microbatch,
        "loss": event.loss,
        "gradient_finite": event.finite,
        "gradient_blake3": event.digest,
    }
    return failed(state, DivergenceError(text)), [Note("divergence", text, fields), RecordDivergence(event)]
