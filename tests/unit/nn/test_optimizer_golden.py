"""Every optimizer and schedule of the golden numbers follows real Keras 3.15."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from storage.layout import Layout
from tests.unit.nn.stepping import trajectory
from workers import nn

close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)

OPTIMIZERS = {
    "adam": nn.optimizers.Adam,
    "adam_betas": nn.optimizers.Adam,
    "adam_amsgrad": nn.optimizers.Adam,
    "adam_clipnorm": nn.optimizers.Adam,
    "adam_global_clipnorm": nn.optimizers.Adam,
    "adam_clipvalue": nn.optimizers.Adam,
    "adam_exponential_schedule": nn.optimizers.Adam,
    "adamw": nn.optimizers.AdamW,
    "rmsprop": nn.optimizers.RMSprop,
    "rmsprop_momentum": nn.optimizers.RMSprop,
    "rmsprop_centered": nn.optimizers.RMSprop,
    "sgd": nn.optimizers.SGD,
    "sgd_momentum": nn.optimizers.SGD,
    "sgd_nesterov": nn.optimizers.SGD,
    "sgd_weight_decay": nn.optimizers.SGD,
    "sgd_clipnorm": nn.optimizers.SGD,
    "sgd_global_clipnorm": nn.optimizers.SGD,
    "sgd_clipvalue": nn.optimizers.SGD,
}


def made(cls: type[nn.optimizers.Optimizer], kwargs: dict[str, Any]) -> nn.optimizers.Optimizer:
    rate = kwargs["learning_rate"]
    if isinstance(rate, dict):
        settings = {key: value for key, value in rate.items() if key != "schedule"}
        rate = getattr(nn.optimizers.schedules, rate["schedule"])(**settings)
    return cls(**{**kwargs, "learning_rate": rate})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_in_flat_buffers(golden: Any, name: str) -> None:
    g = golden("optimizer", name)
    optimizer = made(OPTIMIZERS[name], g.kwargs)
    layout = Layout.of({f"v{i}": g.inputs[f"initial_{i}"].shape for i in (0, 1)})

    def flat(*values: np.ndarray) -> np.ndarray:
        buffer = np.zeros(layout.length, np.float32)
        for view, value in zip(layout.views(buffer).values(), values, strict=True):
            view[...] = value
        return buffer

    params = flat(g.inputs["initial_0"], g.inputs["initial_1"])
    grads = [flat(*pair) for pair in zip(g.inputs["grads_0"], g.inputs["grads_1"], strict=True)]
    weights, slots = trajectory(nn.optimizers.for_model(optimizer, layout), params, grads, in_place=True)
    keras_names = {slot.name: slot.keras_name for group in optimizer.groups for slot in group}
    for i in (0, 1):
        for found, expected in zip(weights, g.outputs[f"after_each_step_{i}"], strict=True):
            close(layout.views(found)[f"v{i}"], expected)
        for slot, values in slots.items():
            close(layout.views(values)[f"v{i}"], g.outputs[f"final_slot/v{i}_{keras_names[slot]}"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_by_hand(golden: Any, name: str) -> None:
    g = golden("optimizer", name)
    optimizer = made(OPTIMIZERS[name], g.kwargs)
    variables = [nn.Variable(g.inputs[f"initial_{i}"], name=f"v{i}") for i in (0, 1)]
    for step in range(len(g.inputs["grads_0"])):
        optimizer.apply([g.inputs[f"grads_{i}"][step] for i in (0, 1)], variables)
        for i in (0, 1):
            close(variables[i].numpy(), g.outputs[f"after_each_step_{i}"][step])
    assert int(optimizer.iterations) == len(g.inputs["grads_0"])


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("exponential", nn.optimizers.schedules.ExponentialDecay),
        ("exponential_staircase", nn.optimizers.schedules.ExponentialDecay),
        ("inverse_time", nn.optimizers.schedules.InverseTimeDecay),
        ("inverse_time_staircase", nn.optimizers.schedules.InverseTimeDecay),
        ("polynomial", nn.optimizers.schedules.PolynomialDecay),
        ("polynomial_linear", nn.optimizers.schedules.PolynomialDecay),
        ("polynomial_cycle", nn.optimizers.schedules.PolynomialDecay),
        ("cosine", nn.optimizers.schedules.CosineDecay),
        ("cosine_warmup", nn.optimizers.schedules.CosineDecay),
        ("cosine_warmup_nonzero", nn.optimizers.schedules.CosineDecay),
        ("cosine_restarts", nn.optimizers.schedules.CosineDecayRestarts),
        ("piecewise", nn.optimizers.schedules.PiecewiseConstantDecay),
    ],
)
def test_schedule(golden: Any, name: str, cls: type[nn.optimizers.schedules.LearningRateSchedule]) -> None:
    g = golden("schedule", name)
    schedule = cls(**g.kwargs)
    again = nn.optimizers.schedules.deserialize(nn.optimizers.schedules.serialize(schedule))
    for step, expected in zip(g.inputs["steps"], g.outputs["values"], strict=True):
        close(schedule(step), expected)
        assert again(step) == schedule(step)
