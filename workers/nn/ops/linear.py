"""Products of matrices, and the dense layer as one operation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import activations
from workers.nn.ops import attributes as kinds
from workers.nn.ops.activation import Fused
from workers.nn.ops.base import Op, Run, Site, apply, broadcast, register, same_dtype, together, unbroadcast
from workers.nn.ops.shapes import expand_dims, squeeze
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


@register
class Dense(Op):
    """activation(x @ kernel + bias) over the last axis; product, bias and activation in one workspace.

    Operands: x (..., D), kernel (D, U) and, if it has one, bias (U,). Attribute "activation": the name of one
    in `workers.nn.activations`.
    """

    name = "dense"
    arity = (2, 3)
    attributes: ClassVar = {"activation": kinds.text}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, kernel = inputs[:2]
        activations.fused(attrs["activation"])
        if len(kernel.shape) != 2 or any(bias.shape != kernel.shape[1:] for bias in inputs[2:]):
            raise ConfigurationError(
                f"dense: shapes {' and '.join(str(each.shape) for each in inputs[1:])} are no kernel and bias"
            )
        if not x.shape or x.shape[-1] != kernel.shape[0]:
            raise ConfigurationError(
                f"an input of shape {x.shape} does not fit a kernel of shape {kernel.shape}"
            )
        return Spec((*x.shape[:-1], kernel.shape[1]), same_dtype(*inputs))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        units = site.inputs[1].shape[1] or 0
        self._y = site.empty()
        self._y_NU = self._y.reshape(math.prod(self._y.shape[:-1]), units)
        self._activation = Fused(site, self._y_NU, site.attrs["activation"])
        self._dx = site.like(0) if site.needs[0] else None
        self._x_ND = self._kernel = self._y_NU  # of the last forward; any array until then

    def forward(self, run: Run, *inputs: Array) -> Array:
        x, self._kernel = inputs[:2]
        y_NU = self._y_NU
        self._x_ND = x_ND = x.reshape(len(y_NU), x.shape[-1])
        np.matmul(x_ND, self._kernel, out=y_NU)
        if len(inputs) > 2:
            y_NU += inputs[2]
        self._activation.forward()
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        site = self.site
        dz_NU = dy.reshape(self._y_NU.shape)
        self._activation.backward(dz_NU)
        gradients: list[Array | None] = [None] * len(site.inputs)
        if site.needs[1]:
            gradients[1] = np.matmul(self._x_ND.T, dz_NU, out=into[1])
        if len(gradients) > 2 and site.needs[2]:
            gradients[2] = dz_NU.sum(axis=0, out=into[2])
        if self._dx is not None:
            dx = self._dx if into[0] is None else into[0]
            np.matmul(dz_NU, self._kernel.T, out=dx.reshape(self._x_ND.shape))
            gradients[0] = dx
        return gradients


@register
class Matmul(Op):
    """a @ b for two axes or more, the leading ones broadcast."""

    name = "matmul"
    arity = (2, 2)

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        a, b = inputs
        if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[-2]:
            raise ConfigurationError(f"matmul: shapes {a.shape} and {b.shape} do not go together")
        leading = broadcast(a.shape[:-2], b.shape[:-2])
        return Spec((*leading, a.shape[-2], b.shape[-1]), same_dtype(a, b))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        self._a = self._b = self._y

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._a, self._b = inputs
        return np.matmul(self._a, self._b, out=self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        (a, b), (needs_a, needs_b) = self.site.inputs, self.site.needs
        da = db = None
        if needs_a:
            da = unbroadcast(np.matmul(dy, self._b.swapaxes(-1, -2)), a.shape, into[0])
        if needs_b:
            db = unbroadcast(np.matmul(self._a.swapaxes(-1, -2), dy), b.shape, into[1])
        return [da, db]


def dense(x: Any, kernel: Any, bias: Any = None, activation: Any = None) -> Any:
    """activation(x @ kernel + bias), as one operation where the activation is one of Keras's."""
    chosen = activations.get(activation)
    fused = activations.fused_name(chosen)
    operands = together(x, kernel) if bias is None else together(x, kernel, bias)
    y = apply("dense", *operands, activation=fused or "linear")
    return y if fused else chosen(y)


def matmul(x1: Any, x2: Any) -> Any:
    """x1 @ x2: over the last axis of x1 and the last but one of x2; the leading axes are broadcast."""
    a, b = together(x1, x2)
    ndims = len(a.spec.shape), len(b.spec.shape)
    if 0 in ndims:
        raise ConfigurationError(f"matmul: shapes {a.spec.shape} and {b.spec.shape} do not go together")
    if ndims[0] == 1:
        a = expand_dims(a, 0)
    if ndims[1] == 1:
        b = expand_dims(b, 1)
    # One product of two matrices is faster than one for each leading index.
    flat = len(b.spec.shape) == 2 and len(a.spec.shape) > 2 and None not in b.spec.shape
    y = apply("dense", a, b, activation="linear") if flat else apply("matmul", a, b)
    if ndims[1] == 1:
        y = squeeze(y, -1)
    return squeeze(y, -2 if ndims[1] > 1 else -1) if ndims[0] == 1 else y
