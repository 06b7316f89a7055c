"""The vectorised NumPy core: Keras's names, defaults and numerics, gradients into shared memory.

model = nn.Sequential([nn.Input((64,)), nn.Dense(128, activation="relu"), nn.Dropout(0.2), nn.Dense(10)])
model.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
engine = model.engine()
"""

from __future__ import annotations

from workers.nn import activations, initializers, layers, losses, metrics, optimizers
from workers.nn.layers import Dense, Dropout, Flatten, Input, Rescaling
from workers.nn.models import Sequential

__all__ = [
    "Dense",
    "Dropout",
    "Flatten",
    "Input",
    "Rescaling",
    "Sequential",
    "activations",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "optimizers",
]
