"""Losses as operations: `Loss.__call__` on tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import losses  # used only when an operation runs: the two packages import each other
from workers.nn.losses.reduction import divisor_of, factors_of, total
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, register
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


@register
class LossOfPredictions(Op):
    """A loss of the library, reduced as it says.

    Operands: y_true, y_pred, and as the attributes "weighted" and "masked" say, sample weights and a mask.
    Attribute "loss": what `lookup.serialize` made of the loss. There is no gradient by y_true.
    """

    name = "loss"
    arity = (2, 4)
    attributes: ClassVar = {"loss": kinds.settings, "weighted": kinds.flag, "masked": kinds.flag}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        loss, y_pred = losses.get(attrs["loss"]), inputs[1]
        if loss.reduction != "none":
            return Spec((), y_pred.dtype)
        shape = loss.value_shape(y_pred.shape)
        return Spec(y_pred.shape[:1] if not shape and len(inputs) > 2 else shape, y_pred.dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.needs[0] and site.reused:
            raise ConfigurationError(
                "a loss has no gradient by y_true: give what is learned as y_pred, or write the loss with "
                "nn.ops"
            )
        self._loss = losses.get(site.attrs["loss"])
        self._grad = site.like(1) if site.needs[1] else None
        self._factors: Array | None = None
        self._divisor = 1.0

    def forward(self, run: Run, *inputs: Array) -> Array:
        y_true, y_pred = inputs[:2]
        sample_weight, mask = _weights(self.site, inputs)
        if self._loss.reduction == "none":
            found = self._loss.weighted(y_true, y_pred, sample_weight, mask)
            self._factors = found.factors
            if self._grad is not None:
                self._loss.values(y_true, y_pred, self._grad)
            return np.asarray(found.values)
        value, divisor = self._loss.sums(y_true, y_pred, sample_weight, self._grad, mask=mask)
        self._divisor = divisor or 1.0
        return np.asarray(value / self._divisor, y_pred.dtype)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        gradients: list[Array | None] = [None] * len(self.site.inputs)
        if self._grad is not None:
            if self._loss.reduction != "none":
                scale = dy / self._divisor
            else:
                dy = dy if self._factors is None else dy * self._factors
                is_one = not self._loss.value_shape(self.site.inputs[1].shape)
                scale = dy.sum() if is_one else self._loss.over_predictions(dy, self._grad.ndim)
            gradients[1] = np.multiply(self._grad, scale, out=into[1])
        return gradients


@register
class LossOfValues(Op):
    """The values of a loss of one's own, reduced.

    Operands: one value per sample, and as the attributes "weighted" and "masked" say, sample weights and a
    mask. Attribute "reduction": one of `losses.reduction.REDUCTIONS`.
    """

    name = "loss_reduction"
    arity = (1, 3)
    attributes: ClassVar = {"reduction": kinds.text, "weighted": kinds.flag, "masked": kinds.flag}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        if attrs["reduction"] == "none":
            return Spec(inputs[0].shape or (inputs[1].shape[:1] if len(inputs) > 1 else ()), inputs[0].dtype)
        return Spec((), inputs[0].dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._scale: Array = site.workspace((), site.inputs[0].dtype)

    def forward(self, run: Run, *inputs: Array) -> Array:
        values, reduction = inputs[0], self.site.attrs["reduction"]
        sample_weight, mask = _weights(self.site, (values, *inputs))
        shape = values.shape or (inputs[1].shape[:1] if len(inputs) > 1 else ())
        factors = factors_of(shape, values.dtype, sample_weight, mask)
        found = values if factors is None else values * factors
        divisor = 1.0
        if reduction != "none":
            divisor = divisor_of(shape, reduction, factors, mask, 1.0) or 1.0
            found = np.asarray(total(found) / divisor, values.dtype)
        self._scale = np.asarray((1.0 if factors is None else factors) / divisor, values.dtype)
        return np.array(found)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        gradients: list[Array | None] = [None] * len(self.site.inputs)
        shape: Any = self.site.inputs[0].shape
        scaled = np.asarray(dy * self._scale)
        gradient = np.broadcast_to(scaled, shape) if shape else np.asarray(scaled.sum())
        if into[0] is None:
            gradients[0] = np.array(gradient)
        else:
            into[0][...] = gradient
            gradients[0] = into[0]
        return gradients


def _weights(site: Site, inputs: Sequence[Array]) -> tuple[Array | None, Array | None]:
    """The sample weights and the mask among the operands behind the first two."""
    more = iter(inputs[2:])
    sample_weight = next(more) if site.attrs["weighted"] else None
    return sample_weight, next(more) if site.attrs["masked"] else None
