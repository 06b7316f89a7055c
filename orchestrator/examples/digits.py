"""Handwritten digits, 8x8 pixels: a small network on real data that needs no download.

    holdfast run digits --run-dir runs/digits --workers 2 --set hidden=64

The data are the test part of the UCI set "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, CC BY 4.0), as bundled with scikit-learn: 1797 images of 13 writers. Every fifth is
held out for testing.
"""

from __future__ import annotations

from functools import partial
from importlib.resources import files

import numpy as np

from orchestrator import Checkpoints, Job
from workers import nn
from workers.data import ArrayDataset


def model(hidden: int, dropout: float, learning_rate: float) -> nn.Sequential:
    """One hidden layer; pixels run from 0 to 16."""
    net = nn.Sequential(
        [
            nn.Input((8, 8)),
            nn.Rescaling(1 / 16),
            nn.Flatten(),
            nn.Dense(hidden, activation="relu"),
            nn.Dropout(dropout),
            nn.Dense(10),
        ]
    )
    net.compile(
        nn.optimizers.Adam(learning_rate),
        nn.losses.SparseCategoricalCrossentropy(from_logits=True),
        ["accuracy"],
    )
    return net


def digits(*, test: bool) -> ArrayDataset:
    """Every fifth image where `test`, else the others."""
    with files("orchestrator.examples").joinpath("digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        images, labels = arrays["images"], arrays["labels"]
    held_out = np.arange(len(labels)) % 5 == 0
    chosen = held_out if test else ~held_out
    return ArrayDataset(images[chosen], labels[chosen])


def job(
    *,
    hidden: int = 128,
    dropout: float = 0.2,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    microbatches: int = 8,
    steps: int = 2000,
) -> Job:
    """2000 steps are some 170 times through the data."""
    return Job(
        model=partial(model, hidden, dropout, learning_rate),
        data=partial(digits, test=False),
        validation=partial(digits, test=True),
        validate_every=200,
        batch_size=batch_size,
        microbatches=microbatches,
        steps=steps,
        seed=0,
        checkpoints=Checkpoints(every_steps=100, keep=3),
    )
