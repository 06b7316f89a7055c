"""The network of the TensorFlow guides, 784-512-10 with dropout, on handwritten digits in idx files.

    holdfast run mnist --run-dir runs/mnist --workers 2 --set data=s3://bucket/mnist

`data` is a folder at any fsspec URL with the usual files, gzipped or not: train-images-idx3-ubyte,
train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte. Where the train files are missing,
the first 1000 of the t10k digits train and the next 1000 test.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator import Checkpoints, Job
from storage.errors import ConfigurationError, ObjectMissing
from storage.store import Store, open_store
from workers import nn
from workers.data import ArrayDataset, read_idx

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEW = 1000
"""Digits to train on, and to test on, where only the t10k files are there."""


def model(hidden: int, dropout: float, learning_rate: float) -> nn.Sequential:
    """Pixels run from 0 to 255 and become numbers from 0 to 1."""
    net = nn.Sequential(
        [
            nn.Input((28, 28)),
            nn.Rescaling(1 / 255),
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


def find(store: Store, name: str) -> NDArray[Any] | None:
    """The array in the file of that name, gzipped or not; None where there is neither."""
    for key in (name, f"{name}.gz"):
        try:
            return read_idx(store.read(key), f"{store.url}/{key}")
        except ObjectMissing:
            continue
    return None


def read(store: Store, name: str) -> NDArray[Any]:
    """The array in the file of that name, gzipped or not."""
    array = find(store, name)
    if array is None:
        raise ConfigurationError(
            f"mnist: no {name}[.gz] in {store.url}: give the folder of the idx files as --set data=URL"
        )
    return array


def digits(url: str, *, test: bool) -> ArrayDataset:
    """The digits to train on, or those to test on."""
    store = open_store(url)
    if find(store, "train-labels-idx1-ubyte") is not None:
        part, chosen = "t10k" if test else "train", slice(None)
    else:
        part, chosen = "t10k", slice(_FEW, 2 * _FEW) if test else slice(_FEW)
    images = read(store, f"{part}-images-idx3-ubyte")
    labels = read(store, f"{part}-labels-idx1-ubyte")
    return ArrayDataset(images[chosen], labels[chosen])


def job(
    *,
    data: str = "",
    hidden: int = 512,
    dropout: float = 0.2,
    learning_rate: float = 1e-3,
    epochs: int = 10,
    batch_size: int = 32,
    microbatches: int = 2,
) -> Job:
    """`epochs` times through the data; validated and checkpointed after each."""
    if not data:
        raise ConfigurationError("mnist: where are the idx files? Give their folder as --set data=URL")
    steps_per_epoch = -(-len(digits(data, test=False)) // batch_size)
    return Job(
        model=partial(model, hidden, dropout, learning_rate),
        data=partial(digits, data, test=False),
        validation=partial(digits, data, test=True),
        validate_every=steps_per_epoch,
        batch_size=batch_size,
        microbatches=microbatches,
        steps=epochs * steps_per_epoch,
        seed=0,
        checkpoints=Checkpoints(every_steps=steps_per_epoch, keep=3),
    )
