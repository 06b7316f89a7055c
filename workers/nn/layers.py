"""Layers, and what computes them.

A layer is a description: it stores its settings and says which variables it has and what shape comes out.
Its `cell` is the working half for one place in a model and one number of rows; it owns the workspaces,
which are reused step after step, and runs the fused forward and backward pass on them.

Shape suffixes: N samples (times positions), D features in, U units.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import activations, initializers
from workers.nn.lookup import check, is_count, serialize
from workers.nn.lookup import get as _get
from workers.nn.numerics import Array, Shape, aligned_empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.nn.activations import Activation
    from workers.nn.initializers import Initializer
    from workers.rng import Streams

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a cell works: the layer's number in the model, the rows, and what comes in and is wanted out."""

    index: int
    rows: int
    input_shape: Shape
    """Of one sample."""
    dtype: np.dtype[Any]
    wants_dx: bool
    """Whether an earlier layer needs the gradient of the input."""

    def empty(self, shape: Shape) -> Array:
        """A workspace for this shape per sample."""
        return aligned_empty((self.rows, *shape), self.dtype)


class Cell(Protocol):
    """The working half of a layer. What it returns is its workspace or a view of its argument."""

    def forward(self, x: Array, weights: Sequence[Array], streams: Streams | None) -> Array:
        """The output. Without `streams` nothing is random: that is evaluation."""

    def backward(self, dy: Array, weights: Sequence[Array], grads: Sequence[Array]) -> Array | None:
        """Write the variables' gradients; return that of the input where it is wanted. May overwrite `dy`."""


class Layer:
    """Base of all layers. `input_shape` may be given to the first one in place of `Input`."""

    def __init__(self, *, name: str | None = None, input_shape: Sequence[int] | None = None) -> None:
        if name is not None and not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"layer name {name!r}: use letters, digits, '_', '-' and '.', with no '-' or '.' first"
            )
        self.name = name
        self.input_shape = None if input_shape is None else Input(input_shape).shape

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of one sample that comes out."""
        return input_shape

    def variables(self, input_shape: Shape) -> dict[str, tuple[Shape, Initializer]]:
        """Shape and initial values of each variable, in the order of the layout."""
        return {}

    def cell(self, site: Site) -> Cell:
        """The working half for this site."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": self.name}


class Input:
    """The shape of one sample, without the batch axis."""

    def __init__(self, shape: Sequence[int]) -> None:
        if isinstance(shape, int) or not all(map(is_count, shape)):
            raise ConfigurationError(f"Input: shape must be a tuple of positive integers, not {shape!r}")
        self.shape: Shape = tuple(shape)


class Dense(Layer):
    """activation(x @ kernel + bias) over the last axis."""

    def __init__(
        self,
        units: int,
        activation: str | Activation | None = None,
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        *,
        name: str | None = None,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(name=name, input_shape=input_shape)
        check(is_count(units), f"Dense: units must be a positive integer, not {units!r}")
        self.units = units
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)

    def output_shape(self, input_shape: Shape) -> Shape:
        """The last axis becomes `units`."""
        check(
            len(input_shape) > 0, f"Dense({self.units}) needs features, but its input is one number a sample"
        )
        return (*input_shape[:-1], self.units)

    def variables(self, input_shape: Shape) -> dict[str, tuple[Shape, Initializer]]:
        """`kernel` (features, units) and `bias` (units,)."""
        kernel = {"kernel": ((input_shape[-1], self.units), self.kernel_initializer)}
        return kernel | ({"bias": ((self.units,), self.bias_initializer)} if self.use_bias else {})

    def cell(self, site: Site) -> Cell:
        """The working half for this site."""
        return _DenseCell(self, site)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {
            "name": self.name,
            "units": self.units,
            "activation": self.activation.name,
            "use_bias": self.use_bias,
            "kernel_initializer": serialize(self.kernel_initializer),
            "bias_initializer": serialize(self.bias_initializer),
        }


class _DenseCell:
    """Product, bias and activation in one workspace."""

    def __init__(self, layer: Dense, site: Site) -> None:
        self._activation = layer.activation
        self._use_bias = layer.use_bias
        self._y = site.empty(layer.output_shape(site.input_shape))
        self._y_NU = self._y.reshape(-1, layer.units)
        self._dx = site.empty(site.input_shape) if site.wants_dx else None
        self._x_ND = self._y_NU  # of the last forward; any array until then

    def forward(self, x: Array, weights: Sequence[Array], streams: Streams | None) -> Array:
        self._x_ND = x_ND = x.reshape(len(self._y_NU), x.shape[-1])
        y_NU = self._y_NU
        np.matmul(x_ND, weights[0], out=y_NU)
        if self._use_bias:
            y_NU += weights[1]
        self._activation.forward(y_NU)
        return self._y

    def backward(self, dy: Array, weights: Sequence[Array], grads: Sequence[Array]) -> Array | None:
        dz_NU = dy.reshape(self._y_NU.shape)
        self._activation.backward(self._y_NU, dz_NU)
        np.matmul(self._x_ND.T, dz_NU, out=grads[0])
        if self._use_bias:
            dz_NU.sum(axis=0, out=grads[1])
        if self._dx is None:
            return None
        np.matmul(dz_NU, weights[0].T, out=self._dx.reshape(self._x_ND.shape))
        return self._dx


class Dropout(Layer):
    """In training, a share `rate` of the inputs becomes zero and the rest grows by 1 / (1 - rate).

    An input is kept where u < 1 - rate, u uniform in [0, 1) from the layer's own stream. Rate 0 draws
    nothing; rate 1 gives zeros.
    """

    def __init__(
        self, rate: float, *, name: str | None = None, input_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__(name=name, input_shape=input_shape)
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        check(number and 0 <= rate <= 1, f"Dropout: rate must be a number from 0 to 1, not {rate!r}")
        self.rate = float(rate)

    def cell(self, site: Site) -> Cell:
        """The working half for this site."""
        return _DropoutCell(self.rate, site) if self.rate else _IdentityCell()

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": self.name, "rate": self.rate}


class _DropoutCell:
    """One mask, drawn anew each step."""

    def __init__(self, rate: float, site: Site) -> None:
        self._index = site.index
        self._keep = np.float32(1 - rate)
        self._scale = 1 / (1 - rate) if rate < 1 else 0.0
        # Drawn as float32 whatever the model's dtype, so that the mask is the same.
        self._mask = aligned_empty((site.rows, *site.input_shape), np.dtype(np.float32))
        self._y = site.empty(site.input_shape)

    def forward(self, x: Array, weights: Sequence[Array], streams: Streams | None) -> Array:
        if streams is None:
            return x
        mask = self._mask
        streams.generator(self._index).random(out=mask, dtype=np.float32)
        np.less(mask, self._keep, out=mask)
        mask *= self._scale
        return np.multiply(x, mask, out=self._y)

    def backward(self, dy: Array, weights: Sequence[Array], grads: Sequence[Array]) -> Array:
        dy *= self._mask
        return dy


class _IdentityCell:
    """What a layer that does nothing does."""

    def forward(self, x: Array, weights: Sequence[Array], streams: Streams | None) -> Array:
        return x

    def backward(self, dy: Array, weights: Sequence[Array], grads: Sequence[Array]) -> Array:
        return dy


class Flatten(Layer):
    """All axes of a sample become one, row-major."""

    def output_shape(self, input_shape: Shape) -> Shape:
        """The product of the dimensions."""
        return (math.prod(input_shape),)

    def cell(self, site: Site) -> Cell:
        """The working half for this site."""
        return _FlattenCell(site)


class _FlattenCell:
    """A view in either direction."""

    def __init__(self, site: Site) -> None:
        self._x_shape = (site.rows, *site.input_shape)
        self._y_shape = (site.rows, math.prod(site.input_shape))

    def forward(self, x: Array, weights: Sequence[Array], streams: Streams | None) -> Array:
        return x.reshape(self._y_shape)

    def backward(self, dy: Array, weights: Sequence[Array], grads: Sequence[Array]) -> Array:
        return dy.reshape(self._x_shape)


class Rescaling(Layer):
    """x * scale + offset, such as pixels / 255."""

    def __init__(
        self,
        scale: float,
        offset: float = 0.0,
        *,
        name: str | None = None,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(name=name, input_shape=input_shape)
        self.scale = float(scale)
        self.offset = float(offset)

    def cell(self, site: Site) -> Cell:
        """The working half for this site."""
        return _RescalingCell(self, site)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": self.name, "scale": self.scale, "offset": self.offset}


class _RescalingCell:
    """One product and, where there is an offset, one sum."""

    def __init__(self, layer: Rescaling, site: Site) -> None:
        self._scale = layer.scale
        self._offset = layer.offset
        self._y = site.empty(site.input_shape)

    def forward(self, x: Array, weights: Sequence[Array], streams: Streams | None) -> Array:
        np.multiply(x, self._scale, out=self._y)
        if self._offset:
            self._y += self._offset
        return self._y

    def backward(self, dy: Array, weights: Sequence[Array], grads: Sequence[Array]) -> Array:
        dy *= self._scale
        return dy


_KNOWN: dict[str, type[Layer]] = {
    "Dense": Dense,
    "Dropout": Dropout,
    "Flatten": Flatten,
    "Rescaling": Rescaling,
}


def get(identifier: object) -> Layer:
    """The layer that `serialize` described, or the layer itself."""
    return _get("layer", identifier, Layer, _KNOWN)
