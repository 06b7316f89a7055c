"""`CheckpointManager`: a directory of numbered checkpoints, of which some are kept."""

from __future__ import annotations

import re
import time
import warnings
from datetime import datetime
from typing import TYPE_CHECKING, Any

from storage import families
from storage.errors import CheckpointError, HoldfastError
from storage.formats import tensorflow_files
from storage.store import check_url
from workers.nn.lookup import check
from workers.nn.train.keeping import Plan, Rule, Saved, plan, with_saved
from workers.nn.train.stored import CHECKPOINT, open_stored

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from workers.nn.train.checkpoint import Checkpoint
    from workers.nn.train.stored import Stored
    from workers.nn.variables import Variable


class Keeper:
    """The list of what was saved under one name, and the deletion of what a rule does not keep."""

    def __init__(self, rule: Rule, clock: Callable[[], float] = time.time) -> None:
        self.rule = rule
        self.kept: tuple[Saved, ...] = ()
        self.preserved_at = clock()
        self._clock = clock
        self._left: list[str] = []  # could not be deleted

    @property
    def paths(self) -> list[str]:
        """The list, the last one saved at its end."""
        return [saved.path for saved in self.kept]

    def resume(self, kept: Sequence[Saved], preserved_at: float, left: Sequence[str] = ()) -> None:
        """In place. Go on from what an earlier one kept; `left` is what it meant to delete."""
        self.kept, self.preserved_at, self._left = tuple(kept), preserved_at, list(left)

    def plan_for(self, path: str) -> Plan:
        """What will be kept and deleted once `path` is saved now; nothing is done yet."""
        found = plan(self.rule, with_saved(self.kept, Saved(path, self._clock())), self.preserved_at)
        left = [each for each in self._left if each != path]
        return Plan(found.kept, (*left, *found.deleted), found.preserved_at)

    def carry_out(self, planned: Plan) -> None:
        """In place. Take the list, and delete what is not in it: what was saved is saved, whatever fails."""
        self.kept, self.preserved_at, self._left = planned.kept, planned.preserved_at, []
        for path in planned.deleted:
            try:
                families.delete(path, CHECKPOINT)
            except HoldfastError as error:
                self._left.append(path)
                warnings.warn(f"saved, but {path} could not be deleted: {error}", stacklevel=4)


class CheckpointManager:
    """Saves a checkpoint as `ckpt-1`, `ckpt-2`, ... of a directory, on any URL, and keeps the last ones.

        manager = nn.train.CheckpointManager(checkpoint, "training", max_to_keep=3)
        checkpoint.restore(manager.latest_checkpoint)
        manager.save()

    `max_to_keep` None keeps all. One that leaves the last ones is kept for good if it was saved
    `keep_checkpoint_every_n_hours` after the last such one. With `checkpoint_interval`, `save` does nothing
    until `step_counter` has come so far. `init_fn` is called by `restore_or_initialize` where nothing can be
    restored. What a manager of an earlier process kept is found from a listing; one that is partial or
    damaged is skipped, and logged. It goes on from checkpoints of TensorFlow, too, whose files it never
    deletes. Source: TensorFlow's `tf.train.CheckpointManager`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str | os.PathLike[str],
        max_to_keep: int | None,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: Variable | None = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], Any] | None = None,
    ) -> None:
        check(
            checkpoint_interval is None or step_counter is not None,
            "CheckpointManager: checkpoint_interval counts steps: give step_counter, a variable, too",
        )
        self.checkpoint = checkpoint
        self.checkpoint_interval = checkpoint_interval
        self._directory = str(directory)
        self._name = checkpoint_name
        self._step_counter = step_counter
        self._init_fn = init_fn
        self._keeper = Keeper(Rule(max_to_keep, keep_checkpoint_every_n_hours))
        self._latest: str | None = None
        self._is_resumed = False
        self._last_step: int | None = None
        check_url(self._directory)
        families.check_family(self._prefix)

    @property
    def directory(self) -> str:
        """Where the checkpoints are."""
        return self._directory

    @property
    def latest_checkpoint(self) -> str | None:
        """The path of the last one that is good; None if there is none."""
        self._resume()
        return self._latest

    @property
    def checkpoints(self) -> list[str]:
        """The paths of those that are kept, the last one at the end; without those preserved for good."""
        self._resume()
        return self._keeper.paths

    def save(
        self,
        checkpoint_number: Variable | int | None = None,
        check_interval: bool = True,
        options: Any = None,
    ) -> str | None:
        """Save, and delete what is no longer kept; the path, or None where the interval is not over.

        The number is by default that of saves so far. Raises as `Checkpoint.save`; that older ones could not
        be deleted is a warning.
        """
        if check_interval and not self._is_due():
            return None
        self._resume()
        counter = self.checkpoint.save_counter
        number = int(counter) + 1 if checkpoint_number is None else int(checkpoint_number)
        planned = self._keeper.plan_for(f"{self._prefix}-{number}")
        path = self.checkpoint.save_as(self._prefix, number, kept=planned.to_json())
        self._latest = path
        self._last_step = None if self._step_counter is None else int(self._step_counter)
        self._keeper.carry_out(planned)
        return path

    def restore_or_initialize(self) -> str | None:
        """Restore the latest, and return its path; where there is none call `init_fn`, and return None."""
        latest = self.latest_checkpoint
        if latest is not None:
            self.checkpoint.restore(latest)
            self._last_step = None if self._step_counter is None else int(self._step_counter)
        elif self._init_fn is not None:
            self._init_fn()
        return latest

    # -- parts --------------------------------------------------------------------------------------------

    @property
    def _prefix(self) -> str:
        return f"{self._directory.rstrip('/')}/{self._name}"

    def _is_due(self) -> bool:
        if self.checkpoint_interval is None or self._step_counter is None or self._last_step is None:
            return True
        return int(self._step_counter) - self._last_step >= self.checkpoint_interval

    def _resume(self) -> None:
        """In place. Find what an earlier manager kept, once."""
        if self._is_resumed:
            return
        pattern = re.compile(rf"{re.escape(self._name)}-[0-9]+")
        found = [each for each in families.listing(self._directory) if pattern.fullmatch(each.name)]
        address = None
        while found and (address := families.good(found[-1], {CHECKPOINT})) is None:
            found.pop()
        if address is not None:
            self._latest = address
            self._take_over(open_stored(address), [each.name for each in found])
        else:
            self._take_over_tensorflows()
        self._is_resumed = True

    def _take_over(self, latest: Stored, names: Sequence[str]) -> None:
        record: Mapping[str, Any] = latest.kept or {}
        listed, deleted = (_texts(record.get(key)) for key in ("names", "deleted"))
        here = self._prefix.removesuffix(self._name)
        paths = [f"{here}{name}" for name in names if not record or name in {*listed, names[-1]}]
        at = record.get("preserved_at")
        self._keeper.resume(
            [Saved(path, _saved_at(path)) for path in paths],
            float(at) if isinstance(at, int | float) else self._keeper.preserved_at,
            [f"{here}{name}" for name in names if name in deleted],
        )

    def _take_over_tensorflows(self) -> None:
        """In place. Go on from what a manager of TensorFlow kept."""
        self._latest = tensorflow_files.latest_in(self._directory)
        if self._latest is not None:
            here = self._prefix.removesuffix(self._name)
            paths = [f"{here}{name}" for name in tensorflow_files.names_in(self._directory)]
            paths = [path for path in paths if tensorflow_files.is_prefix(path)] or [self._latest]
            self._keeper.resume([Saved(path, 0.0) for path in paths], self._keeper.preserved_at)


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _saved_at(path: str) -> float:
    """When a checkpoint was saved, by the clock of whoever did; 0 where that cannot be read."""
    try:
        bundle = open_stored(path).bundle
        return 0.0 if bundle is None else datetime.fromisoformat(bundle.manifest.created_at).timestamp()
    except (CheckpointError, ValueError):
        return 0.0
