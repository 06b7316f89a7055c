"""Every class that is built gives the numbers of real Keras 3.15."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from workers import nn
from workers.rng import Streams

close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def flat(engine: Any, **values: np.ndarray) -> np.ndarray:
    params = np.zeros(engine.layout.length, np.float32)
    views = engine.layout.views(params)
    for name, value in values.items():
        views[name.replace("__", "/")][...] = value
    return params


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("adam", nn.optimizers.Adam),
        ("adam_betas", nn.optimizers.Adam),
        ("adam_amsgrad", nn.optimizers.Adam),
        ("sgd", nn.optimizers.SGD),
        ("sgd_momentum", nn.optimizers.SGD),
        ("sgd_nesterov", nn.optimizers.SGD),
    ],
)
def test_optimizer_follows_keras_for_ten_steps(golden: Any, name: str, cls: type) -> None:
    g = golden("optimizer", name)
    optimizer = cls(**g.kwargs)
    keras_slots = {
        "sgd_momentum": "momentum",
        "adam_m": "momentum",
        "adam_v": "velocity",
        "adam_vhat": "velocity_hat",
    }
    for i in (0, 1):
        params = g.inputs[f"initial_{i}"].reshape(-1).copy()
        slots = [np.zeros_like(params) for _ in optimizer.slots]
        for step, grad in enumerate(g.inputs[f"grads_{i}"]):
            new = np.full_like(params, np.nan)
            new_slots = [np.full_like(params, np.nan) for _ in slots]
            scratch = np.full_like(params, np.nan)
            optimizer.update(step, params, slots, grad.reshape(-1), new, new_slots, scratch)
            close(new, g.outputs[f"after_each_step_{i}"][step].reshape(-1))
            params, slots = new, new_slots
        for slot, values in zip(optimizer.slots, slots, strict=True):
            close(values, g.outputs[f"final_slot/v{i}_{keras_slots[slot]}"].reshape(-1))


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("scce_logits", nn.losses.SparseCategoricalCrossentropy),
        ("scce_logits_large", nn.losses.SparseCategoricalCrossentropy),
        ("scce_logits_weighted", nn.losses.SparseCategoricalCrossentropy),
        ("scce_logits_3d", nn.losses.SparseCategoricalCrossentropy),
        ("scce_probs", nn.losses.SparseCategoricalCrossentropy),
        ("mse", nn.losses.MeanSquaredError),
        ("mse_weighted", nn.losses.MeanSquaredError),
    ],
)
def test_loss_and_its_gradient_equal_keras(golden: Any, name: str, cls: type) -> None:
    g = golden("loss", name)
    loss = cls(**g.kwargs)
    y_true, y_pred, weight = g.inputs["y_true"], g.inputs["y_pred"], g.inputs.get("sample_weight")
    grad = np.full_like(y_pred, np.nan)
    _, divisor = loss.sums(y_true, y_pred, weight, grad)
    close(loss(y_true, y_pred, weight), g.outputs["value"])
    close(loss.values(y_true, y_pred), g.outputs["per_sample_unweighted"])
    close(grad / np.float32(divisor), g.outputs["gradient_wrt_y_pred"])


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("sparse_categorical_accuracy", nn.metrics.SparseCategoricalAccuracy),
        ("sparse_categorical_accuracy_weighted", nn.metrics.SparseCategoricalAccuracy),
        ("mse", nn.metrics.MeanSquaredError),
    ],
)
def test_metric_is_a_mean_over_all_samples_so_far(golden: Any, name: str, cls: type) -> None:
    g = golden("metric", name)
    metric = cls(**g.kwargs)
    for i, expected in enumerate(g.outputs["result_after_each_update"]):
        metric.update_state(*(g.inputs.get(f"{key}_{i}") for key in ("y_true", "y_pred", "sample_weight")))
        close(metric.result(), expected)


@pytest.mark.parametrize(
    "name", ["linear", "relu", "leaky_relu", "elu", "softplus", "sigmoid", "tanh", "softmax"]
)
def test_dense_and_its_activation_equal_keras(golden: Any, name: str) -> None:
    g = golden("layer", f"dense_{name}")
    x = g.inputs["x"]
    model = nn.Sequential([nn.Input(x.shape[1:]), nn.Dense(**g.kwargs)])
    model.compile("sgd", "mse")
    engine = model.engine()
    params = flat(engine, dense__kernel=g.inputs["kernel"], dense__bias=g.inputs["bias"])
    close(engine.predict(params, x), g.outputs["y"])

    activation = nn.activations.get(name)
    y = activation(g.inputs["activation_x"])
    close(y, g.outputs["activation_y"])
    dy = 2 * y
    activation.backward(y, dy)
    close(dy, g.outputs["dy_dx_of_sum_of_squares"])


def test_flatten_is_row_major(golden: Any) -> None:
    g = golden("layer", "flatten")
    x = g.inputs["x"]
    width = x[0].size
    model = nn.Sequential([nn.Input(x.shape[1:]), nn.Flatten(), nn.Dense(width, use_bias=False)])
    model.compile("sgd", "mse")
    engine = model.engine()
    close(engine.predict(flat(engine, dense__kernel=np.eye(width)), x), g.outputs["y"])


def mlp(optimizer: Any) -> Any:
    model = nn.Sequential([nn.Input((20,)), nn.Dense(16, activation="relu"), nn.Dense(4)])
    model.compile(optimizer, nn.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model.engine()


def test_gradients_of_a_network_equal_keras(golden: Any) -> None:
    g = golden("gradient", "mlp_gradients")
    engine = mlp("sgd")
    kernels = {"dense/kernel": "kernel_1", "dense/bias": "bias_1"}
    kernels |= {"dense_1/kernel": "kernel_2", "dense_1/bias": "bias_2"}
    params = flat(engine, **{name: g.inputs[key] for name, key in kernels.items()})
    grad = np.full_like(params, np.nan)
    ((total, weight),) = engine.loss_and_grad(params, (g.inputs["x"], g.inputs["y"]), Streams(0), grad)
    close(total / weight, g.outputs["loss"])
    close(engine.predict(params, g.inputs["x"]), g.outputs["logits"])
    for name, view in engine.layout.views(grad).items():
        close(view / weight, g.outputs[f"d_{kernels[name]}"])


@pytest.mark.parametrize("microbatches", [1, 4])
def test_twenty_steps_of_training_equal_keras(golden: Any, microbatches: int) -> None:
    g = golden("trace", "training_trace")
    engine = mlp(nn.optimizers.Adam(g.kwargs["learning_rate"]))
    names = {"dense/kernel": "kernel_1", "dense/bias": "bias_1"}
    names |= {"dense_1/kernel": "kernel_2", "dense_1/bias": "bias_2"}
    params = flat(engine, **{name: g.inputs[f"initial_{key}"] for name, key in names.items()})
    slots = [np.zeros_like(params), np.zeros_like(params)]
    rows = g.kwargs["batch_size"]
    for step in range(g.kwargs["steps"]):
        start = (step % 5) * rows
        batch = g.inputs["x"][start : start + rows], g.inputs["y"][start : start + rows]
        grad, sums = np.zeros_like(params), np.zeros((1, 2))
        for piece in zip(*(np.split(array, microbatches) for array in batch), strict=True):
            part = np.zeros_like(params)
            sums += engine.loss_and_grad(params, piece, Streams(0, step), part)
            grad += part
        grad /= np.float32(sums[0, 1])
        close(sums[0, 0] / sums[0, 1], g.outputs["loss_per_step"][step])
        new, new_slots = np.empty_like(params), [np.empty_like(params), np.empty_like(params)]
        engine.optimizer.update(step, params, slots, grad, new, new_slots, np.empty_like(params))
        params, slots = new, new_slots
        if f"kernel_1_after_{step + 1}" in g.outputs:
            for name, view in engine.layout.views(params).items():
                close(view, g.outputs[f"{names[name]}_after_{step + 1}"])
    close(engine.predict(params, g.inputs["x"]), g.outputs["final_logits"])
