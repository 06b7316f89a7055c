"""Normal random numbers in the shape of a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.nn.numerics import Array
    from workers.nn.tensor import Spec


@register
class NormalLike(Op):
    """Draws from a normal distribution, one for each element of x. Attributes "mean", "stddev"."""

    name = "normal_like"
    differentiable = False
    random = True
    attributes: ClassVar = {"mean": kinds.number, "stddev": kinds.number}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        return inputs[0]

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._y = site.empty()
        # Drawn as float32 whatever the model's dtype, so that the numbers are the same.
        self._draws = self._y if self._y.dtype == np.float32 else site.workspace(self._y.shape, "float32")

    def forward(self, run: Run, *inputs: Array) -> Array:
        assert run.streams is not None
        generator = run.streams.generator(self.site.attrs.get("stream", 0))
        generator.standard_normal(out=self._draws, dtype=np.float32)
        np.multiply(self._draws, self.site.attrs["stddev"], out=self._y)
        self._y += self.site.attrs["mean"]
        return self._y


def normal_like(x: Any, mean: float = 0.0, stddev: float = 1.0) -> Any:
    """Normal random numbers in the shape of x. They have no gradient."""
    return apply("normal_like", x, mean=float(mean), stddev=float(stddev))
