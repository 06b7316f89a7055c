"""Attention: for each query, a mean of values by how well their keys fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn import activations, ops, regularizers
from workers.nn.layers.base import Layer
from workers.nn.layers.parameters import WithParameters
from workers.nn.lookup import check, is_count, serialize

if TYPE_CHECKING:
    from collections.abc import Sequence

_MASKED = 1e9
"""What is taken off the score of what may not be attended to."""


class HeadProjection(WithParameters):
    """activation(x @ kernel + bias), where the last axis of x or of the output is a flat (heads, features).

    Variables: `kernel` (*inputs, *outputs), `bias` (*outputs); `inputs` None is the input's last axis.
    `of_kernel` and `of_bias`: initializer, regularizer and constraint.
    """

    def __init__(
        self,
        inputs: tuple[int, ...] | None,
        outputs: tuple[int, ...],
        use_bias: bool,
        of_kernel: tuple[Any, Any, Any],
        of_bias: tuple[Any, Any, Any],
        activation: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.activation = activations.get(activation)
        self.inputs = inputs
        self.outputs = outputs
        self.use_bias = use_bias
        self.keep("kernel", *of_kernel)
        self.keep("bias", *of_bias)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of the input."""
        features = input_shape[-1]
        check(
            features is not None,
            f"attention needs a known number of features, and its input has shape {tuple(input_shape)}",
        )
        inputs = (features or 0,) if self.inputs is None else self.inputs
        self.kernel = self.make("kernel", (*inputs, *self.outputs))
        if self.use_bias:
            self.bias = self.make("bias", self.outputs)

    def call(self, x: Any) -> Any:
        """The projection, flat: (..., product of `outputs`)."""
        kernel = ops.reshape(self.kernel, (-1, math.prod(self.outputs)))
        bias = ops.reshape(self.bias, (-1,)) if self.use_bias else None
        return ops.dense(x, kernel, bias, self.activation)


class MultiHeadAttention(WithParameters):
    """Attention of several heads (Vaswani et al., NeurIPS 2017) between (samples, steps, features).

    Call it with query, value and, if it is another, key. What may be attended to: `attention_mask`
    (samples, queries, keys), True where it is allowed; with `use_causal_mask` no key behind the query; with
    `sliding_window` only keys less than so many places away; and the masks that the three carry. `use_gate`
    multiplies what is found by a sigmoid of the query (Qiu et al., NeurIPS 2025).

    Variables, as in Keras 3: of `query_dense` and `key_dense` a kernel (features, num_heads, key_dim) and a
    bias (num_heads, key_dim); of `gate_dense` and `value_dense` the same with value_dim; of `output_dense`
    (num_heads, value_dim, *output_shape) and (*output_shape,).
    """

    supports_masking = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: Any = None,
        attention_axes: Any = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        value_dim = key_dim if value_dim is None else value_dim
        for name, size in (("num_heads", num_heads), ("key_dim", key_dim), ("value_dim", value_dim)):
            check(is_count(size), f"MultiHeadAttention: {name} must be a positive integer, not {size!r}")
        check(0 <= dropout < 1, f"MultiHeadAttention: dropout must be from 0 to less than 1, not {dropout!r}")
        axes = (attention_axes,) if isinstance(attention_axes, int) else attention_axes
        check(
            axes is None or tuple(axes) == (1,),
            f"MultiHeadAttention: attention_axes {attention_axes!r} is not supported: attention goes over "
            "axis 1 of (samples, steps, features); reshape other inputs to that",
        )
        check(
            sliding_window is None or is_count(sliding_window),
            f"MultiHeadAttention: sliding_window must be a positive integer, not {sliding_window!r}",
        )
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.dropout = float(dropout)
        self.use_bias = bool(use_bias)
        self.use_gate = bool(use_gate)
        self.sliding_window = sliding_window
        self.output_features = (output_shape,) if isinstance(output_shape, int) else output_shape
        self.seed = seed
        self._of_kernel = (kernel_initializer, kernel_regularizer, kernel_constraint)
        self._of_bias = (bias_initializer, bias_regularizer, bias_constraint)
        self.keep("kernel", *self._of_kernel)
        self.keep("bias", *self._of_bias)
        self._of_activity = regularizers.get(activity_regularizer)
        self.query_dense = self._projection(None, (num_heads, key_dim))
        self.key_dense = self._projection(None, (num_heads, key_dim))
        if self.use_gate:
            self.gate_dense = self._projection(None, (num_heads, value_dim), "sigmoid")
        self.value_dense = self._projection(None, (num_heads, value_dim))

    def _projection(self, inputs: Any, outputs: tuple[int, ...], activation: Any = None) -> HeadProjection:
        return HeadProjection(
            inputs,
            outputs,
            self.use_bias,
            self._of_kernel,
            self._of_bias,
            activation,
            activity_regularizer=self._of_activity,
            dtype=self.dtype,
            trainable=self.trainable,
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the projection of the output, for this shape of the queries."""
        outputs = tuple(self.output_features or (input_shape[-1],))
        self.output_dense = self._projection((self.num_heads, self.value_dim), outputs)

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """What the queries find, (samples, queries, *output_shape); if asked for, in a tuple with the scores
        (samples, num_heads, queries, keys)."""
        mask = _together(
            attention_mask,
            self._near(query.shape[1], value.shape[1]),
            _along_queries(_mask_of(query, query_mask)),
            _along_keys(_mask_of(value, value_mask)),
            _along_keys(_mask_of(key, key_mask)),
        )
        found, scores = ops.attention(
            self.query_dense(query),
            self.key_dense(value if key is None else key),
            self.value_dense(value),
            mask,
            num_heads=self.num_heads,
            scale=1 / math.sqrt(self.key_dim),
            causal=use_causal_mask,
            dropout=self.dropout if training else 0.0,
        )
        output = self.output_dense(found * self.gate_dense(query) if self.use_gate else found)
        shape = self.output_dense.outputs
        if len(shape) > 1:
            output = ops.reshape(output, (-1, query.shape[1], *shape))
        return (output, scores) if return_attention_scores else output

    def _near(self, queries: int, keys: int) -> Any:
        """Which keys are within the sliding window of each query."""
        if self.sliding_window is None:
            return None
        return np.abs(np.arange(queries)[:, None] - np.arange(keys)) < self.sliding_window

    def get_build_config(self) -> dict[str, Any] | None:
        """None: Keras would want the shapes of query and value, and builds it when it is called."""
        return None

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        shape = self.output_features
        config = super().get_config() | self.kept("kernel", "bias")
        return config | {
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": None if shape is None else list(shape),
            "attention_axes": None,
            "sliding_window": self.sliding_window,
            "use_gate": self.use_gate,
            "seed": self.seed,
            "activity_regularizer": serialize(self._of_activity),
        }


def _mask_of(tensor: Any, given: Any) -> Any:
    return getattr(tensor, "mask", None) if given is None else given


def _along_queries(mask: Any) -> Any:
    return None if mask is None else ops.expand_dims(mask, -1)


def _along_keys(mask: Any) -> Any:
    return None if mask is None else ops.expand_dims(mask, -2)


def _together(*masks: Any) -> Any:
    """One mask (samples or 1, heads or 1, queries or 1, keys) of all that are given; None of none."""
    whole = None
    for given in masks:
        if given is None:
            continue
        mask = ops.cast(ops.convert_to_tensor(given), "bool")
        while mask.ndim < 4:
            mask = ops.expand_dims(mask, 0 if mask.ndim < 3 else 1)
        whole = mask if whole is None else ops.logical_and(whole, mask)
    return whole


class _OneHeaded(Layer):
    """Base of the layers without projections. A subclass gives the scores.

    Called on [query, value] or [query, value, key], each (samples, steps, features). Of the masks, the
    value's takes values out, and the query's makes the output zero.
    """

    supports_masking = True

    def __init__(self, dropout: float, seed: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kind = type(self).__name__
        check(0 <= dropout < 1, f"{kind}: dropout must be from 0 to less than 1, not {dropout!r}")
        self.dropout = float(dropout)
        self.seed = seed

    def scores(self, query: Any, key: Any) -> Any:
        """How well each key fits each query: (samples, queries, keys)."""
        raise NotImplementedError

    def call(
        self,
        inputs: Sequence[Any],
        mask: Any = None,
        training: bool = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """What the queries find, (samples, queries, features); if asked for, in a tuple with the weights."""
        check(
            isinstance(inputs, list | tuple) and len(inputs) in (2, 3),
            f"{self.name}: call it on a list [query, value] or [query, value, key]",
        )
        query, value = inputs[:2]
        query_mask, value_mask = (None, None) if mask is None else mask[:2]
        scores = self.scores(query, inputs[-1])
        allowed = _along_keys(value_mask)
        if use_causal_mask:
            before = np.tril(np.ones((1, *scores.shape[1:]), bool))
            allowed = before if allowed is None else ops.logical_and(allowed, before)
        if allowed is not None:
            scores = scores - _MASKED * ops.cast(ops.logical_not(allowed), scores.dtype)
        weights = activations.softmax(scores)
        if training and self.dropout:
            weights = ops.dropout(weights, self.dropout)
        result = ops.matmul(weights, value)
        if query_mask is not None:
            result = result * ops.cast(_along_queries(query_mask), result.dtype)
        return (result, weights) if return_attention_scores else result

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The query's."""
        return None if mask is None else mask[0]

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"dropout": self.dropout, "seed": self.seed}


class Attention(_OneHeaded):
    """Attention by products (Luong et al., EMNLP 2015), or with `score_mode` "concat" by tanh of the sums.

    Variables: with `use_scale` a scalar `scale`; with "concat" a scalar `concat_score_weight`.
    """

    def __init__(
        self,
        use_scale: bool = False,
        score_mode: str = "dot",
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout, seed, **kwargs)
        check(
            score_mode in ("dot", "concat"),
            f"Attention: score_mode {score_mode!r} is not one of dot, concat",
        )
        self.use_scale = bool(use_scale)
        self.score_mode = score_mode

    def build(self, input_shape: Any) -> None:
        """Make the variables."""
        if self.use_scale:
            self.scale = self.add_weight((), "ones", name="scale")
        if self.score_mode == "concat":
            self.concat_score_weight = self.add_weight((), "ones", name="concat_score_weight")

    def scores(self, query: Any, key: Any) -> Any:
        """How well each key fits each query: (samples, queries, keys)."""
        if self.score_mode == "dot":
            scores = ops.matmul(query, ops.swapaxes(key, 1, 2))
            return scores * self.scale if self.use_scale else scores
        sums = ops.expand_dims(query, 2) + ops.expand_dims(key, 1)
        fit = activations.tanh(sums * self.scale if self.use_scale else sums)
        return self.concat_score_weight * ops.sum(fit, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"use_scale": self.use_scale, "score_mode": self.score_mode}


class AdditiveAttention(_OneHeaded):
    """Attention by sum(scale * tanh(query + key)) (Bahdanau et al., ICLR 2015).

    Variable: with `use_scale`, `scale` (features,).
    """

    def __init__(
        self, use_scale: bool = True, dropout: float = 0.0, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(dropout, seed, **kwargs)
        self.use_scale = bool(use_scale)

    def build(self, input_shape: Any) -> None:
        """Make the scale, for these shapes of the inputs."""
        if self.use_scale:
            self.scale = self.add_weight((input_shape[0][-1],), "glorot_uniform", name="scale")

    def scores(self, query: Any, key: Any) -> Any:
        """How well each key fits each query: (samples, queries, keys)."""
        fit = activations.tanh(ops.expand_dims(query, 2) + ops.expand_dims(key, 1))
        return ops.sum(fit * self.scale if self.use_scale else fit, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"use_scale": self.use_scale}
