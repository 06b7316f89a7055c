"""`nn.train.Checkpoint`: structures, deferred and partial restores, and what a reader sees."""

from __future__ import annotations

import gc
import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.testing import MemoryStore
from tests.unit.nn.train.nets import Net, batches, train_step, values
from workers import nn

if TYPE_CHECKING:
    from pathlib import Path


def trained(steps: int = 3) -> tuple[Any, Any, Any]:
    nn.utils.set_random_seed(1)
    net, optimizer = Net(), nn.optimizers.Adam(0.1)
    for example in batches(steps):
        train_step(net, example, optimizer)
    return nn.train.Checkpoint(step=nn.Variable(steps), optimizer=optimizer, net=net), optimizer, net


def test_row_21_a_structure_comes_back_as_it_was_and_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    checkpoint, optimizer, net = trained()
    path = checkpoint.save(tmp_path / "ckpt")
    assert path == str(tmp_path / "ckpt-1")
    for example in batches(5)[3:]:
        train_step(net, example, optimizer)
    expected = values(net.weights)

    nn.utils.set_random_seed(2)
    again, other = Net(), nn.optimizers.Adam(0.7)
    fresh = nn.train.Checkpoint(step=nn.Variable(0), optimizer=other, net=again)
    status = fresh.restore(path)
    assert int(fresh.step) == 3  # at once; the net and the optimizer when they are built
    for example in batches(5)[3:]:
        train_step(again, example, other)
    status.assert_consumed()
    assert float(other.learning_rate) == pytest.approx(0.1)
    assert all(np.array_equal(a, b) for a, b in zip(values(again.weights), expected, strict=True))


def test_row_19_names_are_those_of_attributes(tmp_path: Path) -> None:
    checkpoint, _, _ = trained()
    reader = nn.train.load_checkpoint(checkpoint.save(tmp_path / "ckpt"))
    shapes = reader.get_variable_to_shape_map()
    assert shapes == {
        "step": [],
        "save_counter": [],
        "net/l1/kernel": [1, 5],
        "net/l1/bias": [5],
        "optimizer/iteration": [],
        "optimizer/learning_rate": [],
        **{
            f"optimizer/{slot}/net/l1/{name}": shape
            for slot in ("adam_m", "adam_v")
            for name, shape in (("kernel", [1, 5]), ("bias", [5]))
        },
    }
    dtypes = reader.get_variable_to_dtype_map()
    assert dtypes["net/l1/kernel"] == np.float32
    assert dtypes["optimizer/iteration"] == np.int64
    key = "net/l1/kernel/.ATTRIBUTES/VARIABLE_VALUE"  # TensorFlow's name for it
    assert shapes[key] == [1, 5]
    assert key in dtypes
    assert np.array_equal(reader.get_tensor(key), checkpoint.net.l1.kernel.numpy())
    assert nn.train.list_variables(tmp_path)[0] == ("net/l1/bias", [5])
    with pytest.raises(ConfigurationError, match=r"holds no 'net/l2/kernel': it holds net/l1/bias"):
        reader.get_tensor("net/l2/kernel")
    with pytest.raises(KeyError):
        shapes["net/l2/kernel"]


def test_row_21_a_part_of_it_is_restored_into_bare_variables_and_later_attributes(tmp_path: Path) -> None:
    checkpoint, _, net = trained()
    path = checkpoint.save(tmp_path / "ckpt")
    bias = nn.Variable(np.zeros(5, np.float32))
    layer = nn.train.Checkpoint(bias=bias)
    root = nn.train.Checkpoint(net=nn.train.Checkpoint(l1=layer))
    status = root.restore(path).expect_partial()
    assert np.array_equal(bias.numpy(), net.l1.bias.numpy())
    status.assert_existing_objects_matched().assert_nontrivial_match()
    kernel = nn.Variable(np.zeros((1, 5), np.float32))
    layer.kernel = kernel  # type: ignore[attr-defined]  # an attribute like any other
    assert np.array_equal(kernel.numpy(), net.l1.kernel.numpy())
    with pytest.raises(AssertionError, match=r"values without a variable: .*optimizer/iteration"):
        status.assert_consumed()


def test_row_21_lists_and_dicts_and_what_lies_in_both(tmp_path: Path) -> None:
    save: Any = nn.train.Checkpoint()
    save.listed = [nn.Variable(1.0)]
    save.listed.append(nn.Variable(2.0))
    save.mapped = {"one": save.listed[0], "two": save.listed[1]}
    path = save.save(tmp_path / "list_example")
    assert sorted(nn.train.load_checkpoint(path)) == ["listed/0", "listed/1", "save_counter"]

    restore: Any = nn.train.Checkpoint()
    second = nn.Variable(0.0)
    status = restore.restore(path).expect_partial()
    restore.mapped = {"two": second}
    assert float(second) == 2.0
    status.assert_existing_objects_matched()


def test_row_21_any_object_that_holds_variables_and_states_of_json(tmp_path: Path) -> None:
    class Position:
        def __init__(self) -> None:
            self.at = 0

        def get_state(self) -> dict[str, Any]:
            return {"at": self.at, "best": math.inf}

        def set_state(self, state: dict[str, Any]) -> None:
            assert state["best"] == math.inf
            self.at = state["at"]

    class Holder:
        def __init__(self, value: float) -> None:
            self.variable = nn.Variable(value)
            self.iterator = Position()
            self.other = "a text"
            self.itself = self

    saved = Holder(3.0)
    saved.iterator.at = 7
    path = nn.train.Checkpoint(root=saved, extra=(nn.Variable(np.int32(4)),)).write(tmp_path / "held")
    holder, extra = Holder(0.0), nn.Variable(np.int32(0))
    nn.train.Checkpoint(root=holder, extra=(extra,)).read(path).assert_consumed()
    assert (float(holder.variable), holder.iterator.at, int(extra)) == (3.0, 7, 4)


def test_a_layer_that_builds_its_parts_late_gets_all_of_them(tmp_path: Path) -> None:
    class Block(nn.Layer):
        def build(self, input_shape: Any) -> None:
            super().build(input_shape)
            self.scale = self.add_weight(shape=(3,), name="scale")
            self.inner = nn.Dense(2)

        def call(self, x: Any) -> Any:
            return self.inner(x * self.scale)

    def model() -> Any:
        inputs = nn.Input((3,))
        return nn.Model(inputs, Block(name="block")(inputs))

    x = np.ones((2, 3), np.float32)
    net = model()
    before = net.predict(x, verbose=0)
    path = nn.train.Checkpoint(net=net).write(tmp_path / "block")
    nn.utils.set_random_seed(77)
    block: Any = Block(name="block")
    status = nn.train.Checkpoint(net=nn.train.Checkpoint(block=block)).read(path)
    assert np.array_equal(np.asarray(block(x)), before)
    status.assert_consumed()


def test_a_compiled_model_brings_its_optimizer_and_fit_goes_on_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)).astype("float32"), rng.integers(0, 3, 40)

    def model() -> Any:
        net = nn.Sequential([nn.Dense(8, activation="relu"), nn.Dropout(0.5), nn.Dense(3)])
        net.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True))
        return net

    whole = model()
    whole.fit(x, y, batch_size=8, epochs=2, verbose=0, seed=5)
    path = nn.train.Checkpoint(model=whole).write(tmp_path / "model")
    whole.fit(x, y, batch_size=8, epochs=2, verbose=0, seed=5)
    nn.utils.set_random_seed(3)
    again = model()  # not built: it takes its shape from the data
    status = nn.train.Checkpoint(model=again, optimizer=again.optimizer).read(path)
    again.fit(x, y, batch_size=8, epochs=2, verbose=0, seed=5)
    status.assert_consumed()
    assert all(
        np.array_equal(a, b) for a, b in zip(values(again.weights), values(whole.weights), strict=True)
    )


def test_row_18_asserts_tell_what_is_missing_and_unused(tmp_path: Path) -> None:
    path = nn.train.Checkpoint(a=nn.Variable(1.0), b=nn.Variable(2.0)).write(tmp_path / "ab")
    a, c = nn.Variable(0.0), nn.Variable(5.0)
    status = nn.train.Checkpoint(a=a, c=c).read(path).expect_partial()
    assert (float(a), float(c)) == (1.0, 5.0)
    status.assert_nontrivial_match()
    with pytest.raises(AssertionError, match="values without a variable: b"):
        status.assert_consumed()
    with pytest.raises(AssertionError, match="variables without a value: c"):
        status.assert_existing_objects_matched()
    other = nn.train.Checkpoint(d=nn.Variable(0.0)).read(path).expect_partial()
    with pytest.raises(AssertionError, match="no variable got a value"):
        other.assert_nontrivial_match()
    with pytest.raises(AssertionError):
        nn.train.Checkpoint(a=a).restore(None).assert_consumed()


def _dropped(checkpoint: Any, path: str) -> None:
    checkpoint.read(path)
    gc.collect()


def test_row_10_a_partial_restore_that_is_dropped_warns_once_and_lists_the_keys(tmp_path: Path) -> None:
    path = nn.train.Checkpoint(a=nn.Variable(1.0), b=nn.Variable(2.0), c=nn.Variable(3.0)).write(
        tmp_path / "x"
    )
    partial = nn.train.Checkpoint(a=nn.Variable(0.0))
    with pytest.warns(
        UserWarning, match=r"2 values were not restored.*: b, c; call expect_partial"
    ) as caught:
        _dropped(partial, path)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partial.read(path).expect_partial()
        checkpoint, _, _ = trained()
        unbuilt = nn.train.Checkpoint(step=nn.Variable(0), optimizer=nn.optimizers.Adam(), net=Net())
        unbuilt.restore(checkpoint.save(tmp_path / "ckpt"))  # its turn will come
        gc.collect()


def test_another_shape_or_dtype_changes_nothing_and_is_named(tmp_path: Path) -> None:
    path = nn.train.Checkpoint(a=nn.Variable(1.0), b=nn.Variable(np.zeros(3))).write(tmp_path / "x")
    a, b = nn.Variable(7.0), nn.Variable(np.zeros((2, 2)))
    with pytest.raises(IncompatibleCheckpoint, match=r"b has shape \(2, 2\), and \(3,\) was found"):
        nn.train.Checkpoint(a=a, b=b).read(path)
    assert float(a) == 7.0
    with pytest.raises(IncompatibleCheckpoint, match="b has dtype int64, and float32 was found"):
        nn.train.Checkpoint(b=nn.Variable(np.zeros(3, np.int64))).read(path)


def test_row_5_a_path_is_overwritten_whole_and_its_old_content_goes(tmp_path: Path) -> None:
    value = nn.Variable(1.0)
    checkpoint = nn.train.Checkpoint(value=value)
    for number in (1.0, 2.0, 3.0):
        value.assign(number)
        checkpoint.write(tmp_path / "cp.ckpt")
    assert len([*(tmp_path / "cp.ckpt/checkpoints").iterdir()]) == 1
    value.assign(0.0)
    checkpoint.read(tmp_path / "cp.ckpt").assert_consumed()
    assert float(value) == 3.0


def test_a_save_that_fails_changes_neither_the_counter_nor_what_was_saved(tmp_path: Path) -> None:
    checkpoint = nn.train.Checkpoint(value=nn.Variable(1.0), bad={"a b": nn.Variable(1.0)})
    with pytest.raises(ConfigurationError, match="a b"):
        checkpoint.save(tmp_path / "ckpt")
    assert int(checkpoint.save_counter) == 0
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ConfigurationError, match="nothing to save"):
        nn.train.Checkpoint(empty=[]).write(tmp_path / "ckpt")


def test_what_cannot_be_saved_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="Checkpoint: step is 1, which cannot be saved"):
        nn.train.Checkpoint(step=1)


def test_a_damaged_checkpoint_is_named_and_changes_nothing(tmp_path: Path) -> None:
    path = nn.train.Checkpoint(a=nn.Variable(1.0)).write(tmp_path / "x")
    (chunk,) = (tmp_path / "x").glob("checkpoints/*/variables/a/c")
    chunk.write_bytes(bytes(8))
    value = nn.Variable(7.0)
    with pytest.raises(CorruptCheckpoint, match="variables/a/c"):
        nn.train.Checkpoint(a=value).read(path)
    assert float(value) == 7.0
    with pytest.raises(ConfigurationError, match="there is no checkpoint at"):
        nn.train.Checkpoint(a=value).read(tmp_path / "nothing")


def test_a_newer_restore_takes_the_place_of_one_that_still_waits(tmp_path: Path) -> None:
    checkpoint, optimizer, net = trained()
    first = checkpoint.save(tmp_path / "ckpt")
    train_step(net, batches(1)[0], optimizer)
    second = checkpoint.save(tmp_path / "ckpt")
    again = Net()
    fresh = nn.train.Checkpoint(net=again)
    fresh.restore(first).expect_partial()
    fresh.restore(second).expect_partial()
    again(batches(1)[0]["x"])
    assert np.array_equal(again.l1.kernel.numpy(), net.l1.kernel.numpy())
    assert int(fresh.save_counter) == 2


def test_checkpoints_lie_on_any_url() -> None:
    place = MemoryStore().url
    value = nn.Variable(3.0)
    path = nn.train.Checkpoint(value=value).save(f"{place}/run/ckpt")
    assert path == f"{place}/run/ckpt-1"
    assert nn.train.latest_checkpoint(f"{place}/run") == path
    value.assign(0.0)
    nn.train.Checkpoint(value=value).restore(path).assert_consumed()
    assert float(value) == 3.0


def test_row_6_an_array_is_read_from_its_parts_by_the_zarr_library(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    checkpoint, _, net = trained()
    path = checkpoint.write(os.fspath(tmp_path / "x"))
    (generation,) = (tmp_path / "x/checkpoints").iterdir()
    kernel = zarr.open_group(str(generation), mode="r")["variables/net/l1/kernel"]
    assert np.array_equal(kernel[...], net.l1.kernel.numpy())
    assert path == os.fspath(tmp_path / "x")


def test_weights_of_a_model_are_read_as_a_checkpoint_too(tmp_path: Path) -> None:
    _, _, net = trained()
    net.save_weights(tmp_path / "cp.ckpt")
    assert nn.train.latest_checkpoint(tmp_path) == str(tmp_path / "cp.ckpt")
    again = Net()
    again(batches(1)[0]["x"])
    nn.train.Checkpoint(again).read(tmp_path / "cp.ckpt").assert_consumed()
    assert np.array_equal(again.l1.kernel.numpy(), net.l1.kernel.numpy())
