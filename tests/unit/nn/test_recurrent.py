"""Recurrent layers follow the published equations, forwards and backwards, with masks and states."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.unit.nn import sequences
from tests.unit.nn.layer_checks import check_layer, predict
from tests.unit.nn.sequences import numbers, unrolled
from workers import nn
from workers.rng import Streams

close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)

KINDS: dict[str, tuple[Any, Any, int]] = {
    "SimpleRNN": (nn.SimpleRNN, sequences.simple_rnn_step, 1),
    "LSTM": (nn.LSTM, sequences.lstm_step, 2),
    "GRU": (nn.GRU, sequences.gru_step, 1),
    "GRU, reset before": (partial(nn.GRU, reset_after=False), sequences.gru_reset_before_step, 1),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
MASK = np.array([[1, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)


def filled(layer: Any, x: Any, scale: float = 0.5) -> list[np.ndarray]:
    """The layer's weights, after it was built and given some."""
    layer(x)
    layer.set_weights([scale * numbers(*w.shape, seed=i) for i, w in enumerate(layer.weights)])
    return layer.get_weights()


@each_kind
@pytest.mark.parametrize("backwards", [False, True])
def test_all_outputs_and_states_follow_the_equations(kind: str, backwards: bool) -> None:
    make, step, states = KINDS[kind]
    x = numbers(5, 4, 3)
    layer = make(2, return_sequences=True, go_backwards=backwards)
    weights = filled(layer, x)
    outputs, final = unrolled(step, x, weights, [np.zeros((5, 2))] * states, backwards=backwards)
    close(predict(layer, x), outputs)
    last = make(2, return_state=True, go_backwards=backwards)
    last(x)
    last.set_weights(weights)
    found = last(x)
    assert len(found) == 1 + states
    for value, expected in zip(found, [final[0], *final], strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)


@each_kind
@pytest.mark.parametrize("zero_output", [False, True])
def test_masked_steps_change_no_state_and_repeat_the_output(kind: str, zero_output: bool) -> None:
    make, step, states = KINDS[kind]
    x = numbers(5, 4, 3)
    layer = make(2, return_sequences=True, return_state=True, zero_output_for_mask=zero_output)
    weights = filled(layer, x)
    initial = [numbers(5, 2, seed=i) for i in range(states)]
    found = layer(x, initial_state=initial, mask=MASK)
    outputs, final = unrolled(step, x, weights, initial, mask=MASK, zero_output=zero_output)
    for value, expected in zip(found, [outputs, *final], strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)


@each_kind
@pytest.mark.parametrize("sequences", [False, True])
def test_gradients_are_exact_and_bits_the_same_eagerly(kind: str, sequences: bool) -> None:
    layer = KINDS[kind][0](2, return_sequences=sequences, go_backwards=sequences)
    check_layer(layer, numbers(4, 3, 2))
    check_layer(
        KINDS[kind][0](2, use_bias=False, recurrent_activation="softplus")
        if kind != "SimpleRNN"
        else nn.SimpleRNN(2, "elu", False),
        numbers(4, 3, 2),
    )


@each_kind
def test_a_mask_from_the_layer_before_is_used(kind: str) -> None:
    x = numbers(5, 4, 3) * MASK[..., None]
    model = nn.Sequential([nn.Input((4, 3)), nn.Masking(), KINDS[kind][0](2)])
    (layer,) = model.layers[1:]
    weights = filled(layer, x)
    outputs, _ = unrolled(KINDS[kind][1], x, weights, [np.zeros((5, 2))] * KINDS[kind][2], mask=MASK)
    np.testing.assert_allclose(model(x).numpy(), outputs[:, -1], rtol=1e-5, atol=1e-6)


def plain_tanh(x: Any) -> Any:
    """A function that no operation includes."""
    return nn.ops.tanh(x)


@each_kind
@pytest.mark.parametrize("settings", [{}, {"return_sequences": True, "go_backwards": True}])
def test_step_by_step_gives_what_one_operation_gives(kind: str, settings: dict[str, Any]) -> None:
    x = numbers(5, 4, 3)
    fused, stepwise = (KINDS[kind][0](2, activation=a, **settings) for a in ("tanh", plain_tanh))
    weights = filled(fused, x)
    stepwise(x)
    stepwise.set_weights(weights)
    assert len(nn.graph.trace(stepwise, nn.tensor.Spec((None, 4, 3))).nodes) > 4
    close(predict(stepwise, x), predict(fused, x))
    initial = [numbers(5, 2, seed=i) for i in range(KINDS[kind][2])]
    pair = [layer(x, initial_state=initial, mask=MASK).numpy() for layer in (fused, stepwise)]
    np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["linear", lambda x: x * 1.0])
def test_dropout_drops_the_same_features_at_all_steps(activation: Any) -> None:
    layer = nn.SimpleRNN(
        50,
        activation,
        False,
        kernel_initializer="identity",
        recurrent_initializer="zeros",
        dropout=0.5,
        return_sequences=True,
    )
    y = layer(np.ones((8, 3, 50), np.float32), training=True).numpy()
    assert set(np.unique(y)) == {0, 2}
    assert (y == y[:, :1]).all()
    assert (y[0] != y[1]).any()
    assert (layer(np.ones((8, 3, 50), np.float32)).numpy() == 1).all()


@pytest.mark.parametrize("activation", ["linear", lambda x: x * 1.0])
def test_recurrent_dropout_drops_the_same_units_at_all_steps(activation: Any) -> None:
    layer = nn.SimpleRNN(
        50,
        activation,
        False,
        kernel_initializer="zeros",
        recurrent_initializer="identity",
        recurrent_dropout=0.5,
        return_sequences=True,
    )
    x, start = np.ones((8, 3, 1), np.float32), np.ones((8, 50), np.float32)
    y = layer(x, initial_state=start, training=True).numpy()
    assert set(np.unique(y)) == {0, 2, 4, 8}
    assert ((y[:, 1] > 0) == (y[:, 0] > 0)).all()
    assert (layer(x, initial_state=start).numpy() == 1).all()


def test_variables_have_keras_names_shapes_order_and_first_values() -> None:
    lstm, gru = nn.LSTM(4), nn.GRU(4)
    for layer, gates, bias in ((lstm, 4, (16,)), (gru, 3, (2, 12))):
        layer(numbers(2, 3, 5))
        assert [w.path for w in layer.weights] == ["cell/kernel", "cell/recurrent_kernel", "cell/bias"]
        assert [w.shape for w in layer.weights] == [(5, 4 * gates), (4, 4 * gates), bias]
    kernel, recurrent, bias = lstm.get_weights()
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], 4))
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(4), atol=1e-6)
    assert np.abs(kernel).max() <= np.sqrt(6 / 21)
    plain = nn.LSTM(4, unit_forget_bias=False)
    plain(numbers(2, 3, 5))
    assert not plain.get_weights()[2].any()


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
def test_bidirectional_puts_both_ways_together(merge: str | None) -> None:
    x = numbers(5, 4, 3)
    layer = nn.Bidirectional(nn.LSTM(2, return_sequences=True), merge_mode=merge)
    weights = filled(layer, x)
    mask = nn.ops.convert_to_tensor(MASK)
    ways = []
    for own, backwards in ((weights[:3], False), (weights[3:], True)):
        zeros = [np.zeros((5, 2))] * 2
        y, _ = unrolled(sequences.lstm_step, x, own, zeros, mask=MASK, backwards=backwards, zero_output=True)
        ways.append(y[:, ::-1] if backwards else y)
    found = layer(x, mask=mask)
    if merge is None:
        for value, expected in zip(found, ways, strict=True):
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)
        return
    a, b = ways
    expected = {"concat": np.concatenate(ways, -1), "sum": a + b, "mul": a * b, "ave": (a + b) / 2}[merge]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_bidirectional_gives_and_takes_states() -> None:
    x, states = numbers(3, 4, 2), [numbers(3, 2, seed=i) for i in range(4)]
    layer = nn.Bidirectional(nn.LSTM(2, return_state=True))
    weights = filled(layer, x)
    found = layer(x, initial_state=states)
    assert [y.shape for y in found] == [(3, 4), *[(3, 2)] * 4]
    for own, first, backwards in ((weights[:3], 0, False), (weights[3:], 2, True)):
        _, final = unrolled(sequences.lstm_step, x, own, states[first : first + 2], backwards=backwards)
        for value, expected in zip(found[1 + first :], final, strict=False):
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_bidirectional_and_time_distributed_have_exact_gradients() -> None:
    check_layer(nn.Bidirectional(nn.GRU(2, return_sequences=True)), numbers(3, 3, 2))
    check_layer(nn.TimeDistributed(nn.Dense(2, "tanh")), numbers(3, 3, 2))


def test_time_distributed_applies_its_layer_to_each_step() -> None:
    x = numbers(3, 4, 5, 2)
    inner = nn.Sequential([nn.Flatten(), nn.Dense(3)])
    y = nn.TimeDistributed(inner)(x).numpy()
    for t in range(4):
        np.testing.assert_allclose(y[:, t], inner(x[:, t]).numpy(), rtol=1e-6, atol=1e-6)


def test_cells_one_on_the_other_equal_layers_one_on_the_other() -> None:
    x = numbers(3, 4, 2)
    stacked = nn.RNN([nn.layers.LSTMCell(3), nn.layers.GRUCell(2)], return_state=True)
    weights = filled(stacked, x)
    lower, upper = nn.LSTM(3, return_sequences=True, return_state=True), nn.GRU(2, return_state=True)
    filled(lower, x)
    filled(upper, numbers(3, 4, 3))
    lower.set_weights(weights[:3])
    upper.set_weights(weights[3:])
    sequence, *states = lower(x)
    expected = [*upper(sequence), *states]
    found = stacked(x)
    order = [0, 2, 3, 1]  # the output, then the states of the lower cell and of the upper one
    for value, place in zip(found, order, strict=True):
        np.testing.assert_allclose(value.numpy(), expected[place].numpy(), rtol=1e-5, atol=1e-6)


class Decaying(nn.Layer):
    """A cell of a user: a mean that forgets."""

    state_size = 3

    def call(self, inputs: Any, states: Any) -> Any:
        new = 0.5 * states[0] + inputs
        return new, [new]


def test_a_cell_of_ones_own_runs_step_by_step() -> None:
    x = numbers(2, 4, 3)
    y = nn.RNN(Decaying())(x).numpy()
    np.testing.assert_allclose(y, sum(0.5 ** (3 - t) * x[:, t] for t in range(4)), rtol=1e-6)


def test_states_pass_from_an_encoder_to_a_decoder() -> None:
    """The model of Sutskever et al. (NeurIPS 2014), and the same gradients for any cut of the batch."""
    source, target = nn.Input((4, 2)), nn.Input((3, 2))
    _, *states = nn.LSTM(3, return_state=True)(source)
    decoded = nn.LSTM(3, return_sequences=True)(target, initial_state=states)
    model = nn.Model([source, target], nn.Dense(2)(decoded))
    model.compile("sgd", "mse")
    engine = model.engine()
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(3))
    x, y = [numbers(6, 4, 2), numbers(6, 3, 2, seed=1)], numbers(6, 3, 2, seed=2)
    whole, added = np.zeros_like(params), np.zeros_like(params)
    engine.loss_and_grad(params, (x, y), Streams(0), whole)
    assert all(np.abs(view).max() > 0 for view in engine.layout.views(whole).values())
    for rows in (slice(0, 1), slice(1, 6)):
        part = np.zeros_like(params)
        engine.loss_and_grad(params, ([each[rows] for each in x], y[rows]), Streams(0), part)
        added += part
    np.testing.assert_allclose(added, whole, rtol=1e-4, atol=1e-5)
    again = type(model).from_config(json.loads(json.dumps(model.get_config())))
    assert again.get_config() == model.get_config()


@pytest.mark.parametrize(
    "layer",
    [
        nn.SimpleRNN(3, dropout=0.1, kernel_initializer="he_normal"),
        nn.LSTM(3, "relu", "hard_sigmoid", False, return_sequences=True, unit_forget_bias=False, name="a"),
        nn.GRU(3, reset_after=False, go_backwards=True, return_state=True, recurrent_dropout=0.2),
        nn.RNN([nn.layers.LSTMCell(3), nn.layers.SimpleRNNCell(2)], zero_output_for_mask=True),
        nn.Bidirectional(nn.LSTM(3, return_sequences=True), merge_mode="sum"),
        nn.TimeDistributed(nn.Dense(3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_from_its_config_is_equal(layer: Any) -> None:
    config = json.loads(json.dumps(nn.layers.serialize(layer)))
    again = nn.layers.get(config)
    assert type(again) is type(layer)
    assert nn.layers.serialize(again) == config
    layer(numbers(2, 4, 3))
    again(numbers(2, 4, 3))
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LSTM(0), "units must be a positive integer, not 0"),
        (lambda: nn.GRU(2, dropout=1), "dropout must be from 0 to less than 1, not 1"),
        (lambda: nn.LSTM(2, stateful=True), "stateful=True is not supported"),
        (lambda: nn.RNN(nn.Dense(2)), "a cell is a layer with a state_size"),
        (lambda: nn.LSTM(2)(numbers(3, 4)), r"shape \(3, 4\): give \(samples, steps, features\)"),
        (lambda: nn.LSTM(2)(nn.Input((None, 4))), "a known number of steps"),
        (lambda: nn.LSTM(2)(nn.Input((4, None))), "a known number of features"),
        (lambda: nn.LSTM(2)(numbers(3, 4, 2), initial_state=[numbers(3, 2)]), "1 initial states.* are 2"),
        (
            lambda: nn.GRU(2)(numbers(3, 4, 2), initial_state=numbers(3, 5)),
            r"do not fit .*\(3, 5\)|\(3, 5\).* do not fit",
        ),
        (lambda: nn.GRU(2)(numbers(3, 4, 2), mask=np.ones((3, 2), bool)), r"\(3, 2\).* do not fit"),
        (lambda: nn.Bidirectional(nn.Dense(2)), "give recurrent layers"),
        (lambda: nn.Bidirectional(nn.LSTM(2), merge_mode="max"), "merge_mode 'max' is not one of concat"),
        (lambda: nn.Bidirectional(nn.LSTM(2), backward_layer=nn.LSTM(2)), "must have go_backwards=True"),
        (lambda: nn.TimeDistributed(nn.Dense(2))(numbers(3, 4)), r"give \(samples, steps"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
