"""A JAX function in the same jobs, checkpoints and recovery as our own models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.peers.digests import check_same_digest
from workers.rng import Purpose, Streams

jax = pytest.importorskip("jax", reason="JAX is not installed: make peers installs it")

if TYPE_CHECKING:
    from tests.integration.harness import Place

pytestmark = pytest.mark.peers

MODEL = """
import jax
import jax.numpy as jnp
from workers.jax_engine import JaxEngine

def model():
    keys = jax.random.split(jax.random.key(0), 2)
    layers = [
        {"w": jax.random.normal(key, shape) * 0.1, "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys, [(64, 48), (48, 10)])
    ]
    def logits(p, key, x):
        hidden = jax.nn.relu(x.reshape(len(x), 64) @ p[0]["w"] + p[0]["b"])
        if key is not None:
            hidden *= jax.random.bernoulli(key, 0.8, hidden.shape) / 0.8
        return hidden @ p[1]["w"] + p[1]["b"]
    def loss(p, key, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(p, key, x)), y[:, None], 1)[:, 0]
    def accuracy(p, x, y):
        return (logits(p, None, x).argmax(1) == y).astype("float32")
    return JaxEngine(layers, loss, "adam", {"accuracy": accuracy})
"""


@pytest.mark.timeout(280)
def test_the_digits_end_in_the_same_digest_whatever_dies(place: Place) -> None:
    check_same_digest(place, MODEL, "--steps", "1500")  # it is slow while it compiles


def squares(p: Any, key: Any, x: Any, y: Any) -> Any:
    return (x @ p["w"] + p["b"] - y) ** 2


def engine(loss: Any = squares, **options: Any) -> Any:
    from workers.jax_engine import JaxEngine

    parameters = {"w": np.full((4, 2), 0.5, np.float32), "b": np.ones(2, np.float32)}
    return JaxEngine(options.pop("parameters", parameters), loss, "sgd", **options)


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal((5, 2)).astype(np.float32)


def test_gradients_are_those_of_the_sum_over_samples() -> None:
    made = engine(metrics={"error": lambda p, x, y: abs(x @ p["w"] + p["b"] - y)})
    params, out = np.zeros((2, made.layout.length), np.float32)
    made.init(params, Streams(0, purpose=Purpose.INIT))
    out[:] = np.nan
    x, y = batch()
    sums = made.loss_and_grad(params, (x, y), Streams(0), out)
    error = x @ np.full((4, 2), 0.5, np.float32) + 1 - y
    np.testing.assert_allclose(sums, [[(error**2).sum(), 10], [abs(error).sum(), 10]], rtol=1e-6)
    views = made.layout.views(out)
    np.testing.assert_allclose(views["w"], 2 * x.T @ error, rtol=1e-5)
    np.testing.assert_allclose(views["b"], 2 * error.sum(0), rtol=1e-5)
    np.testing.assert_allclose(made.evaluate(params, (x, y)), sums, rtol=1e-6)
    assert made.metrics == ("loss", "error")
    assert made.config()["parameters"] == {"b": [2], "w": [4, 2]}


def test_what_a_key_draws_is_a_function_of_seed_step_and_microbatch() -> None:
    def noisy(p: Any, key: Any, x: Any, y: Any) -> Any:
        return squares(p, key, x, y) * jax.random.uniform(key, (len(x), 1))

    made = engine(noisy)
    params = np.ones(made.layout.length, np.float32)

    def gradient(streams: Streams) -> bytes:
        out = np.zeros_like(params)
        made.loss_and_grad(params, batch(), streams, out)
        return out.tobytes()

    assert gradient(Streams(0, 3, 1)) == gradient(Streams(0, 3, 1))
    assert len({gradient(Streams(*place)) for place in ((0, 3, 1), (1, 3, 1), (0, 4, 1), (0, 3, 2))}) == 4


def test_mistakes_are_one_clear_line() -> None:
    with pytest.raises(ConfigurationError, match="there are no parameters"):
        engine(parameters={})
    with pytest.raises(ConfigurationError, match="w is float64: a training state is float32"):
        engine(parameters={"w": np.zeros(3)})
    params = np.ones(engine().layout.length, np.float32)
    made = engine(lambda p, key, x, y: squares(p, key, x, y).sum())
    with pytest.raises(ConfigurationError, match=r"the loss gives shape \(\) for 5 samples"):
        made.evaluate(params, batch())
