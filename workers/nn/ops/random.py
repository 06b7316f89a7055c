"""Operations that draw random numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, broadcast, register

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array
    from workers.nn.tensor import Spec


@register
class Dropout(Op):
    """x / (1 - rate) where u < 1 - rate, else 0, for uniform u. Attributes "rate", "noise_shape"."""

    name = "dropout"
    random = True
    attributes: ClassVar = {"rate": kinds.number, "noise_shape": kinds.optional(kinds.dims)}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        noise_shape = attrs["noise_shape"]
        if not 0 <= attrs["rate"] <= 1:
            raise ConfigurationError(f"dropout: rate {attrs['rate']} is not from 0 to 1")
        if noise_shape is not None and broadcast(inputs[0].shape, noise_shape) != inputs[0].shape:
            raise ConfigurationError(f"dropout: noise_shape {noise_shape} does not fit {inputs[0].shape}")
        return inputs[0]

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        rate = site.attrs["rate"]
        self._keep = np.float32(1 - rate)
        self._scale = 1 / (1 - rate) if rate < 1 else 0.0
        shape = site.inputs[0].shape
        noise = site.attrs["noise_shape"] or [None] * len(shape)
        # Drawn as float32 whatever the model's dtype, so that the mask is the same.
        self._mask = site.workspace(
            [n if m is None else m for n, m in zip(shape, noise, strict=True)], "float32"
        )
        self._y = site.empty()

    def forward(self, run: Run, *inputs: Array) -> Array:
        assert run.streams is not None
        mask = self._mask
        run.streams.generator(self.site.attrs.get("stream", 0)).random(out=mask, dtype=np.float32)
        np.less(mask, self._keep, out=mask)
        mask *= self._scale
        return np.multiply(inputs[0], mask, out=self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        return [np.multiply(dy, self._mask, out=dy if into[0] is None else into[0])]


def dropout(x: Any, rate: float, noise_shape: Any = None) -> Any:
    """x with a share `rate` of it dropped, and the rest scaled up."""
    return apply(
        "dropout", x, rate=float(rate), noise_shape=None if noise_shape is None else list(noise_shape)
    )
