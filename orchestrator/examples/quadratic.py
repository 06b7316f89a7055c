"""y = (x - h)^2 + v with a gradient written by hand: how to bring an engine of one's own.

    holdfast run quadratic --run-dir runs/quadratic --workers 2

The points are drawn for h = 1 and v = -2, with a little noise; training finds both within 0.05.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator import Checkpoints, Job
from storage.layout import Layout
from workers import nn
from workers.data import ArrayDataset

if TYPE_CHECKING:
    from workers.engine import Batch, Flat, Sums
    from workers.rng import Streams


class Quadratic:
    """Two numbers, h and v, and the mean squared error of (x - h)^2 + v."""

    layout = Layout.of({"h": (), "v": ()})
    metrics = ("loss",)

    def __init__(self, learning_rate: float) -> None:
        self.optimizer = nn.optimizers.SGD(learning_rate)

    def init(self, params: Flat, streams: Streams) -> None:
        """Both numbers start at the zeros that are there."""

    def loss_and_grad(self, params: Flat, batch: Batch, streams: Streams, out: Flat) -> Sums:
        """The sum over the samples, and its derivatives by h and v."""
        x, y = batch
        at, slope = self.layout.views(params), self.layout.views(out)
        from_h = x - at["h"]
        error = from_h**2 + at["v"] - y
        slope["h"][...] = np.sum(-4 * error * from_h)
        slope["v"][...] = np.sum(2 * error)
        return np.array([[np.sum(error**2), len(x)]], np.float64)

    def evaluate(self, params: Flat, batch: Batch) -> Sums:
        """The same sum, without the derivatives."""
        x, y = batch
        at = self.layout.views(params)
        return np.array([[np.sum(((x - at["h"]) ** 2 + at["v"] - y) ** 2), len(x)]], np.float64)

    def config(self) -> dict[str, Any]:
        """What the run's identity says of this model."""
        return {"model": "quadratic", "optimizer": self.optimizer.get_config()}


def points(noise: float) -> ArrayDataset:
    """1000 points of the curve to find."""
    rng = np.random.Generator(np.random.Philox(key=2))
    x = rng.uniform(-2, 2, 1000)
    y = (x - 1) ** 2 - 2 + noise * rng.standard_normal(1000)
    return ArrayDataset(x.astype(np.float32), y.astype(np.float32))


def job(*, learning_rate: float = 0.01, noise: float = 0.1, steps: int = 500) -> Job:
    """500 steps, each on a tenth of the points."""
    return Job(
        model=partial(Quadratic, learning_rate),
        data=partial(points, noise),
        batch_size=100,
        microbatches=4,
        steps=steps,
        seed=0,
        checkpoints=Checkpoints(every_steps=100, keep=3),
    )
