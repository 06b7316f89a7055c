"""Parts of a tensor that TensorFlow stored in pieces, as it does for partitioned variables. Pure.

The entry of the whole says where its pieces begin; each piece has an entry of its own, under a key that says
the same in an order-preserving code. Source: tensorflow/core/framework/tensor_slice.proto, and the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from storage.formats.protobuf import messages, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.formats.protobuf import Message

_WHOLE = -1
"""What the code has for the length of a dimension that is not cut."""
_MAX_SCATTERED = 1024
"""Pieces that are not all cut along one axis, of which each is compared with each."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a piece lies: for each dimension the first index and the length, None where it is not cut."""

    extents: tuple[tuple[int, int | None], ...]

    @classmethod
    def parse(cls, message: Message) -> Slice:
        """What a `TensorSliceProto` says."""
        extents = messages(message, 1)
        return cls(tuple((signed(e, 1), signed(e, 2) if 2 in e else None) for e in extents))

    def within(self, shape: Sequence[int]) -> tuple[slice, ...]:
        """The piece as indices of the whole. Raises ValueError where it does not lie inside."""
        if len(self.extents) != len(shape):
            raise ValueError(f"a piece has {len(self.extents)} dimensions of {len(shape)}")
        found = []
        for (start, length), n in zip(self.extents, shape, strict=True):
            stop = n if length is None else start + length
            if not 0 <= start <= stop <= n:
                raise ValueError(f"a piece has the indices {start} to {stop} of {n}")
            found.append(slice(start, stop))
        return tuple(found)

    def key(self, name: str) -> bytes:
        """The key of the piece's entry in the index."""
        numbers = [n for start, length in self.extents for n in (start, _WHOLE if length is None else length)]
        rank = _unsigned(len(self.extents))
        return _unsigned(0) + _text(name.encode()) + rank + b"".join(map(_signed, numbers))


def check_pieces(pieces: Sequence[tuple[slice, ...]], shape: Sequence[int]) -> None:
    """Raise ValueError unless the pieces cover the whole, each element once."""
    if sum(prod(s.stop - s.start for s in piece) for piece in pieces) != prod(shape):
        raise ValueError("its pieces are not the whole")
    filled = [piece for piece in pieces if all(s.stop > s.start for s in piece)]
    for axis in range(len(shape)):  # pieces along one axis, as partitioners make them, are soon told apart
        along = sorted((piece[axis].start, piece[axis].stop) for piece in filled)
        if all(a[1] <= b[0] for a, b in pairwise(along)):
            return
    if len(filled) > _MAX_SCATTERED:
        raise ValueError(f"it is cut into {len(filled)} pieces along several axes")
    for i, one in enumerate(filled):
        for other in filled[:i]:
            if all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True)):
                raise ValueError("its pieces overlap")


def _unsigned(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(raw)]) + raw


def _text(raw: bytes) -> bytes:
    return raw.replace(b"\0", b"\0\xff") + b"\0\1"  # no UTF-8 holds 0xff, which would be escaped too


def _signed(value: int) -> bytes:
    """The value in as few bytes as it needs, whose leading bits say how many those are."""
    nbytes = (value if value >= 0 else ~value).bit_length() // 7 + 1
    leading = ((1 << nbytes) - 1) << (7 * nbytes)  # so many ones, and a zero, before the value
    raw = value & ((1 << (8 * nbytes)) - 1)
    return (raw ^ leading).to_bytes(nbytes, "big")
