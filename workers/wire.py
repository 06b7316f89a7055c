"""Requests and answers of the exchange as bytes; everything is covered by a CRC-32C.

A request is a CRC-32C and JSON: key, seconds left, numbers of blocks or null for all. The answer is a
sequence of messages of at most one block each. A message is data, and metadata: CRC-32C of all that follows
and of the data, the block's number or -1, and in the first message, as JSON, what is published or why the
request is refused.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workers.flight import Message

NO_BLOCK = -1
NOTHING = np.empty(0, np.uint8)

_CRC = struct.Struct("<I")
_NUMBER = struct.Struct("<i")


def pack_request(asked: dict[str, Any]) -> bytes:
    """A request as bytes."""
    body = json.dumps(asked).encode()
    return _CRC.pack(crc32c(body)) + body


def unpack_request(request: bytes) -> dict[str, Any]:
    """What a request asks for. Raises ValueError if it is not what was sent."""
    body = request[_CRC.size :]
    if request[: _CRC.size] != _CRC.pack(crc32c(body)):
        raise ValueError("the CRC-32C of the request differs")
    asked: dict[str, Any] = json.loads(body)
    return asked


def pack_message(number: int, data: NDArray[np.uint8], first: dict[str, Any] | None) -> Message:
    """A message: `data` is not copied, `first` is what the first one says."""
    body = _NUMBER.pack(number) + (b"" if first is None else json.dumps(first).encode())
    return _CRC.pack(crc32c(data.data, crc32c(body))) + body, data


def pack_refusal(kind: str, error: Exception) -> Message:
    """The only message of an answer that is none."""
    return pack_message(NO_BLOCK, NOTHING, {"refused": kind, "message": str(error)})


def unpack_message(message: Message) -> tuple[int, bytes, NDArray[np.uint8]]:
    """Number, text and data of a message; of a damaged one neither number nor text."""
    metadata, data = message
    body = metadata[_CRC.size :]
    if len(body) < _NUMBER.size or _CRC.pack(crc32c(data.data, crc32c(body))) != metadata[: _CRC.size]:
        return NO_BLOCK, b"", NOTHING
    (number,) = _NUMBER.unpack_from(body)
    return number, body[_NUMBER.size :], data
