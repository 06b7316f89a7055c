"""Embedding and Masking: Keras's numbers, sums of gradients that are exact, and masks that go on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.unit.nn.conftest import GOLDEN
from tests.unit.nn.sequences import numbers
from tests.unit.nn.stepping import step_once
from workers import nn
from workers.nn.ops.indexing import add_at
from workers.rng import Streams


def test_embedding_equals_keras(golden: Any) -> None:
    g = golden("layer", "embedding")
    layer = nn.Embedding(**g.kwargs, weights=[g.inputs["embeddings"]])
    np.testing.assert_array_equal(layer(g.inputs["x"]).numpy(), g.outputs["y"])
    np.testing.assert_array_equal(layer(g.inputs["x"].astype(np.float32)).numpy(), g.outputs["y"])


def test_training_goes_on_as_in_keras() -> None:
    """Adam on a dense gradient: the golden model was written by Keras on JAX."""
    folder = GOLDEN / "keras3_embedding"
    if not folder.is_dir():
        pytest.skip(f"no golden model in {folder}: set REFERENCE_DATA")
    case = json.loads((folder / "case.json").read_text())
    stored = np.load(folder / "expected_tensors.npz")
    model = nn.Sequential([nn.Input((7,), dtype="int32"), nn.Embedding(31, 6), nn.Flatten(), nn.Dense(3)])
    model.compile(
        nn.optimizers.Adam(case["optimizer_config"]["learning_rate"]),
        nn.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    engine = model.engine()
    params, m, v = (np.zeros(engine.layout.length, np.float32) for _ in range(3))
    places = [weight["stored_at"] for weight in case["weights_in_get_weights_order"]]
    for i, place in enumerate(places):
        for flat, key in (
            (params, place),
            (m, f"optimizer/vars/{2 + 2 * i}"),
            (v, f"optimizer/vars/{3 + 2 * i}"),
        ):
            list(engine.layout.views(flat).values())[i][...] = stored[key]
    x, y, inputs = (np.load(folder / f"{name}.npy") for name in ("train_x", "train_y", "inputs"))
    np.testing.assert_allclose(engine.predict(params, inputs), np.load(folder / "expected.npy"), atol=1e-5)
    slots = [m, v]
    for step, loss in enumerate(np.load(folder / "expected_after_loss.npy"), case["iterations_stored"]):
        grad = np.zeros_like(params)
        ((total, count),) = engine.loss_and_grad(params, (x, y), Streams(0, step), grad)
        assert total / count == pytest.approx(loss, abs=2e-5)
        params, slots = step_once(engine.optimizer, step, params, slots, grad / np.float32(count))
    after = np.load(folder / "expected_after.npy")
    np.testing.assert_allclose(engine.predict(params, inputs), after, atol=2e-5)
    weights = np.load(folder / "expected_after_weights.npz")
    for view, place in zip(engine.layout.views(params).values(), places, strict=True):
        np.testing.assert_allclose(view, weights[place], atol=2e-5)


@pytest.mark.parametrize(("count", "rows"), [(0, 3), (1, 1), (7, 1), (100, 3), (1000, 17), (64, 1000)])
def test_rows_of_the_same_number_are_added(count: int, rows: int) -> None:
    rng = np.random.default_rng(count)
    places, values = rng.integers(0, rows, count), rng.standard_normal((count, 5))
    expected, found = np.zeros((rows, 5)), np.full((rows, 5), np.nan)
    np.add.at(expected, places, values)
    add_at(found[None], places, values[None].copy())
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_row_s_gradient_does_not_depend_on_the_rows_between() -> None:
    """As the order of the sums is that of the places alone."""
    values = numbers(40, 3)
    alone, among = np.empty((1, 2, 3), np.float32), np.empty((1, 2, 3), np.float32)
    add_at(alone, np.zeros(20, int), values[None, ::2].copy())
    add_at(among, np.arange(40) % 2, values[None].copy())
    assert (among[0, 0] == alone[0, 0]).all()


def test_a_mask_goes_through_layers_to_where_it_is_used() -> None:
    tokens = np.array([[2, 1, 0, 0], [3, 0, 0, 0]])
    model = nn.Sequential(
        [
            nn.Input((4,), dtype="int32"),
            nn.Embedding(4, 3, mask_zero=True),
            nn.Dropout(0.5),
            nn.Dense(3),
            nn.LSTM(2),
        ]
    )
    cut = nn.Sequential(
        [nn.Input((2,), dtype="int32"), *(type(x).from_config(x.get_config()) for x in model.layers)]
    )
    cut.layers[0].mask_zero = cut.layers[0].supports_masking = False
    cut.set_weights(model.get_weights())
    np.testing.assert_allclose(model(tokens).numpy()[0], cut(tokens[:, :2]).numpy()[0], rtol=1e-6)
    embedded = model.layers[0](tokens)
    np.testing.assert_array_equal(embedded.mask.numpy(), tokens != 0)
    assert nn.Embedding(4, 3)(tokens).mask is None


def test_masked_steps_do_not_count_in_the_loss() -> None:
    model = nn.Sequential(
        [nn.Input((4,), dtype="int32"), nn.Embedding(4, 3, mask_zero=True), nn.LSTM(2, return_sequences=True)]
    )
    model.compile("sgd", "mse")
    engine = model.engine()
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(1))
    tokens, y = np.array([[2, 1, 0, 0], [3, 0, 0, 0]]), numbers(2, 4, 2)
    other = y.copy()
    other[tokens == 0] += 5
    assert (engine.evaluate(params, (tokens, y)) == engine.evaluate(params, (tokens, other))).all()
    other[0, 0] += 5
    assert (engine.evaluate(params, (tokens, y)) != engine.evaluate(params, (tokens, other))).any()


def test_masking_takes_out_steps_whose_features_are_all_the_value() -> None:
    x = numbers(2, 3, 2)
    x[0, 1] = -1
    x[1, 2, 0] = -1
    y = nn.Masking(mask_value=-1)(x)
    np.testing.assert_array_equal(y.mask.numpy(), [[1, 0, 1], [1, 1, 1]])
    expected = x.copy()
    expected[0, 1] = 0
    np.testing.assert_array_equal(y.numpy(), expected)


def test_regularizer_constraint_and_frozen_table() -> None:
    layer = nn.Embedding(4, 2, embeddings_regularizer="l2", embeddings_constraint="non_neg", trainable=False)
    layer(np.array([[1]]))
    (table,) = layer.weights
    assert table.regularizer is layer.embeddings_regularizer
    assert table.constraint is layer.embeddings_constraint
    assert not layer.trainable_weights


@pytest.mark.parametrize(
    "layer", [nn.Embedding(5, 3, "he_normal", mask_zero=True, name="words"), nn.Masking(2.0)]
)
def test_a_layer_from_its_config_is_equal(layer: Any) -> None:
    config = json.loads(json.dumps(nn.layers.serialize(layer)))
    assert nn.layers.serialize(nn.layers.get(config)) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Embedding(0, 2), "input_dim must be a positive integer, not 0"),
        (lambda: nn.Embedding(3, 2.0), "output_dim must be a positive integer, not 2.0"),
        (lambda: nn.Embedding(3, 2)(np.array([[0, 3]])), "no row 3: the table has 3, numbered 0 to 2"),
        (lambda: nn.Embedding(3, 2)(np.array([[0, -1]])), "no row -1"),
        (lambda: nn.Embedding(3, 2, weights=[np.zeros((2, 2))])(np.array([0])), r"\(3, 2\), and \(2, 2\)"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
