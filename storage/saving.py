"""One save of something that has no coordinator: claim, write, commit, and delete what it replaces."""

from __future__ import annotations

import contextlib
import operator
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage import catalog
from storage.address import check_run_url
from storage.checkpoint import commit, directory_name
from storage.errors import CheckpointError, ConfigurationError, HoldfastError
from storage.manifest import Base
from storage.run_directory import Attempt, RunDirectory
from storage.store import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.checkpoint import Compression, Part
    from storage.layout import StateArray
    from storage.manifest import ObjectInfo
    from storage.retention import Retention


@dataclass(frozen=True, slots=True)
class Save:
    """A save that was begun: an attempt of its own, and the directory in which it writes."""

    run: RunDirectory
    attempt: Attempt
    step: int
    base: Base | None
    directory: str

    @property
    def url(self) -> str:
        """Where what is saved can be found once it is committed."""
        return f"{self.run.store.url}/{self.directory}"


def begin(url: str, kind: str, step: int | None = None, *, at_least: int = 0, replaces: bool = False) -> Save:
    """Claim the next place in the directory at `url`, of which run.json tells the `kind`.

    `step` is by default one more than the latest's, and no lower than `at_least`. Raises ConfigurationError
    where something of another kind is, CheckpointError where only damaged checkpoints are left; with
    `replaces`, what is saved takes the place of these.
    """
    check_run_url(url)
    step = None if step is None else checked_step(step)
    run = RunDirectory(open_store(url))
    check_kind(run, kind)  # before the claim, which would end a training run
    attempt = run.claim_attempt()
    # After the claim: where two can create run.json, whoever claims later finds that of an earlier save.
    if run.identity() is None:
        run.create_identity({"kind": kind})
    check_kind(run, kind)
    step, base = _next_step(run, step, at_least, replaces=replaces)
    run.record_base(attempt, base, only_stored=True)
    return Save(run, attempt, step, base, directory_name(step, attempt.number, attempt.nonce))


def finish(
    save: Save,
    state: Sequence[StateArray],
    parts: Sequence[Part],
    *,
    files: Mapping[str, ObjectInfo] | None = None,
    metrics: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    compression: Compression = None,
) -> None:
    """Make what was written count, as a whole. Raises Superseded if another has saved meanwhile."""
    commit(
        save.run,
        save.attempt,
        save.directory,
        state,
        parts,
        step=save.step,
        parent=save.base,
        counters={},
        metrics=metrics or {},
        fingerprint={},
        metadata=metadata,
        compression=compression,
        files=files,
    )


def tidy(save: Save, retention: Retention, *, keeps_base: bool = True) -> None:
    """Delete what is no longer kept, and what savers that died have left; what was saved is saved anyway.

    Without `keeps_base`, what was the latest before this save may go too.
    """
    try:
        save.run.retain(retention, save.attempt, keeps_base=keeps_base)
        save.run.collect()
    except HoldfastError as error:
        warnings.warn(f"saved, but older checkpoints could not be deleted: {error}", stacklevel=4)


def checked_step(step: object) -> int:
    """The step as an int; ConfigurationError if it is no whole number in range."""
    number = -1
    if not isinstance(step, bool | np.bool_):
        with contextlib.suppress(TypeError):
            number = operator.index(step)  # type: ignore[arg-type]
    if not 0 <= number <= catalog.MAX_STEP:
        raise ConfigurationError(f"step {step!r}: give a whole number from 0 to {catalog.MAX_STEP}")
    return number


def check_kind(run: RunDirectory, kind: str) -> None:
    """Raise ConfigurationError where the directory is one of something else."""
    identity = run.identity()
    found = kind if identity is None else identity.get("kind", "a training run")
    if found != kind:
        what = _KINDS.get(str(found), "a training run")
        raise ConfigurationError(f"{run.store.url} is the directory of {what}: save somewhere else")


_KINDS = {
    "arrays": "saved arrays",
    "model": "a saved model",
    "weights": "saved weights",
    "checkpoint": "a checkpoint",
}
"""What run.json calls what is in a directory that is no training run's."""


def _next_step(
    run: RunDirectory, step: int | None, at_least: int, *, replaces: bool
) -> tuple[int, Base | None]:
    """The step to save as, and what it comes after. Raises CheckpointError rather than begin anew where only
    damaged checkpoints are left, unless what is saved `replaces` them.
    """
    latest = run.latest()
    if latest is None:
        if not replaces and (damaged := run.unusable()):
            found = "; ".join(f"{e.directory} ({e.reason})" for e in damaged[-5:])
            raise CheckpointError(
                f"no checkpoint of {run.store.url} can be used: {found}: save somewhere else, or delete them"
            )
        return (at_least if step is None else step), None
    step = checked_step(max(latest.step + 1, at_least)) if step is None else step
    if step <= latest.step:
        raise ConfigurationError(
            f"{run.store.url}: step {step} is not after the latest checkpoint, which is at step {latest.step}"
        )
    return step, Base(latest.step, latest.attempt)
