"""Maxima and means over windows along any number of spatial axes.

Legend: T places of a window, N samples, O* windows along the spatial axes, C channels. Attributes:
"pool_size", "strides" (lists) and "padding".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn.lookup import check
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, register, together
from workers.nn.ops.windows import Windows, check_channels_last, opaque, per_axis, spatial
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array
    from workers.nn.ops.windows import Tap


class _Pool(Op):
    """The windows laid out place by place, (T, N, O*, C), so that each pass over them is one long loop."""

    attributes: ClassVar = {"pool_size": kinds.counts, "strides": kinds.counts, "padding": kinds.text}

    outside: float
    """What counts as the value of places beside the input."""

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x = inputs[0]
        size = spatial("a pooling", x, len(attrs["strides"]))
        return Spec((x.shape[0], *_windows(attrs, size).count, x.shape[-1]), x.dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        x = site.inputs[0]
        self._windows = windows = _windows(site.attrs, x.dims[1:-1])
        self._taps = list(windows.taps())
        self._y = site.empty()
        self._columns = site.workspace((*windows.kernel, *self._y.shape), x.dtype)
        self._columns_TNOC = self._columns.reshape(math.prod(windows.kernel), *self._y.shape)
        self._padded = None
        if windows.is_padded:
            self._padded = site.workspace((x.dims[0], *windows.padded, x.dims[-1]), x.dtype)
            self._padded[...] = self.outside
        self._dx = site.like(0) if site.needs[0] else None

    def _lay_out(self, x: Array) -> Array:
        if self._padded is None:
            x = np.ascontiguousarray(x)
        else:
            self._padded[self._windows.inside] = x
            x = self._padded
        view = self._windows.view(x, slice(None), merged=False)
        ndim = self._y.ndim - 1
        order = (*range(ndim, view.ndim), *range(ndim))
        np.copyto(opaque(self._columns), view.transpose(order))
        return self._columns_TNOC

    def _begin_gradient(self, into: Array | None) -> Array:
        dx = self._dx if into is None else into
        assert dx is not None
        if not self._windows.tile:
            dx[...] = 0
        return dx

    def _add(self, dx: Array, tap: Tap, part: Array) -> None:
        """In place. Add what comes to one place of the windows, (N, O*, C)."""
        if self._windows.are_disjoint:  # then nothing else comes to these elements
            opaque(dx)[tap.elements] = opaque(part)[tap.windows]
        else:
            dx[tap.elements] += part[tap.windows]


def _windows(attrs: Mapping[str, Any], size: Sequence[int]) -> Windows:
    ones = [1] * len(size)
    return Windows.over(size, attrs["pool_size"], attrs["strides"], attrs["padding"], ones)


@register
class MaxPool(_Pool):
    """The maximum of each window. Its gradient goes to the first place that has it, row-major, as in
    TensorFlow."""

    name = "max_pool"
    outside = -math.inf

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._part = site.empty()

    def forward(self, run: Run, *inputs: Array) -> Array:
        return np.maximum.reduce(self._lay_out(inputs[0]), axis=0, out=self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx, part = self._begin_gradient(into[0]), self._part
        for tap in self._taps:
            np.equal(self._columns[tap.index], self._y, out=part)
            part *= dy
            dy -= part  # nothing is left for a later place that is equal
            self._add(dx, tap, part)
        return [dx]


@register
class AveragePool(_Pool):
    """The mean of each window; places beside the input do not count, as in TensorFlow."""

    name = "average_pool"
    outside = 0.0

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._weight: Any = 1 / math.prod(self._windows.kernel)
        if self._windows.is_padded:
            met = np.zeros((*self._windows.count, 1), self._y.dtype)
            for tap in self._taps:
                met[tap.windows[1:]] += 1
            self._weight = 1 / met

    def forward(self, run: Run, *inputs: Array) -> Array:
        y = np.add.reduce(self._lay_out(inputs[0]), axis=0, out=self._y)
        y *= self._weight
        return y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        dx = self._begin_gradient(into[0])
        part = np.ascontiguousarray(dy)
        part *= self._weight
        for tap in self._taps:
            self._add(dx, tap, part)
        return [dx]


def max_pool(
    inputs: Any,
    pool_size: Any,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Any:
    """The maximum of each window of x (N, S*, C); `strides` None means `pool_size`."""
    return _pool("max_pool", inputs, pool_size, strides, padding, data_format)


def average_pool(
    inputs: Any,
    pool_size: Any,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Any:
    """The mean of each window of x (N, S*, C), of what lies in x; `strides` None means `pool_size`."""
    return _pool("average_pool", inputs, pool_size, strides, padding, data_format)


def _pool(name: str, inputs: Any, pool_size: Any, strides: Any, padding: str, data_format: str | None) -> Any:
    check_channels_last(name, data_format)
    (x,) = together(inputs)
    rank = len(x.spec.shape) - 2
    check(rank >= 1, f"{name} takes an input of 3 axes or more: (samples, sizes, channels)")
    check(padding in ("valid", "same"), f"{name}: padding must be 'valid' or 'same', not {padding!r}")
    size = per_axis(pool_size, rank, f"{name}: pool_size")
    steps = size if strides is None else per_axis(strides, rank, f"{name}: strides")
    return apply(name, x, pool_size=list(size), strides=list(steps), padding=padding)
