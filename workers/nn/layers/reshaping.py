"""Layers that arrange the elements of a sample anew."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.lookup import check, is_count

if TYPE_CHECKING:
    from collections.abc import Sequence


class Reshape(Layer):
    """Each sample in another shape, row-major; one length may be -1."""

    def __init__(self, target_shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target_shape = tuple(target_shape)

    def call(self, inputs: Any) -> Any:
        """The input, of shape (samples, *target_shape)."""
        return ops.reshape(inputs, (None, *self._known(inputs.shape[1:])))

    def _known(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The target shape without -1, as that stands for the samples here."""
        size = math.prod(shape)
        known = math.prod(n for n in self.target_shape if n != -1)
        count = self.target_shape.count(-1)
        check(
            count < 2 and (size == known if not count else known > 0 and size % known == 0),
            f"{self.name}: a sample of shape {tuple(shape)} does not fit into {self.target_shape}",
        )
        return tuple(size // known if n == -1 else n for n in self.target_shape)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"target_shape": list(self.target_shape)}


class Permute(Layer):
    """Each sample with its axes in another order: `dims` are their numbers from 1."""

    def __init__(self, dims: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dims = tuple(dims)
        check(
            sorted(self.dims) == list(range(1, len(self.dims) + 1)),
            f"Permute: dims must be the numbers of a sample's axes from 1, in any order, not {self.dims}",
        )

    def call(self, inputs: Any) -> Any:
        """The input with its axes in that order."""
        check(
            inputs.ndim == len(self.dims) + 1,
            f"{self.name}: an input of shape {inputs.shape} does not go with dims {self.dims}",
        )
        return ops.transpose(inputs, (0, *self.dims))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"dims": list(self.dims)}


class RepeatVector(Layer):
    """Each sample's vector n times: (samples, features) becomes (samples, n, features)."""

    def __init__(self, n: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(is_count(n), f"RepeatVector: n must be a positive integer, not {n!r}")
        self.n = n

    def call(self, inputs: Any) -> Any:
        """The input, repeated."""
        check(inputs.ndim == 2, f"{self.name}: an input of shape {inputs.shape}: give (samples, features)")
        return ops.repeat(ops.expand_dims(inputs, 1), self.n, axis=1)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"n": self.n}
