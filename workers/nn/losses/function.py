"""Functions as losses, and losses as functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from workers.nn.lookup import deserialize, serialize
from workers.nn.losses.base import Loss

if TYPE_CHECKING:
    from collections.abc import Callable


class FunctionLoss(Loss):
    """The loss of a function of (y_true, y_pred), written with `nn.ops`, that gives one value per sample.

    `kwargs` are further arguments of the function.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name or getattr(fn, "__name__", None), reduction, dtype)
        self.fn = fn
        self.kwargs = kwargs

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One value per sample, as a tensor."""
        return self.fn(y_true, y_pred, **self.kwargs)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values; the function is its name."""
        return {**super().get_config(), "fn": serialize(self.fn), **self.kwargs}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A loss of these settings; ConfigurationError if its function is not known."""
        return cls(**{**config, "fn": deserialize("loss", config["fn"], {})})


def as_function(cls: type[Any], name: str) -> Callable[..., Any]:
    """A loss as Keras's function of that name: (y_true, y_pred, settings...) -> one value per sample."""

    def function(y_true: Any, y_pred: Any, *args: Any, **kwargs: Any) -> Any:
        return cls(*args, **kwargs, reduction="none")(y_true, y_pred)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"One value per sample: `{cls.__name__}` without reduction, with the same settings."
    return function
