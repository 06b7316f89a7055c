"""Batch, layer and root-mean-square normalization, forwards and backwards in few passes over memory.

Sources: S. Ioffe, C. Szegedy, "Batch normalization", 2015; J. Lei Ba et al., "Layer normalization", 2016; B.
Zhang, R. Sennrich, "Root mean square layer normalization", 2019. Numbers as in Keras 3.

Legend: M positions of all samples, C channels; R rows that are normalized each by itself, D their elements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn.lookup import check
from workers.nn.ops import attributes as kinds
from workers.nn.ops.arithmetic import maximum
from workers.nn.ops.base import (
    Op,
    Run,
    Site,
    apply,
    axes_of,
    axis_of,
    deliver,
    register,
    same_dtype,
    together,
)
from workers.nn.ops.channels import ChannelSums, ChannelVector
from workers.nn.ops.reductions import norm
from workers.nn.ops.reductions import sum as reduce_sum
from workers.nn.ops.shapes import moveaxis, transpose
from workers.nn.ops.unary import rsqrt, square
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array
    from workers.nn.ops.attributes import Kind

_EPSILON = 1e-7
"""Keras's `backend.epsilon()`."""


class _Affine(Op):
    """Base of operations whose last operands are, where the attributes "scale" and "center" say so, gamma and
    beta."""

    attributes: ClassVar[Mapping[str, Kind]] = {
        "scale": kinds.flag,
        "center": kinds.flag,
        "epsilon": kinds.number,
    }
    least_axes: ClassVar[int] = 2

    @staticmethod
    def affine(attrs: Mapping[str, Any], given: Sequence[Any], first: int) -> tuple[Any, Any]:
        """Of what there is of each operand, that of gamma and beta; None for one that is not there."""
        rest = iter(given[first:])
        return next(rest) if attrs["scale"] else None, next(rest) if attrs["center"] else None

    @classmethod
    def like(cls, attrs: Mapping[str, Any], axes: int, x: Spec, *vectors: Spec) -> Spec:
        """The spec of x; ConfigurationError unless as many vectors as are wanted have its last axes."""
        shape = x.shape[len(x.shape) - axes :]
        known = 0 < axes <= len(x.shape) and all(shape) and len(x.shape) >= cls.least_axes
        check(known, f"{cls.name}: an input of shape {x.shape} has too few axes, or its last are unknown")
        wanted = cls.arity[0] - 1 + attrs["scale"] + attrs["center"]
        check(len(vectors) == wanted, f"{cls.name}: {len(vectors)} vectors, not {wanted}")
        for vector in vectors:
            check(
                vector.shape == shape,
                f"{cls.name}: an input of shape {x.shape} and a vector of shape {vector.shape} do not fit",
            )
        return Spec(x.shape, same_dtype(x, *vectors))


@register
class BatchNormalization(_Affine):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, by channel, which is the last axis.

    Operands: x (N, ..., C), mean, variance, gamma and beta (C,). Attributes: "scale" and "center" (whether
    gamma and beta are there), "epsilon".
    """

    name = "batch_normalization"
    arity = (3, 5)

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return cls.like(attrs, 1, *inputs)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        shape, dtype = self._y.shape, site.outputs[0].dtype
        self._factor, self._offset = ChannelVector(shape, dtype), ChannelVector(shape, dtype)
        self._sums = ChannelSums(shape, dtype)
        self._part = site.empty() if any(site.needs) else self._y
        self._x, self._mean, self._rstd, self._gamma = self._y, self._y, self._y, None

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._x, self._mean, variance = inputs[:3]
        self._gamma, beta = self.affine(self.site.attrs, inputs, 3)
        self._rstd = 1 / np.sqrt(variance + self._x.dtype.type(self.site.attrs["epsilon"]))
        factor = self._scaled(self._rstd)
        offset = -self._mean * factor if beta is None else beta - self._mean * factor
        y, rows = self._factor.rows(self._y), self._factor.rows(self._x)
        np.multiply(rows, self._factor.of(factor), out=y)
        y += self._offset.of(offset)
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        site, rstd = self.site, self._rstd
        dy = np.ascontiguousarray(dy)
        gradients: list[Array | None] = [None] * len(site.inputs)
        if any(site.needs[1:]):
            part = self._factor.rows(self._part)
            np.subtract(self._factor.rows(self._x), self._offset.of(self._mean), out=part)
            part *= self._factor.rows(dy)
            dgamma, dbeta = self._sums.of(self._part) * rstd, self._sums.of(dy)
            found: list[Any] = [None, -self._scaled(rstd * dbeta), -0.5 * self._scaled(rstd * rstd * dgamma)]
            found += [each for each, name in ((dgamma, "scale"), (dbeta, "center")) if site.attrs[name]]
            for i in range(1, len(found)):
                gradients[i] = deliver(found[i], into[i]) if site.needs[i] else None
        if site.needs[0]:
            dx = dy if into[0] is None else into[0]
            rows = self._factor.rows
            np.multiply(rows(dy), self._factor.of(self._scaled(rstd)), out=rows(dx))
            gradients[0] = dx
        return gradients

    def _scaled(self, vector: Array) -> Array:
        return vector if self._gamma is None else vector * self._gamma


@register
class BatchNormalizationTraining(_Affine):
    """The same by the mean and the (biased) variance of x itself over all but the last axis.

    Operands: x (N, ..., C), gamma and beta (C,). Gives y, mean and variance (C,).
    """

    name = "batch_normalization_training"
    arity = (1, 3)

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        y = cls.like(attrs, 1, *inputs)
        return y, Spec(y.shape[-1:], y.dtype), Spec(y.shape[-1:], y.dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y, self._mean, self._variance = (site.empty(i) for i in range(3))
        shape, dtype = self._y.shape, site.outputs[0].dtype
        self._size = max(1, math.prod(shape[:-1]))
        self._first, self._second = ChannelVector(shape, dtype), ChannelVector(shape, dtype)
        self._sums = ChannelSums(shape, dtype)
        self._centered = site.empty()
        self._part = self._y if site.reused else site.empty()
        self._factor = self._rstd = self._mean

    def forward(self, run: Run, *inputs: Array) -> tuple[Array, ...]:
        gamma, beta = self.affine(self.site.attrs, inputs, 1)
        rows = self._first.rows
        self._sums.of(inputs[0], self._mean)
        self._mean /= self._size
        centered, y = rows(self._centered), rows(self._y)
        np.subtract(rows(inputs[0]), self._first.of(self._mean), out=centered)
        np.multiply(centered, centered, out=y)
        self._sums.of(self._y, self._variance)
        self._variance /= self._size
        self._rstd = 1 / np.sqrt(self._variance + self._y.dtype.type(self.site.attrs["epsilon"]))
        self._factor = self._rstd if gamma is None else self._rstd * gamma
        np.multiply(centered, self._first.of(self._factor), out=y)
        if beta is not None:
            y += self._second.of(beta)
        return self._y, self._mean, self._variance

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        site, rows = self.site, self._first.rows
        dy, dmean, dvariance = dy
        dy = np.zeros_like(self._y) if dy is None else np.ascontiguousarray(dy)
        part, centered = rows(self._part), rows(self._centered)
        np.multiply(rows(dy), centered, out=part)
        dgamma, dbeta = self._sums.of(self._part) * self._rstd, self._sums.of(dy)
        gradients: list[Array | None] = [None] * len(site.inputs)
        found = [each for each, name in ((dgamma, "scale"), (dbeta, "center")) if site.attrs[name]]
        for i, each in enumerate(found, 1):
            gradients[i] = deliver(each, into[i]) if site.needs[i] else None
        if site.needs[0]:
            # dx = factor * dy + slope * centered + shift, where mean and variance depend on x
            slope = -self._factor * self._rstd * dgamma
            shift = -self._factor * dbeta
            if dvariance is not None:
                slope += 2 * dvariance
            if dmean is not None:
                shift += dmean
            dx = dy if into[0] is None else into[0]
            np.multiply(rows(dy), self._first.of(self._factor), out=rows(dx))
            np.multiply(centered, self._second.of(slope / self._size), out=part)
            part += self._first.of(shift / self._size)
            rows(dx)[...] += part
            gradients[0] = dx
        return gradients


@register
class LayerNormalization(_Affine):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, by the mean and variance over the last axes.

    Operands: x, gamma and beta, of the shape of these axes. Attributes: "axes", how many they are; "scale",
    "center", "epsilon"; "rms": nothing is subtracted, and the variance is about 0.
    """

    name = "layer_normalization"
    arity = (1, 3)
    attributes: ClassVar = {**_Affine.attributes, "axes": kinds.count, "rms": kinds.flag}
    least_axes = 1

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return cls.like(attrs, attrs["axes"], *inputs)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y, self._normalized = site.empty(), site.empty()
        size = math.prod(self._y.shape[self._y.ndim - site.attrs["axes"] :])
        self._shape = (math.prod(self._y.shape) // size, size)
        self._part = self._y if site.reused else site.empty()
        self._ones = np.ones(size, self._y.dtype)
        self._sums = ChannelSums(self._shape, site.outputs[0].dtype)
        self._gamma: Array | None = None
        self._rstd = self._ones

    def forward(self, run: Run, *inputs: Array) -> Array:
        attrs, size = self.site.attrs, self._shape[1]
        self._gamma, beta = self.affine(attrs, inputs, 1)
        x, y, normalized = (a.reshape(self._shape) for a in (inputs[0], self._y, self._normalized))
        if not attrs["rms"]:
            mean = np.matmul(x, self._ones)
            mean /= size
            x = np.subtract(x, mean[:, None], out=normalized)
        variance = np.einsum("rd,rd->r", x, x)
        variance /= size
        variance += attrs["epsilon"]
        self._rstd = 1 / np.sqrt(variance)
        np.multiply(x, self._rstd[:, None], out=normalized)
        if self._gamma is None:
            np.copyto(y, normalized)
        else:
            np.multiply(normalized, self._gamma.reshape(-1), out=y)
        if beta is not None:
            y += beta.reshape(-1)
        return self._y

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        site, size = self.site, self._shape[1]
        dy_RD, part = dy.reshape(self._shape), self._part.reshape(self._shape)
        normalized = self._normalized.reshape(self._shape)
        gradients: list[Array | None] = [None] * len(site.inputs)
        needs_gamma, needs_beta = self.affine(site.attrs, site.needs, 1)
        if needs_gamma:
            np.multiply(dy_RD, normalized, out=part)
            gradients[1] = deliver(self._sums.of(part).reshape(site.inputs[1].dims), into[1])
        if needs_beta:
            gradients[-1] = deliver(self._sums.of(dy_RD).reshape(site.inputs[-1].dims), into[-1])
        if site.needs[0]:
            dx = dy_RD
            if self._gamma is not None:
                dx *= self._gamma.reshape(-1)
            slope = np.einsum("rd,rd->r", dx, normalized)
            slope /= size
            np.multiply(normalized, slope[:, None], out=part)
            if not site.attrs["rms"]:
                shift = np.matmul(dx, self._ones)
                shift /= size
                dx -= shift[:, None]
            dx -= part
            dx *= self._rstd[:, None]
            gradients[0] = deliver(dx.reshape(self._y.shape), into[0])
        return gradients


def batch_normalization(
    x: Any, mean: Any, variance: Any, axis: int, offset: Any = None, scale: Any = None, epsilon: float = 1e-3
) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset, with a number of each along `axis`."""
    (y,) = _by_channel("batch_normalization", x, [mean, variance], axis, offset, scale, epsilon)
    return y


def normalize_batch(
    x: Any, axis: int = -1, offset: Any = None, scale: Any = None, epsilon: float = 1e-3
) -> tuple[Any, Any, Any]:
    """`batch_normalization` by the mean and (biased) variance of x over all axes but one, and these two."""
    y, mean, variance = _by_channel("batch_normalization_training", x, [], axis, offset, scale, epsilon)
    return y, mean, variance


def _by_channel(
    name: str, x: Any, moments: list[Any], axis: int, offset: Any, scale: Any, epsilon: float
) -> list[Any]:
    """What the operation gives; the first is of the shape of x."""
    given = [each for each in (scale, offset) if each is not None]
    x, *vectors = together(x, *moments, *given)
    is_last = axis_of(axis, len(x.spec.shape)) == len(x.spec.shape) - 1
    attrs = {"scale": scale is not None, "center": offset is not None, "epsilon": float(epsilon)}
    found = apply(name, x if is_last else moveaxis(x, axis, -1), *vectors, **attrs)
    y, *rest = found if isinstance(found, tuple) else (found,)
    return [y if is_last else moveaxis(y, -1, axis), *rest]


def layer_normalization(
    x: Any, gamma: Any = None, beta: Any = None, axis: Any = -1, epsilon: float | None = None
) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, by the moments over `axis`, an int or several.

    gamma and beta have the shape of these axes; `epsilon` None means 1e-7.
    """
    return _over_axes(x, gamma, beta, axis, epsilon, rms=False)


def rms_normalization(x: Any, scale: Any = None, axis: Any = -1, epsilon: float | None = None) -> Any:
    """x / sqrt(mean of squares + epsilon) * scale, over `axis`, an int or several.

    `epsilon` None means 1e-7.
    """
    return _over_axes(x, scale, None, axis, epsilon, rms=True)


def _over_axes(x: Any, gamma: Any, beta: Any, axis: Any, epsilon: float | None, *, rms: bool) -> Any:
    given = [each for each in (gamma, beta) if each is not None]
    x, *vectors = together(x, *given)
    ndim = len(x.spec.shape)
    axes = axes_of(axis, ndim)
    check(len(axes) > 0, "normalization: give at least one axis")
    order = [i for i in range(ndim) if i not in axes] + list(axes)
    attrs = {
        "axes": len(axes),
        "scale": gamma is not None,
        "center": beta is not None,
        "epsilon": _EPSILON if epsilon is None else float(epsilon),
        "rms": rms,
    }
    if order == sorted(order):
        return apply("layer_normalization", x, *vectors, **attrs)
    y = apply("layer_normalization", transpose(x, order), *vectors, **attrs)
    return transpose(y, [order.index(i) for i in range(ndim)])


def normalize(x: Any, axis: Any = -1, order: int = 2, epsilon: float | None = None) -> Any:
    """x / max(norm, epsilon), the norm of that order over `axis`; `epsilon` None means 1e-7."""
    least = _EPSILON if epsilon is None else float(epsilon)
    (x,) = together(x)
    if order == 2:  # so that zeros have a gradient
        total = reduce_sum(square(x), axis=axis, keepdims=True)
        return x * rsqrt(maximum(total, least * least))
    return x / maximum(norm(x, ord=order, axis=axis, keepdims=True), least)
