"""What a run's attempts have cost so far; kept in the run directory, so that it survives the coordinator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.restart import Restart

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Totals:
    """Counted over all attempts of a run."""

    restarts: int = 0
    worker_deaths: int = 0
    steps_lost: int = 0
    highest_step: int = 0
    budgeted: tuple[int, ...] = ()
    """For each restart that the policy granted, the highest step when it did."""

    @property
    def history(self) -> list[Restart]:
        """What `restart.decide` goes by."""
        return [Restart(step) for step in self.budgeted]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "budgeted": list(self.budgeted)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Totals:
        """What `to_json` made; the start of counting where there is nothing."""
        if value is None:
            return cls()
        numbers = {
            name: int(value[name]) for name in ("restarts", "worker_deaths", "steps_lost", "highest_step")
        }
        return cls(**numbers, budgeted=tuple(int(step) for step in value["budgeted"]))
