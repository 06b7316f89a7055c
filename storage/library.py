"""Checkpoints without a run: save arrays by name, load them, look at them. Exported by `storage`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.address import check_run_url, find
from storage.checkpoint import write_part, zstd_level
from storage.errors import ConfigurationError
from storage.layout import DTYPES, STORED_AS, Layout, StateArray, Variable, check_name, round_up
from storage.manifest import json_values, numbers
from storage.reader import CheckpointReader, open_checkpoint
from storage.retention import Retention
from storage.run_directory import RunDirectory
from storage.saving import begin, checked_step, finish, tidy
from storage.shards import plan
from storage.store import open_store
from storage.verification import Report, verify_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from storage.checkpoint import Compression

_KIND = "arrays"
_ALIGNMENT = 16


def save(
    url: str,
    arrays: Mapping[str, ArrayLike],
    *,
    step: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    keep: int | None = None,
    compression: Compression = None,
) -> str:
    """Save named arrays as the next checkpoint of the directory at `url`; returns the checkpoint's own URL.

    It counts as a whole or not at all, is on disk when this returns, and a second writer can do it no harm.
    `step` is by default one more than the latest's, else 0, and has to be higher than it. `metadata` are JSON
    values. With `keep`, only so many of the newest stay, at least the two last, and what was verified last or
    pinned; it is a warning if others cannot be deleted. Integers, floats, bfloat16 and bools can be saved.
    Raises ConfigurationError, StorageError, CheckpointError (what is there is damaged), Superseded (another
    has saved meanwhile).
    """
    zstd_level(compression)
    retention = Retention(keep=keep)
    metadata = json_values("metadata", {} if metadata is None else metadata)
    metrics = numbers("metrics", {} if metrics is None else metrics)
    check_run_url(url)
    step = None if step is None else checked_step(step)
    state, flat = _flattened(arrays)
    begun = begin(url, _KIND, step)
    part = write_part(begun.run.store, begun.directory, state, flat, plan(state, 1), compression=compression)
    finish(begun, state, [part], metrics=metrics, metadata=metadata, compression=compression)
    if keep is not None:
        tidy(begun, retention)
    return begun.url


def open(url: str) -> CheckpointReader:
    """The checkpoint at its own URL, the latest of a run's URL, or `URL#STEP`; variables are read when looked
    at.

    `open(url)["name"]` has shape and dtype and reads what is indexed.
    """
    _, store, directory = find(url)
    return open_checkpoint(store, directory)


def load(
    url: str,
    names: Sequence[str] | None = None,
    *,
    rename: Mapping[str, str] | None = None,
    dtype: str | Mapping[str, str] | None = None,
    into: Mapping[str, NDArray[Any]] | None = None,
    strict: bool = True,
) -> dict[str, NDArray[Any]]:
    """Arrays of a checkpoint by name, every byte of them checked.

    `url` is as in `open`; `names`, `rename` and `dtype` as in CheckpointReader.load. With `into`, those
    arrays are filled, and must be all there is if `strict`; nothing is changed if anything does not fit.
    """
    checkpoint = open(url)
    if into is None:
        return checkpoint.load(names, rename=rename, dtype=dtype)
    if names is not None or dtype is not None:
        raise ConfigurationError("into= decides on names and dtypes: give no names= and no dtype= with it")
    checkpoint.load_into(into, rename=rename, strict=strict)
    return dict(into)


def latest(url: str) -> str | None:
    """The URL of the latest checkpoint of a run; None if there is none."""
    run = RunDirectory(open_store(url))
    entry = run.latest()
    return None if entry is None else f"{run.store.url}/{entry.directory}"


def verify(url: str, *, read_data: bool = True) -> Report:
    """What is wrong with a checkpoint: `faults` is empty if nothing is. Every byte is read if `read_data`."""
    _, store, directory = find(url)
    return verify_checkpoint(store, directory, read_data=read_data)


def _flattened(arrays: Mapping[str, ArrayLike]) -> tuple[list[StateArray], dict[str, NDArray[Any]]]:
    """One flat array for each dtype, and what it holds."""
    by_dtype: dict[str, list[tuple[Variable, NDArray[Any]]]] = {}
    ends: dict[str, int] = {}
    for name, value in arrays.items():
        try:
            if not isinstance(name, str):
                raise TypeError("the name is not a string")  # noqa: TRY301
            check_name(name)
            values = np.asarray(value)
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(f"{name!r}: {exc}") from exc
        dtype = values.dtype.newbyteorder("=").name if values.dtype.kind in "iufbV" else values.dtype.name
        stored = STORED_AS.get(dtype, dtype)
        if stored not in DTYPES:
            known = ", ".join((*DTYPES, *STORED_AS))
            raise ConfigurationError(f"{name}: {values.dtype} cannot be saved: convert it to one of {known}")
        try:
            variable = Variable(name, ends.get(stored, 0), values.shape, dtype)
        except ValueError as exc:
            raise ConfigurationError(str(exc)) from exc
        ends[stored] = round_up(variable.offset + variable.size, _ALIGNMENT)
        by_dtype.setdefault(stored, []).append((variable, values))
    state, flat = [], {}
    for stored, items in sorted(by_dtype.items()):
        array = StateArray(
            f"data/{stored}", Layout(tuple(variable for variable, _ in items), ends[stored]), stored
        )
        buffer = np.zeros(array.padded_length, stored)
        for variable, values in items:
            target = buffer[variable.offset : variable.offset + variable.size].reshape(variable.shape)
            target.view(values.dtype.newbyteorder("="))[...] = values
        state.append(array)
        flat[array.name] = buffer
    return state, flat
