"""Sorted string tables, as LevelDB and TensorFlow write them: keys and values in blocks with checksums. Pure.

Source: the documented table format of LevelDB. A footer of 48 bytes says where the block of blocks is; each
block is followed by its compression and a masked CRC-32C; keys share prefixes with those before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crc32c import crc32c

from storage.formats.protobuf import varint

if TYPE_CHECKING:
    from collections.abc import Iterator

FOOTER_NBYTES = 48
MAGIC = 0xDB4775248B80FB57
_TRAILER_NBYTES = 5
_COMPRESSIONS = {1: "snappy", 2: "zstd"}


def masked_crc(data: bytes | memoryview, crc: int = 0) -> int:
    """The CRC-32C of some bytes, behind others of CRC `crc`, as it is stored: rotated, with a constant."""
    return masked(crc32c(data, crc))


def masked(crc: int) -> int:
    """A CRC-32C as it is stored, so that the CRC of data that holds CRCs is a good one."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a table, in order. Raises ValueError for one that is damaged or compressed."""
    if len(data) < FOOTER_NBYTES or int.from_bytes(data[-8:], "little") != MAGIC:
        raise ValueError("it does not end as a sorted string table does")
    footer = data[-FOOTER_NBYTES:]
    statistics, place = _handle(footer, 0)
    index, _ = _handle(footer, place)
    list(_block(data, statistics))  # which nobody needs, but damage there is damage too
    for _, value in _block(data, index):
        yield from _block(data, _handle(value, 0)[0])


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Where a block is: its first byte and its length."""
    offset, place = varint(data, place)
    size, place = varint(data, place)
    return (offset, size), place


def _block(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    offset, size = handle
    end = offset + size
    if end + _TRAILER_NBYTES > len(data) - FOOTER_NBYTES:
        raise ValueError(f"a block of {size} bytes at {offset} does not fit into the file")
    trailer = data[end : end + _TRAILER_NBYTES]
    if masked_crc(data[offset : end + 1]) != int.from_bytes(trailer[1:], "little"):
        raise ValueError(f"the block of {size} bytes at {offset} has a wrong checksum")
    if trailer[0]:
        name = _COMPRESSIONS.get(trailer[0], f"compression {trailer[0]}")
        raise ValueError(f"the block at {offset} is compressed ({name}), which TensorFlow never does")
    block = data[offset:end]
    restarts = int.from_bytes(block[-4:], "little")
    stop = size - 4 * (restarts + 1)
    if size < 4 or stop < 0:
        raise ValueError(f"the block at {offset} has no room for its {restarts} restarts")
    key, place = b"", 0
    while place < stop:
        shared, place = varint(block, place)
        own, place = varint(block, place)
        length, place = varint(block, place)
        if shared > len(key) or place + own + length > stop:
            raise ValueError(f"an entry of the block at {offset} does not fit into it")
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length
