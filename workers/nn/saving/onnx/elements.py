"""Operations of elements, and reductions, as ONNX nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.ops.base import FLOATS, axes_of
from workers.nn.saving.onnx.functions import activate
from workers.nn.saving.onnx.writer import scalar_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from workers.nn.graph import Node
    from workers.nn.saving.onnx.writer import Operand, Writer

    Translation = Callable[[Writer, Node, Sequence[Operand]], str | Sequence[str]]

_SAME = {
    "negative": "Neg",
    "absolute": "Abs",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "exp": "Exp",
    "log": "Log",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "arctan": "Atan",
    "erf": "Erf",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "isnan": "IsNaN",
    "isinf": "IsInf",
    "identity": "Identity",
    "stop_gradient": "Identity",
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "power": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "where": "Where",
    "matmul": "MatMul",
    "equal": "Equal",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
}
"""Operations that ONNX has under another name, and nothing else to say about."""


def _same(op: str) -> Translation:
    return lambda w, node, x: w(op, *x)


def _square(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Mul", x[0], x[0])


def _rsqrt(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Reciprocal", w("Sqrt", x[0]))


def _expm1(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Sub", w("Exp", x[0]), 1, dtype=x[0].spec.dtype)


def _log1p(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Log", w("Add", x[0], 1, dtype=x[0].spec.dtype))


def _isfinite(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Not", w("Or", w("IsNaN", x[0]), w("IsInf", x[0])))


def _as_bool(w: Writer, x: Operand) -> str:
    return x.name if x.spec.dtype == "bool" else w("Cast", x, to=scalar_type("bool"))


def _not(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Not", _as_bool(w, x[0]))


def _logical(op: str) -> Translation:
    return lambda w, node, x: w(op, *(_as_bool(w, each) for each in x))


def _not_equal(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Not", w("Equal", *x))


def _mod(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    a, b = x
    if a.spec.dtype not in FLOATS:
        return w("Mod", a, b)  # of whole numbers it has the sign of b, too
    return w("Sub", a, w("Mul", b, w("Floor", w("Div", a, b))))


def _floor_divide(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    a, b = x
    if a.spec.dtype in FLOATS:
        return w("Floor", w("Div", a, b))
    return w("Div", w("Sub", a, w("Mod", a, b)), b)  # ONNX rounds towards 0


def _clip(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    bounds = (node.attrs["minimum"], node.attrs["maximum"])
    return w("Clip", x[0], *bounds, dtype=x[0].spec.dtype)


def _cast(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("Cast", x[0], to=scalar_type(node.attrs["dtype"]))


def _activation(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    arguments = node.attrs["arguments"]
    return activate(w, node.attrs["activation"], arguments, x[0].name, x[0].spec.dtype)


def _triangle(upper: int) -> Translation:
    return lambda w, node, x: w("Trilu", x[0], np.asarray(node.attrs["k"], np.int64), upper=upper)


def _full_like(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    value = np.asarray(node.attrs["value"]).astype(node.attrs["dtype"])
    return w("Expand", value, w.shape_of(x[0]))


def _one_hot(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    # Not OneHot: that counts negative numbers from the end.
    shape = [1] * len(node.outputs[0].shape)
    axis = node.attrs["axis"] % len(shape)
    shape[axis] = node.attrs["num_classes"]
    places = w("Unsqueeze", w("Cast", x[0], to=scalar_type("int64")), w.ints(axis))
    hits = w("Equal", places, np.arange(shape[axis], dtype=np.int64).reshape(shape))
    return w("Cast", hits, to=scalar_type(node.attrs["dtype"]))


def _axes(attrs: Mapping[str, Any], x: Operand) -> tuple[int, ...]:
    return axes_of(attrs["axis"], x.ndim)


def _reduce(w: Writer, op: str, value: Operand | str, axes: Sequence[int], keepdims: bool) -> str:
    # Without axes, which only a scalar has, nothing is to be reduced: not everything.
    return w(op, value, w.ints(*axes), keepdims=int(keepdims), noop_with_empty_axes=1)


def _reduction(op: str) -> Translation:
    def translate(w: Writer, node: Node, x: Sequence[Operand]) -> str:
        return _reduce(w, op, x[0], _axes(node.attrs, x[0]), node.attrs["keepdims"])

    return translate


def _quantifier(op: str) -> Translation:
    def translate(w: Writer, node: Node, x: Sequence[Operand]) -> str:
        counted = w("Cast", _as_bool(w, x[0]), to=scalar_type("int32"))
        found = _reduce(w, op, counted, _axes(node.attrs, x[0]), node.attrs["keepdims"])
        return w("Cast", found, to=scalar_type("bool"))

    return translate


def _var(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    axes = _axes(node.attrs, x[0])
    centred = w("Sub", x[0], _reduce(w, "ReduceMean", x[0], axes, True))
    return _reduce(w, "ReduceMean", w("Mul", centred, centred), axes, node.attrs["keepdims"])


def _extreme_place(op: str) -> Translation:
    def translate(w: Writer, node: Node, x: Sequence[Operand]) -> str:
        axis, keepdims = node.attrs["axis"], node.attrs["keepdims"]
        value = x[0].name
        if axis is None:
            value = w("Reshape", value, w.ints(-1))
        found = w(op, value, axis=axis or 0, keepdims=int(keepdims and axis is not None))
        if axis is None and keepdims:
            found = w("Reshape", found, w.ints(*[1] * x[0].ndim))
        return w("Cast", found, to=scalar_type("int32"))

    return translate


def _cumsum(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    return w("CumSum", x[0], np.asarray(node.attrs["axis"], np.int64))


def _ordered(w: Writer, x: Operand, axis: int, count: str, *, largest: bool) -> list[str]:
    """The values, and their places as int32; of equal ones the first comes first, in ONNX, too."""
    values, places = w.several("TopK", 2, x, count, axis=axis, largest=int(largest), sorted=1)
    return [values, w("Cast", places, to=scalar_type("int32"))]


def _along(place: int) -> Translation:
    def translate(w: Writer, node: Node, x: Sequence[Operand]) -> str:
        axis = node.attrs["axis"] % x[0].ndim
        return _ordered(w, x[0], axis, w.shape_of(x[0], [axis]), largest=False)[place]

    return translate


def _top_k(w: Writer, node: Node, x: Sequence[Operand]) -> list[str]:
    return _ordered(w, x[0], -1, w.ints(node.attrs["k"]), largest=True)


TRANSLATIONS: dict[str, Translation] = {
    **{ours: _same(theirs) for ours, theirs in _SAME.items()},
    "square": _square,
    "rsqrt": _rsqrt,
    "expm1": _expm1,
    "log1p": _log1p,
    "isfinite": _isfinite,
    "logical_not": _not,
    "logical_and": _logical("And"),
    "logical_or": _logical("Or"),
    "logical_xor": _logical("Xor"),
    "not_equal": _not_equal,
    "mod": _mod,
    "floor_divide": _floor_divide,
    "clip": _clip,
    "cast": _cast,
    "activation": _activation,
    "tril": _triangle(0),
    "triu": _triangle(1),
    "full_like": _full_like,
    "one_hot": _one_hot,
    "sum": _reduction("ReduceSum"),
    "mean": _reduction("ReduceMean"),
    "max": _reduction("ReduceMax"),
    "min": _reduction("ReduceMin"),
    "prod": _reduction("ReduceProd"),
    "logsumexp": _reduction("ReduceLogSumExp"),
    "any": _quantifier("ReduceMax"),
    "all": _quantifier("ReduceMin"),
    "var": _var,
    "argmax": _extreme_place("ArgMax"),
    "argmin": _extreme_place("ArgMin"),
    "cumsum": _cumsum,
    "sort": _along(0),
    "argsort": _along(1),
    "top_k": _top_k,
}
