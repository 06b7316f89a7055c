"""The operations that are whole layers, as ONNX nodes.

ONNX has channels first, so arrays are turned round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.ops.windows import Windows
from workers.nn.saving.onnx.functions import activate
from workers.nn.saving.onnx.writer import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from workers.nn.graph import Node
    from workers.nn.saving.onnx.elements import Translation
    from workers.nn.saving.onnx.writer import Operand, Writer

_MASKED = -1e9
"""As in `workers.nn.ops.attention`."""


def _dense(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    y = w("MatMul", x[0], x[1])
    return _biased(w, node, y, x[2:])


def _biased(w: Writer, node: Node, y: str, bias: Sequence[Operand]) -> str:
    if bias:
        y = w("Add", y, bias[0])
    return activate(w, node.attrs["activation"], {}, y, node.outputs[0].dtype)


def _channels_first(w: Writer, x: Operand) -> str:
    return w("Transpose", x, perm=[0, x.ndim - 1, *range(1, x.ndim - 1)])


def _channels_last(w: Writer, y: str, ndim: int) -> str:
    return w("Transpose", y, perm=[0, *range(2, ndim), 1])


def _kernel_first(w: Writer, kernel: Operand | str, ndim: int, last: Sequence[int]) -> str:
    """A kernel with the axes `last` in front of the spatial ones."""
    return w("Transpose", kernel, perm=[*last, *range(ndim - 2)])


def _geometry(attrs: Mapping[str, Any], windows: Windows) -> dict[str, Any]:
    return {
        "kernel_shape": windows.kernel,
        "strides": windows.strides,
        "pads": [*windows.before, *windows.after],
        **({"dilations": windows.dilation} if "dilation" in attrs else {}),
    }


def _over(attrs: Mapping[str, Any], x: Sequence[int | None], kernel: Sequence[int]) -> Windows:
    size = [n or 0 for n in x[1:-1]]
    dilation = attrs.get("dilation", [1] * len(size))
    return Windows.over(size, kernel, attrs["strides"], attrs["padding"], dilation)


def _conv(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    kernel, ndim = x[1].spec.dims, x[0].ndim
    windows = _over(node.attrs, x[0].spec.shape, kernel[:-2])
    y = w(
        "Conv",
        _channels_first(w, x[0]),
        _kernel_first(w, x[1], ndim, [ndim - 1, ndim - 2]),
        group=(x[0].spec.shape[-1] or 0) // kernel[-2],
        **_geometry(node.attrs, windows),
    )
    return _biased(w, node, _channels_last(w, y, ndim), x[2:])


def _depthwise_conv(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    *size, channels, multiple = x[1].spec.dims
    ndim = x[0].ndim
    windows = _over(node.attrs, x[0].spec.shape, size)
    kernel = w("Reshape", x[1], w.ints(*size, 1, channels * multiple))
    y = w(
        "Conv",
        _channels_first(w, x[0]),
        _kernel_first(w, kernel, ndim, [ndim - 1, ndim - 2]),
        group=channels,
        **_geometry(node.attrs, windows),
    )
    return _biased(w, node, _channels_last(w, y, ndim), x[2:])


def _conv_transpose(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    ndim = x[0].ndim
    windows = _over(node.attrs, node.outputs[0].shape, x[1].spec.dims[:-2])
    geometry = _geometry(node.attrs, windows)
    # What no window reaches, behind the last one.
    geometry["output_padding"] = [
        n + before + after - (stride * (count - 1) + (k - 1) * d + 1)
        for n, before, after, stride, count, k, d in zip(
            windows.size,
            windows.before,
            windows.after,
            windows.strides,
            windows.count,
            windows.kernel,
            windows.dilation,
            strict=True,
        )
    ]
    kernel = _kernel_first(w, x[1], ndim, [ndim - 1, ndim - 2])
    y = w("ConvTranspose", _channels_first(w, x[0]), kernel, **geometry)
    return _biased(w, node, _channels_last(w, y, ndim), x[2:])


def _pool(op: str, **attrs: Any) -> Callable[..., str]:
    def translate(w: Writer, node: Node, x: Sequence[Operand]) -> str:
        windows = _over(node.attrs, x[0].spec.shape, node.attrs["pool_size"])
        y = w(op, _channels_first(w, x[0]), **_geometry(node.attrs, windows), **attrs)
        return _channels_last(w, y, x[0].ndim)

    return translate


def _affine(attrs: Mapping[str, Any], rest: Sequence[Operand]) -> tuple[Operand | None, Operand | None]:
    """gamma and beta, of those that are there."""
    found = iter(rest)
    return next(found) if attrs["scale"] else None, next(found) if attrs["center"] else None


def _batch_normalization(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    value, mean, variance = x[:3]
    gamma, beta = _affine(node.attrs, x[3:])
    dtype = value.spec.dtype
    factor = w("Reciprocal", w("Sqrt", w("Add", variance, node.attrs["epsilon"], dtype=dtype)))
    if gamma is not None:
        factor = w("Mul", factor, gamma)
    offset = w("Mul", mean, factor)
    offset = w("Neg", offset) if beta is None else w("Sub", beta, offset)
    return w("Add", w("Mul", value, factor), offset)


def _layer_normalization(w: Writer, node: Node, x: Sequence[Operand]) -> str:
    value, attrs = x[0], node.attrs
    gamma, beta = _affine(attrs, x[1:])
    dtype, axes = value.spec.dtype, range(-attrs["axes"], 0)
    centred = value.name
    if not attrs["rms"]:
        centred = w("Sub", value, w("ReduceMean", value, w.ints(*axes)))
    variance = w("ReduceMean", w("Mul", centred, centred), w.ints(*axes))
    y = w("Div", centred, w("Sqrt", w("Add", variance, attrs["epsilon"], dtype=dtype)))
    if gamma is not None:
        y = w("Mul", y, gamma)
    return y if beta is None else w("Add", y, beta)


def _attention(w: Writer, node: Node, x: Sequence[Operand]) -> list[str]:
    attrs, (q, k, v) = node.attrs, x[:3]
    if attrs["dropout"]:
        raise Refused("it drops scores at random")
    heads, dtype = attrs["num_heads"], q.spec.dtype

    def by_head(each: Operand, order: Sequence[int]) -> str:
        steps, features = each.spec.shape[1:]
        apart = w("Reshape", each, w.ints(0, steps or 0, heads, (features or 0) // heads))
        return w("Transpose", apart, perm=order)

    scores = w("MatMul", by_head(q, [0, 2, 1, 3]), by_head(k, [0, 2, 3, 1]))
    scores = w("Mul", scores, attrs["scale"], dtype=dtype)
    allowed: str | None = x[3].name if len(x) > 3 else None
    if attrs["causal"]:
        past = w.constant(np.tri(q.spec.shape[1] or 0, k.spec.shape[1] or 0, dtype=bool))
        allowed = past if allowed is None else w("And", allowed, past)
    if allowed is not None:
        scores = w("Where", allowed, scores, _MASKED, dtype=dtype)
    scores = w("Softmax", scores, axis=-1)
    found = w("Transpose", w("MatMul", scores, by_head(v, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    _, steps, features = node.outputs[0].shape
    return [w("Reshape", found, w.ints(0, steps or 0, features or 0)), scores]


TRANSLATIONS: dict[str, Translation] = {
    "dense": _dense,
    "conv": _conv,
    "depthwise_conv": _depthwise_conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _pool("MaxPool"),
    "average_pool": _pool("AveragePool", count_include_pad=0),
    "batch_normalization": _batch_normalization,
    "layer_normalization": _layer_normalization,
    "attention": _attention,
}
