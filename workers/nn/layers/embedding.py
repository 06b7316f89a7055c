"""Layers that take numbers of words, and places that do not count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.layers.parameters import WithParameters
from workers.nn.lookup import check, is_count, serialize

if TYPE_CHECKING:
    from collections.abc import Sequence


class Embedding(WithParameters):
    """For each whole number from 0 to `input_dim` - 1 a vector that is learned.

    Variable: `embeddings` (input_dim, output_dim). With `mask_zero`, 0 stands for no word: the output carries
    a mask that is False there. `weights`: a list of one array, for the start. ConfigurationError, when it
    runs, for a number out of range.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        weights: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(is_count(input_dim), f"Embedding: input_dim must be a positive integer, not {input_dim!r}")
        check(is_count(output_dim), f"Embedding: output_dim must be a positive integer, not {output_dim!r}")
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.keep("embeddings", embeddings_initializer, embeddings_regularizer, embeddings_constraint)
        self.mask_zero = self.supports_masking = bool(mask_zero)
        self._initial_weights = weights

    def build(self, input_shape: Any) -> None:
        """Make the table."""
        self.embeddings = self.make("embeddings", (self.input_dim, self.output_dim))
        if self._initial_weights is not None:
            self.set_weights(self._initial_weights)

    def call(self, inputs: Any) -> Any:
        """The vectors, of shape (..., output_dim)."""
        whole = np.dtype(inputs.dtype).kind in "iu"
        return ops.embedding(inputs if whole else ops.cast(inputs, "int32"), self.embeddings)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Where there is a word, if 0 stands for none."""
        return ops.not_equal(inputs, 0) if self.mask_zero else None

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return (
            super().get_config()
            | self.kept("embeddings")
            | {
                "input_dim": self.input_dim,
                "output_dim": self.output_dim,
                "activity_regularizer": serialize(self.activity_regularizer),
                "mask_zero": self.mask_zero,
            }
        )


class Masking(Layer):
    """Time steps all of whose features are `mask_value` do not count for the layers that follow."""

    supports_masking = True

    def __init__(self, mask_value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask_value = mask_value

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Where a step counts, of shape (samples, steps)."""
        return ops.any(ops.not_equal(inputs, self.mask_value), axis=-1)

    def call(self, inputs: Any) -> Any:
        """The input, with zeros at the steps that do not count."""
        counts = ops.any(ops.not_equal(inputs, self.mask_value), axis=-1, keepdims=True)
        return inputs * ops.cast(counts, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"mask_value": self.mask_value}
