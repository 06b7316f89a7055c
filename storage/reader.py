"""Read a checkpoint: whole into buffers, or variables by name, with every byte checked on the way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from blake3 import blake3

from storage import catalog, strict_json, zarr_format
from storage.checkpoint import DIGEST_NBYTES, block_digests, checked_buffer, digests_key
from storage.errors import (
    ConfigurationError,
    CorruptCheckpoint,
    IncompatibleCheckpoint,
    ObjectMissing,
    StorageError,
)
from storage.layout import BLOCK_NBYTES
from storage.lazy import LazyArray
from storage.manifest import Manifest, ObjectInfo
from storage.naming import DTypes, cast_of, check_casts, check_rename, choose, listed, numpy_dtype, renamed
from storage.objects import read_manifest, sizes_in, unless_deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from storage.layout import StateArray, Variable
    from storage.store import Store
    from storage.zarr_format import StoredArray

_READ_NBYTES = 16 << 20  # read by a thread at a time
_TRUSTED_NBYTES = 16 << 20  # allocated on the word of a manifest alone
_TRIES = 3


UnitFault: TypeAlias = tuple[str, int, int]
"""What is wrong, and with which bytes [start, stop) of the shard object."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Elements [start, stop) of an array that lie in one shard and are whole chunks and digest blocks."""

    stored: StoredArray
    start: int
    stop: int


@dataclass(frozen=True)
class CheckpointReader:
    """A committed checkpoint whose documents have been read and checked; its data is read when asked for.

    Any number of readers may read any part of it. Raises CorruptCheckpoint only for what was read twice with
    the same wrong content, and StorageError where each reading gave something else.
    """

    store: Store
    directory: str
    manifest: Manifest
    arrays: tuple[StoredArray, ...]
    _indexes: dict[str, NDArray[np.uint64]] = field(default_factory=dict, repr=False, compare=False)
    _listed: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def url(self) -> str:
        """Where the checkpoint is."""
        return f"{self.store.url}/{self.directory}"

    def stored(self, name: str) -> StoredArray:
        """An array by its name."""
        return next(stored for stored in self.arrays if stored.array.name == name)

    @cached_property
    def digests(self) -> dict[str, bytes]:
        """The digests of the blocks of each array, which together give the state digest."""
        found = {s.array.name: self.read_object(digests_key(s.array.name)) for s in self.arrays}
        hasher = blake3()
        for stored in self.arrays:
            hasher.update(found[stored.array.name])
        if hasher.hexdigest() != self.manifest.state_digest:
            raise CorruptCheckpoint(f"{self.url}: the digests of its blocks do not make its state digest")
        return found

    def read_object(self, key: str) -> bytes:
        """A small object, checked against the manifest."""
        return read_object(self.store, self.directory, self.manifest, key)

    def units(self, stored: StoredArray, start: int = 0, stop: int | None = None) -> Iterator[Unit]:
        """The units that hold elements [start, stop) of an array, in order."""
        unit, end = stored.array.unit, stored.array.padded_length
        stop = end if stop is None else min(stop, end)
        for at in range(start // unit * unit, stop, unit):
            yield Unit(stored, at, min(at + unit, end))

    def read_units(
        self,
        units: Iterable[Unit],
        target: Callable[[Unit], NDArray[Any] | None],
        then: Callable[[Unit, NDArray[Any]], None] | None = None,
    ) -> None:
        """Read units in parallel, each into the memory that `target` names for it, or into some of its own,
        and check them; `then` is called with each when it is there, by several threads.
        """
        self.digests  # noqa: B018 - read once, before the threads begin

        def read(group: list[Unit]) -> None:
            for unit in group:
                out = target(unit)
                if out is None:
                    out = np.empty(unit.stop - unit.start, unit.stored.array.dtype)
                self.read_unit(unit, out)
                if then is not None:
                    then(unit, out)

        groups = list(_grouped(units))
        with ThreadPoolExecutor(self.store.parallel_reads, "holdfast-read") as pool:
            pending = [pool.submit(read, group) for group in groups]
            try:
                for future in pending:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def read_unit(self, unit: Unit, out: NDArray[Any]) -> None:
        """In place. Fill `out` with the unit's elements, each chunk's CRC and block's BLAKE3 checked."""
        faults = self._faults_twice(unit, out)
        if faults:
            text, start, stop = faults[0]
            key = unit.stored.shard_key(unit.start // unit.stored.shard_length)
            raise CorruptCheckpoint(f"{self.url}/{key}, bytes {start} to {stop}: {text}")

    def faults_of(self, unit: Unit) -> list[UnitFault]:
        """Everything that is wrong with a unit, after reading it twice: what, and with which bytes of its
        shard.
        """
        return self._faults_twice(unit, np.empty(unit.stop - unit.start, unit.stored.array.dtype))

    def _faults_twice(self, unit: Unit, out: NDArray[Any]) -> list[UnitFault]:
        before = None
        for _ in range(_TRIES):
            faults, found = self._try_unit(unit, out)
            if not faults or found == before:
                return faults
            before = found
        key = unit.stored.shard_key(unit.start // unit.stored.shard_length)
        raise StorageError(f"{self.url}/{key}: {faults[0][0]}, and each reading gives other bytes")

    def _try_unit(self, unit: Unit, out: NDArray[Any]) -> tuple[list[UnitFault], bytes]:
        """Read a unit once. What is wrong with it, and a digest of what was found if anything is."""
        stored, chunk = unit.stored, unit.stored.array.chunk
        shard, within = divmod(unit.start, stored.shard_length)
        entries = self._index(stored, shard)
        first, last = within // chunk, (within + len(out)) // chunk
        ranges = [stored.chunk_range(shard, entries, i) for i in range(first, last)]
        origin, end = ranges[0][0], ranges[-1][1]
        raw = out.view(np.uint8).data
        size = stored.chunk_nbytes
        pieces = [raw[i * size : (i + 1) * size] for i in range(len(ranges))]
        if entries is not None:
            frames = memoryview(bytearray(end - origin))
            bodies = [frames[a - origin : b - origin - zarr_format.CRC_NBYTES] for a, b in ranges]
            crcs = [frames[b - origin - zarr_format.CRC_NBYTES : b - origin] for _, b in ranges]
            buffers = [frames]
        else:
            bodies = pieces
            crcs = [memoryview(bytearray(zarr_format.CRC_NBYTES)) for _ in ranges]
            buffers = [buffer for pair in zip(pieces, crcs, strict=True) for buffer in pair]
        try:
            count = self.store.read_into(f"{self.directory}/{stored.shard_key(shard)}", origin, buffers)
        except ObjectMissing:
            return [("the object is missing", origin, end)], b""
        if count != end - origin:
            return [(f"the object ends at byte {origin + count}", origin + count, end)], str(count).encode()
        faults: list[UnitFault] = []
        for i, (body, crc) in enumerate(zip(bodies, crcs, strict=True)):
            if not zarr_format.has_crc(body, crc):
                faults.append((f"inner chunk {first + i} does not match its CRC", *ranges[i]))
            elif entries is not None:
                try:
                    zarr_format.decompress(body, pieces[i])
                except CorruptCheckpoint as exc:
                    faults.append((f"inner chunk {first + i}: {exc}", *ranges[i]))
        array = stored.array
        at = unit.start * array.itemsize // BLOCK_NBYTES * DIGEST_NBYTES
        digests = block_digests(array, out, unit.start)
        if not faults and digests != self.digests[array.name][at : at + len(digests)]:
            faults.append(("the elements do not match the digest of their block", origin, end))
        if not faults:
            return [], b""
        hasher = blake3()
        for buffer in buffers:
            hasher.update(buffer)
        return faults, hasher.digest()

    def _index(self, stored: StoredArray, shard: int) -> NDArray[np.uint64] | None:
        """The index of a shard of compressed chunks; None where it is known without looking."""
        if stored.zstd_level is None:
            return None
        key = stored.shard_key(shard)
        with self._lock:
            if key not in self._indexes:
                self._indexes[key] = self.check_index(stored, shard)
            return self._indexes[key]

    def check_index(self, stored: StoredArray, shard: int) -> NDArray[np.uint64]:
        """The index at the end of a shard object, read and checked."""
        key = stored.shard_key(shard)
        nbytes = self.manifest.objects[key].nbytes
        before = None
        for _ in range(_TRIES):
            try:
                data = self.store.read(f"{self.directory}/{key}", nbytes - stored.index_nbytes, nbytes)
                if len(data) != stored.index_nbytes:
                    raise CorruptCheckpoint("it is too short")  # noqa: TRY301
                return stored.parse_index(shard, data, nbytes)
            except ObjectMissing:
                data, fault = b"", "is missing"
            except CorruptCheckpoint as exc:
                fault = f", bytes {nbytes - stored.index_nbytes} to {nbytes}: {exc}"
            if data == before:
                raise CorruptCheckpoint(f"{self.url}/{key} {fault}".replace(" ,", ","))
            before = data
        raise StorageError(f"{self.url}/{key} {fault}, and each reading gives other bytes")

    # -- variables ----------------------------------------------------------------------------------------

    @cached_property
    def variables(self) -> dict[str, tuple[StoredArray, Variable]]:
        """Every variable by its name: ARRAY/VARIABLE, or VARIABLE for those of arrays below data/."""
        found = {}
        for stored in self.arrays:
            array = stored.array
            prefix = "" if array.name.startswith("data/") else f"{array.name}/"
            for variable in array.layout.variables:
                name = f"{prefix}{variable.name}"
                if name in found:
                    raise CorruptCheckpoint(f"{self.url}: two variables are named {name}")
                found[name] = (stored, variable)
        return found

    def load(
        self,
        names: Sequence[str] | None = None,
        *,
        rename: Mapping[str, str] | None = None,
        dtype: DTypes = None,
    ) -> dict[str, NDArray[Any]]:
        """Variables by name, in new arrays, reading only the chunks in which they lie.

        `names` are names or globs (`params/*`), `rename` maps stored names to the names they get (one that
        ends in `/*` renames all below it), `dtype` is what floating-point variables become: one type for
        all, or by stored name or glob; what is too large for it becomes infinite, as NumPy casts. Raises
        IncompatibleCheckpoint for names that are not there and for types that cannot be cast.
        """
        chosen = choose(self.variables, names, self.url)
        check_rename(self.variables, rename or {}, self.url)
        check_casts(self.variables, dtype, self.url)
        targets = {name: renamed(name, rename or {}) for name in chosen}
        if len({*targets.values()}) != len(targets):
            raise ConfigurationError("rename gives two variables the same name")
        casts = {name: cast_of(name, self.dtype(name), dtype) for name in chosen}
        self._check_stored({name: (0, self.variables[name][1].size) for name in chosen})
        found = {name: np.empty(self.variables[name][1].shape, casts[name]) for name in chosen}
        self._fill(found)
        return {targets[name]: values for name, values in found.items()}

    def load_into(
        self,
        into: Mapping[str, NDArray[Any]],
        *,
        rename: Mapping[str, str] | None = None,
        strict: bool = True,
    ) -> None:
        """In place. Fill the arrays of `into`, by name, with the variables of the checkpoint.

        Raises IncompatibleCheckpoint listing all names that are missing, all of another shape or dtype and,
        if `strict`, all that were not asked for; ConfigurationError for arrays that cannot be filled, as they
        are read-only or share memory. Nothing is changed then, nor where damage is found: all that is read is
        held beside `into` until it has been checked.
        """
        check_rename(self.variables, rename or {}, self.url)
        targets = {renamed(name, rename or {}): name for name in self.variables}
        if len(targets) != len(self.variables):
            raise ConfigurationError("rename gives two variables the same name")
        _check_targets(into)
        faults = [f"{name} is missing" for name in into if name not in targets]
        if strict:
            faults += [f"{name} was not asked for" for name in targets if name not in into]
        for name in into.keys() & targets.keys():
            shape, dtype = self.variables[targets[name]][1].shape, self.dtype(targets[name])
            if (into[name].shape, into[name].dtype) != (shape, dtype):
                faults.append(
                    f"{name}: expected {into[name].dtype} of shape {into[name].shape}, "
                    f"found {dtype} of shape {shape}"
                )
        _refuse(self.url, faults)
        for name, values in self.load([targets[name] for name in into]).items():
            into[renamed(name, rename or {})][...] = values

    def __getitem__(self, name: str) -> LazyArray:
        if name not in self.variables:
            raise KeyError(f"{self.url} holds no {name}; it holds {listed([*self.variables])}")
        return LazyArray(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    def __contains__(self, name: object) -> bool:
        return name in self.variables

    def dtype(self, name: str) -> np.dtype[Any]:
        """What a variable's elements are."""
        stored, variable = self.variables[name]
        return numpy_dtype(stored.array.dtype_of(variable))

    def read_elements(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Elements [start, stop) of a variable in C order, reading only the chunks in which they lie."""
        self._check_stored({name: (start, stop)})
        out = np.empty(max(0, stop - start), self.dtype(name))
        self._fill({name: out}, start)
        return out

    def _check_stored(self, ranges: Mapping[str, tuple[int, int]]) -> None:
        """Raise CorruptCheckpoint if an object that should hold elements [start, stop) of variables is
        missing or of another size, in two listings: before memory is taken for what a manifest declares.
        """
        nbytes = sum(
            max(0, stop - start) * self.dtype(name).itemsize for name, (start, stop) in ranges.items()
        )
        if nbytes <= _TRUSTED_NBYTES:
            return
        keys: set[str] = set()
        for name, (start, stop) in ranges.items():
            stored, variable = self.variables[name]
            first = (variable.offset + start) // stored.shard_length
            last = -(-(variable.offset + stop) // stored.shard_length)
            keys.update(stored.shard_key(i) for i in range(first, last))
        for is_last in (False, True):
            wrong = [key for key in keys if self._listed.get(key) != self.manifest.objects[key].nbytes]
            if not wrong:
                return
            if self._listed and is_last:
                key = min(wrong)
                found = "is missing" if key not in self._listed else f"has {self._listed[key]} bytes"
                raise CorruptCheckpoint(f"{self.url}/{key} {found}, not {self.manifest.objects[key].nbytes}")
            self._listed.update(sizes_in(self.store, self.directory))

    def _fill(self, out: Mapping[str, NDArray[Any]], first: int = 0) -> None:
        """In place. Fill contiguous arrays with what their variables hold from element `first` on, cast to
        what they are.
        """
        wanted: dict[tuple[str, int], tuple[Unit, list[_Run]]] = {}
        for name, values in out.items():
            stored, variable = self.variables[name]
            run = _Run(variable.offset + first, values.reshape(-1), self.dtype(name))
            for unit in self.units(stored, run.start, run.stop) if values.size else ():
                wanted.setdefault((stored.array.name, unit.start), (unit, []))[1].append(run)

        def target(unit: Unit) -> NDArray[Any] | None:
            """A variable's own memory, where the unit lies in it as a whole."""
            for run in wanted[unit.stored.array.name, unit.start][1]:
                if run.start <= unit.start and unit.stop <= run.stop and run.is_plain:
                    return run.flat[unit.start - run.start : unit.stop - run.start].view(
                        unit.stored.array.dtype
                    )
            return None

        def scatter(unit: Unit, values: NDArray[Any]) -> None:
            for run in wanted[unit.stored.array.name, unit.start][1]:
                a, b = max(run.start, unit.start), min(run.stop, unit.stop)
                into = run.flat[a - run.start : b - run.start]
                if not np.may_share_memory(into, values):
                    into[:] = as_dtype(values[a - unit.start : b - unit.start], run.dtype)

        with unless_deleted(self.store, self.directory):
            self.read_units([unit for unit, _ in wanted.values()], target, scatter)


@dataclass(frozen=True, slots=True)
class _Run:
    """Elements of an array from `start` on that go into `flat`; they are of type `dtype`."""

    start: int
    flat: NDArray[Any]
    dtype: np.dtype[Any]

    @property
    def stop(self) -> int:
        """The element behind the last."""
        return self.start + len(self.flat)

    @property
    def is_plain(self) -> bool:
        """Whether stored bytes are what `flat` holds: of bools only 0 and 1 would be."""
        return self.flat.dtype == self.dtype and self.dtype != np.bool_


def _check_targets(into: Mapping[str, NDArray[Any]]) -> None:
    """Raise ConfigurationError unless these are arrays each element of which can be given its own value."""
    for name, values in into.items():
        if not isinstance(values, np.ndarray):
            raise ConfigurationError(f"into: {name} is {type(values).__name__}, not a NumPy array")
        if not values.flags.writeable:
            raise ConfigurationError(f"into: {name} is read-only")
        if any(n > 1 and stride == 0 for n, stride in zip(values.shape, values.strides, strict=True)):
            raise ConfigurationError(f"into: elements of {name} share memory")
    bounds = {name: np.lib.array_utils.byte_bounds(values) for name, values in into.items() if values.size}
    before: list[str] = []  # those that may reach into what comes next
    for name in sorted(bounds, key=bounds.__getitem__):
        before = [each for each in before if bounds[each][1] > bounds[name][0]]
        for each in before:
            if _share_memory(into[each], into[name]):
                raise ConfigurationError(f"into: {each} and {name} share memory")
        before.append(name)


def _share_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    try:
        return np.shares_memory(a, b, max_work=1 << 20)  # type: ignore[arg-type]  # its stub is too narrow
    except np.exceptions.TooHardError:
        return True


def as_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Stored elements as what their variable holds bit for bit; anything but 0 and 1 would be no bool."""
    return values.view(np.uint8) != 0 if dtype == np.bool_ else values.view(dtype)


def open_checkpoint(store: Store, directory: str, manifest: Manifest | None = None) -> CheckpointReader:
    """The checkpoint in a directory of a store; its manifest and documents are read and checked.

    Raises CorruptCheckpoint, or ObjectMissing where no manifest is.
    """
    if manifest is None:
        with unless_deleted(store, directory):
            return open_checkpoint(store, directory, read_manifest(store, directory))
    arrays = []
    for info in manifest.arrays:
        key = f"{info.name}/{zarr_format.DOCUMENT}"
        _check_nbytes(store, directory, manifest, key, range(strict_json.MAX_NBYTES + 1))
        data = read_object(store, directory, manifest, key)
        try:
            stored = zarr_format.parse_array(info.name, data)
            array = stored.array
            if (array.dtype, array.length, array.layout.fingerprint) != (
                info.dtype,
                info.length,
                info.layout,
            ):
                raise CorruptCheckpoint(f"{key} describes another array than the manifest")  # noqa: TRY301
            for index in range(stored.num_shards):
                found = manifest.objects.get(stored.shard_key(index))
                if found is None:
                    raise CorruptCheckpoint(f"the manifest does not list {stored.shard_key(index)}")  # noqa: TRY301
                stored.check_nbytes(index, found.nbytes)
        except CorruptCheckpoint as exc:
            raise CorruptCheckpoint(f"{store.url}/{directory}: {exc}") from exc
        arrays.append(stored)
    _check_objects(store, directory, manifest, arrays)
    for stored in arrays:
        nbytes = stored.array.num_blocks * DIGEST_NBYTES
        _check_nbytes(store, directory, manifest, digests_key(stored.array.name), range(nbytes, nbytes + 1))
    return CheckpointReader(store, directory, manifest, tuple(arrays))


def restore(
    store: Store,
    directory: str,
    manifest: Manifest,
    arrays: Sequence[StateArray],
    into: Mapping[str, NDArray[Any]],
    *,
    reader: int = 0,
    num_readers: int = 1,
) -> None:
    """In place. Fill `into`, arrays padded_length long, with the checkpoint's state and zeros behind it.

    Of `num_readers` that share the work, the one with index `reader` fills its part, of whole units. Every
    byte read is checked: object sizes, the CRC-32C of each chunk, the BLAKE3 of each block and with them the
    state digest. Raises CorruptCheckpoint naming the object (`into` then holds anything) or
    IncompatibleCheckpoint naming all variables that differ (`into` is as it was).
    """
    buffers = {array.name: checked_buffer(array, into) for array in arrays}
    _check_sizes(store, directory, manifest)
    checkpoint = open_checkpoint(store, directory, manifest)
    _check_state(checkpoint, arrays)
    units = [
        unit
        for stored in checkpoint.arrays
        for i, unit in enumerate(checkpoint.units(stored))
        if i * num_readers // max(1, -(-stored.array.padded_length // stored.array.unit)) == reader
    ]
    checkpoint.read_units(units, lambda unit: buffers[unit.stored.array.name][unit.start : unit.stop])
    for unit in units:
        array = unit.stored.array
        if unit.stop > array.length:
            buffers[array.name][array.length :] = 0
    for stored in checkpoint.arrays:
        for shard in range(stored.num_shards):
            if shard % num_readers == reader:
                checkpoint.check_index(stored, shard)
    for key in manifest.objects:
        if key.endswith(f"/{zarr_format.DOCUMENT}") or key == zarr_format.DOCUMENT:
            checkpoint.read_object(key)


def _check_sizes(store: Store, directory: str, manifest: Manifest) -> None:
    """Raise CorruptCheckpoint if an object is missing, or of another size, in two listings."""
    for _ in range(2):
        reason = catalog.incompleteness(manifest, sizes_in(store, directory))
        if not reason:
            return
    raise CorruptCheckpoint(f"{store.url}/{directory}: {reason}")


def _check_state(checkpoint: CheckpointReader, arrays: Sequence[StateArray]) -> None:
    """Raise IncompatibleCheckpoint, naming everything that differs, unless it holds just these arrays."""
    wanted = {array.name: array for array in arrays}
    stored = {stored.array.name: stored.array for stored in checkpoint.arrays}
    faults = [f"{name}: missing in the checkpoint" for name in wanted if name not in stored]
    faults += [f"{name}: in the checkpoint, but not asked for" for name in stored if name not in wanted]
    for name in sorted(wanted.keys() & stored.keys()):
        here, there = wanted[name], stored[name]
        if here.dtype != there.dtype:
            faults.append(f"{name}: dtype {here.dtype} here, {there.dtype} there")
        faults += [f"{name}: {line}" for line in here.layout.differences(there.layout)]
    if not faults and [*wanted] != [*stored]:
        faults.append(f"order of arrays {[*wanted]} here, {[*stored]} there")
    _refuse(checkpoint.url, faults)


def _refuse(where: str, faults: list[str]) -> None:
    if faults:
        shown = "; ".join(sorted(faults)[:20]) + (
            "" if len(faults) <= 20 else f"; and {len(faults) - 20} more"
        )
        raise IncompatibleCheckpoint(f"{where} holds another state: {shown}")


def _check_objects(store: Store, directory: str, manifest: Manifest, arrays: Sequence[StoredArray]) -> None:
    """Raise CorruptCheckpoint unless the manifest lists just the objects that these arrays have, if any."""
    if not arrays:
        return  # it holds files
    lengths = {stored.array.name: stored.shard_length for stored in arrays}
    try:
        expected = set(zarr_format.documents([stored.array for stored in arrays], lengths))
    except ValueError as exc:
        raise CorruptCheckpoint(f"{store.url}/{directory}: {exc}") from exc
    for stored in arrays:
        expected.add(digests_key(stored.array.name))
        expected.update(stored.shard_key(i) for i in range(stored.num_shards))
    if expected != manifest.objects.keys():
        odd = sorted(expected ^ manifest.objects.keys())[0]
        raise CorruptCheckpoint(
            f"{store.url}/{directory}: {odd} is not an object of this state, or not in the manifest"
        )


def _check_nbytes(store: Store, directory: str, manifest: Manifest, key: str, allowed: range) -> None:
    """Raise CorruptCheckpoint if the manifest gives an object a size that it cannot have; nothing is read."""
    info = manifest.objects.get(key)
    if info is not None and info.nbytes not in allowed:
        raise CorruptCheckpoint(f"{store.url}/{directory}/{key} cannot have {info.nbytes} bytes")


def read_object(store: Store, directory: str, manifest: Manifest, key: str) -> bytes:
    """The bytes of an object, read whole; CorruptCheckpoint unless they match the manifest's digest."""
    info = manifest.objects.get(key)
    if info is None:
        raise CorruptCheckpoint(f"{store.url}/{directory}: the manifest does not list {key}")
    before = None
    for _ in range(_TRIES):
        try:
            data = store.read(f"{directory}/{key}", 0, info.nbytes + 1)
        except ObjectMissing as exc:
            if before == b"":
                raise CorruptCheckpoint(str(exc)) from exc
            data = b""
        else:
            if ObjectInfo.of(data) == info:
                return data
            if data == before:
                raise CorruptCheckpoint(f"{store.url}/{directory}/{key} does not match the manifest's digest")
        before = data
    raise StorageError(f"{store.url}/{directory}/{key}: each reading gives other bytes")


def _grouped(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """The units in groups that are worth a thread's turn."""
    group: list[Unit] = []
    nbytes = 0
    for unit in units:
        group.append(unit)
        nbytes += (unit.stop - unit.start) * unit.stored.array.itemsize
        if nbytes >= _READ_NBYTES:
            yield group
            group, nbytes = [], 0
    if group:
        yield group
