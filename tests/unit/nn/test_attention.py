"""Attention gives what plain loops give, with all masks, and exact gradients."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.unit.nn.layer_checks import check_layer, predict
from tests.unit.nn.sequences import attention, numbers
from workers import nn
from workers.nn.graph import trace
from workers.nn.tensor import Spec, leaves

QUERY, VALUE, KEY = numbers(3, 4, 5), numbers(3, 6, 2, seed=1), numbers(3, 6, 7, seed=2)
CAUSAL = np.tril(np.ones((4, 6), bool))
ALLOWED = np.random.default_rng(4).random((3, 4, 6)) < 0.6
QUERY_MASK = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
VALUE_MASK = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-5)


def filled(layer: Any, *args: Any) -> list[np.ndarray]:
    layer(*args)
    layer.set_weights([0.5 * numbers(*w.shape, seed=i) for i, w in enumerate(layer.weights)])
    return layer.get_weights()


def test_variables_have_keras_shapes_in_keras_order() -> None:
    layer = nn.MultiHeadAttention(2, 3, value_dim=4)
    layer(QUERY, VALUE, KEY)
    expected = {"query": ((5, 2, 3), (2, 3)), "key": ((7, 2, 3), (2, 3)), "value": ((2, 2, 4), (2, 4))}
    expected["output"] = ((2, 4, 5), (5,))
    for name, shapes in expected.items():
        assert tuple(w.shape for w in getattr(layer, f"{name}_dense").weights) == shapes
    assert [w.shape for w in layer.weights] == [shape for shapes in expected.values() for shape in shapes]
    limit = np.sqrt(6 / (5 * 2 + 5 * 3))  # Keras takes a kernel of three axes for a convolution's
    assert 0.5 * limit < np.abs(layer.query_dense.kernel.numpy()).max() <= limit


@pytest.mark.parametrize("output_shape", [None, 3, (3, 2)])
def test_several_heads_give_what_plain_loops_give(output_shape: Any) -> None:
    layer = nn.MultiHeadAttention(2, 3, value_dim=4, output_shape=output_shape)
    weights = filled(layer, QUERY, VALUE, KEY)
    found = layer(QUERY, VALUE, KEY, return_attention_scores=True)
    for value, expected in zip(found, attention(QUERY, VALUE, KEY, weights), strict=True):
        close(value, expected)


@pytest.mark.parametrize("names", [("a",), ("c",), ("q",), ("v",), ("k",), ("a", "c"), tuple("acqvk")])
def test_all_masks_together_say_what_may_be_attended_to(names: tuple[str, ...]) -> None:
    layer = nn.MultiHeadAttention(2, 3)
    weights = filled(layer, QUERY, VALUE, KEY)
    masks = {
        "a": ("attention_mask", ALLOWED, ALLOWED),
        "c": ("use_causal_mask", True, CAUSAL[None]),
        "q": ("query_mask", QUERY_MASK, QUERY_MASK[:, :, None]),
        "v": ("value_mask", VALUE_MASK, VALUE_MASK[:, None]),
        "k": ("key_mask", VALUE_MASK[::-1], VALUE_MASK[::-1, None]),
    }
    allowed = np.ones((3, 4, 6), bool)
    for name in names:
        allowed = allowed & masks[name][2]
    given = {masks[name][0]: masks[name][1] for name in names}
    found = layer(QUERY, VALUE, KEY, return_attention_scores=True, **given)
    for value, expected in zip(found, attention(QUERY, VALUE, KEY, weights, allowed), strict=True):
        close(value, expected)


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_an_attention_mask_may_leave_out_samples_and_heads(axes: int) -> None:
    layer = nn.MultiHeadAttention(2, 3)
    weights = filled(layer, QUERY, VALUE, KEY)
    one = ALLOWED[0]
    mask = {2: one, 3: np.repeat(one[None], 3, 0), 4: np.repeat(one[None, None], 2, 1)}[axes]
    expected, _ = attention(QUERY, VALUE, KEY, weights, np.repeat(one[None], 3, 0))
    close(layer(QUERY, VALUE, KEY, attention_mask=mask.astype(np.int32)), expected)


def test_a_sliding_window_lets_near_keys_in_and_a_gate_scales_what_is_found() -> None:
    layer = nn.MultiHeadAttention(2, 3, sliding_window=2)
    weights = filled(layer, QUERY, VALUE, KEY)
    near = np.abs(np.arange(4)[:, None] - np.arange(6)) < 2
    close(layer(QUERY, VALUE, KEY), attention(QUERY, VALUE, KEY, weights, np.repeat(near[None], 3, 0))[0])
    gated = nn.MultiHeadAttention(2, 3, use_gate=True)
    gated(QUERY, VALUE, KEY)
    half = [np.zeros((5, 2, 3)), np.zeros((2, 3))]  # the sigmoid of 0
    gated.set_weights([*weights[:4], *half, *weights[4:]])
    found, _ = attention(QUERY, VALUE, KEY, [*weights[:6], weights[6] / 2, weights[7]])
    close(gated(QUERY, VALUE, KEY), found)


def test_masks_that_tensors_carry_are_used_and_the_query_s_goes_on() -> None:
    tokens = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    model = nn.Sequential([nn.Input((4,), dtype="int32"), nn.Embedding(5, 6, mask_zero=True)])
    embedded = model(tokens)
    layer = nn.MultiHeadAttention(2, 3)
    weights = filled(layer, embedded, embedded)
    mask = tokens != 0
    x = embedded.numpy()
    found = layer(embedded, embedded)
    close(found, attention(x, x, x, weights, mask[:, :, None] & mask[:, None])[0])
    np.testing.assert_array_equal(found.mask.numpy(), mask)


class SelfAttention(nn.Layer):
    """A layer of one input around one of several."""

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        super().__init__()
        self.inner = inner
        self.kwargs = kwargs

    def call(self, x: Any) -> Any:
        several = not isinstance(self.inner, nn.MultiHeadAttention)
        return self.inner([x, x], **self.kwargs) if several else self.inner(x, x, **self.kwargs)


@pytest.mark.parametrize(
    "layer",
    [
        SelfAttention(nn.MultiHeadAttention(2, 2, value_dim=3), use_causal_mask=True),
        SelfAttention(nn.MultiHeadAttention(1, 2, use_bias=False), attention_mask=ALLOWED[0, :, :4]),
        SelfAttention(nn.MultiHeadAttention(2, 2, sliding_window=2, use_gate=True)),
        SelfAttention(nn.Attention(use_scale=True), use_causal_mask=True),
        SelfAttention(nn.Attention(score_mode="concat", use_scale=True)),
        SelfAttention(nn.AdditiveAttention()),
    ],
)
def test_gradients_are_exact_and_bits_the_same_eagerly(layer: Any) -> None:
    check_layer(layer, numbers(2, 4, 3))


def test_dropout_keeps_the_mean_and_is_for_training_alone() -> None:
    layer = nn.MultiHeadAttention(2, 3, dropout=0.5, seed=1)
    x = numbers(4, 5, 6)
    plain = layer(x, x).numpy()
    assert (layer(x, x).numpy() == plain).all()
    drawn = np.stack([layer(x, x, training=True).numpy() for _ in range(400)])
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_allclose(drawn.mean(0), plain, atol=6 * drawn.std(0).max() / 20)


def weighted(scores: np.ndarray, value: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    weights = np.exp(scores) * allowed
    return (weights / weights.sum(-1, keepdims=True)) @ value


VALUES_COUNT = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]], bool)


@pytest.mark.parametrize("kind", ["dot", "scaled", "concat", "additive"])
def test_attention_without_heads_follows_its_equation(kind: str) -> None:
    query, value, key = numbers(3, 4, 2), numbers(3, 6, 5, seed=1), numbers(3, 6, 2, seed=2)
    layer = {
        "dot": nn.Attention(),
        "scaled": nn.Attention(use_scale=True),
        "concat": nn.Attention(score_mode="concat"),
        "additive": nn.AdditiveAttention(),
    }[kind]
    weights = filled(layer, [query, value, key])
    sums = np.tanh(query[:, :, None] + key[:, None])
    scores = {
        "dot": lambda: query @ key.swapaxes(1, 2),
        "scaled": lambda: weights[0] * (query @ key.swapaxes(1, 2)),
        "concat": lambda: weights[0] * sums.sum(-1),
        "additive": lambda: (weights[0] * sums).sum(-1),
    }[kind]()
    mask = [nn.ops.convert_to_tensor(QUERY_MASK), nn.ops.convert_to_tensor(VALUES_COUNT)]
    close(layer([query, value, key]), weighted(scores, value, np.ones((3, 4, 6))))
    found, shares = layer([query, value, key], mask=mask, return_attention_scores=True)
    expected = weighted(scores, value, VALUES_COUNT[:, None]) * QUERY_MASK[..., None]
    close(found, expected)
    close(shares.numpy().sum(-1), np.ones((3, 4)))
    close(layer([query, value, key], use_causal_mask=True), weighted(scores, value, CAUSAL))
    np.testing.assert_array_equal(layer.compute_mask([query, value], mask).numpy(), QUERY_MASK)


@pytest.mark.parametrize(
    "layer",
    [
        nn.MultiHeadAttention(2, 3, 4, 0.1, False, output_shape=(5, 2), kernel_initializer="he_normal"),
        nn.MultiHeadAttention(2, 3, sliding_window=3, use_gate=True),
        nn.Attention(True, "concat", 0.2),
        nn.AdditiveAttention(False, seed=3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_from_its_config_is_equal(layer: Any) -> None:
    config = json.loads(json.dumps(nn.layers.serialize(layer)))
    assert nn.layers.serialize(nn.layers.get(config)) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MultiHeadAttention(0, 2), "num_heads must be a positive integer, not 0"),
        (lambda: nn.MultiHeadAttention(2, 2, dropout=1.0), "dropout must be from 0 to less than 1"),
        (
            lambda: nn.MultiHeadAttention(2, 2, attention_axes=(1, 2)),
            r"attention_axes \(1, 2\) is not supported",
        ),
        (lambda: nn.MultiHeadAttention(2, 2)(QUERY[0], QUERY[0]), "give \\(samples, steps, features\\)"),
        (lambda: nn.MultiHeadAttention(2, 2)(QUERY, VALUE, QUERY), "do not go together"),
        (
            lambda: nn.MultiHeadAttention(2, 2)(QUERY, VALUE, attention_mask=ALLOWED[:, :2]),
            "do not go together",
        ),
        (lambda: nn.MultiHeadAttention(2, 2, sliding_window=0), "sliding_window must be a positive integer"),
        (lambda: nn.Attention(score_mode="x"), "score_mode 'x' is not one of dot, concat"),
        (lambda: nn.Attention()([QUERY]), r"call it on a list \[query, value\]"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_several_heads_are_one_operation_in_float64_too() -> None:
    layer = SelfAttention(nn.MultiHeadAttention(2, 3))
    x = numbers(3, 4, 5)
    layer(x)
    graph = trace(layer, Spec((None, 4, 5)))
    assert [node.op for node in graph.nodes].count("attention") == 1
    assert len(leaves(graph.structure)) == 1
    np.testing.assert_allclose(
        predict(layer, x), attention(x, x, x, layer.inner.get_weights())[0], rtol=1e-9, atol=1e-12
    )
