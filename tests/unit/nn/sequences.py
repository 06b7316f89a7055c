"""Recurrent layers and attention as plain loops in float64, from the published equations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.nn.numerics import Array


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def simple_rnn_step(x: Array, states: Sequence[Array], weights: Sequence[Array]) -> list[Array]:
    kernel, recurrent, bias = weights
    return [np.tanh(x @ kernel + states[0] @ recurrent + bias)]


def lstm_step(x: Array, states: Sequence[Array], weights: Sequence[Array]) -> list[Array]:
    kernel, recurrent, bias = weights
    h, c = states
    i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru_step(x: Array, states: Sequence[Array], weights: Sequence[Array]) -> list[Array]:
    kernel, recurrent, bias = weights
    (h,) = states
    x_z, x_r, x_h = np.split(x @ kernel + bias[0], 3, axis=1)
    h_z, h_r, h_h = np.split(h @ recurrent + bias[1], 3, axis=1)
    z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
    return [z * h + (1 - z) * np.tanh(x_h + r * h_h)]


def gru_reset_before_step(x: Array, states: Sequence[Array], weights: Sequence[Array]) -> list[Array]:
    kernel, recurrent, bias = weights
    (h,) = states
    of_z, of_r, of_h = np.split(recurrent, 3, axis=1)
    x_z, x_r, x_h = np.split(x @ kernel + bias, 3, axis=1)
    z, r = sigmoid(x_z + h @ of_z), sigmoid(x_r + h @ of_r)
    return [z * h + (1 - z) * np.tanh(x_h + (r * h) @ of_h)]


def unrolled(
    step: Callable[..., list[Array]],
    x: Array,
    weights: Sequence[Array],
    states: Sequence[Array],
    *,
    mask: Array | None = None,
    backwards: bool = False,
    zero_output: bool = False,
) -> tuple[Array, list[Array]]:
    """All outputs in the order of the steps that were gone through, and the final states."""
    states = [state.astype(np.float64) for state in states]
    output = np.zeros_like(states[0])
    outputs = []
    steps = range(x.shape[1])
    for t in reversed(steps) if backwards else steps:
        new = step(x[:, t].astype(np.float64), states, [w.astype(np.float64) for w in weights])
        counts = np.ones((len(x), 1), bool) if mask is None else mask[:, t, None]
        output = np.where(counts, new[0], np.zeros_like(output) if zero_output else output)
        states = [np.where(counts, *pair) for pair in zip(new, states, strict=True)]
        outputs.append(output)
    return np.stack(outputs, axis=1), states


def attention(
    query: Array, value: Array, key: Array, weights: Sequence[Array], allowed: Array | None = None
) -> tuple[Array, Array]:
    """Output and scores of attention with several heads; the weights as in Keras, `allowed` (B, Q, S)."""
    kernel_q, bias_q, kernel_k, bias_k, kernel_v, bias_v, kernel_o, bias_o = (
        w.astype(np.float64) for w in weights
    )
    output = np.zeros((*query.shape[:2], *bias_o.shape)) + bias_o
    all_scores = np.zeros((len(query), kernel_q.shape[1], query.shape[1], value.shape[1]))
    for sample in range(len(query)):
        for head in range(kernel_q.shape[1]):
            q = query[sample] @ kernel_q[:, head] + bias_q[head]
            k = key[sample] @ kernel_k[:, head] + bias_k[head]
            v = value[sample] @ kernel_v[:, head] + bias_v[head]
            scores = q @ k.T / np.sqrt(q.shape[1])
            if allowed is not None:
                scores = np.where(allowed[sample], scores, -1e9)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
            all_scores[sample, head] = scores
            output[sample] += np.tensordot(scores @ v, kernel_o[head], axes=1)
    return output, all_scores


def numbers(*shape: int, seed: int = 0) -> Any:
    """Normal numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
