"""What the tests of checkpoints train."""

from __future__ import annotations

from typing import Any

import numpy as np

from workers import nn


class Net(nn.Model):
    """A line, as in TensorFlow's guide."""

    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Dense(5)

    def call(self, x: Any) -> Any:
        return self.l1(x)


def batches(count: int, size: int = 2) -> list[dict[str, Any]]:
    """Batches of x and five multiples of it."""
    inputs = np.arange(10.0, dtype=np.float32)[:, None]
    labels = inputs * 5.0 + np.arange(5.0, dtype=np.float32)[None, :]
    starts = [size * i % 10 for i in range(count)]
    return [{"x": inputs[at : at + size], "y": labels[at : at + size]} for at in starts]


def train_step(net: Any, example: dict[str, Any], optimizer: Any) -> float:
    """One step on the mean absolute error."""
    with nn.GradientTape() as tape:
        output = net(example["x"])
        loss = nn.ops.mean(nn.ops.abs(output - example["y"]))
    gradients = tape.gradient(loss, net.trainable_variables)
    optimizer.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
    return float(loss)


def values(variables: Any) -> list[Any]:
    """Copies of the values of variables."""
    return [variable.numpy().copy() for variable in variables]
