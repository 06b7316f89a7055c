"""Layers that add, cut off or repeat what lies along the spatial axes of (samples, sizes, channels)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.lookup import check
from workers.nn.ops.windows import check_channels_last, per_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    Pairs = tuple[tuple[int, int], ...]


class _Borders(Layer):
    """A pair of numbers for each spatial axis: of places in front and behind."""

    rank: ClassVar[int]
    setting: ClassVar[str]
    """What the argument is called."""

    def __init__(self, given: Any, data_format: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        what = type(self).__name__
        check_channels_last(what, data_format)
        pairs = _pairs(given, self.rank)
        check(
            pairs is not None,
            f"{what}: {self.setting} must be an integer from 0 up or {self._meant}, not {given!r}",
        )
        self.pairs: Pairs = pairs or ()

    @property
    def _meant(self) -> str:
        return "two of them" if self.rank == 1 else f"{self.rank} of them or of pairs"

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        pairs = [list(pair) for pair in self.pairs]
        own: dict[str, Any] = {self.setting: pairs if self.rank > 1 else pairs[0]}
        return super().get_config() | own

    def check_axes(self, inputs: Any) -> None:
        """ConfigurationError for an input of another number of axes."""
        check(
            len(inputs.shape) == self.rank + 2,
            f"{type(self).__name__} takes an input of {self.rank + 2} axes, not of shape {inputs.shape}",
        )


def _pairs(given: Any, rank: int) -> Pairs | None:
    """The pairs that were meant; None where that is no such thing."""
    if isinstance(given, int):
        given = (given,) * (2 if rank == 1 else rank)
    if not isinstance(given, list | tuple) or len(given) != (2 if rank == 1 else rank):
        return None
    pairs = [given] if rank == 1 else [(n, n) if isinstance(n, int) else n for n in given]
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return None
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in pair):
            return None
    return tuple((pair[0], pair[1]) for pair in pairs)


class _ZeroPadding(_Borders):
    setting = "padding"

    def __init__(self, padding: Any = 1, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(padding, data_format, **kwargs)

    def call(self, inputs: Any) -> Any:
        """The input with zeros around it."""
        self.check_axes(inputs)
        return ops.pad(inputs, [(0, 0), *self.pairs, (0, 0)])

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"data_format": "channels_last"}


class ZeroPadding1D(_ZeroPadding):
    """Zeros in front of and behind the steps."""

    rank = 1


class ZeroPadding2D(_ZeroPadding):
    """Zeros around an image."""

    rank = 2


class _Cropping(_Borders):
    setting = "cropping"

    def call(self, inputs: Any) -> Any:
        """The input without its border."""
        self.check_axes(inputs)
        sizes: Sequence[int | None] = inputs.shape[1:-1]
        check(
            all(n is None or sum(pair) < n for n, pair in zip(sizes, self.pairs, strict=True)),
            f"{type(self).__name__}: cropping {self.pairs} leaves nothing of an input of {tuple(sizes)}",
        )
        inner = (slice(front, -behind if behind else None) for front, behind in self.pairs)
        return inputs[(slice(None), *inner)]


class Cropping1D(_Cropping):
    """Steps cut off in front and behind."""

    rank = 1

    def __init__(self, cropping: Any = (1, 1), **kwargs: Any) -> None:
        super().__init__(cropping, None, **kwargs)


class Cropping2D(_Cropping):
    """An image without its border."""

    rank = 2

    def __init__(
        self, cropping: Any = ((0, 0), (0, 0)), data_format: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(cropping, data_format, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"data_format": "channels_last"}


class UpSampling1D(Layer):
    """Each step `size` times."""

    def __init__(self, size: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        (self.size,) = per_axis(size, 1, "UpSampling1D: size")

    def call(self, inputs: Any) -> Any:
        """The output, of shape (samples, steps * size, channels)."""
        check(len(inputs.shape) == 3, f"UpSampling1D takes an input of 3 axes, not of shape {inputs.shape}")
        return ops.repeat(inputs, self.size, axis=1)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"size": self.size}


class UpSampling2D(Layer):
    """Each pixel `size` times: the nearest neighbour."""

    def __init__(
        self,
        size: Any = (2, 2),
        data_format: str | None = None,
        interpolation: str = "nearest",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_channels_last("UpSampling2D", data_format)
        self.size = per_axis(size, 2, "UpSampling2D: size")
        check(
            interpolation == "nearest",
            f"UpSampling2D: interpolation {interpolation!r} is not supported: use 'nearest'",
        )

    def call(self, inputs: Any) -> Any:
        """The output, of shape (samples, height * size[0], width * size[1], channels)."""
        check(len(inputs.shape) == 4, f"UpSampling2D takes an input of 4 axes, not of shape {inputs.shape}")
        return ops.repeat(ops.repeat(inputs, self.size[0], axis=1), self.size[1], axis=2)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        own = {"size": list(self.size), "data_format": "channels_last", "interpolation": "nearest"}
        return super().get_config() | own
