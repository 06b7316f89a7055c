"""Operations that move, cut, join and pick elements, as ONNX nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workers.nn.ops.base import axes_of
from workers.nn.saving.onnx.writer import Refused, scalar_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.nn.graph import Node
    from workers.nn.saving.onnx.elements import Translation
    from workers.nn.saving.onnx.writer import Operand, Writer

_FIRST, _LAST = -(2**63), 2**63 - 1
"""Beyond either end of any axis."""


def _reshape(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    shape = node.attrs["shape"]
    if 0 in shape:
        if None in shape:
            raise Refused(f"the shape {shape} has both 0 and null")
        return w("Reshape", x[0], w.ints(*shape), allowzero=1)
    return w("Reshape", x[0], w.ints(*(0 if n is None else n for n in shape)))  # 0: as it is there


def _expand_dims(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Unsqueeze", x[0], w.ints(*axes_of(node.attrs["axis"], len(node.outputs[0].shape))))


def _squeeze(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    axis = node.attrs["axis"]
    axes = [i for i, n in enumerate(x[0].spec.shape) if n == 1] if axis is None else axes_of(axis, x[0].ndim)
    return w("Squeeze", x[0], w.ints(*axes)) if axes else w("Identity", x[0])


def _transpose(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Transpose", x[0], perm=[i % x[0].ndim for i in node.attrs["axes"]])


def _broadcast_to(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Expand", x[0], w.ints(*(1 if n is None else n for n in node.attrs["shape"])))


def _concatenate(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Concat", *x, axis=node.attrs["axis"])


def _stack(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    axis = node.attrs["axis"] % len(node.outputs[0].shape)
    return w("Concat", *(w("Unsqueeze", each, w.ints(axis)) for each in x), axis=axis)


def _split(w: Writer, node: Node, x: Sequence[Operand]) -> list[str]:
    axis = node.attrs["axis"] % x[0].ndim
    lengths = [each.shape[axis] or 0 for each in node.outputs]
    return w.several("Split", len(lengths), x[0], w.ints(*lengths), axis=axis)


def _unstack(w: Writer, node: Node, x: Sequence[Operand]) -> list[str]:
    axis = node.attrs["axis"] % x[0].ndim
    return [w("Gather", x[0], np.asarray(i, np.int64), axis=axis) for i in range(len(node.outputs))]


def _pad(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    before, behind = zip(*node.attrs["pad_width"], strict=True)
    return w("Pad", x[0], w.ints(*before, *behind), node.attrs["value"], dtype=x[0].spec.dtype)


def sliced(w: Writer, x: Operand | str, axis: int, start: int, stop: int, step: int = 1) -> str:
    """In place. A part of an axis."""
    return w("Slice", x, w.ints(start), w.ints(stop), w.ints(axis), w.ints(step))


def _flip(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return sliced(w, x[0], node.attrs["axis"] % x[0].ndim, _LAST, _FIRST, -1)


def _roll(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    axis = node.attrs["axis"] % x[0].ndim
    length = x[0].spec.shape[axis]
    if length is None:
        raise Refused(f"the length of axis {axis}, which it turns round, is not known")
    shift = node.attrs["shift"] % max(length, 1)
    if not shift:
        return w("Identity", x[0])
    parts = [sliced(w, x[0], axis, length - shift, _LAST), sliced(w, x[0], axis, 0, length - shift)]
    return w("Concat", *parts, axis=axis)


def _repeat(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    axis, repeats = node.attrs["axis"] % x[0].ndim, node.attrs["repeats"]
    ones = [1] * (x[0].ndim + 1)
    ones[axis + 1] = repeats
    apart = w("Expand", w("Unsqueeze", x[0], w.ints(axis + 1)), w.ints(*ones))
    shape = x[0].spec.shape
    before, length, behind = shape[:axis], shape[axis], shape[axis + 1 :]
    if None in behind:
        raise Refused(f"the lengths of the axes behind {axis} are not known")
    if length is not None and repeats and length:
        known = [n or 0 for n in behind]  # a 0 in front stands for what is there
        return w("Reshape", apart, w.ints(*(0 if n is None else n for n in before), length * repeats, *known))
    if None in before or not repeats:
        raise Refused(f"the lengths of its axes are not known: {shape}")
    return w("Reshape", apart, w.ints(*(n or 0 for n in before), -1, *(n or 0 for n in behind)))


def _tile(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Tile", x[0], w.ints(*node.attrs["repeats"]))


def _getitem(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    key = list(node.attrs["key"])
    if "..." not in key:
        key.append("...")
    left = x[0].ndim - sum(each is not None and each != "..." for each in key)
    slices: list[tuple[int, int, int, int]] = []  # axis, start, stop, step
    numbers: list[tuple[int, int]] = []  # axis, place
    new: list[int] = []
    axis = result = 0
    for each in key:
        if each is None:
            new.append(result)
            result += 1
        elif each == "...":
            axis, result = axis + left, result + left
        elif isinstance(each, list):
            if (part := _bounds(each)) != (0, _LAST, 1):
                slices.append((axis, *part))
            axis, result = axis + 1, result + 1
        else:
            numbers.append((axis, each))
            axis += 1
    value = x[0].name
    if slices:
        axes, starts, stops, steps = zip(*slices, strict=True)
        value = w("Slice", value, w.ints(*starts), w.ints(*stops), w.ints(*axes), w.ints(*steps))
    for axis, place in reversed(numbers):
        value = w("Gather", value, np.asarray(place, np.int64), axis=axis)
    return w("Unsqueeze", value, w.ints(*new)) if new else w("Identity", value)


def _bounds(part: Sequence[int | None]) -> tuple[int, int, int]:
    """A slice with all its numbers."""
    start, stop, step = part
    step = 1 if step is None else step
    ends = (0, _LAST) if step > 0 else (_LAST, _FIRST)
    return ends[0] if start is None else start, ends[1] if stop is None else stop, step


def _places(w: Writer, x: Operand) -> str:
    """Whole numbers as ONNX takes them."""
    return x.name if x.spec.dtype in ("int32", "int64") else w("Cast", x, to=scalar_type("int64"))


def _take(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Gather", x[0], _places(w, x[1]), axis=node.attrs["axis"] % x[0].ndim)


def _take_along_axis(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("GatherElements", x[0], _places(w, x[1]), axis=node.attrs["axis"] % x[0].ndim)


def _embedding(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Gather", x[1], _places(w, x[0]), axis=0)


def _einsum(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Einsum", *x, equation=node.attrs["subscripts"])


TRANSLATIONS: dict[str, Translation] = {
    "reshape": _reshape,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "unstack": _unstack,
    "pad": _pad,
    "flip": _flip,
    "roll": _roll,
    "repeat": _repeat,
    "tile": _tile,
    "getitem": _getitem,
    "take": _take,
    "take_along_axis": _take_along_axis,
    "embedding": _embedding,
    "einsum": _einsum,
}
