"""The wire format of protocol buffers, read without a schema and without trust, and written. Pure.

Source: the documented encoding (protobuf.dev, "Encoding"). Of a message there are the fields by number, each
with its values in order: integers of varints, bytes of what has a length, integers of fixed sizes.
"""

from __future__ import annotations

from typing import TypeAlias

Value: TypeAlias = int | bytes
Message: TypeAlias = dict[int, list[Value]]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def parse(data: bytes) -> Message:
    """The fields of a message. Raises ValueError for what is none."""
    found: Message = {}
    place = 0
    while place < len(data):
        tag, place = varint(data, place)
        number, kind = tag >> 3, tag & 7
        value: Value
        if kind == _VARINT:
            value, place = varint(data, place)
        elif kind == _BYTES:
            length, place = varint(data, place)
            value, place = _taken(data, place, length)
        elif kind in (_FIXED64, _FIXED32):
            raw, place = _taken(data, place, 8 if kind == _FIXED64 else 4)
            value = int.from_bytes(raw, "little")
        else:
            raise ValueError(f"field {number} is of the unknown kind {kind}")
        found.setdefault(number, []).append(value)
    return found


def varint(data: bytes, place: int) -> tuple[int, int]:
    """The number of at most 64 bits at a place, and the place behind it; ValueError if there is none."""
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(data):
            raise ValueError("a number is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), place
    raise ValueError("a number is longer than 64 bits")


def number(message: Message, field: int, default: int = 0) -> int:
    """A field that holds one integer; the last one counts, as the encoding says."""
    value = message.get(field, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is no number")  # noqa: TRY004 a fault of the file
    return value


def signed(message: Message, field: int, default: int = 0) -> int:
    """As `number`, of a field that may be negative."""
    value = number(message, field, default)
    return value - (1 << 64) if value >= 1 << 63 else value


def text(message: Message, field: int) -> str:
    """A field that holds one string."""
    value = message.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise ValueError(f"field {field} is no text")  # noqa: TRY004 a fault of the file
    return value.decode()


def messages(message: Message, field: int) -> list[Message]:
    """The messages in a field."""
    found = []
    for value in message.get(field, []):
        if not isinstance(value, bytes):
            raise ValueError(f"field {field} is no message")  # noqa: TRY004 a fault of the file
        found.append(parse(value))
    return found


def written(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A message of these fields, by number: an integer as a varint, text and bytes with their length."""
    found = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            found += varint_of(number << 3 | _VARINT) + varint_of(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            found += varint_of(number << 3 | _BYTES) + varint_of(len(raw)) + raw
    return bytes(found)


def written_fixed32(number: int, value: int) -> bytes:
    """A field that holds 32 bits."""
    return varint_of(number << 3 | _FIXED32) + value.to_bytes(4, "little")


def varint_of(value: int) -> bytes:
    """A number of at most 64 bits, which may be negative, in groups of seven."""
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _taken(data: bytes, place: int, length: int) -> tuple[bytes, int]:
    if length > len(data) - place:
        raise ValueError(f"{length} bytes are promised where {len(data) - place} are left")
    return data[place : place + length], place + length
