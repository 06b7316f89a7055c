"""The attributes of an HDF5 object, read from the file's bytes.

The HDF5 library trusts the lengths that a damaged file gives for its texts, and reads beyond its memory. So
texts are read here, with each length checked against the file. Source: HDF5 File Format Specification 3.0,
sections IV.A (object headers and their messages) and III.E (global heap).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_HEADER = 16 << 20
"""Bytes of an object's header at most."""

_SUPERBLOCK = b"\x89HDF\r\n\x1a\n"
_ATTRIBUTE, _CONTINUATION, _INFO = 0x0C, 0x10, 0x15
_FIXED_TEXT, _VARIABLE = 3, 9
_SHARED = 3
_REFERENCE = struct.Struct("<IQI")
_MAX_DIMENSIONS = 32


class Source(Protocol):
    """A file's bytes, as Python reads them."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place."""

    def read(self, size: int = -1, /) -> bytes:
        """The bytes from there on."""


class Damage(ValueError):
    """What is in the file cannot be; the message says what."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An attribute as it lies in the file: its shape, what its items are, and their bytes."""

    shape: tuple[int, ...]
    is_text: bool
    item_nbytes: int
    data: bytes
    is_variable: bool

    @property
    def count(self) -> int:
        """The number of items."""
        return prod(self.shape)


class Bytes:
    """A file's bytes by their places. Raises Damage for what lies beyond the end.

    `whole` is the file's descriptor, or all its bytes, by which threads may read at the same time.
    """

    def __init__(self, source: Source, whole: int | bytes | None = None) -> None:
        self._source = source
        self._whole = whole
        self.nbytes = source.seek(0, 2)
        self._heaps: dict[int, dict[int, bytes]] = {}
        self._heaps_nbytes = 0
        head = self.at(0, 24)
        sizes = head[13:15] if head[8] < 2 else head[9:11]
        base = self.at(24 if head[8] == 0 else 28, 8) if head[8] < 2 else head[12:20]
        if head[:8] != _SUPERBLOCK or sizes != b"\x08\x08" or base != bytes(8):
            raise Damage("its first block is not that of a file with addresses of 8 bytes")

    def at(self, start: int, nbytes: int) -> bytes:
        """So many bytes from a place on."""
        if not 0 <= start <= start + nbytes <= self.nbytes:
            raise Damage(f"something should lie at {start} to {start + nbytes}, beyond its end")
        self._source.seek(start)
        return self._source.read(nbytes)

    @property
    def is_shared(self) -> bool:
        """Whether `read_into` can be called, by several threads at a time."""
        return self._whole is not None

    def read_into(self, start: int, buffer: memoryview) -> None:
        """In place. Fill a buffer of bytes with what lies from a place on."""
        stop = start + len(buffer)
        if not 0 <= start <= stop <= self.nbytes:
            raise Damage(f"something should lie at {start} to {stop}, beyond its end")
        if isinstance(self._whole, bytes):
            buffer[:] = memoryview(self._whole)[start:stop]
            return
        assert self._whole is not None
        while buffer:
            count = os.preadv(self._whole, [buffer], start)
            if count == 0:
                raise Damage(f"it ends at {start}: it was made shorter while it was read")
            start += count
            buffer = buffer[count:]

    def heap_object(self, address: int, number: int) -> bytes:
        """An object of a global heap."""
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        found = self._heaps[address].get(number)
        if found is None:
            raise Damage(f"its heap at {address} has no object {number}")
        return found

    def _heap(self, address: int) -> dict[int, bytes]:
        head = self.at(address, 16)
        (nbytes,) = struct.unpack_from("<Q", head, 8)
        if head[:5] != b"GCOL\x01" or nbytes < 16:
            raise Damage(f"there is no heap at {address}")
        self._heaps_nbytes += nbytes
        if self._heaps_nbytes > self.nbytes:
            raise Damage("its heaps lie within each other")
        data, place = self.at(address, nbytes), 16
        found: dict[int, bytes] = {}
        while place + 16 <= nbytes:
            number, _, _, size = struct.unpack_from("<HHIQ", data, place)
            if number == 0:
                break
            if place + 16 + size > nbytes:
                raise Damage(f"an object of its heap at {address} is too long")
            found[number] = data[place + 16 : place + 16 + size]
            place += 16 + (size + 7) // 8 * 8
        return found


def attributes(file: Bytes, header: int) -> dict[str, Stored]:
    """The attributes by name of the object whose header is there. Raises Damage."""
    return dict(_attribute(data) for kind, data in _messages(file, header) if kind == _ATTRIBUTE)


def texts(file: Bytes, stored: Stored, max_nbytes: int) -> list[str]:
    """The items of an attribute of texts. Raises Damage, before they are read if they are too long."""
    data, width = stored.data, stored.item_nbytes
    if not stored.is_variable:
        return [data[i * width : (i + 1) * width].split(b"\0", 1)[0].decode() for i in range(stored.count)]
    references = [*_REFERENCE.iter_unpack(data)]
    if sum(length for length, _, _ in references) > max_nbytes:
        raise Damage(f"texts of more than {max_nbytes} bytes")
    found = []
    for length, address, number in references:
        held = file.heap_object(address, number) if length else b""
        if length > len(held):
            raise Damage(f"a text of {length} bytes, of which {len(held)} are stored")
        found.append(held[:length].split(b"\0", 1)[0].decode())
    return found


def _messages(file: Bytes, header: int) -> Iterator[tuple[int, bytes]]:
    """The messages of an object's header: their types and contents."""
    start = file.at(header, 16)
    if start[:4] == b"OHDR":
        flags = start[5]
        skipped = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        nbytes = int.from_bytes(file.at(header + skipped, width), "little")
        blocks = [(header + skipped + width, nbytes)]
        layout = struct.Struct("<BHBH" if flags & 4 else "<BHB")
    elif start[0] == 1:
        blocks = [(header + 16, struct.unpack_from("<I", start, 8)[0])]
        layout = struct.Struct("<HHBxxx")
    else:
        raise Damage(f"there is no object at {header}")
    is_new = start[:4] == b"OHDR"
    total = 0
    while blocks:
        place, nbytes = blocks.pop(0)
        total += nbytes + 1
        if total > MAX_HEADER:
            raise Damage(f"the header of the object at {header} is too long")
        data, at = file.at(place, nbytes), 0
        while at + layout.size <= nbytes:
            kind, size, flags = layout.unpack_from(data, at)[:3]
            at += layout.size
            content = data[at : at + size]
            at += size
            if at > nbytes:
                raise Damage(f"a message of the object at {header} is too long")
            if kind == _CONTINUATION:
                if len(content) < 16:
                    raise Damage(f"the header of the object at {header} is cut off")
                further, length = struct.unpack_from("<QQ", content)
                blocks.append((further + 4, max(length - 8, 0)) if is_new else (further, length))
            elif kind == _INFO and content[-16:-8] not in (b"", b"\xff" * 8):
                raise Damage(f"the attributes of the object at {header} lie elsewhere, and are not read")
            elif flags & 2 and kind == _ATTRIBUTE:
                raise Damage(f"an attribute of the object at {header} is shared, which is not read")
            else:
                yield kind, content


def _attribute(data: bytes) -> tuple[str, Stored]:
    try:
        version, flags, name_nbytes, type_nbytes, space_nbytes = struct.unpack_from("<BBHHH", data)
        if version not in (1, 2, 3) or (version > 1 and flags & _SHARED):
            raise Damage(f"an attribute is of a kind that is not known ({version}, {flags})")
        place = 9 if version == 3 else 8
        parts = []
        for nbytes in (name_nbytes, type_nbytes, space_nbytes):
            parts.append(data[place : place + nbytes])
            place += (nbytes + 7) // 8 * 8 if version == 1 else nbytes
        name = parts[0].split(b"\0", 1)[0].decode()
        kind, bits, item_nbytes = struct.unpack_from("<BBxxI", parts[1])
        shape = _shape(parts[2])
    except struct.error as exc:
        raise Damage(f"an attribute is cut off: {exc}") from exc
    is_variable = kind & 15 == _VARIABLE and bits & 15 == 1
    nbytes = prod(shape) * item_nbytes
    if len(data) - place < nbytes or (is_variable and item_nbytes != _REFERENCE.size):
        raise Damage(
            f"the attribute {name!r} promises {nbytes} bytes, of which {len(data) - place} are stored"
        )
    is_text = is_variable or kind & 15 == _FIXED_TEXT
    return name, Stored(shape, is_text, item_nbytes, data[place : place + nbytes], is_variable)


def _shape(space: bytes) -> tuple[int, ...]:
    version, count = space[0], space[1]
    if version not in (1, 2) or count > _MAX_DIMENSIONS:
        raise Damage(f"an attribute's shape is of a kind that is not known ({version}, {count})")
    if version == 2 and space[3] == 2:
        return (0,)
    return struct.unpack_from(f"<{count}Q", space, 8 if version == 1 else 4)
