"""Paths that users name (`training/cp.ckpt`, `ckpt-4`): each save to one commits a new generation of it.

A family is a directory as `storage.bundle.save_files` makes it: the generation before goes only when a
later one has been committed. Steps count on through all families of a directory, so names alone tell which
was saved last: the order is that of (step, name), where numbers in names count as numbers.
"""

from __future__ import annotations

import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage import catalog
from storage.address import check_run_url
from storage.errors import CheckpointError, ConfigurationError, ObjectMissing
from storage.layout import check_key, check_name
from storage.objects import while_replaced
from storage.run_directory import RunDirectory
from storage.saving import check_kind
from storage.store import check_url, open_store
from storage.verification import verify_checkpoint

if TYPE_CHECKING:
    from collections.abc import Collection

    from storage.store import Store
    from storage.verification import Fault

_log = logging.getLogger(__name__)

_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class Family:
    """A family of a directory; `step` is the highest of its generations, committed or not."""

    name: str
    url: str
    step: int

    @property
    def order(self) -> tuple[int, tuple[str | int, ...]]:
        """What families are sorted by."""
        parts = _DIGITS.split(self.name)
        return self.step, tuple(int(part) if i % 2 else part for i, part in enumerate(parts))


def next_step(url: str) -> int:
    """The step of what is saved to the family at `url` next: one above all in the same directory."""
    directory, _ = split(url)
    return 0 if directory is None else 1 + max((each.step for each in _found(directory)), default=-1)


def split(url: str) -> tuple[str | None, str]:
    """The directory that a family lies in, None where it is a bucket's own, and its name."""
    check_url(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        directory, name = os.path.split(os.path.abspath(os.path.expanduser(url)))
        return directory, name
    head, slash, name = rest.rstrip("/").rpartition("/")
    return (f"{scheme}://{head}" if slash and (head or scheme == "file") else None), name


def listing(directory: str) -> list[Family]:
    """The families of a directory, in the order in which they were saved; [] where there is none."""
    return sorted(_families(directory), key=lambda family: family.order)


def newest(directory: str, kinds: Collection[str], *, verify: bool = True) -> str | None:
    """The address of the last good save of these kinds in a directory; None if there is none.

    What is partial or damaged is skipped, with a warning to the log that says why. With `verify` every byte
    is read. The address is the family's URL; where its newest generation is damaged, URL#STEP of the one
    before.
    """
    for family in reversed(listing(directory)):
        if (address := good(family, kinds, verify=verify)) is not None:
            return address
    return None


def delete(url: str, kind: str) -> None:
    """Remove a family with all its generations, the newest last; none is no error.

    Raises ConfigurationError for a directory that is not of this kind.
    """
    directory, name = split(url)
    check_family(url)
    run = RunDirectory(open_store(url))
    identity = run.identity()
    if identity is None or directory is None:
        return
    check_kind(run, kind)
    run.delete_checkpoints()
    open_store(directory).delete_directory(name)


def check_family(url: str) -> None:
    """Raise ConfigurationError for a name that no family can have."""
    check_run_url(url)
    try:
        check_name(split(url)[1])
    except ValueError as exc:
        raise ConfigurationError(f"{url} cannot be saved to: {exc}") from exc


def _found(directory: str) -> list[Family]:
    """The families of a directory; [] also where it cannot be listed, as what is in it may be open to all."""
    try:
        return _families(directory)
    except ConfigurationError:
        return []


def _families(directory: str) -> list[Family]:
    store = open_store(directory)
    names = [name for name in store.children() if _is_key(name)]
    with ThreadPoolExecutor(store.parallel_reads, "holdfast-families") as pool:
        steps = list(pool.map(lambda name: _highest_step(store, name), names))
    return [
        Family(name, f"{directory.rstrip('/')}/{name}", step)
        for name, step in zip(names, steps, strict=True)
        if step is not None
    ]


def _highest_step(store: Store, name: str) -> int | None:
    try:
        children = store.children(f"{name}/{catalog.CHECKPOINTS}")
    except ConfigurationError:  # not ours to look into
        return None
    named = (catalog.parse_directory(child.removeprefix(f"{name}/")) for child in children)
    return max((each[0] for each in named if each is not None), default=None)


def good(family: Family, kinds: Collection[str], *, verify: bool = True) -> str | None:
    """The address of the newest good generation of a family of these kinds; see `newest`."""
    try:
        return while_replaced(lambda: _good(family, kinds, verify=verify))
    except (CheckpointError, ObjectMissing) as error:
        _skip(family.url, str(error))
        return None


def _good(family: Family, kinds: Collection[str], *, verify: bool) -> str | None:
    run = RunDirectory(open_store(family.url))
    if (run.identity() or {}).get("kind") not in kinds:
        return None
    for entry in run.damaged():
        _skip(f"{family.url}/{entry.directory}", entry.reason)
    is_newest = True
    for entry in run.candidates():
        faults = _faults(run.store, entry.directory) if verify else ()
        if not faults:
            return family.url if is_newest else f"{family.url}#{entry.step}"
        _skip(f"{family.url}/{entry.directory}", str(faults[0]))
        is_newest = False
    _skip(family.url, "it has no other complete checkpoint")
    return None


def _faults(store: Store, directory: str) -> tuple[Fault, ...]:
    return verify_checkpoint(store, directory, read_data=True).faults


def _skip(where: str, reason: str) -> None:
    _log.warning("%s is skipped: %s", where, reason)


def _is_key(name: str) -> bool:
    try:
        check_key(name)
    except ValueError:
        return False
    return True
