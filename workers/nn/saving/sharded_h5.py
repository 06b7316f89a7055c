"""Keras 3's weights in several files: `X.weights.json` says which of `X_00000.weights.h5`, ... holds what.

The index is written last. Where there is one already, the new files have names of their own, and the old
ones are deleted behind the new index: at each moment one save is there whole. Files of one save hold the same
mark as their index, so that what others have put there is not taken for a part of it; Keras does not look at
it. Keras does open `X_00000.weights.h5` whatever the index says, so one without weights is left there.
"""

from __future__ import annotations

import json
import re
import secrets
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, ObjectMissing
from storage.files import file_at, is_file
from storage.formats import hdf5
from storage.objects import while_replaced
from storage.strict_json import parse
from workers.nn.lookup import check
from workers.nn.saving import weights_h5

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.model import Model
    from workers.nn.saving.state import Status

ENDING = ".weights.json"
DEFAULT_GIB = 5.0
MAX_INDEX_NBYTES = 64 << 20
_MAP, _ABOUT, _MARK = "weight_map", "metadata", "holdfast_save"
_SHARD = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,200}\.h5")
_MAX_SHARDS = 10_000


def recognises(path: str) -> bool:
    """Whether there is an index of such files."""
    if not path.endswith(".json"):
        return False
    try:
        file = file_at(path)
        return file.info().nbytes <= MAX_INDEX_NBYTES and f'"{_MAP}"'.encode() in file.read()
    except (ObjectMissing, ConfigurationError):
        return False


def save_weights(model: Model, path: str, *, max_shard_size: float = DEFAULT_GIB) -> None:
    """Write the weights, and the optimizer's variables if it is built, in files of at most so many GiB.

    Raises ConfigurationError for a size that is less than that of one variable.
    """
    limit = max_shard_size * 1024**3
    check(limit > 0, f"max_shard_size must be a positive number of GiB, not {max_shard_size!r}")
    weights_h5.check_built(model, path)
    arrays, names = weights_h5.contents(model)
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, array in arrays.items():
        check(
            array.nbytes <= limit,
            f"{path}: {name} has {array.nbytes} bytes, more than max_shard_size={max_shard_size} GiB",
        )
        if size + array.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    stem, mark = path.removesuffix(".json").removesuffix(".weights"), secrets.token_hex(8)
    older = _files_of(path, stem)
    own = "" if older == [] else f"-{mark}"
    where: dict[str, list[str]] = {}
    for i, shard in enumerate(shards):
        url = f"{stem}_{i:05}{own}.weights.h5"
        groups = {name.rpartition("/")[0] for name in shard}
        attributes = {group: names[group] for group in groups if group in names}
        hdf5.write(url, shard, {**attributes, "": {**names[""], _MARK: mark}})
        for group in groups:
            where.setdefault(f"/{group}", []).append(url.rpartition("/")[2])
    index = {
        _ABOUT: {"total_size": sum(array.nbytes for array in arrays.values()), _MARK: mark},
        _MAP: {group: files[0] if len(files) == 1 else files for group, files in sorted(where.items())},
    }
    file_at(path).write(json.dumps(index, indent=4).encode())
    if own:
        first = f"{stem}_00000.weights.h5"
        hdf5.write(first, {}, {"": names[""]})
        for url in {*(older or ())} - {first}:
            with suppress(ObjectMissing):
                file_at(url).delete()


def _files_of(path: str, stem: str) -> list[str] | None:
    """The files of the save that is to be replaced, as far as they have the names of one; None if unknown."""
    try:
        names, _ = _read_index(path)
    except ObjectMissing:
        return []
    except CorruptCheckpoint:
        return None
    head, slash, tail = stem.rpartition("/")
    ours = re.compile(re.escape(tail) + r"_[0-9]{5}(-[0-9a-f]{16})?\.weights\.h5")
    return [f"{head}{slash}{name}" for name in names if ours.fullmatch(name)]


def load_weights(model: Model, path: str, *, skip_mismatch: bool = False, by_name: bool = False) -> Status:
    """In place. Give a built model the weights of all files of an index; places decide, not names.

    Raises CorruptCheckpoint for an index that is damaged, and files that are missing or of another save.
    """
    try:
        return while_replaced(lambda: _load_weights(model, path, skip_mismatch=skip_mismatch))
    except ObjectMissing as exc:
        if not is_file(path):
            raise
        raise CorruptCheckpoint(f"{path} names a file that is not there: {exc}") from exc


def _load_weights(model: Model, path: str, *, skip_mismatch: bool) -> Status:
    names, mark = _read_index(path)
    head, slash, _ = path.rpartition("/")
    urls = [f"{head}{slash}{name}" for name in names]
    try:
        return _restore(model, path, urls, mark, skip_mismatch=skip_mismatch)
    except CheckpointError:
        for url in urls:
            file_at(url).info()  # what is missing is no damage: a newer save has taken its place
        raise


def _restore(
    model: Model, path: str, urls: Sequence[str], mark: str | None, *, skip_mismatch: bool
) -> Status:
    whole = hdf5.Contents({}, {})
    with ExitStack() as stack:
        for url in urls:
            file = stack.enter_context(hdf5.reading(url))
            found = file.groups[""].text(_MARK)
            if mark is not None and found != mark:
                raise CorruptCheckpoint(f"{url} is of another save than {path}")
            twice = next((each for each in file.arrays if each in whole.arrays), None)
            if twice is not None:
                raise CorruptCheckpoint(f"{path}: two of its files hold {twice}")
            whole.arrays.update(file.arrays)
            whole.groups.update({key: each for key, each in file.groups.items() if key not in whole.groups})
        return weights_h5.restore(model, whole, path, skip_mismatch=skip_mismatch)


def _read_index(path: str) -> tuple[list[str], str | None]:
    """The names of the files that an index names, in order, and the mark of its save."""
    file = file_at(path)
    try:
        if file.info().nbytes > MAX_INDEX_NBYTES:
            raise CorruptCheckpoint(f"{path} has more than {MAX_INDEX_NBYTES} bytes")
        index = parse(file.read())
    except ValueError as exc:
        raise CorruptCheckpoint(f"{path}: {exc}") from exc
    places = index.get(_MAP) if isinstance(index, dict) else None
    if not isinstance(places, dict):
        raise CorruptCheckpoint(f"{path} has no {_MAP} of weights to files")
    found: dict[str, None] = {}
    for place, files in places.items():
        for name in files if isinstance(files, list) else [files]:
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise CorruptCheckpoint(
                    f"{path}: {place[:80]!r} lies in {name!r}, which is no file beside it"
                )
            found[name] = None
    if not 0 < len(found) <= _MAX_SHARDS:
        raise CorruptCheckpoint(f"{path} names {len(found)} files")
    about: Mapping[str, Any] = index.get(_ABOUT) or {}
    mark = about.get(_MARK) if isinstance(about, dict) else None
    return sorted(found), mark if isinstance(mark, str) else None
