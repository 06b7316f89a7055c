"""Sorted string tables, as LevelDB and TensorFlow write them: keys and values in blocks with checksums. Pure.

Source: the documented table format of LevelDB. A footer of 48 bytes says where the block of blocks is; each
block is followed by its compression and a masked CRC-32C; keys share prefixes with those before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crc32c import crc32c

from storage.formats.protobuf import varint, varint_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FOOTER_NBYTES = 48
MAGIC = 0xDB4775248B80FB57
_TRAILER_NBYTES = 5
_COMPRESSIONS = {1: "snappy", 2: "zstd"}
_RESTART_EVERY = 16
_BLOCK_NBYTES = 256 << 10
_MAX_KEYS_PER_BYTE, _MAX_KEYS_NBYTES = 64, 1 << 30
"""How long all keys may be together: what they share is stored once, so that few bytes could promise many."""


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
    left = min(_MAX_KEYS_PER_BYTE * len(data) + (1 << 20), _MAX_KEYS_NBYTES)
    behind, last = 0, None
    for _, value in _block(data, index):
        (offset, size), _ = _handle(value, 0)
        if offset < behind:
            raise ValueError(f"the block at {offset} lies before others")
        behind = offset + size
        for key, entry in _block(data, (offset, size)):
            left -= len(key)
            if left < 0:
                raise ValueError("its keys are longer together than such a file can need")
            if last is not None and key <= last:
                raise ValueError("its keys are in no order")
            last = key
            yield key, entry


def table(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A table of keys and values, which come in the order of the keys."""
    found = bytearray()
    index: list[tuple[bytes, bytes]] = []
    waiting: list[tuple[bytes, bytes]] = []
    nbytes = 0
    for item in items:
        waiting.append(item)
        nbytes += len(item[0]) + len(item[1])
        if nbytes >= _BLOCK_NBYTES:
            index.append((waiting[-1][0], _append_block(found, waiting)))
            waiting, nbytes = [], 0
    if waiting:
        index.append((waiting[-1][0], _append_block(found, waiting)))
    handles = _append_block(found, []) + _append_block(found, index, restart_every=1)
    return bytes(found + handles.ljust(FOOTER_NBYTES - 8, b"\0") + MAGIC.to_bytes(8, "little"))


def _append_block(
    found: bytearray, items: Iterable[tuple[bytes, bytes]], restart_every: int = _RESTART_EVERY
) -> bytes:
    """In place. Add a block to the file; returns where it is, as the index has it."""
    block, restarts, before = bytearray(), [0], b""
    for i, (key, value) in enumerate(items):
        shared = 0
        if i % restart_every:
            longest = min(len(before), len(key))
            shared = next((n for n in range(longest) if before[n] != key[n]), longest)
        elif i:
            restarts.append(len(block))
        own = key[shared:]
        block += varint_of(shared) + varint_of(len(own)) + varint_of(len(value)) + own + value
        before = key
    for each in (*restarts, len(restarts)):
        block += each.to_bytes(4, "little")
    place = varint_of(len(found)) + varint_of(len(block))
    block.append(0)
    found += block + masked_crc(bytes(block)).to_bytes(4, "little")
    return place


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
