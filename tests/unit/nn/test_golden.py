"""Every class that is built gives the numbers of real Keras 3.15."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.unit.nn.stepping import step_once
from workers import nn
from workers.rng import Streams

close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def flat(engine: Any, **values: np.ndarray) -> np.ndarray:
    params = np.zeros(engine.layout.length, np.float32)
    views = engine.layout.views(params)
    for name, value in values.items():
        views[name.replace("__", "/")][...] = value
    return params


LOSSES = (
    "scce_logits",
    "scce_logits_large",
    "scce_logits_weighted",
    "scce_logits_3d",
    "scce_probs",
    "cce_logits",
    "cce_logits_smooth",
    "cce_probs",
    "cce_probs_smooth",
    "bce_logits",
    "bce_logits_large",
    "bce_logits_smooth",
    "bce_probs",
    "bce_probs_with_0_and_1",
    "mse",
    "mse_weighted",
    "mae",
    "huber",
    "huber_default",
    "mse_sum",
)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_its_gradient_equal_keras(golden: Any, name: str) -> None:
    g = golden("loss", name)
    loss = getattr(nn.losses, g.class_name)(**g.kwargs)
    y_true, y_pred, weight = g.inputs["y_true"], g.inputs["y_pred"], g.inputs.get("sample_weight")
    grad = np.full_like(y_pred, np.nan)
    _, divisor = loss.sums(y_true, y_pred, weight, grad)
    close(loss(y_true, y_pred, weight), g.outputs["value"])
    close(loss.values(y_true, y_pred), g.outputs["per_sample_unweighted"])
    close(grad / np.float32(divisor), g.outputs["gradient_wrt_y_pred"])


METRICS = (
    "accuracy",
    "accuracy_weighted",
    "sparse_categorical_accuracy",
    "sparse_categorical_accuracy_weighted",
    "categorical_accuracy",
    "binary_accuracy",
    "binary_accuracy_threshold",
    "sparse_top_k",
    "top_k",
    "mse",
    "mae",
    "rmse",
    "precision",
    "recall",
    "scce",
    "bce",
)


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_a_mean_over_all_samples_so_far(golden: Any, name: str) -> None:
    g = golden("metric", name)
    metric = getattr(nn.metrics, g.class_name)(**g.kwargs)
    for i, expected in enumerate(g.outputs["result_after_each_update"]):
        metric.update_state(*(g.inputs.get(f"{key}_{i}") for key in ("y_true", "y_pred", "sample_weight")))
        close(metric.result(), expected)


DENSE = """linear relu relu6 leaky_relu elu selu silu gelu mish softplus softsign sigmoid hard_sigmoid tanh
    exponential softmax log_softmax""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", DENSE)
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
    activation.backward(g.inputs["activation_x"].copy() if activation.needs_input else y, dy)
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
        params, slots = step_once(engine.optimizer, step, params, slots, grad, in_place=True)
        if f"kernel_1_after_{step + 1}" in g.outputs:
            for name, view in engine.layout.views(params).items():
                close(view, g.outputs[f"{names[name]}_after_{step + 1}"])
    close(engine.predict(params, g.inputs["x"]), g.outputs["final_logits"])
