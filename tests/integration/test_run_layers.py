"""The main promise for networks of other layers: on images, with moving averages, and of all kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.harness import Place

IMAGES = """
import numpy as np

from orchestrator import Job
from workers import nn
from workers.data import ArrayDataset


def job() -> Job:
    def model():
        m = nn.Sequential(
            [
                nn.Input((8, 8, 1)),
                nn.Conv2D(6, 3, padding="same", use_bias=False),
                nn.BatchNormalization(),
                nn.Activation("relu"),
                nn.MaxPooling2D(),
                nn.Dropout(0.2),
                nn.Conv2D(8, 3, activation="relu"),
                nn.GlobalAveragePooling2D(),
                nn.Dense(4),
            ]
        )
        loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
        m.compile(nn.optimizers.Adam(1e-2), loss, ["accuracy"])
        return m

    def data():
        rng = np.random.default_rng(42)
        y = rng.integers(0, 4, 250)
        x = rng.standard_normal((250, 8, 8, 1)) + y[:, None, None, None]
        return ArrayDataset(x.astype(np.float32), y)

    return Job(model=model, data=data, batch_size=33, microbatches=5, steps=20, seed=0)
"""

LAYERS = """
import numpy as np

from orchestrator import Job
from workers import nn
from workers.data import ArrayDataset


def job() -> Job:
    def model():
        words = nn.Input((16,), dtype="int32")
        x = nn.Embedding(30, 16)(words)
        x = nn.Conv2D(6, 3, padding="same")(nn.Reshape((16, 16, 1))(x))
        x = nn.Dropout(0.2)(nn.Activation("relu")(nn.BatchNormalization()(x)))
        x = nn.LSTM(8)(nn.Reshape((16, 96))(x))
        m = nn.Model(words, nn.Dense(4)(x))
        loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
        m.compile(nn.optimizers.Adam(1e-2, clipnorm=1.0), loss, ["accuracy"])
        return m

    def data():
        rng = np.random.default_rng(42)
        y = rng.integers(0, 4, 250)
        return ArrayDataset(rng.integers(0, 8, (250, 16)).astype("int32") + 7 * y[:, None].astype("int32"), y)

    return Job(model=model, data=data, batch_size=33, microbatches=5, steps=20, seed=0)
"""


@pytest.mark.parametrize("text", [IMAGES, LAYERS], ids=["images", "layers"])
def test_any_number_of_workers_ends_in_the_same_digest(place: Place, text: str) -> None:
    place.file("layers.py", text)
    one, two, three = (place.run("layers.py", f"w{n}", workers=n).done() for n in (1, 2, 3))
    assert one["state_digest"] == two["state_digest"] == three["state_digest"]
    assert one["loss"] == two["loss"] == three["loss"]
    assert one["metrics"]["accuracy"] > 0.5
    place.assert_nothing_left()
