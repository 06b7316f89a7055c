"""Layers of a function, or of none."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError
from workers.nn.layers.base import Layer
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Identity(Layer):
    """The input itself."""

    supports_masking = True

    def call(self, inputs: Any) -> Any:
        """The input."""
        return inputs


class Lambda(Layer):
    """A function of tensors as a layer; it may take `training` and `mask`. It cannot be saved: a layer that
    can is a class of its own.

    `mask`: a function (inputs, mask) -> mask, or a mask. `arguments`: more arguments by name. `output_shape`
    is taken for Keras's sake: shapes are found by tracing.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        output_shape: Any = None,
        mask: Any = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(callable(function), f"Lambda: give a function of a tensor, not {function!r}")
        self.function = function
        self.arguments = dict(arguments or {})
        self.mask = mask
        self.supports_masking = mask is not None
        self._takes = {"training", "mask"} & inspect.signature(function).parameters.keys()

    def call(self, inputs: Any, mask: Any = None, training: bool = False) -> Any:
        """What the function gives."""
        found = {"mask": mask, "training": training}
        return self.function(inputs, **self.arguments, **{name: found[name] for name in self._takes})

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask that was given, or what its function gives."""
        return self.mask(inputs, mask) if callable(self.mask) else self.mask

    def get_config(self) -> dict[str, Any]:
        """Raises ConfigurationError: a function cannot be stored."""
        raise ConfigurationError(
            f"{self.name}: a Lambda layer cannot be saved, as a file must not hold code: write a class "
            "Layer with the function as its call"
        )
