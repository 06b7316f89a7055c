"""A run's ledger as its directory has it: the journals of all attempts, and the last sign of life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.ledger import Ledger, Pace
from orchestrator.totals import Totals
from storage.errors import CorruptCheckpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.run_directory import RunDirectory


def read_ledger(run: RunDirectory, beat: Mapping[str, Any] | None) -> tuple[Ledger, list[str]]:
    """What has happened to a run; with what could not be read of it, in words.

    The journal tells what happened up to the very last moment. The sign of life may know a later step, and is
    all there is where journals are missing.
    """
    ledger, damaged = Ledger(), []
    for key in run.journals():
        try:
            ledger = ledger.after_all(run.read_journal(key))
        except CorruptCheckpoint as error:
            damaged.append(str(error))
    if beat is not None:
        ledger = ledger.at_least(Totals.from_json(beat["totals"]), beat["step"])
    return ledger, damaged


def pace_of(beat: Mapping[str, Any] | None) -> Pace:
    """How fast the run was trained, as the last sign of life has it."""
    return Pace.from_json(None if beat is None else beat.get("pace"))
