"""Which checkpoint is meant: by its own URL, by a run for the latest, or by RUN#STEP."""

from __future__ import annotations

import os

from storage import catalog
from storage.errors import ConfigurationError
from storage.manifest import MANIFEST
from storage.run_directory import RunDirectory
from storage.store import Store, check_url, open_store


def check_run_url(url: str) -> None:
    """Raise ConfigurationError for a URL that no address could name, where a run is about to be made."""
    check_url(url)
    if "#" in url:
        raise ConfigurationError(f"{url}: what follows '#' would be taken for a step: give another name")


_MAX_DIGITS = 18


def find(address: str) -> tuple[RunDirectory, Store, str]:
    """The run that a checkpoint belongs to, its store, and the checkpoint's directory in it.

    Raises ConfigurationError where nothing is meant, saying what there is.
    """
    check_url(address)
    url, hash_, step = address.partition("#")
    url = url.rstrip("/") or url
    if url and "://" not in url:
        url = os.path.abspath(os.path.expanduser(url))  # so that it is known what is above it
    head, _, name = url.rpartition("/")
    directory = f"{catalog.CHECKPOINTS}/{name}"
    if catalog.parse_directory(directory):
        parent, _, above = head.rpartition("/")
        if hash_ or above != catalog.CHECKPOINTS or not parent:
            raise ConfigurationError(
                f"{address} is not RUN/{directory}: give the URL of a checkpoint as it is"
            )
        store = open_store(parent)
        if MANIFEST not in {key.rpartition("/")[2] for key in store.list(directory)}:
            raise ConfigurationError(f"there is no committed checkpoint at {address}")
        return RunDirectory(store), store, directory
    store = open_store(url)
    run = RunDirectory(store)
    if hash_:
        return run, store, _at_step(run, step)
    latest = run.latest() or run.latest() or run.latest()  # the one that was listed may have been replaced
    if latest is None:
        found = "no valid checkpoint yet" if run.identity() is not None or run.newest_attempt() else "no run"
        raise ConfigurationError(
            f"there is {found} at {url}: give the directory of a run, or a checkpoint's own"
        )
    return run, store, latest.directory


def _at_step(run: RunDirectory, step: str) -> str:
    """The valid complete checkpoint of a step; of several, that of the newest attempt."""
    if not step.isdecimal() or len(step) > _MAX_DIGITS:
        step = step if len(step) <= _MAX_DIGITS else f"{step[:_MAX_DIGITS]}..."
        raise ConfigurationError(f"{run.store.url}#{step}: {step!r} is not a step: give a whole number")
    steps = []
    for entry in run.candidates():
        if entry.step == int(step):
            return entry.directory
        steps.append(str(entry.step))
    there = f"there are {', '.join(sorted(steps, key=int)[-20:])}" if steps else "there is none at all"
    raise ConfigurationError(f"{run.store.url} has no valid checkpoint of step {step}: {there}")
