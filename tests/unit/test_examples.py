"""The shipped jobs, without a runtime: their data, models and messages."""

from __future__ import annotations

import gzip
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import examples
from storage.errors import ConfigurationError
from workers.engine import as_engine
from workers.rng import Streams

MNIST = Path(os.environ.get("REFERENCE_DATA", Path(__file__).parents[2].parent / "shared")) / "data" / "mnist"


def example(name: str) -> Any:
    return import_module(examples.EXAMPLES[name][0])


def test_bundled_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    module = example("digits")
    train, test = module.digits(test=False), module.digits(test=True)
    images, labels = np.empty((1797, 8, 8)), np.empty(1797)
    held_out = np.arange(1797) % 5 == 0
    for chosen, dataset in ((held_out, test), (~held_out, train)):
        images[chosen], labels[chosen] = dataset.take(np.arange(len(dataset)))
    assert (images == theirs.images).all()
    assert (labels == theirs.target).all()


@pytest.mark.parametrize("name", ["digits", "quadratic"])
def test_example_makes_a_job_whose_engine_computes(name: str) -> None:
    job = example(name).job()
    engine, data = as_engine(job.model()), job.data()
    params = np.zeros(engine.layout.length, np.float32)
    engine.init(params, Streams(0))
    out = np.full_like(params, np.nan)
    sums = engine.loss_and_grad(params, data.take(np.arange(16)), Streams(0), out)
    assert np.isfinite(sums).all()
    assert all(np.isfinite(view).all() for view in engine.layout.views(out).values())


def test_gradient_written_by_hand_in_quadratic_equals_finite_differences() -> None:
    module = example("quadratic")
    engine, data = module.Quadratic(0.01), module.points(0.1)
    batch = tuple(array.astype(np.float64) for array in data.take(np.arange(100)))
    params = np.zeros(engine.layout.length)
    at = engine.layout.views(params)
    at["h"][...], at["v"][...] = 0.3, -0.4
    grad = np.zeros_like(params)
    engine.loss_and_grad(params, batch, Streams(0), grad)
    for variable in engine.layout.variables:
        step = np.zeros_like(params)
        step[variable.offset] = 1e-6
        up, down = (engine.evaluate(params + sign * step, batch)[0, 0] for sign in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(grad[variable.offset], rel=1e-6)


def test_mnist_splits_the_test_digits_where_there_are_no_others(tmp_path: Path) -> None:
    if not MNIST.is_dir():
        pytest.skip(f"no digits in {MNIST}: set REFERENCE_DATA")
    module = example("mnist")
    train, test = module.digits(str(MNIST), test=False), module.digits(str(MNIST), test=True)
    assert len(train) == len(test) == 1000
    assert train.identity() != test.identity()
    job = module.job(data=str(MNIST))
    assert job.steps == 320

    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        shutil.copy(MNIST / f"t10k-{kind}.gz", tmp_path)
        (tmp_path / f"train-{kind}").write_bytes(gzip.decompress((MNIST / f"t10k-{kind}.gz").read_bytes()))
    train, test = module.digits(str(tmp_path), test=False), module.digits(str(tmp_path), test=True)
    assert len(train) == len(test) == 10_000


def test_mnist_says_which_file_is_missing(tmp_path: Path) -> None:
    module = example("mnist")
    with pytest.raises(ConfigurationError, match="--set data=URL"):
        module.job()
    with pytest.raises(ConfigurationError, match=r"no t10k-images-idx3-ubyte\[\.gz\] in .*--set data=URL"):
        module.job(data=str(tmp_path))
