"""The products that a convolution and its gradients are made of.

The windows of the input are laid out as rows of a matrix, so that one BLAS product does the arithmetic (K.
Chellapilla et al., "High performance convolutional neural networks for document processing", 2006), a few
samples at a time where the matrix would not fit into the cache.

Legend: M windows of all samples, C channels, F filters, G groups, K numbers in a window of one group.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workers.nn.numerics import aligned_empty
from workers.nn.ops.windows import chunks, opaque

if TYPE_CHECKING:
    from workers.nn.numerics import Array, Shape
    from workers.nn.ops.windows import Windows

_LIMIT = 8 << 20
"""Bytes that are laid out at a time. Twice as much takes 5.8 against 5.2 ms for 64 x 16 x 16 x 32 under 3 x 3
x 64; half as much does not keep the windows of LeNet's first layer for its gradient."""
_FEW = 8
"""Channels up to which a gradient is added up with samples last: 0.6 against 1.0 ms for 64 x 14 x 14 x 6
under 5 x 5 x 16; with 16 channels nothing is gained."""


class SlidingProduct:
    """y[m, f] = sum over k of x's windows[m, k] * kernel[k, f], and what gives its gradients.

    x is (N, S*, C), the kernel (K*, C / G, F) and y (N, O*, F), all contiguous but for the kernel. Filters
    are for the groups of channels in turn.
    """

    def __init__(self, windows: Windows, x: Shape, kernel: Shape, dtype: str) -> None:
        per_group, filters = kernel[-2:]
        rows, channels = x[0], x[-1]
        self._windows = windows
        self._groups = groups = channels // per_group
        self._per_group, self._filters = per_group, filters // groups
        self._width = width = math.prod(windows.kernel) * per_group
        self._places = places = math.prod(windows.count)
        self._in_order = windows.lie_in_order and (groups == 1 or width == per_group)
        self._by_taps = channels == 1  # rows of one channel are longer than windows: 0.5 against 0.6 ms
        self._puts_back = windows.are_disjoint and not windows.is_padded and not self._by_taps
        self._samples_last = groups == 1 and channels <= _FEW and not self._in_order
        self._taps = list(windows.taps())

        kind = np.dtype(dtype)
        nbytes = kind.itemsize * places * channels
        self._pieces = [slice(0, rows)]
        if not self._in_order:
            self._pieces = chunks(rows, nbytes * math.prod(windows.kernel), _LIMIT)
        self._steps = chunks(rows, nbytes, _LIMIT)
        most, step = self._pieces[0].stop, self._steps[0].stop
        self._columns = self._padded = None
        if not self._in_order:
            shape = (groups, most * places, width)
            self._memory = aligned_empty((math.prod(shape),), kind)
            self._columns = self._memory.reshape(shape)
            if self._by_taps:
                self._columns = self._memory.reshape(shape[::-1]).transpose(2, 1, 0)
        if self._samples_last:
            self._dy = aligned_empty((most * places * filters,), kind)
            self._dx = aligned_empty((most * math.prod(windows.size) * channels,), kind)
        if windows.is_padded:
            self._padded = aligned_empty((most, *windows.padded, channels), kind)
            self._padded[...] = 0  # the border stays so
        self._part = aligned_empty((groups, width, self._filters), kind)
        self._tap = aligned_empty((step, *windows.count, channels), kind)
        self._is_laid_out = False  # the x of the last product, all of it

    def product(self, x: Array, kernel: Array, out: Array) -> None:
        """Write y into `out`."""
        kernel_GKF, y_GMF = self._by_group(kernel), self._of_windows(out)
        for piece in self._pieces:
            np.matmul(self._lay_out(x[piece]), kernel_GKF, out=y_GMF[:, self._rows(piece)])
        self._is_laid_out = len(self._pieces) == 1

    def kernel_gradient(self, x: Array, dy: Array, out: Array, *, after_product: bool) -> None:
        """Write the kernel's gradient into `out`.

        `after_product`: x is what `product` was last called with, and has not changed.
        """
        again = not (after_product and self._is_laid_out)
        if again:
            self._is_laid_out = False
        dkernel_GKF, dy_GMF = self._by_group(out), self._of_windows(dy)
        for i, piece in enumerate(self._pieces):
            columns_GMK = self._lay_out(x[piece]) if again or self._columns is None else self._columns
            part = self._part if i else dkernel_GKF
            np.matmul(columns_GMK.transpose(0, 2, 1), dy_GMF[:, self._rows(piece)], out=part)
            if i:
                dkernel_GKF += part

    def spread(self, dy: Array, kernel: Array, out: Array) -> None:
        """Write into `out` the gradient of x: each window gets dy[m] @ kernel.T."""
        kernel_GFK, dy_GMF = self._by_group(kernel).transpose(0, 2, 1), self._of_windows(dy)
        if self._in_order:
            np.matmul(dy_GMF, kernel_GFK, out=self._as_matrix(out))
        elif self._puts_back:
            self._is_laid_out = False
            if not self._windows.tile:
                out[...] = 0
            for piece in self._pieces:
                rows = self._rows(piece)
                assert self._columns is not None
                columns_GMK = self._columns[:, : rows.stop - rows.start]
                np.matmul(dy_GMF[:, rows], kernel_GFK, out=columns_GMK)
                for windows, columns in self._pairs(out[piece], columns_GMK):
                    np.copyto(windows, columns)
        elif self._samples_last:
            self._is_laid_out = False
            for piece in self._pieces:
                self._add_samples(dy[piece], kernel, out[piece])
        else:
            for step in self._steps:
                self._add_taps(dy_GMF[:, self._rows(step)], kernel, out[step])

    def _add_taps(self, dy_GMF: Array, kernel: Array, out: Array) -> None:
        """Place of the window by place: each meets long runs of the input."""
        out[...] = 0
        tap_GMC = self._tap[: len(out)].reshape(-1, self._groups, self._per_group).transpose(1, 0, 2)
        for tap in self._taps:
            kernel_GFC = kernel[tap.index].reshape(self._per_group, self._groups, -1).transpose(1, 2, 0)
            np.matmul(dy_GMF, kernel_GFC, out=tap_GMC)
            out[tap.elements] += self._tap[: len(out)][tap.windows]

    def _add_samples(self, dy: Array, kernel: Array, out: Array) -> None:
        """The same with samples as the last axis, (C, S*, N), so that few channels make no short runs."""
        geometry, rows, rank = self._windows, len(out), len(self._windows.size)
        dy_ONF = self._dy[: dy.size].reshape(*geometry.count, rows, self._filters)
        np.copyto(opaque(dy_ONF), opaque(dy).transpose(*range(1, rank + 1), 0))
        columns_KM = self._memory[: self._width * rows * self._places].reshape(self._width, -1)
        np.matmul(
            kernel.reshape(self._width, self._filters), dy_ONF.reshape(-1, self._filters).T, out=columns_KM
        )
        columns = columns_KM.reshape(*geometry.kernel, self._per_group, *geometry.count, rows)
        dx_CSN = self._dx[: out.size].reshape(self._per_group, *geometry.size, rows)
        dx_CSN[...] = 0
        for tap in self._taps:
            dx_CSN[tap.elements] += columns[tap.index][tap.windows]
        np.copyto(out, dx_CSN.transpose(rank + 1, *range(1, rank + 1), 0))

    def _lay_out(self, x: Array) -> Array:
        """The windows of x as a matrix for each group."""
        if self._columns is None:
            return self._as_matrix(x)
        if self._padded is not None:
            padded = self._padded[: len(x)]
            padded[self._windows.inside] = x
            x = padded
        columns_GMK = self._columns[:, : len(x) * self._places]
        for windows, columns in self._pairs(x, columns_GMK):
            np.copyto(columns, windows)
        return columns_GMK

    def _pairs(self, x: Array, columns_GMK: Array) -> list[tuple[Array, Array]]:
        """For each group, the windows where they lie in x, and where in the matrix: equal in shape."""
        geometry = self._windows
        if self._by_taps:
            windows = geometry.view(x, slice(1), merged=False).view(x.dtype)
            ndim = 1 + len(geometry.count)
            order = (*range(ndim, windows.ndim), *range(ndim))
            columns = columns_GMK[0].T.reshape(*geometry.kernel, len(x), *geometry.count, copy=False)
            return [(windows.transpose(order), columns)]
        merged = self._groups == 1 and geometry.dilation[-1] == 1
        shape = (len(x), *geometry.count, *geometry.kernel, self._per_group)
        found = []
        for group in range(self._groups):
            channels = slice(group * self._per_group, (group + 1) * self._per_group)
            columns = opaque(columns_GMK[group].reshape(shape), 2 if merged else 1)
            found.append((geometry.view(x, channels, merged=merged), columns))
        return found

    def _as_matrix(self, x: Array) -> Array:
        """Where the windows lie in order."""
        return x.reshape(-1, self._groups, self._width).transpose(1, 0, 2)

    def _by_group(self, kernel: Array) -> Array:
        return kernel.reshape(self._width, self._groups, self._filters).transpose(1, 0, 2)

    def _of_windows(self, y: Array) -> Array:
        return y.reshape(-1, self._groups, self._filters).transpose(1, 0, 2)

    def _rows(self, piece: slice) -> slice:
        return slice(piece.start * self._places, piece.stop * self._places)
