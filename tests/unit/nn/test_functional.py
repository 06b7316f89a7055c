"""Functional and subclassed models, custom layers, nested models: their numbers and their configs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn
from workers.nn.tensor import Untraceable
from workers.rng import Purpose, Streams

X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)


def branches() -> Any:
    inputs = nn.Input((8,))
    shared = nn.Dense(5, activation="tanh", name="shared")
    a = shared(nn.Dense(5, activation="relu")(inputs))
    b = shared(nn.Dense(5)(inputs))
    return nn.Model(inputs, nn.Dense(2)(a + 2.0 * b))


class Residual(nn.Layer):
    """A custom layer: only `call`, a variable of its own and a sub-layer."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.inner = nn.Dense(units, activation="tanh")
        self.scale = self.add_weight((units,), "ones", name="scale")

    def call(self, inputs: Any) -> Any:
        return inputs + self.inner(inputs) * self.scale


class Net(nn.Model):
    """A subclassed model, with layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Dense(4, activation="tanh")
        self.blocks = [Residual(4) for _ in range(2)]
        self.drop = nn.Dropout(0.5)
        self.last = nn.Dense(3)

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = self.first(inputs)
        for block in self.blocks:
            x = block(x)
        return self.last(self.drop(x, training=training))


def built(model: Any) -> Any:
    model(X)
    return model


def nested() -> Any:
    inner = nn.Sequential([nn.Input((8,)), nn.Dense(4, activation="relu"), Residual(4)], name="inner")
    inputs = nn.Input((8,))
    return nn.Model(inputs, nn.Dense(3)(inner(inputs)), name="outer")


MODELS = {
    "functional": branches,
    "subclassed": lambda: built(Net()),
    "nested": nested,
    "sequential": lambda: nn.Sequential([nn.Input((8,)), Residual(8), nn.Dense(2)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    model = MODELS[name]()
    model.compile("sgd", "mse")
    engine = model.engine(dtype=np.float64)
    params = np.zeros(engine.layout.length)
    engine.init(params, Streams(5, purpose=Purpose.INIT))
    y = np.ones((6, model(X).shape[-1]), np.float32)
    grad, ignored, streams = np.zeros_like(params), np.zeros_like(params), Streams(1, 2, 3)
    engine.loss_and_grad(params, (X, y), streams, grad)
    for variable in engine.layout.variables:
        for i in range(variable.offset, variable.offset + variable.size):
            at = []
            for sign in (1, -1):
                moved = params.copy()
                moved[i] += sign * 1e-6
                at.append(engine.loss_and_grad(moved, (X, y), streams, ignored)[0, 0])
            assert (at[0] - at[1]) / 2e-6 == pytest.approx(grad[i], rel=1e-6, abs=1e-7), variable.name


@pytest.mark.parametrize("name", MODELS)
def test_a_tape_gives_the_same_gradients_as_the_engine(name: str) -> None:
    model = MODELS[name]()
    for layer in model.layers_within():
        if isinstance(layer, nn.Dropout):
            layer.rate = 0.0
    model.compile("sgd", "mse")
    engine = model.engine()
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(5, purpose=Purpose.INIT))
    for variable, view in zip(model.weights, engine.layout.views(params).values(), strict=True):
        variable.assign(view)
    out = np.zeros_like(params)
    engine.loss_and_grad(params, (X, np.zeros((6, model(X).shape[-1]))), Streams(1), out)
    with nn.GradientTape() as tape:
        y = model(X, training=True)
        loss = y * y
    gradients = tape.gradient(loss, model.trainable_weights)
    units = y.shape[-1]
    for view, gradient in zip(engine.layout.views(out).values(), gradients, strict=True):
        np.testing.assert_allclose(view, gradient.numpy() / units, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_calling_a_model_and_predicting_with_its_engine_are_the_same_to_the_bit(name: str) -> None:
    model = MODELS[name]()
    model.compile("sgd", "mse")
    engine = model.engine()
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(5, purpose=Purpose.INIT))
    for variable, view in zip(model.weights, engine.layout.views(params).values(), strict=True):
        variable.assign(view)
    assert (engine.predict(params, X) == model(X).numpy()).all()


def test_variables_are_named_after_layers_and_attributes() -> None:
    assert [*branches().named_variables()] == [
        f"{layer}/{variable}"
        for layer in ("dense", "dense_1", "shared", "dense_2")
        for variable in ("kernel", "bias")
    ]
    assert [*built(Net()).named_variables()][:7] == [
        "first/kernel",
        "first/bias",
        "blocks/0/scale",
        "blocks/0/inner/kernel",
        "blocks/0/inner/bias",
        "blocks/1/scale",
        "blocks/1/inner/kernel",
    ]
    assert [*nested().named_variables()] == [
        "inner/dense/kernel",
        "inner/dense/bias",
        "inner/residual/scale",
        "inner/residual/inner/kernel",
        "inner/residual/inner/bias",
        "dense/kernel",
        "dense/bias",
    ]


def test_a_functional_model_from_its_config_computes_the_same() -> None:
    model = branches()
    config = json.loads(json.dumps(model.get_config()))
    again = nn.Model.from_config(config)
    again.set_weights(model.get_weights())
    assert again.get_config() == config
    assert (again(X).numpy() == model(X).numpy()).all()
    assert again.output_shape == (None, 2)
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]


def test_several_inputs_and_outputs_by_name() -> None:
    a, b = nn.Input((8,)), nn.Input((8,))
    hidden = nn.Dense(4, activation="relu")(a) + nn.Dense(4)(b)
    model = nn.Model({"a": a, "b": b}, {"one": nn.Dense(1)(hidden), "two": nn.Dense(3)(hidden)})
    model.compile("sgd", {"one": "mse", "two": "mse"}, loss_weights={"one": 1.0, "two": 0.5})
    engine = model.engine()
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(5, purpose=Purpose.INIT))
    found = engine.predict(params, {"a": X, "b": X})
    y = {"one": np.zeros((6, 1)), "two": np.zeros((6, 3))}
    sums = engine.loss_and_grad(params, ({"a": X, "b": X}, y), Streams(1), np.zeros_like(params))
    expected = np.square(found["one"]).mean() + 0.5 * np.square(found["two"]).mean()
    assert sums[0, 0] / sums[0, 1] == pytest.approx(expected, rel=1e-6)


def test_a_frozen_layer_has_a_gradient_of_zeros_and_no_trainable_weights() -> None:
    model = branches()
    model.get_layer("shared").trainable = False
    model.compile("sgd", "mse")
    engine = model.engine()
    params = np.full(engine.layout.length, 0.1, np.float32)
    out = np.full_like(params, np.nan)
    engine.loss_and_grad(params, (X, np.zeros((6, 2))), Streams(1), out)
    views = engine.layout.views(out)
    assert not views["shared/kernel"].any()
    assert views["dense/kernel"].any()
    assert len(model.trainable_weights) == 6
    assert [v.name for v in engine.layout.variables if not v.trainable] == ["shared/kernel", "shared/bias"]


class Branching(nn.Layer):
    def call(self, inputs: Any) -> Any:
        if inputs[0, 0] > 0:  # the line that the message names
            return inputs
        return -inputs


def test_code_that_branches_on_data_is_refused_with_its_line() -> None:
    with pytest.raises(Untraceable, match=r"test_functional\.py, line \d+: this needs the value"):
        nn.Sequential([nn.Input((8,)), Branching(), nn.Dense(1)])


class Averages(nn.Layer):
    """A layer that keeps a moving average of its inputs."""

    def build(self, input_shape: Any) -> None:
        self.average = self.add_weight((input_shape[-1],), "zeros", trainable=False, name="average")

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.average.assign(nn.ops.mean(inputs, axis=0) * 0.5 + self.average * 0.5)
        return inputs


def test_what_training_assigns_stands_in_the_gradient_times_the_weight() -> None:
    model = nn.Sequential([nn.Input((8,)), Averages(), nn.Dense(1)])
    model.compile("sgd", "mse")
    engine = model.engine()
    params, out = np.zeros(engine.layout.length, np.float32), np.zeros(engine.layout.length, np.float32)
    engine.layout.views(params)["averages/average"][...] = 2.0
    sums = engine.loss_and_grad(params, (X, np.zeros((6, 1))), Streams(1), out)
    found = engine.layout.views(out)["averages/average"] / sums[0, 1]
    np.testing.assert_allclose(found, X.mean(axis=0) * 0.5 + 1.0, rtol=1e-6)
    model.layers[0].average.assign(np.full(8, 2.0))
    model(X, training=True)
    np.testing.assert_allclose(model.layers[0].average.numpy(), X.mean(axis=0) * 0.5 + 1.0, rtol=1e-6)


class KeepsActivation(nn.Layer):
    """A layer that keeps what backward goes through again: the output of an activation."""

    def build(self, input_shape: Any) -> None:
        self.last = self.add_weight((input_shape[-1],), "zeros", trainable=False, name="last")

    def call(self, inputs: Any, training: bool = False) -> Any:
        y = nn.ops.tanh(nn.ops.mean(inputs, axis=0))
        if training:
            self.last.assign(y)
        return inputs * y


def test_what_is_assigned_is_the_value_from_before_the_gradients() -> None:
    model = nn.Sequential([nn.Input((8,)), nn.Dense(3), KeepsActivation(), nn.Dense(1)])
    model.compile("sgd", "mse")
    engine = model.engine()
    params, out = np.zeros(engine.layout.length, np.float32), np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(3))
    sums = engine.loss_and_grad(params, (X, np.zeros((6, 1))), Streams(1), out)
    views = engine.layout.views(params)
    expected = np.tanh((X @ views["dense/kernel"] + views["dense/bias"]).mean(axis=0))
    name = next(name for name in views if name.endswith("/last"))
    np.testing.assert_allclose(engine.layout.views(out)[name] / sums[0, 1], expected, rtol=1e-5)


class Penalised(nn.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(nn.ops.reshape(inputs, (-1, 8))[0, 0] * 0.0 + 3.0)
        self.add_metric(inputs, name="inputs")
        return inputs


def test_what_layers_add_to_loss_and_metrics_is_reported() -> None:
    model = nn.Sequential([nn.Input((8,)), Penalised(), nn.Dense(1, kernel_initializer="zeros")])
    model.compile("sgd", "mse")
    engine = model.engine()
    assert engine.metrics == ("loss", "inputs")
    params = np.zeros(engine.layout.length, np.float32)
    sums = engine.evaluate(params, (X, np.zeros((6, 1))))
    assert sums[0, 0] / sums[0, 1] == pytest.approx(3.0)
    assert sums[1, 0] / sums[1, 1] == pytest.approx(X.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Model(nn.Input((4,)), nn.Dense(2)(nn.Input((4,)))), "need the input .* not among"),
        (lambda: nn.Model(np.zeros(3), np.zeros(3)), "made of nn.Input"),
        (lambda: branches().get_layer("nope"), "has no layer 'nope': it has"),
        (lambda: branches().set_weights([np.zeros(3)]), "has 8 weights, and 1 were given"),
        (lambda: branches().set_weights([np.zeros(3)] * 8), r"dense/kernel has shape \(8, 5\), and \(3,\)"),
        (lambda: Net().engine(), "not compiled"),
        (lambda: Net().summary(), None),
    ],
)
def test_mistakes_are_refused_in_one_line(make: Any, message: str | None) -> None:
    if message is None:
        make()
        return
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_list_of_arrays_is_several_inputs_wherever_data_are_taken() -> None:
    a, b = nn.Input((2,)), nn.Input((3,))
    model = nn.Model([a, b], nn.Dense(1)(nn.Concatenate()([a, b])))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x = [rng.random((8, 2), np.float32), rng.random((8, 3), np.float32)]
    assert np.array_equal(model.predict(x, verbose=0), model.predict(tuple(x), verbose=0))
    assert model.evaluate(x, [0.0] * 8, verbose=0) == model.evaluate(tuple(x), np.zeros(8), verbose=0)
    assert len(model.fit(x, np.zeros(8), epochs=2, verbose=0).history["loss"]) == 2
