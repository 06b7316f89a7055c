"""Pooling: maxima and means over windows, or over all places. Arrays are (samples, sizes, channels)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.lookup import check
from workers.nn.ops.windows import check_channels_last, per_axis

if TYPE_CHECKING:
    from collections.abc import Callable


class _Pooling(Layer):
    """Windows of `pool_size`, `strides` apart; next to each other where no strides are given."""

    rank: ClassVar[int]
    """The number of spatial axes."""
    pool: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        pool_size: Any = 2,
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        what = type(self).__name__
        check_channels_last(what, data_format)
        self.pool_size = per_axis(pool_size, self.rank, f"{what}: pool_size")
        self.strides = self.pool_size if strides is None else per_axis(strides, self.rank, f"{what}: strides")
        self.padding = str(padding).lower()
        check(
            self.padding in ("valid", "same"),
            f"{what}: padding must be 'valid' or 'same', not {padding!r}",
        )

    def call(self, inputs: Any) -> Any:
        """The output, of shape (samples, smaller sizes, channels)."""
        _check_axes(self, inputs)
        return type(self).pool(inputs, self.pool_size, self.strides, self.padding)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "pool_size": list(self.pool_size),
            "padding": self.padding,
            "strides": list(self.strides),
            "data_format": "channels_last",
        }


class MaxPooling1D(_Pooling):
    """The maximum of each window along time."""

    rank = 1
    pool = ops.max_pool


class MaxPooling2D(_Pooling):
    """The maximum of each window of an image."""

    rank = 2
    pool = ops.max_pool


class AveragePooling1D(_Pooling):
    """The mean of each window along time; what "same" adds does not count."""

    rank = 1
    pool = ops.average_pool


class AveragePooling2D(_Pooling):
    """The mean of each window of an image; what "same" adds does not count."""

    rank = 2
    pool = ops.average_pool


class _GlobalPooling(Layer):
    rank: ClassVar[int]
    """The number of spatial axes."""

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_channels_last(type(self).__name__, data_format)
        self.keepdims = bool(keepdims)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that are reduced."""
        return tuple(range(1, self.rank + 1))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"data_format": "channels_last", "keepdims": self.keepdims}


class _GlobalMax(_GlobalPooling):
    def call(self, inputs: Any) -> Any:
        """The maxima, of shape (samples, channels)."""
        _check_axes(self, inputs)
        return ops.max(inputs, axis=self.axes, keepdims=self.keepdims)


class _GlobalAverage(_GlobalPooling):
    def call(self, inputs: Any) -> Any:
        """The means, of shape (samples, channels)."""
        _check_axes(self, inputs)
        return ops.mean(inputs, axis=self.axes, keepdims=self.keepdims)


class GlobalMaxPooling1D(_GlobalMax):
    """The maximum over time; equal ones share the gradient."""

    rank = 1


class GlobalMaxPooling2D(_GlobalMax):
    """The maximum over an image; equal ones share the gradient."""

    rank = 2


class GlobalAveragePooling1D(_GlobalAverage):
    """The mean over time, of the steps that a mask leaves, if there is one."""

    rank = 1
    supports_masking = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """The means, of shape (samples, channels)."""
        if mask is None:
            return super().call(inputs)
        counts = ops.cast(ops.expand_dims(mask, -1), "bool")
        total = ops.sum(ops.where(counts, inputs, 0.0), axis=1, keepdims=self.keepdims)
        return total / ops.sum(ops.cast(counts, self.dtype), axis=1, keepdims=self.keepdims)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """None: the steps are gone."""
        return


class GlobalAveragePooling2D(_GlobalAverage):
    """The mean over an image."""

    rank = 2


def _check_axes(layer: _Pooling | _GlobalPooling, inputs: Any) -> None:
    ndim = layer.rank + 2
    check(
        len(inputs.shape) == ndim,
        f"{type(layer).__name__} takes an input of {ndim} axes, not of shape {tuple(inputs.shape)}",
    )
