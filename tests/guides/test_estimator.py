"""The part of TensorFlow's checkpoint guide about estimators, walked through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.guides.test_checkpoints import Net, toy_dataset, train_step
from workers import nn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def model_fn(features: Any, labels: Any, mode: str) -> Any:
    net = Net()
    opt = nn.optimizers.Adam(0.1)
    ckpt = nn.train.Checkpoint(step=nn.train.get_global_step(), optimizer=opt, net=net)

    def train_op(features: Any, labels: Any) -> Any:
        loss = train_step(net, {"x": features, "y": labels}, opt)
        nn.train.get_or_create_global_step().assign_add(1)
        return loss

    return nn.train.EstimatorSpec(mode, train_op=train_op, scaffold=nn.train.Scaffold(saver=ckpt))


def input_fn() -> Iterator[tuple[Any, Any]]:
    for example in toy_dataset():
        yield example["x"], example["y"]


def test_row_26_training_goes_on_from_the_directory_of_its_checkpoints(tmp_path: Path) -> None:
    nn.utils.set_random_seed(0)
    est = nn.train.Estimator(model_fn, str(tmp_path / "tf_estimator_example"))
    est.train(input_fn, steps=10)
    assert est.get_variable_value("step") == 10
    again = nn.train.Estimator(model_fn, str(tmp_path / "tf_estimator_example"))
    again.train(input_fn, steps=10)
    assert again.get_variable_value("step") == 20

    # what it saved is a checkpoint as any other
    opt = nn.optimizers.Adam(0.1)
    net = Net()
    ckpt = nn.train.Checkpoint(step=nn.Variable(np.int64(1)), optimizer=opt, net=net)
    latest = nn.train.latest_checkpoint(str(tmp_path / "tf_estimator_example"))
    assert latest is not None
    ckpt.restore(latest).expect_partial()
    assert int(ckpt.step) == 20
    net(np.ones((1, 1), np.float32))
    np.testing.assert_array_equal(net.l1.bias.numpy(), again.get_variable_value("net/l1/bias"))
    assert os.path.basename(latest) == "ckpt-20"
