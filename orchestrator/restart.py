"""Whether a job or a node that failed is started again, when, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.failures import can_restart, classify, in_short

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.spec import RestartPolicy

JOB = "the job"
COORDINATOR = "the coordinator"


@dataclass(frozen=True, slots=True)
class Restart:
    """A restart that was granted: the highest step ever reached then, of what, after which wait, and why."""

    highest_step: int
    of: str = JOB
    delay_s: float = 0.0
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a failure; `reason` is what the user is told.

    `number` is the restart's, of those that the policy has. `looping` says that the circuit is open: restarts
    of the job have brought nothing.
    """

    restart: bool
    delay_s: float
    reason: str
    number: int = 0
    looping: bool = False


def tokens_left(policy: RestartPolicy, history: Iterable[Restart], highest_step: int) -> int:
    """Restarts that are in hand, after those in `history` and what the steps up to `highest_step` earned."""
    tokens, reached, spare_steps = policy.max_restarts, 0, 0
    for step, cost in [*((restart.highest_step, 1) for restart in history), (highest_step, 0)]:
        earned, spare_steps = divmod(spare_steps + max(0, step - reached), policy.refill_steps)
        if tokens + earned >= policy.max_restarts:
            tokens, spare_steps = policy.max_restarts, 0  # no more than that can be saved up
        else:
            tokens += earned
        tokens -= cost
        reached = max(reached, step)
    return tokens


def decide(
    policy: RestartPolicy,
    history: Sequence[Restart],
    highest_step: int,
    failure: Exception,
    jitter: float,
    *,
    of: str = JOB,
    since: int = 0,
    held_up: bool = True,
) -> Decision:
    """Decide on `failure`, given the restarts so far and the highest step ever reached.

    Only failures of the infrastructure are restarted. A restart costs a token, which training beyond the
    highest step earns back; `jitter` in [0, 1) spreads the wait ("full jitter"), and nobody waits where that
    would hold nobody up: where `held_up` is False, others are at work meanwhile that somebody has to lead.
    Restarts of the job, and of its coordinator, that brought no new step open the circuit; only those
    after the first `since` count, because a person who runs the command again has a reason to.
    """
    what = in_short(failure)
    if not can_restart(failure):
        return Decision(False, 0.0, f"not restarted: {what} ({classify(failure).value})")
    fruitless = _fruitless(policy, history[since:], highest_step, of)
    if of in (JOB, COORDINATOR) and len(fruitless) >= policy.crash_loop:
        return Decision(False, 0.0, _crash_loop(fruitless, highest_step, what), looping=True)
    left = tokens_left(policy, history, highest_step)
    if left < 1:
        why = f"all {policy.max_restarts} restarts are used up" if policy.max_restarts else "none is allowed"
        return Decision(False, 0.0, f"{of} is not started again ({why}): {what}")
    bound = min(policy.max_backoff_s, policy.backoff_s * 2.0 ** min(len(fruitless), 100))
    delay = bound * jitter if held_up else 0.0
    number = policy.max_restarts - left + 1
    when = f"in {delay:.1f} s" if held_up else "at once"
    budget = f"(restart {number} of {policy.max_restarts})"
    if of == COORDINATOR:
        meanwhile = "" if held_up else ", and training goes on meanwhile"
        reason = f"another coordinator takes over {when}{meanwhile} {budget}"
    elif of == JOB:
        reason = f"restarting {when} {budget}: {what}"
    else:
        reason = f"{of} is started again {when} {budget}"
    return Decision(True, delay, reason, number)


def _fruitless(
    policy: RestartPolicy, history: Sequence[Restart], highest_step: int, of: str
) -> list[Restart]:
    """The last restarts in a row of the same that brought nothing.

    Restarts of the job: no new step. A node's: not so many as earn one back, because meanwhile the others
    train on.
    """
    whole = (JOB, COORDINATOR)
    mine = [r for r in history if (r.of in whole if of in whole else r.of == of)]
    enough = 1 if of in whole else policy.refill_steps
    found: list[Restart] = []
    for restart in reversed(mine):
        if highest_step - restart.highest_step >= enough:
            break
        found.insert(0, restart)
    return found


def _crash_loop(tried: Sequence[Restart], highest_step: int, what: str) -> str:
    """What was tried before the circuit opened."""
    waits = "; ".join(f"after {r.delay_s:.1f} s, because {r.cause or 'it failed'}" for r in tried[-5:])
    many = "1 restart" if len(tried) == 1 else f"{len(tried)} restarts"
    return (
        f"stopped, because this is a crash loop: {many} brought no step beyond {highest_step} "
        f"(tried {waits}), and then: {what}"
    )
