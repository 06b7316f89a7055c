"""Normalization layers, with Keras's names, defaults and numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workers.nn import initializers, ops
from workers.nn.layers.base import Layer
from workers.nn.layers.parameters import WithParameters
from workers.nn.lookup import check, is_count, serialize
from workers.nn.ops.base import axes_of, axis_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_WEIGHT = 1e-7
"""Keras's `backend.epsilon()`, which it adds to the number of places that a mask leaves."""


class _Normalization(WithParameters):
    """A normalization with a factor, gamma, and an offset, beta."""

    supports_masking = True

    def __init__(
        self,
        epsilon: float,
        center: bool,
        scale: bool,
        beta: tuple[Any, Any, Any],
        gamma: tuple[Any, Any, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon = _epsilon(type(self).__name__, epsilon)
        self.center = bool(center)
        self.scale = bool(scale)
        self.keep("beta", *beta)
        self.keep("gamma", *gamma)

    def make_affine(self, shape: Sequence[int]) -> None:
        """In place. Make gamma and beta, where they are wanted."""
        self.gamma = self.make("gamma", shape) if self.scale else None
        self.beta = self.make("beta", shape) if self.center else None

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        own = {"epsilon": self.epsilon, "center": self.center, "scale": self.scale}
        return super().get_config() | own | self.kept("beta", "gamma")


class BatchNormalization(_Normalization):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, for each place along `axis`.

    In training by the moments of the microbatch (the biased variance), of which moving averages are kept,
    which count otherwise; where a batch is cut into microbatches, the averages move by the mean of their
    moments. With `trainable` False it works as if not in training. A mask says which places count for the
    moments.

    Variables: `gamma`, `beta`, `moving_mean`, `moving_variance`. `synchronized` is taken for Keras's sake: a
    microbatch is never cut into parts that workers share.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: Any = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        **kwargs: Any,
    ) -> None:
        beta = (beta_initializer, beta_regularizer, beta_constraint)
        gamma = (gamma_initializer, gamma_regularizer, gamma_constraint)
        super().__init__(epsilon, center, scale, beta, gamma, **kwargs)
        check(not renorm, "BatchNormalization: renorm is not supported: leave it out")
        check(isinstance(axis, int), f"BatchNormalization: axis must be an integer, not {axis!r}")
        number = isinstance(momentum, int | float) and 0 <= momentum <= 1
        check(number, f"BatchNormalization: momentum must be a number from 0 to 1, not {momentum!r}")
        self.axis = axis
        self.momentum = float(momentum)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.renorm_clipping = renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.synchronized = bool(synchronized)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input; None is the number of samples."""
        shape = (_size(self, input_shape, self.axis),)
        self.make_affine(shape)
        self.moving_mean = self.add_weight(
            shape, self.moving_mean_initializer, trainable=False, name="moving_mean"
        )
        self.moving_variance = self.add_weight(
            shape, self.moving_variance_initializer, trainable=False, name="moving_variance"
        )

    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        """The normalized input."""
        affine: dict[str, Any] = {"offset": self.beta, "scale": self.gamma, "epsilon": self.epsilon}
        if not (training and self.trainable):
            return ops.batch_normalization(
                inputs, self.moving_mean, self.moving_variance, self.axis, **affine
            )
        if mask is None:
            y, mean, variance = ops.normalize_batch(inputs, self.axis, **affine)
        else:
            mean, variance = self._moments(inputs, mask)
            y = ops.batch_normalization(inputs, mean, variance, self.axis, **affine)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return y

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """Mean and variance of the places that the mask leaves."""
        ndim = len(inputs.shape)
        check(
            len(mask.shape) == ndim - 1,
            f"BatchNormalization: a mask of shape {mask.shape} has not one axis less than {inputs.shape}",
        )
        axes = [i for i in range(ndim) if i != axis_of(self.axis, ndim)]
        counts = ops.cast(ops.expand_dims(mask, -1), "bool")
        weights = ops.where(counts, ops.ones_like(inputs), 0.0)
        total = ops.sum(weights, axis=axes, keepdims=True) + _LEAST_WEIGHT
        mean = ops.sum(ops.where(counts, inputs, 0.0), axis=axes, keepdims=True) / total
        apart = ops.where(counts, inputs - mean, 0.0)
        variance = ops.sum(ops.square(apart), axis=axes, keepdims=True) / total
        return ops.reshape(mean, (-1,)), ops.reshape(variance, (-1,))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "axis": self.axis,
            "momentum": self.momentum,
            "moving_mean_initializer": serialize(self.moving_mean_initializer),
            "moving_variance_initializer": serialize(self.moving_variance_initializer),
            "synchronized": self.synchronized,
            "renorm": False,
            "renorm_clipping": self.renorm_clipping,
            "renorm_momentum": self.renorm_momentum,
        }


class LayerNormalization(_Normalization):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, by the moments of each sample over `axis`.

    Variables: `gamma` and `beta`, of the shape of these axes.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        rms_scaling: bool = False,
        **kwargs: Any,
    ) -> None:
        beta = (beta_initializer, beta_regularizer, beta_constraint)
        gamma = (gamma_initializer, gamma_regularizer, gamma_constraint)
        super().__init__(epsilon, center, scale, beta, gamma, **kwargs)
        check(not rms_scaling, "LayerNormalization: rms_scaling is not supported: use RMSNormalization")
        self.axis = _axes(self, axis)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input."""
        self.make_affine(_sizes(self, input_shape, self.axis))

    def call(self, inputs: Any) -> Any:
        """The normalized input."""
        return ops.layer_normalization(inputs, self.gamma, self.beta, self.axis, self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"axis": self.axis, "rms_scaling": False}


class RMSNormalization(Layer):
    """x / sqrt(mean of squares + epsilon) * scale, over `axis`.

    Variable: `scale`, of the shape of these axes.
    """

    supports_masking = True

    def __init__(self, axis: int | Sequence[int] = -1, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = _axes(self, axis)
        self.epsilon = _epsilon("RMSNormalization", epsilon)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variable, for this shape of the input."""
        self.scale = self.add_weight(_sizes(self, input_shape, self.axis), "ones", name="scale")

    def call(self, inputs: Any) -> Any:
        """The normalized input."""
        return ops.rms_normalization(inputs, self.scale, self.axis, self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"axis": self.axis, "epsilon": self.epsilon}


class GroupNormalization(_Normalization):
    """Normalization of each sample by the moments of groups of channels, which lie along `axis`.

    `groups` -1 makes each channel a group (instance normalization). Variables: `gamma` and `beta`
    (channels,). Source: Y. Wu, K. He, "Group normalization", 2018.
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        beta = (beta_initializer, beta_regularizer, beta_constraint)
        gamma = (gamma_initializer, gamma_regularizer, gamma_constraint)
        super().__init__(epsilon, center, scale, beta, gamma, **kwargs)
        check(
            is_count(groups) or groups == -1,
            f"GroupNormalization: groups must be a positive integer or -1, not {groups!r}",
        )
        check(isinstance(axis, int), f"GroupNormalization: axis must be an integer, not {axis!r}")
        self.groups = groups
        self.axis = axis

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input."""
        channels = _size(self, input_shape, self.axis)
        check(
            self.groups == -1 or channels % self.groups == 0,
            f"GroupNormalization: {channels} channels cannot be shared out to {self.groups} groups",
        )
        self.make_affine((channels,))

    def call(self, inputs: Any) -> Any:
        """The normalized input."""
        ndim, shape = len(inputs.shape), [*inputs.shape]
        axis = axis_of(self.axis, ndim)
        groups = shape[axis] if self.groups == -1 else self.groups
        apart = [-1, *shape[1:axis], groups, shape[axis] // groups, *shape[axis + 1 :]]
        axes = [i for i in range(1, ndim + 1) if i != axis]
        y = ops.layer_normalization(ops.reshape(inputs, apart), axis=axes, epsilon=self.epsilon)
        y = ops.reshape(y, [-1, *shape[1:]])
        vector = [1] * axis + [-1] + [1] * (ndim - axis - 1)
        if self.gamma is not None:
            y = y * ops.reshape(self.gamma, vector)
        return y if self.beta is None else y + ops.reshape(self.beta, vector)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"groups": self.groups, "axis": self.axis}


class UnitNormalization(Layer):
    """x divided by its Euclidean norm over `axis`."""

    supports_masking = True

    def __init__(self, axis: int | Sequence[int] = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = _axes(self, axis)

    def call(self, inputs: Any) -> Any:
        """The normalized input."""
        return ops.normalize(inputs, self.axis, order=2, epsilon=1e-12)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"axis": self.axis}


def _epsilon(what: str, epsilon: Any) -> float:
    good = isinstance(epsilon, int | float) and math.isfinite(epsilon) and epsilon >= 0
    check(good, f"{what}: epsilon must be a number from 0 up, not {epsilon!r}")
    return float(epsilon)


def _axes(layer: Layer, axis: Any) -> int | list[int]:
    """The argument as a JSON value."""
    several = isinstance(axis, list | tuple) and len(axis) > 0 and all(isinstance(n, int) for n in axis)
    check(
        isinstance(axis, int) or several,
        f"{type(layer).__name__}: axis must be an integer or a list of them, not {axis!r}",
    )
    return axis if isinstance(axis, int) else list(axis)


def _sizes(layer: Layer, input_shape: Sequence[int | None], axis: int | Sequence[int]) -> tuple[int, ...]:
    """How long these axes are. ConfigurationError where that is not known."""
    found = [input_shape[i] for i in axes_of(axis, len(input_shape))]
    known = tuple(n for n in found if n is not None)
    check(
        len(known) == len(found),
        f"{type(layer).__name__}: axis {axis} of an input of shape {tuple(input_shape)} must be known",
    )
    return known


def _size(layer: Layer, input_shape: Sequence[int | None], axis: int) -> int:
    (size,) = _sizes(layer, input_shape, axis)
    return size
