"""Datasets: samples by number, so that any worker can make any batch.

A dataset holds no position. Which samples make up a batch is decided by the seed and the step alone
(`workers.schedule`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.data.arrays import ArrayDataset
from workers.data.dataset import (
    Dataset,
    DrawsRandomly,
    Ordered,
    ReadsAhead,
    is_unreadable,
    read_patiently,
)
from workers.data.idx import IdxDataset, read_idx
from workers.data.images import ImageFolderDataset, read_image
from workers.data.mapping import MapDataset
from workers.data.npy import NpyDataset

if TYPE_CHECKING:
    from workers.data.parquet import ParquetDataset

__all__ = [
    "ArrayDataset",
    "Dataset",
    "DrawsRandomly",
    "IdxDataset",
    "ImageFolderDataset",
    "MapDataset",
    "NpyDataset",
    "Ordered",
    "ParquetDataset",
    "ReadsAhead",
    "is_unreadable",
    "read_idx",
    "read_image",
    "read_patiently",
]


def __getattr__(name: str) -> Any:
    """Import the dataset that needs Arrow when it is asked for: loading Arrow takes a while."""
    if name == "ParquetDataset":
        from workers.data.parquet import ParquetDataset

        return ParquetDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
