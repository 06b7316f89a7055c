"""Which writer writes which elements of which array, into which object."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.errors import CheckpointError
from storage.layout import check_name
from storage.strict_json import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from storage.layout import StateArray

MAX_SHARD_NBYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """Elements [start, stop) of an array: one object, written by one writer.

    All shards of an array are equally long except the last, whose stop is the array's padded length.
    """

    array: str
    index: int
    start: int
    stop: int
    writer: int

    def __post_init__(self) -> None:
        check_name(self.array)
        if not 0 <= self.start < self.stop or self.writer < 0:
            raise ValueError(f"shard {self.index} of {self.array}: bad range {self.start} to {self.stop}")
        if self.index < 0 or (self.start % self.index if self.index else self.start):
            raise ValueError(f"shard {self.index} of {self.array} cannot start at {self.start}")

    @property
    def key(self) -> str:
        """The object's key inside the checkpoint's directory, as Zarr names chunks."""
        return f"{self.array}/c/{self.index}"

    @property
    def uniform_length(self) -> int:
        """Elements of a full shard of this array, known from any one shard."""
        return self.start // self.index if self.index else self.stop - self.start

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "array": self.array,
            "index": self.index,
            "start": self.start,
            "stop": self.stop,
            "writer": self.writer,
        }

    @classmethod
    def from_json(cls, obj: object) -> Shard:
        """What `to_json` wrote, else ValueError."""
        kinds = {"array": str, "index": int, "start": int, "stop": int, "writer": int}
        return cls(**fields(obj, "shard", kinds))


def plan(
    arrays: Sequence[StateArray], num_writers: int, max_shard_nbytes: int = MAX_SHARD_NBYTES
) -> tuple[Shard, ...]:
    """Cut every array into shards and give each to the writer that has the fewest bytes so far.

    An array gets at least `num_writers` shards if it has so many digest blocks.
    """
    if num_writers < 1:
        raise ValueError(f"{num_writers} writers: at least one must write")
    loads = [(0, writer) for writer in range(num_writers)]
    shards = []
    for array in arrays:
        unit = array.unit
        units = -(-array.padded_length // unit)
        at_most = max(1, max_shard_nbytes // (unit * array.itemsize))
        length = unit * max(1, min(at_most, units // num_writers))
        for index, start in enumerate(range(0, array.padded_length, length)):
            stop = min(start + length, array.padded_length)
            nbytes, writer = loads[0]
            heapq.heapreplace(loads, (nbytes + (stop - start) * array.itemsize, writer))
            shards.append(Shard(array.name, index, start, stop, writer))
    return tuple(shards)


def check_cover(arrays: Sequence[StateArray], shards: Iterable[Shard]) -> None:
    """Raise CheckpointError, naming the first gap or overlap, unless each element is written exactly once."""
    by_array: dict[str, list[Shard]] = {array.name: [] for array in arrays}
    for shard in shards:
        if shard.array not in by_array:
            raise CheckpointError(f"shard {shard.key} is of no array of this state")
        by_array[shard.array].append(shard)
    for array in arrays:
        end = 0
        found = sorted(by_array[array.name], key=lambda s: (s.start, s.stop))
        for index, shard in enumerate(found):
            if shard.start > end:
                raise CheckpointError(f"{array.name}: elements {end} to {shard.start} were not written")
            if shard.start < end:
                raise CheckpointError(f"{array.name}: elements {shard.start} to {end} were written twice")
            if shard.index != index or shard.uniform_length != found[0].uniform_length:
                raise CheckpointError(
                    f"{shard.key} holds elements {shard.start} to {shard.stop}: shards differ"
                )
            if shard.start % array.chunk or shard.stop % array.chunk:
                raise CheckpointError(f"{shard.key} is not made of whole chunks of {array.chunk} elements")
            end = shard.stop
        if end < array.padded_length:
            raise CheckpointError(f"{array.name}: elements {end} to {array.padded_length} were not written")
        if end > array.padded_length:
            raise CheckpointError(f"{array.name}: elements {array.padded_length} to {end} do not exist")
