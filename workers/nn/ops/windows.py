"""Where the windows of convolutions and poolings lie: plain geometry over any number of spatial axes.

Legend: N samples, S* sizes of the spatial axes, O* numbers of windows along them, K* sizes of a window, C
channels. Arrays are channels-last: (N, S*, C).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.lookup import check, is_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from workers.nn.numerics import Array
    from workers.nn.tensor import Spec

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tap:
    """One place of the window: the elements that it meets, and the windows that have it inside the input."""

    index: Sizes
    elements: tuple[slice, ...]
    """Of an array (N, S*, C)."""
    windows: tuple[slice, ...]
    """Of an array (N, O*, C)."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows over an input; each tuple has an entry for each spatial axis."""

    size: Sizes
    kernel: Sizes
    strides: Sizes
    dilation: Sizes
    before: Sizes
    """How many places lie in front of the input."""
    after: Sizes
    """How many lie behind it and are met by a window."""
    count: Sizes
    """How many windows there are."""

    @classmethod
    def over(
        cls,
        size: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int],
        padding: str,
        dilation: Sequence[int],
    ) -> Windows:
        """The windows that `padding` asks for: "valid", "same" as in TensorFlow, or "causal".

        "same" gives ceil(size / stride) windows, and of what is lacking the smaller half in front; "causal"
        puts all of it in front. ConfigurationError where not even one window fits.
        """
        check(
            padding in ("valid", "same", "causal"),
            f"padding must be 'valid', 'same' or 'causal', not {padding!r}",
        )
        check(
            min(*size, *kernel, *strides, *dilation) > 0,
            f"windows of {tuple(kernel)} over {tuple(size)}, {tuple(strides)} apart with dilation "
            f"{tuple(dilation)}: all must be positive",
        )
        before, after, count = [], [], []
        for n, k, stride, d in zip(size, kernel, strides, dilation, strict=True):
            reach = (k - 1) * d + 1
            front = reach - 1 if padding == "causal" else 0
            windows = -(-n // stride) if padding == "same" else (n + front - reach) // stride + 1
            if windows < 1:
                raise ConfigurationError(
                    f"a window of {tuple(kernel)} does not fit into an input of {tuple(size)}: make the "
                    "window smaller, or pad with 'same'"
                )
            lacking = max(0, (windows - 1) * stride + reach - n)
            if padding == "same":
                front = lacking // 2
            before.append(front)
            after.append(max(0, lacking - front))
            count.append(windows)
        return cls(*map(tuple, (size, kernel, strides, dilation, before, after, count)))

    @property
    def padded(self) -> Sizes:
        """The sizes of the input with what is in front of and behind it."""
        return tuple(b + n + a for b, n, a in zip(self.before, self.size, self.after, strict=True))

    @property
    def is_padded(self) -> bool:
        """Whether a window reaches beyond the input."""
        return any(self.before) or any(self.after)

    @property
    def inside(self) -> tuple[slice, ...]:
        """The place of the input in an array (N, padded*, C)."""
        return (slice(None), *(slice(b, b + n) for b, n in zip(self.before, self.size, strict=True)))

    @property
    def are_disjoint(self) -> bool:
        """Whether no element is in two windows."""
        return all(
            (k - 1) * d + 1 <= s or n == 1
            for k, d, s, n in zip(self.kernel, self.dilation, self.strides, self.count, strict=True)
        )

    @property
    def tile(self) -> bool:
        """Whether each element is in exactly one window."""
        met = (n * k for n, k in zip(self.count, self.kernel, strict=True))
        return self.are_disjoint and not self.is_padded and math.prod(met) == math.prod(self.size)

    @property
    def lie_in_order(self) -> bool:
        """Whether the windows one behind the other are the input itself, as it lies in memory."""
        moving = [i for i, n in enumerate(self.count) if n > 1]
        wide = [i for i, k in enumerate(self.kernel) if k > 1]
        return self.tile and (not moving or not wide or max(moving) <= min(wide))

    def taps(self) -> Iterator[Tap]:
        """All places of the window, row-major; not those that lie beside the input for all windows."""
        for index in np.ndindex(*self.kernel):
            elements, windows = [slice(None)], [slice(None)]
            for i, k in enumerate(index):
                stride, shift = self.strides[i], k * self.dilation[i] - self.before[i]
                first = max(0, -(shift // stride))
                last = min(self.count[i] - 1, (self.size[i] - 1 - shift) // stride)
                if last < first:
                    break
                start = first * stride + shift
                elements.append(slice(start, start + (last - first) * stride + 1, stride))
                windows.append(slice(first, last + 1))
            else:
                yield Tap(index, tuple(elements), tuple(windows))

    def view(self, x: Array, channels: slice, *, merged: bool) -> Array:
        """All windows of a contiguous x (N, padded*, C), unread and without a copy: (N, O*, K*).

        An element is opaque, and holds the `channels` of one place; where `merged`, of a window's row along
        the last axis (then the shape is (N, O*, K* but for the last); all channels and no dilation). NumPy
        copies few long elements faster than many short ones.
        """
        first, last, _ = channels.indices(x.shape[-1])
        steps, nbytes = x.strides[1:-1], (last - first) * x.itemsize
        kernel, dilation = self.kernel, self.dilation
        if merged:
            nbytes *= kernel[-1]
            kernel, dilation = kernel[:-1], dilation[:-1]
        strides = (
            x.strides[0],
            *(step * s for step, s in zip(steps, self.strides, strict=True)),
            *(step * d for step, d in zip(steps, dilation, strict=False)),
        )
        shape = (len(x), *self.count, *kernel)
        if not math.prod(shape):
            return np.empty(shape, f"V{nbytes}")
        return np.ndarray(shape, f"V{nbytes}", x.data, first * x.itemsize, strides)


def opaque(x: Array, ndim: int = 1) -> Array:
    """A contiguous x with its last `ndim` axes as one opaque element."""
    width = math.prod(x.shape[-ndim:])
    kind = np.dtype(f"V{width * x.itemsize}")
    if not x.size:
        return np.empty(x.shape[:-ndim], kind)
    return x.reshape(*x.shape[:-ndim], width).view(kind)[..., 0]


def per_axis(value: Any, rank: int, what: str) -> Sizes:
    """A positive integer for each of `rank` axes: the one that was given for all, or those in a sequence."""
    found = (value,) * rank if is_count(value) else value
    good = isinstance(found, list | tuple) and len(found) == rank and all(map(is_count, found))
    check(good, f"{what} must be a positive integer or {rank} of them, not {value!r}")
    return tuple(found)


def spatial(what: str, x: Spec, rank: int) -> Sizes:
    """The sizes of the spatial axes of x (N, S*, C). ConfigurationError unless all but N are known."""
    sizes = tuple(n for n in x.shape[1:] if n is not None)
    check(
        rank > 0 and len(x.shape) == rank + 2 and len(sizes) == rank + 1,
        f"{what} takes an input of {rank + 2} axes, (samples, {'sizes' if rank > 1 else 'size'}, channels), "
        f"all but the first known, and not of shape {x.shape}",
    )
    return sizes[:-1]


def chunks(rows: int, nbytes_a_row: int, limit: int) -> list[slice]:
    """`rows` in pieces of at most `limit` bytes, but at least one row; one empty piece of none."""
    step = max(1, limit // max(1, nbytes_a_row))
    starts = range(0, max(rows, 1), step)
    return list(itertools.starmap(slice, itertools.pairwise([*starts, rows])))


def check_channels_last(what: str, data_format: str | None) -> None:
    """ConfigurationError for any other order of axes."""
    check(
        data_format in (None, "channels_last"),
        f"{what}: data_format {data_format!r} is not supported: use 'channels_last'",
    )
