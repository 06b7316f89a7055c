"""Columns of Arrow tables as arrays of numbers, and which of them become which part of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import types

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from workers.data.parts import Part

Columns: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""One column as it is; several side by side as one matrix; or a dict of columns, by names of parts."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The columns that make up x, y and the sample weights."""

    x: Columns
    label: str | None
    weight: str | None

    @classmethod
    def of(
        cls, schema: pa.Schema, columns: Columns | None, label: str | None, weight: str | None, where: str
    ) -> Selection:
        """Those that are asked for; without `columns` all that are neither label nor weight.

        Raises ConfigurationError for a column that is not there, or holds no numbers.
        """
        if weight is not None and label is None:
            raise ConfigurationError("ParquetDataset(weight=...) needs a label too")
        if columns is None:
            columns = [name for name in schema.names if name not in (label, weight)]
        selection = cls(columns, label, weight)
        if not selection.names:
            raise ConfigurationError(f"{where}: no columns are left to train on: give columns=[...]")
        for name in selection.names:
            if name not in schema.names:
                known = ", ".join(schema.names)
                raise ConfigurationError(f"{where} has no column {name!r}: it has {known}")
            if schema.names.count(name) > 1:
                raise ConfigurationError(f"{where} has several columns {name!r}: give each its own name")
            check_type(schema.field(name).type, f"{where}, column {name!r}")
        return selection

    @property
    def names(self) -> list[str]:
        """All of the columns, each once."""
        names = [*_names(self.x), *(name for name in (self.label, self.weight) if name is not None)]
        return [*dict.fromkeys(names)]

    def batch(self, table: pa.Table, where: str) -> tuple[Part, ...]:
        """The parts of a batch from a table with these columns; raises what `to_numpy` does."""
        arrays = {name: to_numpy(table.column(name), f"{where}, column {name!r}") for name in self.names}
        last = tuple(arrays[name] for name in (self.label, self.weight) if name is not None)
        if isinstance(self.x, str):
            return (arrays[self.x], *last)
        if isinstance(self.x, Mapping):
            return ({part: arrays[name] for part, name in self.x.items()}, *last)
        return (_side_by_side([(name, arrays[name]) for name in self.x], where), *last)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        x = self.x if isinstance(self.x, str) else dict(self.x) if isinstance(self.x, Mapping) else [*self.x]
        return {"columns": x, "label": self.label, "weight": self.weight}


def _names(columns: Columns) -> Iterator[str]:
    if isinstance(columns, str):
        yield columns
    else:
        yield from columns.values() if isinstance(columns, Mapping) else columns


def _side_by_side(arrays: Sequence[tuple[str, NDArray[Any]]], where: str) -> NDArray[Any]:
    for name, array in arrays:
        if array.ndim > 2:
            raise ConfigurationError(
                f"{where}, column {name!r} has {array.ndim - 1} axes, which cannot stand beside others in a "
                f"matrix: name it alone, columns={name!r}"
            )
    with np.errstate(invalid="ignore"):  # of float32 NaNs that become float64
        return np.concatenate([array.reshape(len(array), -1) for _, array in arrays], axis=1)


def row_nbytes(kind: pa.DataType) -> int:
    """Bytes of a value of a column as an array; of a list of unknown length, those of one element."""
    if isinstance(kind, pa.BaseExtensionType):
        return row_nbytes(kind.storage_type)
    if types.is_fixed_size_list(kind):
        return int(kind.list_size) * row_nbytes(kind.value_type)
    if _is_list(kind):
        return row_nbytes(kind.value_type)
    return max(1, int(kind.bit_width) // 8)


def check_type(kind: pa.DataType, where: str) -> None:
    """Raise ConfigurationError unless these are numbers, or lists or tensors of them."""
    inner = kind
    while True:
        if isinstance(inner, pa.FixedShapeTensorType):
            inner = inner.storage_type
        elif _is_list(inner):
            inner = inner.value_type
        else:
            break
    if not (types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)):
        raise ConfigurationError(
            f"{where} is {kind}: it cannot be trained on, give columns of numbers, or of lists of numbers"
        )


def to_numpy(column: pa.ChunkedArray, where: str) -> NDArray[Any]:
    """A column as an array, shape (rows,) or (rows, *lengths of its lists).

    Raises ConfigurationError for values that are missing (null) and for lists of differing lengths.
    """
    return _array(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks(), where)


def _array(column: pa.Array, where: str) -> NDArray[Any]:
    if column.null_count:
        raise ConfigurationError(
            f"{where} holds {column.null_count} missing values (null): fill them in, or leave those rows out"
        )
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        return _array(column.storage, where).reshape(len(column), *kind.shape)
    if _is_list(kind):
        width = int(kind.list_size) if types.is_fixed_size_list(kind) else _common_width(column, where)
        inner = _array(column.flatten(), where)
        return inner.reshape(len(column), width, *inner.shape[1:])
    array: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return array


def _common_width(column: pa.Array, where: str) -> int:
    offsets = column.offsets.to_numpy()
    widths = np.diff(offsets)
    if len(widths) and (low := int(widths.min())) != (high := int(widths.max())):
        raise ConfigurationError(f"{where} holds lists of {low} to {high} elements: make them equally long")
    return int(widths[0]) if len(widths) else 0


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
