"""The node's training state in shared memory: three buffers, gradient slots, a header that says which counts.

The arena is one memory-mapped file. Buffer A holds step s; an update reads A and writes B; committing step
s + 1 writes one record into the header. Until then, and whoever dies meanwhile, step s is intact.

    page 0     magic, format, size of the description; the owner's process
    page 1     two commit records, written in turn; the valid one with the higher sequence number wins
    page 2     for each buffer the process that pins it; processes that may write to the arena
    then       the description as JSON, three aux blocks, three buffers, the gradient slots

An exclusive `flock` on the file belongs to the agent for its life.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from storage.errors import ConfigurationError, SharedMemoryTooSmall
from storage.layout import StateArray
from workers.course import NBYTES_PER_ROW
from workers.processes import ProcessId, available_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from workers.engine import Flat, Sums

PAGE = 4096
NUM_BUFFERS = 3
AUX_NBYTES = 64 * 1024
"""Of an aux block, without the rows of metrics that a course holds."""
MAX_MEMBERS = 120
_MAGIC = 0x5441_4644_4C4F_4802  # "\x02HOLDFAT", little-endian, changes with the format
_RECORD_WORDS = 8


@dataclass(frozen=True, slots=True)
class ArenaSpec:
    """What an arena is made for; two arenas are interchangeable if their specs are equal."""

    place_id: str
    arrays: tuple[StateArray, ...]
    num_slots: int
    num_metrics: int

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "place_id": self.place_id,
            "arrays": [array.to_json() for array in self.arrays],
            "num_slots": self.num_slots,
            "num_metrics": self.num_metrics,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ArenaSpec:
        """The spec that `to_json` described."""
        arrays = tuple(StateArray.from_json(array) for array in value["arrays"])
        return cls(value["place_id"], arrays, value["num_slots"], value["num_metrics"])

    @property
    def params(self) -> StateArray:
        """The array of parameters, which gradient slots have the shape of."""
        return self.arrays[0]

    @property
    def aux_nbytes(self) -> int:
        """Size of an aux block in bytes."""
        return page_up(AUX_NBYTES + NBYTES_PER_ROW * self.num_metrics)

    @property
    def nbytes(self) -> int:
        """Size of the arena in bytes."""
        return _Places(self).nbytes


class _Places:
    """Byte offsets of everything in an arena."""

    def __init__(self, spec: ArenaSpec) -> None:
        self.meta = json.dumps(spec.to_json(), sort_keys=True).encode()
        self.aux = page_up(3 * PAGE + len(self.meta))
        offset = self.aux + NUM_BUFFERS * spec.aux_nbytes
        self.arrays: list[dict[str, int]] = []
        for _ in range(NUM_BUFFERS):
            places = {}
            for array in spec.arrays:
                places[array.name] = offset
                offset = page_up(offset + array.nbytes)
            self.arrays.append(places)
        self.slots: list[tuple[int, int]] = []
        for _ in range(spec.num_slots):
            sums, grads = offset, page_up(offset + spec.num_metrics * 16)
            self.slots.append((sums, grads))
            offset = page_up(grads + spec.params.nbytes)
        self.nbytes = offset


def page_up(offset: int) -> int:
    """The next multiple of a page."""
    return -(-offset // PAGE) * PAGE


@dataclass(frozen=True, slots=True)
class Commit:
    """The last committed step and the buffer that holds it."""

    sequence: int
    attempt: int
    epoch: int
    step: int
    buffer: int


class Arena:
    """A mapped arena: `buffers[b][name]`, `grads[slot]`, `sums[slot]`, and the header."""

    def __init__(self, path: str, spec: ArenaSpec, memory: mmap.mmap, fd: int) -> None:
        self.path = path
        self.spec = spec
        self._fd = fd
        self._memory = memory
        places = _Places(spec)
        self._aux_offset = places.aux

        def array(offset: int, length: int, dtype: str) -> NDArray[Any]:
            return np.frombuffer(memory, dtype, length, offset)

        words = array(0, 3 * PAGE // 8, "<u8")
        self._owner = words[4:6]
        self._records = words[PAGE // 8 : PAGE // 8 + 2 * _RECORD_WORDS].reshape(2, _RECORD_WORDS)
        self._pins = words[2 * PAGE // 8 : 2 * PAGE // 8 + 2 * NUM_BUFFERS].reshape(NUM_BUFFERS, 2)
        members = 2 * PAGE // 8 + 16
        self._members = words[members : members + 2 * MAX_MEMBERS].reshape(MAX_MEMBERS, 2)
        self.buffers: list[dict[str, Flat]] = [
            {a.name: array(offsets[a.name], a.padded_length, "<f4") for a in spec.arrays}
            for offsets in places.arrays
        ]
        self.sums: list[Sums] = [
            array(sums, spec.num_metrics * 2, "<f8").reshape(spec.num_metrics, 2) for sums, _ in places.slots
        ]
        self.grads: list[Flat] = [array(grads, spec.params.padded_length, "<f4") for _, grads in places.slots]

    @classmethod
    def create(cls, path: str, spec: ArenaSpec) -> Arena:
        """Reserve and map a new arena, mode 0600, in place of any old file; the caller owns its lock.

        Raises SharedMemoryTooSmall, with the bytes needed and available, before anything is reserved.
        """
        places = _Places(spec)
        directory = os.path.dirname(path)
        try:
            if os.path.lexists(path):
                os.unlink(path)
            available = available_memory(directory)
        except PermissionError as error:
            raise _not_ours(path) from error
        except OSError as error:
            raise ConfigurationError(
                f"{directory} cannot hold shared memory ({error.strerror}): set HOLDFAST_SHM_DIR to a "
                "directory in memory"
            ) from error
        if places.nbytes > available:
            raise _too_small(directory, places.nbytes, available)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A sparse file would end in SIGBUS at the first write that finds no page.
            os.posix_fallocate(fd, 0, places.nbytes)
            os.pwrite(fd, places.meta, 3 * PAGE)
            os.pwrite(fd, np.array([0, len(places.meta)], "<u8").tobytes(), 0)
            arena = cls(path, spec, _map(fd, places.nbytes), fd)
            # Last: a file without the magic number is an arena that was never finished.
            np.frombuffer(arena._memory, "<u8", 1)[0] = _MAGIC
        except BaseException as error:
            os.unlink(path)
            os.close(fd)
            if isinstance(error, OSError):
                raise _too_small(directory, places.nbytes, available_memory(directory)) from error
            raise
        return arena

    @classmethod
    def attach(cls, path: str) -> Arena:
        """Map an existing arena without taking its lock.

        Raises FileNotFoundError if there is none, ValueError if the file is no complete arena, and
        ConfigurationError if it is not this user's.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError as error:
            raise _not_ours(path) from error
        try:
            spec = _read_spec(fd, path)
            return cls(path, spec, _map(fd, spec.nbytes), fd)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Give the descriptor and with it the lock back; the memory goes with the last view of it."""
        os.close(self._fd)

    def lock(self) -> bool:
        """Take the owner's lock; False if another process holds it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def own(self, process: ProcessId) -> None:
        """Record which process owns the arena, for a successor that must end it."""
        self._owner[:] = (process.pid, process.started)

    def processes(self) -> list[ProcessId]:
        """The owner and every process recorded as a possible writer, alive or not."""
        rows = [self._owner, *self._pins, *self._members]
        return [ProcessId(int(pid), int(started)) for pid, started in rows if pid]

    def admit(self, process: ProcessId) -> None:
        """Record a process that may write to the arena."""
        free = np.flatnonzero(self._members[:, 0] == 0)
        if not len(free):
            raise ConfigurationError(f"more than {MAX_MEMBERS - 1} workers on one node: give fewer --workers")
        self._members[free[0]] = (process.pid, process.started)

    def dismiss(self, process: ProcessId) -> None:
        """Forget a process that is known to be gone."""
        self._members[self._members[:, 0] == process.pid] = 0

    def forget_processes(self) -> None:
        """Forget every process and pin: they are known to be gone."""
        self._members[:] = 0
        self._pins[:] = 0

    # -- the header -----------------------------------------------------------------------------------

    def committed(self) -> Commit | None:
        """The newest valid commit record, or None before the first."""
        best: Commit | None = None
        for record in self._records:
            words = [int(word) for word in record]
            if words[-1] == crc32c(record[:-1].tobytes()) and (best is None or words[0] > best.sequence):
                best = Commit(*words[:5])
        return best if best is not None and best.sequence else None

    def commit(self, attempt: int, epoch: int, step: int, buffer: int, aux: Mapping[str, Any]) -> Commit:
        """In place. Make `buffer` the state of `step`; `aux` is stored beside it first."""
        self._write_aux(buffer, aux)
        last = self.committed()
        commit = Commit(1 if last is None else last.sequence + 1, attempt, epoch, step, buffer)
        record = self._records[commit.sequence % 2]
        # Aligned 8-byte stores; the record is invalid from the first to the last of them.
        words = (commit.sequence, attempt, epoch, step, buffer, 0, 0)
        record[-1] = 0
        for i, word in enumerate(words):
            record[i] = word
        record[-1] = crc32c(record[:-1].tobytes())
        os.utime(self._fd)  # stores into a mapping leave no time behind, and memory is kept by its age
        return commit

    def _write_aux(self, buffer: int, aux: Mapping[str, Any]) -> None:
        data = json.dumps(aux, separators=(",", ":")).encode()
        size = self.spec.aux_nbytes
        assert len(data) <= size - 8, f"the aux block holds {size - 8} bytes, not {len(data)}"
        start = self._aux_offset + buffer * size
        head = len(data).to_bytes(4, "little") + crc32c(data).to_bytes(4, "little")
        self._memory[start : start + 8 + len(data)] = head + data

    def aux_bytes(self, buffer: int) -> NDArray[np.uint8]:
        """The block beside `buffer`, as it is stored."""
        size = self.spec.aux_nbytes
        return np.frombuffer(self._memory, np.uint8, size, self._aux_offset + buffer * size)

    def aux(self, buffer: int) -> dict[str, Any]:
        """What was stored beside `buffer`. Raises ValueError if it is damaged."""
        start = self._aux_offset + buffer * self.spec.aux_nbytes
        head = self._memory[start : start + 8]
        length = int.from_bytes(head[:4], "little")
        data = self._memory[start + 8 : start + 8 + min(length, self.spec.aux_nbytes)]
        if crc32c(data) != int.from_bytes(head[4:], "little"):
            raise ValueError(f"the aux block of buffer {buffer} in {self.path} is damaged")
        value: dict[str, Any] = json.loads(data)
        return value

    # -- pins -----------------------------------------------------------------------------------------

    def pin(self, buffer: int, holder: ProcessId) -> None:
        """Keep `buffer` from being written until it is unpinned."""
        self._pins[buffer] = (holder.pid, holder.started)

    def unpin(self, buffer: int) -> None:
        """Let `buffer` be written again: its holder released it, or is known to be dead."""
        self._pins[buffer] = 0

    def spare_buffer(self, current: int) -> int:
        """A buffer that is neither `current` nor pinned; with one pin there always is one."""
        return next(b for b in range(NUM_BUFFERS) if b != current and not self._pins[b, 0])

    def rename(self, path: str) -> None:
        """Move the file, over another one if there is one."""
        os.rename(self.path, path)
        self.path = path

    def remove(self) -> None:
        """Delete the file; mappings stay usable until they are closed."""
        if os.path.lexists(self.path):
            os.unlink(self.path)


def possible_writers(fd: int) -> list[ProcessId] | None:
    """The processes that the header of an arena's file names, without mapping it; None if it has no header.

    Its description may be that of another version.
    """
    words = np.frombuffer(os.pread(fd, 3 * PAGE, 0).ljust(3 * PAGE, b"\0"), "<u8")
    if int(words[0]) != _MAGIC:
        return None
    members = 2 * PAGE // 8 + 16
    pins = words[2 * PAGE // 8 : 2 * PAGE // 8 + 2 * NUM_BUFFERS]
    rows = np.concatenate([words[4:6], pins, words[members : members + 2 * MAX_MEMBERS]]).reshape(-1, 2)
    return [ProcessId(int(pid), int(started)) for pid, started in rows if pid]


def _read_spec(fd: int, path: str) -> ArenaSpec:
    """What the arena in a file was made for. Raises as `Arena.attach` does."""
    status = os.fstat(fd)
    if status.st_uid != os.getuid():
        # Its header would name processes of ours to be killed, and parameters to go on from.
        raise _not_ours(path)
    magic, meta_nbytes = (int(word) for word in np.frombuffer(os.pread(fd, 16, 0).ljust(16, b"\0"), "<u8"))
    if magic != _MAGIC or meta_nbytes > status.st_size:
        raise ValueError(f"{path} is not an arena of this version")
    try:
        spec = ArenaSpec.from_json(json.loads(os.pread(fd, meta_nbytes, 3 * PAGE)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the description of {path} is damaged") from error
    if status.st_size != spec.nbytes:
        raise ValueError(f"{path} is {status.st_size} bytes long, not {spec.nbytes}")
    return spec


def _map(fd: int, nbytes: int) -> mmap.mmap:
    # MAP_POPULATE takes the page faults now and not in the first steps.
    return mmap.mmap(fd, nbytes, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))


def _not_ours(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"the shared memory {path} of this run belongs to another user: let that user resume the run, or "
        "remove the file, or set HOLDFAST_SHM_DIR to another place"
    )


def _too_small(directory: str, needed: int, available: int) -> SharedMemoryTooSmall:
    return SharedMemoryTooSmall(
        f"the training state needs {needed} bytes of shared memory in {directory}, but {available} bytes are "
        "available: enlarge it, free some, use fewer microbatches, or set HOLDFAST_SHM_DIR to a larger place"
    )
