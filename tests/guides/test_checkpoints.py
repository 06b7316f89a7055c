"""TensorFlow's guide to training checkpoints, walked through: only the imports are others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from workers import nn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Net(nn.Model):
    """A simple linear model."""

    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.layers.Dense(5)

    def call(self, x: Any) -> Any:
        return self.l1(x)


def toy_dataset() -> Iterator[dict[str, Any]]:
    inputs = np.arange(10.0, dtype=np.float32)[:, None]
    labels = inputs * 5.0 + np.arange(5.0, dtype=np.float32)[None, :]
    while True:
        for at in range(0, 10, 2):
            yield {"x": inputs[at : at + 2], "y": labels[at : at + 2]}


def train_step(net: Net, example: dict[str, Any], optimizer: Any) -> Any:
    """Trains `net` on `example` using `optimizer`."""
    with nn.GradientTape() as tape:
        output = net(example["x"])
        loss = nn.ops.mean(nn.ops.abs(output - example["y"]))
    variables = net.trainable_variables
    gradients = tape.gradient(loss, variables)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return loss


def train_and_checkpoint(net: Net, manager: Any, ckpt: Any, optimizer: Any) -> list[str]:
    """Fifty steps, a checkpoint after every tenth; what was saved."""
    ckpt.restore(manager.latest_checkpoint)
    iterator, saved = toy_dataset(), []
    for _ in range(50):
        example = next(iterator)
        loss = train_step(net, example, optimizer)
        ckpt.step.assign_add(1)
        if int(ckpt.step) % 10 == 0:
            saved.append(manager.save())
        assert np.isfinite(float(loss))
    return [os.path.basename(path) for path in saved]


def things() -> tuple[Net, Any, Any, Any]:
    net = Net()
    opt = nn.optimizers.Adam(0.1)
    ckpt = nn.train.Checkpoint(step=nn.Variable(1), optimizer=opt, net=net)
    manager = nn.train.CheckpointManager(ckpt, "./tf_ckpts", max_to_keep=3)
    return net, opt, ckpt, manager


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nn.utils.set_random_seed(0)


def test_weights_alone() -> None:
    net = Net()
    net(np.ones((1, 1), np.float32))
    net.save_weights("easy_checkpoint")
    other = Net()
    other.load_weights("easy_checkpoint").assert_consumed()
    np.testing.assert_array_equal(other.l1.kernel.numpy(), net.l1.kernel.numpy())


def test_row_22_training_goes_on_where_it_stopped_and_the_last_three_checkpoints_are_there() -> None:
    net, opt, ckpt, manager = things()
    assert manager.latest_checkpoint is None
    first = train_and_checkpoint(net, manager, ckpt, opt)
    assert first == ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4", "ckpt-5"]
    assert [os.path.basename(path) for path in manager.checkpoints] == ["ckpt-3", "ckpt-4", "ckpt-5"]

    net, opt, ckpt, manager = things()
    assert os.path.basename(manager.latest_checkpoint) == "ckpt-5"
    second = train_and_checkpoint(net, manager, ckpt, opt)
    assert int(ckpt.step) == 100  # that of ckpt-5 was 50
    assert second == ["ckpt-6", "ckpt-7", "ckpt-8", "ckpt-9", "ckpt-10"]
    assert [os.path.basename(path) for path in manager.checkpoints] == ["ckpt-8", "ckpt-9", "ckpt-10"]
    assert sorted(os.listdir("tf_ckpts")) == ["ckpt-10", "ckpt-8", "ckpt-9"]


def test_row_21_a_part_is_restored_into_other_objects_of_the_same_names() -> None:
    net, opt, ckpt, manager = things()
    train_and_checkpoint(net, manager, ckpt, opt)
    ckpt.restore(manager.latest_checkpoint)

    to_restore = nn.Variable(np.zeros(5, np.float32))
    fake_layer = nn.train.Checkpoint(bias=to_restore)
    fake_net = nn.train.Checkpoint(l1=fake_layer)
    new_root = nn.train.Checkpoint(net=fake_net)
    status = new_root.restore(nn.train.latest_checkpoint("./tf_ckpts/"))
    np.testing.assert_array_equal(to_restore.numpy(), net.l1.bias.numpy())
    assert np.any(to_restore.numpy() != 0)

    # what is created afterwards is restored when it is there
    delayed_restore = nn.Variable(np.zeros((1, 5), np.float32))
    fake_layer.kernel = delayed_restore
    np.testing.assert_array_equal(delayed_restore.numpy(), net.l1.kernel.numpy())
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match="values without a variable"):
        status.assert_consumed()
    status.expect_partial()


def test_row_19_what_is_in_a_checkpoint_by_name() -> None:
    net, opt, ckpt, manager = things()
    train_and_checkpoint(net, manager, ckpt, opt)
    ckpt.restore(manager.latest_checkpoint)
    reader = nn.train.load_checkpoint("./tf_ckpts/")
    shape_from_key = reader.get_variable_to_shape_map()
    dtype_from_key = reader.get_variable_to_dtype_map()
    assert sorted(shape_from_key) == sorted(dtype_from_key)
    key = "net/l1/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert shape_from_key[key] == [1, 5]
    assert dtype_from_key[key] == np.float32
    np.testing.assert_array_equal(reader.get_tensor(key), net.l1.kernel.numpy())


def test_lists_and_dicts_are_tracked() -> None:
    save = nn.train.Checkpoint()
    save.listed = [nn.Variable(1.0)]
    save.listed.append(nn.Variable(2.0))
    save.mapped = {"one": save.listed[0]}
    save.mapped["two"] = save.listed[1]
    save_path = save.save("./tf_list_example")

    restore = nn.train.Checkpoint()
    v2 = nn.Variable(0.0)
    assert float(v2) == 0.0
    restore.mapped = {"two": v2}
    restore.restore(save_path).expect_partial()
    assert float(v2) == 2.0
