"""Tables in Parquet and Arrow files at any URL, of which no more is in memory than a cache holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from blake3 import blake3

from storage.errors import ConfigurationError
from storage.files import files_at
from workers.data.cache import BlockCache
from workers.data.columns import Columns, Selection
from workers.data.mapping import Mappable
from workers.data.order import WindowedOrder
from workers.data.parts import check_indices, leaves, mapped
from workers.data.tables import SUFFIXES, TableFile, opened
from workers.schedule import permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from workers.data.parts import Part
    from workers.engine import Batch
    from workers.schedule import Order


class ParquetDataset(Mappable):
    """The rows of Parquet and Arrow (Feather) files: `ParquetDataset("s3://bucket/train", label="y")`.

    `urls` is a file, a directory, or several of them; those of a directory come in the order of their names.
    `columns` is one column ("image"), several that stand side by side in a matrix (["age", "height"]), or a
    dict of columns for a model of several inputs ({"a": "image", "b": "age"}); without it, all that are
    neither label nor weight. A column holds numbers, or lists of them, all equally long, which become axes.

    At opening the footers are read. `take` reads the wanted columns of the row groups that hold the samples;
    decoded row groups stay in a cache of `cache_mb` megabytes, and `prefetch` fills it in a thread.

    With `shuffle_within="row_groups"` the order of an epoch permutes row groups, and then the samples within
    each `window` row groups in a row, which are all that is read at a time: choose it, and `cache_mb` for two
    such windows, where the data is larger than the cache. It is part of the identity. "all" makes every order
    equally likely, but then reads a row group anew for nearly every sample.

    Raises ConfigurationError for columns that hold no numbers or differ between files, for missing values and
    for lists of differing lengths; DataError, with file and row group, for what is damaged or cannot be read.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        columns: Columns | None = None,
        label: str | None = None,
        weight: str | None = None,
        shuffle_within: Literal["all", "row_groups"] = "all",
        window: int = 8,
        cache_mb: float = 256.0,
    ) -> None:
        if shuffle_within not in ("all", "row_groups"):
            raise ConfigurationError(
                f"ParquetDataset(shuffle_within={shuffle_within!r}): give 'all' or 'row_groups'"
            )
        if window < 1 or cache_mb <= 0:
            raise ConfigurationError("ParquetDataset: give a window of at least 1, and a cache_mb above 0")
        found = [files_at(url, SUFFIXES) for url in ([urls] if isinstance(urls, str) else urls)]
        files = [file for each in found for file in each]
        if not files:
            raise ConfigurationError("ParquetDataset needs at least one file")
        with ThreadPoolExecutor(files[0].store.parallel_reads, "holdfast-open") as pool:
            self._files: list[TableFile] = [*pool.map(opened, files)]
        self._selection = Selection.of(self._files[0].schema, columns, label, weight, files[0].url)
        self._check_schemas()
        self._groups = [(table, i) for table in self._files for i, rows in enumerate(table.rows) if rows]
        if not self._groups:
            raise ConfigurationError(f"{files[0].url}: there are no rows")
        self._sizes = [table.rows[i] for table, i in self._groups]
        self._starts = np.array([0, *accumulate(self._sizes)], np.int64)
        self._window = window if shuffle_within == "row_groups" else None
        self._cache = BlockCache(self._load, int(cache_mb * 1e6))
        self._order = lru_cache(maxsize=2)(self._new_order)

    def __len__(self) -> int:
        """The number of samples."""
        return int(self._starts[-1])

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """These samples, in this order: x, and y and the sample weights if they were asked for."""
        check_indices(indices, len(self))
        groups = self._groups_of(indices)
        batch: Part = None
        for group in dict.fromkeys(groups.tolist()) or [0]:
            places = np.flatnonzero(groups == group)
            rows = indices[places] - self._starts[group]
            block = self._cache.get(group)
            if batch is None:
                batch = mapped(lambda a: np.empty((len(indices), *a.shape[1:]), a.dtype), block)
            for (_, target), (_, source) in zip(leaves(batch), leaves(block), strict=True):
                if target.shape[1:] != source.shape[1:]:
                    raise ConfigurationError(
                        f"{self._where(group)} holds samples of shape {source.shape[1:]}, others of "
                        f"{target.shape[1:]}: make lists equally long"
                    )
                target[places] = source[rows]
        result: Batch = batch
        return result

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Begin to read the row groups of these samples, as many as fit into half the cache."""
        groups = dict.fromkeys(self._groups_of(indices).tolist())
        self._cache.load_ahead([*groups], self._expected_nbytes)

    def order(self, seed: int, epoch: int) -> Order:
        """The order of an epoch, by row groups if that was asked for."""
        if self._window is None:
            return permutation(len(self), seed, epoch)
        return self._order(seed, epoch)

    def identity(self) -> dict[str, Any]:
        """Columns, number of samples, and a digest of the files, of which only the footers are read.

        Into it go each file's name within the directory that was given, its size, its ETag (or what the store
        has of the kind), and its footer. A Parquet footer holds the schema, and for each column of each row
        group the place, the sizes and, where the writer made them, the smallest and largest value and the
        number of missing ones. So a change is noticed that alters any of these, or the ETag; a value that is
        altered in place in a file on a file system, within the bounds of its row group, is not. An Arrow
        footer holds the schema and the places of the record batches alone.
        """
        digest = blake3()
        for table in self._files:
            entry = (table.file.key, str(table.nbytes), table.tag or "", table.footer_digest)
            digest.update("\0".join(entry).encode() + b"\0")
        return {
            "kind": "tables",
            "samples": len(self),
            **self._selection.to_json(),
            "shuffle": None if self._window is None else {"within": "row_groups", "window": self._window},
            "blake3": digest.hexdigest(),
        }

    def _check_schemas(self) -> None:
        """Raise ConfigurationError unless all files have the wanted columns, of the same types."""
        first = self._files[0]
        for table in self._files[1:]:
            for name in self._selection.names:
                index = table.schema.get_field_index(name)
                expected = first.schema.field(name).type
                found = table.schema.field(index).type if index >= 0 else "not there"
                if found != expected:
                    raise ConfigurationError(
                        f"{table.file.url}: column {name!r} is {found}, but {expected} in {first.file.url}: "
                        "give files of the same columns"
                    )

    def _groups_of(self, indices: NDArray[np.int64]) -> NDArray[np.intp]:
        return np.searchsorted(self._starts, indices, side="right") - 1

    def _load(self, group: int) -> Part:
        table, number = self._groups[group]
        return self._selection.batch(table.read(number, self._selection.names), table.where(number))

    def _expected_nbytes(self, group: int) -> int:
        table, number = self._groups[group]
        return table.expected_nbytes(number, self._selection.names)

    def _where(self, group: int) -> str:
        table, number = self._groups[group]
        return table.where(number)

    def _new_order(self, seed: int, epoch: int) -> WindowedOrder:
        assert self._window is not None
        return WindowedOrder(self._sizes, self._window, seed, epoch)
