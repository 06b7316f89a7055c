"""Variables of a checkpoint from front to back, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.objects import unless_deleted
from storage.reader import Unit, as_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from storage.reader import CheckpointReader

WINDOW_NBYTES = 16 << 20


class Stream:
    """Reads elements of variables, and keeps what was read last: many small variables lie in one unit, and
    each unit is read once where they are asked for in the order of the checkpoint.

    Of a variable, up to `window_nbytes` are read at a time, and at least a unit.
    """

    def __init__(self, checkpoint: CheckpointReader, window_nbytes: int = WINDOW_NBYTES) -> None:
        self._checkpoint = checkpoint
        self._window_nbytes = window_nbytes
        self._array = ""
        self._start = 0
        self._values: NDArray[Any] = np.empty(0, np.uint8)

    def ranges(
        self, name: str, longest: int, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """The elements [first, last) of a variable, all by default, in ranges [start, stop) of at most
        `longest`, of which none lies in two units.
        """
        stored, variable = self._checkpoint.variables[name]
        offset = variable.offset
        end = offset + (variable.size if last is None else last)
        for unit in self._checkpoint.units(stored, offset + first, end):
            start, stop = max(unit.start, offset + first), min(unit.stop, end)
            for at in range(start, stop, longest):
                yield at - offset, min(at + longest, stop) - offset

    def elements(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Elements [start, stop) of a variable, which are at most what a window holds; valid until the next
        call.
        """
        stored, variable = self._checkpoint.variables[name]
        first, last = variable.offset + start, variable.offset + stop
        within = self._start <= first and last <= self._start + len(self._values)
        if stored.array.name != self._array or not within:
            self._read(name, first, last)
        values = self._values[first - self._start : last - self._start]
        return as_dtype(values, self._checkpoint.dtype(name))

    def _read(self, name: str, first: int, last: int) -> None:
        """Fill the window with the units from element `first` of the variable's array on, to the end of the
        variable or as many as fit.
        """
        stored, variable = self._checkpoint.variables[name]
        array = stored.array
        self._array, self._values = "", np.empty(0, array.dtype)  # freed before another takes its place
        most = max(last, first // array.unit * array.unit + self._window_nbytes // array.itemsize)
        units = list(self._checkpoint.units(stored, first, min(variable.offset + variable.size, most)))
        origin = units[0].start
        values = np.empty(units[-1].stop - origin, array.dtype)

        def target(unit: Unit) -> NDArray[Any]:
            return values[unit.start - origin : unit.stop - origin]

        with unless_deleted(self._checkpoint.store, self._checkpoint.directory):
            self._checkpoint.read_units(units, target)
        self._array, self._start, self._values = array.name, origin, values
