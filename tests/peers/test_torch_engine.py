"""A PyTorch module in the same jobs, checkpoints and recovery as our own models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.peers.digests import check_same_digest
from workers import nn
from workers.rng import Purpose, Streams

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers installs it")

if TYPE_CHECKING:
    from tests.integration.harness import Place

pytestmark = pytest.mark.peers

MODEL = """
import torch
from workers.pytorch import TorchEngine

def model():
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 48), torch.nn.BatchNorm1d(48), torch.nn.ReLU(),
        torch.nn.Dropout(0.2), torch.nn.Linear(48, 10),
    )
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    return TorchEngine(module, loss, "adam", {"accuracy": lambda z, y: (z.argmax(1) == y).float()})
"""


@pytest.mark.timeout(280)
def test_the_digits_end_in_the_same_digest_whatever_dies(place: Place) -> None:
    check_same_digest(place, MODEL)


def engine(module: Any, **options: Any) -> Any:
    from workers.pytorch import TorchEngine

    return TorchEngine(module, torch.nn.MSELoss(reduction="none"), "sgd", **options)


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal((5, 2)).astype(np.float32)


def test_gradients_are_those_of_pytorch_and_land_in_the_given_buffer() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    x, y = batch()
    expected = torch.autograd.grad(
        torch.nn.functional.mse_loss(module(torch.from_numpy(x)), torch.from_numpy(y), reduction="sum"),
        list(module.parameters()),
    )
    made = engine(module)
    params, out = np.zeros((2, made.layout.length), np.float32)
    made.init(params, Streams(0, purpose=Purpose.INIT))
    out[:] = np.nan
    sums = made.loss_and_grad(params, (x, y), Streams(0), out)
    assert sums[0, 1] == y.size
    for view, gradient in zip(made.layout.views(out).values(), expected, strict=True):
        np.testing.assert_allclose(view, gradient.numpy(), rtol=1e-6)
    name = "0/weight"
    assert np.shares_memory(module[0].weight.detach().numpy(), made.layout.views(params)[name])
    assert np.shares_memory(module[0].weight.grad.numpy(), made.layout.views(out)[name])


def test_running_statistics_are_the_mean_of_what_microbatches_make_of_them() -> None:
    made = engine(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2)))
    params, out = np.zeros((2, made.layout.length), np.float32)
    made.init(params, Streams(0, purpose=Purpose.INIT))
    before = params.copy()
    sums = made.loss_and_grad(params, batch(), Streams(0), out)
    assert (params == before).all()
    reference = torch.nn.BatchNorm1d(2)
    x = torch.from_numpy(batch()[0])
    weight = made.layout.views(params)
    reference(x @ torch.from_numpy(weight["0/weight"]).T + torch.from_numpy(weight["0/bias"]))
    found = made.layout.views(out)["1/running_mean"] / sums[0, 1]
    np.testing.assert_allclose(found, reference.running_mean.numpy(), rtol=1e-5)


def test_dropout_is_a_function_of_seed_step_and_microbatch() -> None:
    made = engine(torch.nn.Sequential(torch.nn.Linear(4, 50), torch.nn.Dropout(0.5), torch.nn.Linear(50, 2)))
    params = np.zeros(made.layout.length, np.float32)
    made.init(params, Streams(0, purpose=Purpose.INIT))

    def gradient(streams: Streams) -> bytes:
        out = np.zeros_like(params)
        made.loss_and_grad(params, batch(), streams, out)
        return out.tobytes()

    assert gradient(Streams(1, 2, 3)) == gradient(Streams(1, 2, 3))
    assert (
        len({gradient(s) for s in (Streams(1, 2, 3), Streams(2, 2, 3), Streams(1, 3, 3), Streams(1, 2, 4))})
        == 4
    )


def test_mistakes_are_refused_in_one_line() -> None:
    from workers.pytorch import TorchEngine

    made = TorchEngine(torch.nn.Linear(4, 2), torch.nn.MSELoss(), nn.optimizers.SGD())
    params = np.zeros(made.layout.length, np.float32)
    with pytest.raises(ConfigurationError, match="one value per sample"):
        made.evaluate(params, batch())
    with pytest.raises(ConfigurationError, match="float64"):
        engine(torch.nn.Linear(4, 2, dtype=torch.float64))
    frozen = torch.nn.Linear(4, 2)
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    with pytest.raises(ConfigurationError, match="nothing to train"):
        engine(frozen)
