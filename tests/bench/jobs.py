"""The jobs that are timed: networks on random data, 784 inputs, 10 classes."""

from __future__ import annotations

import numpy as np

from orchestrator import Checkpoints, Job
from workers import nn
from workers.data import ArrayDataset


def job(
    hidden: int = 512,
    layers: int = 1,
    batch_size: int = 64,
    microbatches: int = 2,
    steps: int = 1000,
    every: int | None = None,
) -> Job:
    """`layers` hidden layers with dropout .2, trained with Adam, as `torch_ddp.py` of the peers does."""

    def model() -> nn.Sequential:
        model = nn.Sequential([nn.Input((784,))])
        for _ in range(layers):
            model.add(nn.Dense(hidden, activation="relu"))
            model.add(nn.Dropout(0.2))
        model.add(nn.Dense(10))
        model.compile(nn.optimizers.Adam(1e-3), nn.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    def data() -> ArrayDataset:
        generator = np.random.default_rng(1)
        images = generator.random((5000, 784), dtype=np.float32)
        return ArrayDataset(images, generator.integers(0, 10, 5000))

    return Job(
        model=model,
        data=data,
        batch_size=batch_size,
        microbatches=microbatches,
        steps=steps,
        checkpoints=Checkpoints(every_steps=every, keep=1),
    )
