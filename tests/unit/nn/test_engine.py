"""The engine of a Sequential model: exact gradients, and bits that depend on the arguments alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn
from workers.engine import Engine, as_engine
from workers.nn.ops.base import OPS, Run, Site, infer
from workers.nn.tensor import Spec
from workers.rng import Purpose, Streams

SCCE = nn.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(layers: list[Any], loss: Any = SCCE, metrics: tuple[Any, ...] = (), dtype: Any = np.float32) -> Any:
    model = nn.Sequential(layers)
    model.compile("adam", loss, metrics)
    return model.engine(dtype=dtype)


def initial(engine: Any, dtype: Any = np.float32) -> np.ndarray:
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(5, purpose=Purpose.INIT))
    return params.astype(dtype)


def classes(rows: int, shape: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((rows, *shape)).astype(np.float32), rng.integers(0, count, rows)


SMALL = [
    nn.Input((3, 2)),
    nn.Rescaling(0.5, 0.1),
    nn.Flatten(),
    nn.Dense(7, activation="relu"),
    nn.Dropout(0.3),
    nn.Dense(4),
]

FINITE = {
    "dropout": (SMALL, SCCE, 4),
    **{
        name: ([nn.Input((5,)), nn.Dense(6, activation=name), nn.Dense(4)], SCCE, 4)
        for name in ("linear", "relu", "leaky_relu", "elu", "softplus", "sigmoid", "tanh", "softmax")
    },
    "probabilities": (
        [nn.Input((5,)), nn.Dense(6, activation="tanh"), nn.Dense(4, activation="softmax")],
        nn.losses.SparseCategoricalCrossentropy(),
        4,
    ),
    "mse": ([nn.Input((5,)), nn.Dense(6, activation="tanh"), nn.Dropout(0.5), nn.Dense(1)], "mse", 2),
    "no bias": ([nn.Input((5,)), nn.Dense(6, use_bias=False), nn.Rescaling(3), nn.Dense(4)], SCCE, 4),
    "positions": ([nn.Input((3, 5)), nn.Dense(6, activation="tanh"), nn.Flatten(), nn.Dense(4)], SCCE, 4),
}


@pytest.mark.parametrize("case", FINITE)
def test_gradient_equals_finite_differences_in_float64(case: str) -> None:
    layers, loss, count = FINITE[case]
    engine = build(list(layers), loss, dtype=np.float64)
    params = initial(engine, np.float64)
    batch = classes(6, layers[0].shape[1:], count)
    grad = np.zeros_like(params)
    streams = Streams(1, step=2, microbatch=3)
    engine.loss_and_grad(params, batch, streams, grad)
    ignored = np.empty_like(grad)
    step = 1e-6
    for variable in engine.layout.variables:
        for i in range(variable.offset, variable.offset + variable.size):
            at = []
            for sign in (1, -1):
                moved = params.copy()
                moved[i] += sign * step
                at.append(engine.loss_and_grad(moved, batch, streams, ignored)[0, 0])
            assert (at[0] - at[1]) / (2 * step) == pytest.approx(grad[i], rel=1e-6, abs=1e-7), variable.name


def test_every_element_of_every_variable_is_written_and_nothing_between() -> None:
    engine = build(list(SMALL))
    out = np.full(engine.layout.length, np.nan, np.float32)
    engine.loss_and_grad(initial(engine), classes(6, (3, 2), 4), Streams(1), out)
    inside = np.zeros(len(out), bool)
    for v in engine.layout.variables:
        inside[v.offset : v.offset + v.size] = True
    assert np.isfinite(out[inside]).all()
    assert np.isnan(out[~inside]).all()


def test_gradients_and_sums_of_microbatches_add_up_to_those_of_the_batch() -> None:
    layers = [nn.Input((6,)), nn.Dense(7, activation="tanh"), nn.Dense(4)]
    engine = build(layers, metrics=("accuracy",))
    params, (x, y) = initial(engine), classes(11, (6,), 4)
    whole = np.zeros_like(params)
    sums = engine.loss_and_grad(params, (x, y), Streams(1), whole)
    assert engine.metrics == ("loss", "accuracy")
    assert sums.shape == (2, 2)
    assert sums.dtype == np.float64
    assert sums[:, 1].tolist() == [11, 11]
    added, added_sums = np.zeros_like(params), np.zeros_like(sums)
    for piece in (slice(0, 5), slice(5, 5), slice(5, 11)):  # also one without samples
        part = np.zeros_like(params)
        added_sums += engine.loss_and_grad(params, (x[piece], y[piece]), Streams(1), part)
        added += part
    np.testing.assert_allclose(added, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(added_sums, sums, rtol=1e-6)


def test_bits_depend_on_the_arguments_alone() -> None:
    """Not on what was computed before, nor on the address of any buffer, nor on the engine."""
    layers = [nn.Input((33,)), nn.Dense(65, activation="relu"), nn.Dropout(0.2), nn.Dense(10)]
    engine, other = build(list(layers)), build(list(layers))
    params, (x, y) = initial(engine), classes(17, (33,), 10)

    def gradient(engine: Any, shift: int) -> tuple[bytes, bytes]:
        def moved(array: np.ndarray) -> np.ndarray:
            raw = np.zeros(array.nbytes + shift + 64, np.uint8)[shift:]
            copy = raw[: array.nbytes].view(array.dtype).reshape(array.shape)
            copy[...] = array
            return copy

        out = np.zeros_like(params)  # the arena aligns parameters and gradients; a batch lies anywhere
        sums = engine.loss_and_grad(params, (moved(x), y), Streams(1, 2, 3), out)
        return out.tobytes(), sums.tobytes()

    expected = gradient(engine, 0)
    noise = np.zeros_like(params)
    engine.loss_and_grad(params, (2 * x, y), Streams(9), noise)
    engine.evaluate(params, (x[:3], y[:3]))
    assert [gradient(engine, 0), gradient(engine, 4), gradient(other, 20)] == [expected] * 3


def test_changes_in_a_buffer_seen_before_are_seen() -> None:
    engine = build([nn.Input((6,)), nn.Dense(4)])
    params, batch = initial(engine), classes(5, (6,), 4)
    before = engine.evaluate(params, batch)
    params[:] *= 2
    assert (engine.evaluate(params, batch) != before).any()


def test_more_buffers_and_row_counts_than_are_cached_give_the_same_results() -> None:
    engine = build([nn.Input((6,)), nn.Dense(4)])
    params, (x, y) = initial(engine), classes(20, (6,), 4)
    expected = engine.evaluate(params, (x, y))
    for rows in range(1, 20):
        engine.evaluate(params, (x[:rows], y[:rows]))
    for _ in range(300):
        assert (engine.evaluate(params.copy(), (x, y)) == expected).all()


def test_dropout_keeps_its_share_and_depends_on_step_microbatch_and_layer() -> None:
    layers = [nn.Input((500,)), nn.Dense(500, use_bias=False, kernel_initializer="zeros")]
    x = np.ones((20, 500), np.float32)

    def outputs(streams: Streams, layers: list[Any]) -> np.ndarray:
        engine = build([*layers, nn.Dense(1, use_bias=False)], "mse")
        params = np.ones(engine.layout.length, np.float32)
        out = np.zeros_like(params)
        engine.loss_and_grad(params, (x, np.zeros(20)), streams, out)
        return engine.layout.views(out)["dense_1/kernel"].copy()

    one = outputs(Streams(1, 1, 1), [*layers, nn.Dropout(0.2)])
    assert (one == outputs(Streams(1, 1, 1), [*layers, nn.Dropout(0.2)])).all()
    for other in (Streams(2, 1, 1), Streams(1, 2, 1), Streams(1, 1, 2)):
        assert (one != outputs(other, [*layers, nn.Dropout(0.2)])).any()
    twice = outputs(Streams(1, 1, 1), [*layers, nn.Dropout(0.2), nn.Dropout(0.2)])
    assert len(np.unique(twice)) > len(np.unique(one))  # the second draws another mask

    kept = run_op("dropout", np.ones((100, 1000), np.float32), rate=0.2, noise_shape=None)
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1.25)}
    assert (kept > 0).mean() == pytest.approx(0.8, abs=0.005)


def run_op(name: str, x: np.ndarray, **attrs: Any) -> np.ndarray:
    spec = Spec(x.shape, x.dtype.name)
    op = OPS[name](Site(attrs, (spec,), infer(name, attrs, [spec]), (False,)))
    found = op.forward(Run(Streams(1)), x)
    assert isinstance(found, np.ndarray)
    return found


class NoDraws(Streams):
    """Streams that must not be used."""

    def generator(self, stream: int = 0) -> np.random.Generator:
        raise AssertionError("drew random numbers")


def test_dropout_of_rate_0_draws_nothing_and_of_rate_1_gives_zeros() -> None:
    batch = classes(5, (6,), 4)
    engine = build([nn.Input((6,)), nn.Dropout(0), nn.Dense(4)])
    params, out = initial(engine), np.zeros(engine.layout.length, np.float32)
    sums = engine.loss_and_grad(params, batch, NoDraws(0), out)
    assert (sums == engine.evaluate(params, batch)).all()
    engine = build([nn.Input((6,)), nn.Dropout(1), nn.Dense(4)])
    engine.loss_and_grad(params, batch, Streams(0), out)
    assert not engine.layout.views(out)["dense/kernel"].any()


def test_evaluation_draws_nothing() -> None:
    with_dropout, without = build(list(SMALL)), build([*SMALL[:4], SMALL[5]])
    params, batch = initial(with_dropout), classes(5, (3, 2), 4)
    assert (with_dropout.evaluate(params, batch) == without.evaluate(params, batch)).all()


def test_initial_values_depend_on_the_seed_and_keep_glorots_bounds() -> None:
    engine = build([nn.Input((784,)), nn.Dense(512), nn.Dense(10)])
    views = engine.layout.views(initial(engine))
    limit = np.sqrt(6 / (784 + 512))
    kernel = views["dense/kernel"]
    assert 0.999 * limit < np.abs(kernel).max() <= np.float32(limit)
    assert abs(kernel.mean()) < limit / 100
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)
    assert not views["dense/bias"].any()
    other = np.zeros(engine.layout.length, np.float32)
    engine.init(other, Streams(6, purpose=Purpose.INIT))
    assert (engine.layout.views(other)["dense/kernel"] != kernel).any()


def test_samples_of_any_real_dtype_and_order_are_taken() -> None:
    engine = build([nn.Input((4, 6)), nn.Rescaling(1 / 255), nn.Flatten(), nn.Dense(4)])
    params = initial(engine)
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 6))
    y = np.arange(5) % 4
    expected = engine.evaluate(params, (x.astype(np.float32), y))
    for samples in (x.astype(np.uint8), x.astype(np.float64), np.asfortranarray(x), x[::-1][::-1]):
        assert (engine.evaluate(params, (samples, y)) == expected).all()
    for labels in (y.astype(np.uint8), y.astype(np.float32), y[:, None]):
        assert (engine.evaluate(params, (x, labels)) == expected).all()


def test_sample_weights_scale_the_loss_and_its_gradient() -> None:
    engine = build([nn.Input((6,)), nn.Dense(4)], metrics=("accuracy",))
    params, (x, y) = initial(engine), classes(6, (6,), 4)
    out, twice = np.zeros_like(params), np.zeros_like(params)
    sums = engine.loss_and_grad(params, (x, y), Streams(0), out)
    doubled = engine.loss_and_grad(params, (x, y, np.full(6, 2.0)), Streams(0), twice)
    np.testing.assert_allclose(twice, 2 * out, rtol=1e-6)
    np.testing.assert_allclose(doubled[0], sums[0] * [2, 1])
    assert (doubled[1] == sums[1]).all()


def test_a_run_that_diverges_shows_it_in_the_loss_and_warns_of_nothing() -> None:
    engine = build([nn.Input((6,)), nn.Dense(4), nn.Dense(4)])
    params = np.full(engine.layout.length, 3e38, np.float32)
    out = np.zeros_like(params)
    sums = engine.loss_and_grad(params, classes(5, (6,), 4), Streams(0), out)
    assert not np.isfinite(sums[0, 0])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.zeros((2, 6)), np.array([0, 4])), "label 4 is out of range.*0 to 3"),
        ((np.zeros((2, 6)), np.array([-1, 0])), "label -1 is out of range.*0 to 3"),
        ((np.zeros((2, 6)), np.zeros((2, 2))), r"labels of shape \(2, 2\)"),
        ((np.zeros((2, 5)), np.zeros(2)), r"samples have shape \(5,\), but the model's input is \(6,\)"),
        ((np.array([["a"] * 6] * 2), np.zeros(2)), "give real numbers"),
        ((np.zeros((2, 6)),), "gives 1 arrays a batch"),
        ((np.zeros((2, 6)), np.zeros(2), np.zeros(3)), "sample weights of shape"),
    ],
)
def test_a_bad_batch_is_refused_in_one_line(batch: Any, message: str) -> None:
    engine = build([nn.Input((6,)), nn.Dense(4)])
    with pytest.raises(ConfigurationError, match=message) as caught:
        engine.loss_and_grad(initial(engine), batch, Streams(0), np.zeros(engine.layout.length, np.float32))
    assert "\n" not in str(caught.value)


def test_targets_of_one_number_a_sample_may_leave_out_the_last_axis() -> None:
    engine = build([nn.Input((6,)), nn.Dense(1)], "mse")
    params, (x, y) = initial(engine), classes(5, (6,), 4)
    assert (engine.evaluate(params, (x, y)) == engine.evaluate(params, (x, y[:, None]))).all()
    with pytest.raises(ConfigurationError, match="targets of shape"):
        engine.evaluate(params, (x, np.zeros((5, 2))))


def test_a_compiled_model_is_an_engine_for_the_runtime() -> None:
    model = nn.Sequential(list(SMALL))
    model.compile("adam", SCCE, ["accuracy"])
    engine = as_engine(model)
    assert isinstance(engine, Engine)
    assert [v.name for v in engine.layout.variables] == [
        "dense/kernel",
        "dense/bias",
        "dense_1/kernel",
        "dense_1/bias",
    ]
    assert engine.optimizer.slots == ("adam_m", "adam_v")
