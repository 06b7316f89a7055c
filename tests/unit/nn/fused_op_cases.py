"""Cases as in `op_cases`, of the operations that are a layer each."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.unit.nn.operands import BOX, Case, X, numbers, one, whole
from workers.nn import losses, ops
from workers.nn.ops.base import apply

if TYPE_CHECKING:
    from workers.nn.numerics import Array

IMAGES = numbers(4, 5, 4, 2)
KERNEL = numbers(3, 2, 2, 3, low=-1, high=1)
MASK = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]], bool)


def small(*shape: int) -> Array:
    return numbers(*shape, low=-0.7, high=0.7)


def _convolutions() -> dict[str, Case]:
    def case(function: Any, kernel: Array, filters: int = 3, **settings: Any) -> Case:
        def convolved(x: Any, kernel: Any, bias: Any) -> Any:
            return function(x, kernel, bias=bias, **settings)

        return Case(convolved, (IMAGES, kernel, numbers(filters)), (0,))

    dilated = {"dilation_rate": 2, "padding": "same"}
    return {
        "conv": case(ops.conv, KERNEL),
        "conv with strides": case(ops.conv, KERNEL, strides=(2, 1), padding="same", activation="tanh"),
        "conv with dilation": case(ops.conv, KERNEL, **dilated, activation="gelu"),
        "conv_transpose": case(ops.conv_transpose, numbers(3, 2, 3, 2), strides=2, activation="mish"),
        "depthwise_conv": case(ops.depthwise_conv, numbers(3, 2, 2, 2), 4, activation="silu"),
        "conv without bias": Case(ops.conv, (IMAGES, KERNEL), (0,)),
    }


def _recurrent() -> dict[str, Case]:
    settings = {
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "return_sequences": True,
        "go_backwards": False,
        "zero_output_for_mask": False,
        "recurrent_dropout": 0.0,
    }

    def case(name: str, gates: int, bias: tuple[int, ...], **changed: Any) -> Case:
        def computed(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any, mask: Any, *states: Any) -> Any:
            chosen = settings | changed
            return ops.recurrent(name, x, kernel, recurrent_kernel, bias, mask, states, **chosen)

        weights = (small(5, 2 * gates), small(2, 2 * gates), small(*bias))
        states = (small(4, 2),) * (2 if name == "lstm" else 1)
        return Case(computed, (BOX, *weights, MASK, *states), (0, 4, 5, 6)[: 2 + len(states)])

    last = {"return_sequences": False, "go_backwards": True}
    return {
        "simple_rnn": case("simple_rnn", 1, (2,)),
        "simple_rnn backwards": case("simple_rnn", 1, (2,), **last),
        "lstm": case("lstm", 4, (8,)),
        "lstm with zeros for masked steps": case("lstm", 4, (8,), zero_output_for_mask=True),
        "gru": case("gru", 3, (2, 6)),
        "gru_reset_before": case("gru_reset_before", 3, (6,), **last),
        "lstm with dropout": case("lstm", 4, (8,), recurrent_dropout=0.4),
        "gru with dropout": case("gru", 3, (2, 6), recurrent_dropout=0.4),
        "gru_reset_before with dropout": case("gru_reset_before", 3, (6,), recurrent_dropout=0.4),
    }


FUSED_CASES: dict[str, Case] = {
    **_convolutions(),
    **_recurrent(),
    "max_pool": one(lambda x: ops.max_pool(x, 2, strides=1, padding="same"), IMAGES),
    "average_pool": one(lambda x: ops.average_pool(x, (3, 2), strides=2, padding="same"), IMAGES),
    "batch_normalization": Case(
        lambda x, mean, variance, gamma, beta: ops.batch_normalization(x, mean, variance, -1, beta, gamma),
        (BOX, numbers(5), numbers(5, low=0.5, high=2), numbers(5), numbers(5)),
        (0,),
    ),
    "batch_normalization_training": Case(
        lambda x, gamma, beta: ops.normalize_batch(x, 1, beta, gamma), (BOX, numbers(3), numbers(3)), (0,)
    ),
    "layer_normalization": Case(ops.layer_normalization, (BOX, numbers(5), numbers(5)), (0,)),
    "layer_normalization of squares": one(lambda x: ops.rms_normalization(x, axis=(1, 2)), BOX),
    "normal_like": one(lambda x: x * ops.normal_like(x, 1.0, 0.5)),
    "embedding": Case(ops.embedding, (whole(4, 3), numbers(4, 2)), (0,)),
    "attention": Case(
        partial(ops.attention, num_heads=2, scale=0.6, causal=True),
        (numbers(4, 3, 4), numbers(4, 3, 4, low=-1), numbers(4, 3, 6)),
        (0, 1, 2),
    ),
    "attention with dropout and a mask": Case(
        partial(ops.attention, num_heads=2, scale=0.6, dropout=0.3, causal=True),
        (*(numbers(4, 3, n, low=-1) for n in (4, 4, 6)), np.repeat(MASK[:, None, None], 3, axis=2)),
        (0, 1, 2, 3),
    ),
    "loss": Case(losses.SparseCategoricalCrossentropy(from_logits=True), (whole(4, high=3), X), (0, 1)),
    "loss_reduction": one(
        lambda x: apply(
            "loss_reduction",
            ops.sum(x, axis=-1),
            reduction="sum_over_batch_size",
            weighted=False,
            masked=False,
        )
    ),
}
