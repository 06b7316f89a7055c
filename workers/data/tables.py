"""Files of tables, Parquet and Arrow: what their footers say, and one group of rows at a time."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from storage.errors import ConfigurationError, DataError, HoldfastError, StorageError
from storage.files import RangeReader, StoredFile
from workers.data.columns import row_nbytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
"""Of the files that are looked for in a directory."""

_TAIL_NBYTES = 64 << 10
"""Bytes that are read from a file's end at first: most footers are in them."""
_PARQUET = b"PAR1"
_ARROW = b"ARROW1"
_LENGTH = struct.Struct("<i")


class TableFile(ABC):
    """A file of rows in groups, which are read one by one; only what its footer says is held."""

    kind: str

    def __init__(self, file: StoredFile, nbytes: int, tag: str | None, footer: bytes) -> None:
        self.file = file
        self.nbytes = nbytes
        self.tag = tag
        self.footer_digest = blake3(footer).hexdigest()
        self.schema: pa.Schema
        self.rows: list[int]
        """Number of rows of each group."""

    def where(self, group: int) -> str:
        """A group, for messages."""
        return f"{self.file.url}, {self.kind} {group}"

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a group. Raises DataError, naming file and group, where they cannot be read."""
        with _translated(self.where(group)):
            table = self._read(group, columns)
            table.validate(full=True)
        if table.num_rows != self.rows[group]:
            raise DataError(f"{self.where(group)} holds {table.num_rows} rows instead of {self.rows[group]}")
        return table

    def expected_nbytes(self, group: int, columns: Sequence[str]) -> int:
        """About how many bytes these columns of a group are as arrays."""
        return self.rows[group] * sum(row_nbytes(self.schema.field(name).type) for name in columns)

    @abstractmethod
    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """The same, raising whatever Arrow does."""

    def _source(self) -> pa.PythonFile:
        return pa.PythonFile(RangeReader(self.file, self.nbytes), mode="r")


class ParquetFile(TableFile):
    """A Parquet file, in row groups. Pages that have checksums are checked against them."""

    kind = "row group"

    def __init__(self, file: StoredFile, nbytes: int, tag: str | None, footer: bytes) -> None:
        super().__init__(file, nbytes, tag, footer)
        length = _LENGTH.pack(len(footer))
        self._metadata = pq.read_metadata(pa.BufferReader(_PARQUET + footer + length + _PARQUET))
        self.schema = self._metadata.schema.to_arrow_schema()
        groups = [self._metadata.row_group(i) for i in range(self._metadata.num_row_groups)]
        self.rows = [group.num_rows for group in groups]

    def expected_nbytes(self, group: int, columns: Sequence[str]) -> int:
        """About how many bytes these columns of a group are as arrays, lists of any length included."""
        found = self._metadata.row_group(group)
        chunks = (found.column(i) for i in range(found.num_columns))
        return sum(
            chunk.num_values * _leaf_nbytes(self.schema.field(name).type)
            for chunk in chunks
            if (name := chunk.path_in_schema.partition(".")[0]) in columns
        )

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        # Buffering ahead, Arrow's own threads would call into Python, and abort a process that ends then.
        with pq.ParquetFile(
            self._source(), metadata=self._metadata, pre_buffer=False, page_checksum_verification=True
        ) as file:
            return file.read_row_group(group, columns=[*columns], use_threads=False)


class ArrowFile(TableFile):
    """An Arrow IPC file, which is what Feather is, in record batches.

    Its footer does not say how many rows they have, so one column of each is read when it is opened.
    """

    kind = "record batch"

    def __init__(self, file: StoredFile, nbytes: int, tag: str | None, footer: bytes) -> None:
        super().__init__(file, nbytes, tag, footer)
        with pa.ipc.open_file(self._source()) as reader:
            self.schema = reader.schema
            groups = range(reader.num_record_batches)
        narrowest = min(range(len(self.schema)), key=lambda i: _leaf_nbytes(self.schema.field(i).type))
        with self._reader([narrowest]) as reader:
            self.rows = [self._num_rows(reader, group) for group in groups]

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        fields = sorted(self.schema.get_field_index(name) for name in columns)
        with self._reader(fields) as reader:
            return pa.Table.from_batches([reader.get_batch(group)])

    def _num_rows(self, reader: Any, group: int) -> int:
        with _translated(self.where(group)):
            return int(reader.get_batch(group).num_rows)

    def _reader(self, fields: Sequence[int]) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=[*fields], use_threads=False)
        return pa.ipc.open_file(self._source(), options=options)


def opened(file: StoredFile) -> TableFile:
    """A Parquet or Arrow file, of which the footer is read.

    Raises ConfigurationError if it is neither or its footer is damaged, StorageError if it cannot be read.
    """
    info = file.info()
    tail = file.read(max(info.nbytes - _TAIL_NBYTES, 0), info.nbytes)
    if tail.endswith(_PARQUET):
        kind: type[TableFile] = ParquetFile
        end = len(_PARQUET)
    elif tail.endswith(_ARROW):
        kind, end = ArrowFile, len(_ARROW)
    else:
        raise ConfigurationError(f"{file.url} is not a Parquet or Arrow file, or not all of it is there")
    (length,) = _LENGTH.unpack(tail[-end - _LENGTH.size : -end].rjust(_LENGTH.size, b"\0"))
    stop = info.nbytes - end - _LENGTH.size
    if not 0 < length <= stop:
        raise ConfigurationError(f"damaged table: {file.url}: no footer of {length} bytes: fetch it again")
    outside = len(tail) - end - _LENGTH.size - length
    if outside < 0:
        tail = file.read(stop - length, stop)
        footer = tail
    else:
        footer = tail[outside : outside + length]
    try:
        with _translated(file.url):
            return kind(file, info.nbytes, info.tag, footer)
    except DataError as exc:
        raise ConfigurationError(f"damaged table: {exc}: fetch it again") from exc


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Raise DataError, naming what is read, for whatever Arrow says of damaged bytes."""
    try:
        yield
    except HoldfastError as error:
        if isinstance(error, StorageError):
            raise DataError(f"{where}: {error}") from error
        raise
    except (pa.ArrowException, OSError, ValueError, IndexError, OverflowError) as exc:
        raise DataError(f"{where}: {' '.join(str(exc).split())}") from exc


def _leaf_nbytes(kind: pa.DataType) -> int:
    """Bytes of one element of a column, or of what its lists hold; large where that is not known."""
    while hasattr(kind, "storage_type"):
        kind = kind.storage_type
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    try:
        return row_nbytes(kind)
    except ValueError:  # texts and the like have no fixed width
        return 1 << 10
