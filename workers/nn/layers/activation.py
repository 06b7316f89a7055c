"""Activation functions with settings, as layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.nn import activations, ops
from workers.nn.layers.base import Layer
from workers.nn.layers.parameters import WithParameters
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Sequence


class ReLU(Layer):
    """x from `threshold` up to `max_value`; below, negative_slope * (x - threshold)."""

    supports_masking = True

    def __init__(
        self,
        max_value: float | None = None,
        negative_slope: float = 0.0,
        threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (
            ("max_value", max_value),
            ("negative_slope", negative_slope),
            ("threshold", threshold),
        ):
            check(
                (name == "max_value" and value is None) or (value is not None and value >= 0),
                f"ReLU: {name} must be a number from 0 up, not {value!r}",
            )
        self.max_value = max_value
        self.negative_slope = negative_slope
        self.threshold = threshold

    def call(self, inputs: Any) -> Any:
        """The function's values."""
        if self.max_value is None and not self.negative_slope and not self.threshold:
            return activations.relu(inputs)
        return activations.relu(inputs, self.negative_slope, self.max_value, self.threshold)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "max_value": self.max_value,
            "negative_slope": self.negative_slope,
            "threshold": self.threshold,
        }


class LeakyReLU(Layer):
    """x where it is positive, else negative_slope * x."""

    supports_masking = True

    def __init__(self, negative_slope: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(
            negative_slope is not None and negative_slope >= 0,
            f"LeakyReLU: negative_slope must be a number from 0 up, not {negative_slope!r}",
        )
        self.negative_slope = negative_slope

    def call(self, inputs: Any) -> Any:
        """The function's values."""
        return activations.leaky_relu(inputs, self.negative_slope)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"negative_slope": self.negative_slope}


class PReLU(WithParameters):
    """x where it is positive, else alpha * x, for an alpha that is learned (He et al., ICCV 2015).

    Variable: `alpha`, of a sample's shape with 1 at the `shared_axes`, which are numbered from 1.
    """

    supports_masking = True

    def __init__(
        self,
        alpha_initializer: Any = "zeros",
        alpha_regularizer: Any = None,
        alpha_constraint: Any = None,
        shared_axes: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.keep("alpha", alpha_initializer, alpha_regularizer, alpha_constraint)
        self.shared_axes = [shared_axes] if isinstance(shared_axes, int) else shared_axes

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make alpha, for this shape of the input."""
        shape = [1 if i in (self.shared_axes or ()) else n for i, n in enumerate(input_shape)][1:]
        check(None not in shape, f"PReLU: an input of shape {tuple(input_shape)} has an unknown length")
        self.alpha = self.make("alpha", [n for n in shape if n is not None])

    def call(self, inputs: Any) -> Any:
        """The function's values."""
        return activations.relu(inputs) - self.alpha * activations.relu(-inputs)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        shared = None if self.shared_axes is None else list(self.shared_axes)
        return super().get_config() | self.kept("alpha") | {"shared_axes": shared}


class ELU(Layer):
    """x where it is positive, else alpha * (exp(x) - 1)."""

    supports_masking = True

    def __init__(self, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha

    def call(self, inputs: Any) -> Any:
        """The function's values."""
        return activations.elu(inputs, self.alpha)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"alpha": self.alpha}


class Softmax(Layer):
    """exp(x), divided by its sum over an axis, or over several. Where the mask is False, x counts as -1e9."""

    supports_masking = True

    def __init__(self, axis: int | Sequence[int] = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis if isinstance(axis, int) else tuple(axis)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """The shares; their sum is 1."""
        if mask is not None:
            inputs = inputs - 1e9 * (1 - ops.cast(mask, inputs.dtype))
        if isinstance(self.axis, int):
            return activations.softmax(inputs, self.axis)
        return ops.exp(inputs - ops.logsumexp(inputs, axis=self.axis, keepdims=True))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"axis": self.axis if isinstance(self.axis, int) else list(self.axis)}
