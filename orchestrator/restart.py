"""Whether a job that failed is started again, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.errors import (
    ConfigurationError,
    HoldfastError,
    InfrastructureError,
    StorageError,
    UserCodeError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.spec import RestartPolicy


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart in the run's history: the highest step ever reached when it was decided."""

    highest_step: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a failure; `reason` is what the user is told."""

    restart: bool
    delay_s: float
    reason: str


def decide(
    policy: RestartPolicy, history: Sequence[Restart], highest_step: int, failure: Exception, jitter: float
) -> Decision:
    """Decide on `failure`, given the restarts so far and the highest step ever reached.

    Only failures of the infrastructure are restarted. A restart costs a token, which training beyond the
    highest step earns back; `jitter` in [0, 1) spreads the wait ("full jitter").
    """
    what = str(failure).splitlines()[-1] if str(failure) else type(failure).__name__
    if not isinstance(failure, InfrastructureError | StorageError):
        return Decision(False, 0.0, f"not restarted: {what} ({_kind(failure)})")
    tokens, reached, spare_steps = policy.max_restarts, 0, 0
    for reaches in [*(restart.highest_step for restart in history), highest_step]:
        earned, spare_steps = divmod(spare_steps + max(0, reaches - reached), policy.refill_steps)
        if tokens + earned >= policy.max_restarts:
            tokens, spare_steps = policy.max_restarts, 0  # no more than that can be saved up
        else:
            tokens += earned
        tokens -= 1
        reached = max(reached, reaches)
    fruitless = 0
    for restart in reversed(history):
        if restart.highest_step < highest_step:
            break
        fruitless += 1
    if fruitless >= policy.crash_loop:
        return Decision(
            False, 0.0, f"given up: {fruitless} restarts brought no step beyond {highest_step}: {what}"
        )
    if tokens < 0:
        return Decision(False, 0.0, f"given up: all {policy.max_restarts} restarts are used up: {what}")
    bound = min(policy.max_backoff_s, policy.backoff_s * 2.0 ** min(fruitless, 100))
    delay = bound * jitter
    return Decision(True, delay, f"restarting in {delay:.1f} s ({tokens} restarts left): {what}")


def _kind(failure: Exception) -> str:
    match failure:
        case ConfigurationError():
            return "a matter of configuration"
        case UserCodeError():
            return "user error"
        case HoldfastError():
            return "trying again would not help"
        case _:
            return "internal error"
