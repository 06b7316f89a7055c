"""Recurrent layers and attention give the values and the gradients of real Keras, with the same weights."""

import numpy as np
import pytest

from workers import nn

pytestmark = pytest.mark.peers
keras = pytest.importorskip("keras", reason="Keras is not installed: make peers installs it")
jax = pytest.importorskip("jax", reason="JAX is not installed: make peers installs it")
if keras.config.backend() != "jax":
    pytest.skip("Keras runs on another backend than JAX", allow_module_level=True)

MASK = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]], bool)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def both(name, *args, **kwargs):
    """The same layer of ours and of Keras."""
    return getattr(nn.layers, name)(*args, **kwargs), getattr(keras.layers, name)(*args, **kwargs)


def bidirectional(**kwargs):
    ours, theirs = both("LSTM", 3, return_sequences=True)
    return nn.Bidirectional(ours, **kwargs), keras.layers.Bidirectional(theirs, **kwargs)


def time_distributed():
    ours, theirs = both("Dense", 3, activation="tanh")
    return nn.TimeDistributed(ours), keras.layers.TimeDistributed(theirs)


X, QUERY, VALUE, KEY = numbers(4, 4, 3), numbers(4, 4, 5), numbers(4, 6, 2), numbers(4, 6, 7)
KEY5 = numbers(4, 6, 5, seed=1)
ALLOWED = np.random.default_rng(2).random((4, 4, 6)) < 0.7
CASES = {
    **{
        f"{name}, {settings}": (lambda name=name, settings=settings: both(name, 3, **settings), [X], {})
        for name in ("SimpleRNN", "LSTM", "GRU")
        for settings in ({}, {"return_sequences": True, "go_backwards": True}, {"use_bias": False})
    },
    **{
        f"{name} with a mask": (
            lambda name=name: both(name, 3, return_sequences=True),
            [X],
            {"mask": MASK},
        )
        for name in ("SimpleRNN", "LSTM", "GRU")
    },
    "LSTM, other activations": (
        lambda: both("LSTM", 3, activation="softsign", recurrent_activation="hard_sigmoid"),
        [X],
        {},
    ),
    "LSTM step by step": (lambda: both("LSTM", 3, activation="gelu"), [X], {"mask": MASK}),
    "GRU, reset before": (lambda: both("GRU", 3, reset_after=False), [X], {"mask": MASK}),
    "Bidirectional": (bidirectional, [X], {}),
    "Bidirectional with a mask": (lambda: bidirectional(merge_mode="mul"), [X], {"mask": MASK}),
    "TimeDistributed": (time_distributed, [X], {}),
    "heads": (lambda: both("MultiHeadAttention", 2, 3), [QUERY, VALUE, KEY], {}),
    "heads, causal": (
        lambda: both("MultiHeadAttention", 2, 3, output_shape=(3, 2)),
        [QUERY, VALUE],
        {"use_causal_mask": True},
    ),
    "heads with a mask": (
        lambda: both("MultiHeadAttention", 2, 3, use_bias=False),
        [QUERY, VALUE, KEY],
        {"attention_mask": ALLOWED},
    ),
    "heads, gated": (
        lambda: both("MultiHeadAttention", 2, 3, use_gate=True, sliding_window=2),
        [QUERY, VALUE],
        {"use_causal_mask": True},
    ),
    "Attention": (lambda: both("Attention", use_scale=True), [[QUERY, KEY5]], {}),
    "Attention, concat": (
        lambda: both("Attention", score_mode="concat", use_scale=True),
        [[QUERY, KEY5]],
        {"use_causal_mask": True},
    ),
    "AdditiveAttention": (lambda: both("AdditiveAttention"), [[QUERY, numbers(4, 6, 2), KEY5]], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_keras(name):
    make, args, kwargs = CASES[name]
    ours, theirs = make()
    shape = ours(*args, **kwargs).shape
    theirs(*args, **kwargs)
    assert [w.shape for w in ours.weights] == [tuple(w.shape) for w in theirs.weights]
    values = [0.5 * numbers(*w.shape, seed=i) for i, w in enumerate(ours.weights)]
    ours.set_weights(values)
    factors = numbers(*shape, seed=9)

    seeds = [variable.value for variable in theirs.non_trainable_variables]

    def total(variables):
        y, _ = theirs.stateless_call(variables, seeds, *args, **kwargs)
        return (y * factors).sum(), y

    gradients, expected = jax.grad(total, has_aux=True)(values)
    with nn.GradientTape() as tape:
        y = ours(*args, **kwargs)
        weighted = nn.ops.sum(y * factors)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-5)
    for gradient, reference in zip(tape.gradient(weighted, ours.weights), gradients, strict=True):
        np.testing.assert_allclose(gradient.numpy(), reference, rtol=1e-3, atol=1e-4)


def test_settings_are_those_of_keras():
    for name, args in (
        ("SimpleRNN", [3]),
        ("LSTM", [3]),
        ("GRU", [3]),
        ("MultiHeadAttention", [2, 3]),
        ("Attention", []),
        ("AdditiveAttention", []),
        ("Embedding", [5, 3]),
        ("Masking", []),
        ("Normalization", []),
        ("ReLU", []),
        ("PReLU", []),
        ("Softmax", []),
        ("GaussianNoise", [0.1]),
        ("AlphaDropout", [0.1]),
        ("Dot", [1]),
        ("Concatenate", []),
    ):
        ours, theirs = (layer.get_config() for layer in both(name, *args))
        missing = theirs.keys() - ours.keys() - {"dtype", "quantization_config"}  # of mixed and low precision
        assert not missing, f"{name}: {missing}"
        for key, value in ours.items():
            if isinstance(value, int | float | str) and key in theirs and key not in ("name", "dtype"):
                assert theirs[key] == value, f"{name}: {key}"


def test_a_masked_embedding_takes_the_same_steps():
    tokens = np.array([[2, 1, 0, 0], [3, 0, 0, 0], [1, 2, 3, 4]])
    models = []
    for library in (nn, keras):
        layers = library.layers
        model = library.Sequential(
            [layers.Embedding(5, 3, mask_zero=True), layers.Dropout(0.1), layers.GRU(2), layers.Dense(2)]
        )
        model(tokens)
        models.append(model)
    ours, theirs = models
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(tokens).numpy(), theirs(tokens), rtol=1e-4, atol=1e-5)
