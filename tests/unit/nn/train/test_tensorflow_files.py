"""Checkpoints of TensorFlow under the names of `nn.train`: the same maps, values and training."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from workers import nn
from workers.nn.saving.tensorflow import save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"


class Net(nn.Model):
    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Dense(8, activation="relu")
        self.l2 = nn.Dense(3)

    def call(self, x: Any) -> Any:
        return self.l2(self.l1(x))


def checkpoint() -> Any:
    """What `tf_checkpoint_manager` holds, without its strings."""
    return nn.train.Checkpoint(
        step=nn.Variable(np.int64(0)),
        optimizer=nn.optimizers.Adam(0.05),
        net=Net(),
        counts=nn.Variable(np.zeros(3, np.int64)),
        scale=nn.Variable(np.zeros((2, 2), np.float32)),
    )


@pytest.fixture
def case(reference_data: Path) -> Path:
    return reference_data / "golden" / "tf_checkpoint_manager"


@pytest.fixture
def directory(case: Path, tmp_path: Path) -> Path:
    """A copy, in which something may be saved or damaged."""
    return shutil.copytree(case / "tf_ckpts", tmp_path / "tf_ckpts")


@pytest.mark.parametrize("number", [4, 5, 6])
def test_row_19_the_reader_has_tensorflows_maps(case: Path, number: int) -> None:
    tensors = np.load(case / f"expected_tensors_{number}.npz")
    reader = nn.train.load_checkpoint(case / "tf_ckpts" / f"ckpt-{number}")
    strings = {"_CHECKPOINTABLE_OBJECT_GRAPH": [], f"names{ENDING}": [3], f"note{ENDING}": []}
    shapes = {name: list(tensors[name].shape) for name in tensors.files}
    dtypes = {name: tensors[name].dtype for name in tensors.files}
    assert reader.get_variable_to_shape_map() == shapes | strings
    assert reader.get_variable_to_dtype_map() == dtypes | dict.fromkeys(strings, np.dtype(object))
    for name in tensors.files:
        assert reader.get_tensor(name).tobytes() == tensors[name].tobytes(), name
        assert np.array_equal(reader.get_tensor(name.removesuffix(ENDING)), tensors[name]), name
    assert reader.get_tensor(f"names{ENDING}").tolist() == [b"loss", b"", b"a longer entry in the list"]
    assert reader.get_tensor("note").startswith(b"golden set A")
    assert reader.has_tensor("scale")
    assert not reader.has_tensor("scales")
    assert nn.train.list_variables(case / "tf_ckpts") == sorted((shapes | strings).items()) or number < 6


def test_row_21_a_checkpoint_of_tensorflow_is_restored_and_trained_on(case: Path) -> None:
    ours = checkpoint()
    path = nn.train.latest_checkpoint(case / "tf_ckpts")
    status = ours.restore(path)
    inputs = np.load(case / "inputs.npy")
    np.testing.assert_allclose(ours.net(inputs).numpy(), np.load(case / "expected_6.npy"), atol=1e-5)
    x, y = np.load(case / "train_x.npy"), np.load(case / "train_y.npy")
    assert (int(ours.step), int(ours.save_counter), int(ours.optimizer.iterations)) == (30, 6, 30)
    for _ in range(5):
        with nn.GradientTape() as tape:
            loss = nn.ops.mean(nn.ops.abs(ours.net(x) - y))
        variables = ours.net.trainable_variables
        ours.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    np.testing.assert_allclose(ours.net(inputs).numpy(), np.load(case / "expected_after.npy"), atol=2e-5)
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match="values without a variable: names, note"):
        status.assert_consumed()
    status.expect_partial()


def test_row_22_a_manager_goes_on_from_tensorflows_directory(directory: Path) -> None:
    ours = checkpoint()
    manager = nn.train.CheckpointManager(ours, directory, max_to_keep=3)
    assert manager.checkpoints == [f"{directory}/ckpt-{i}" for i in (4, 5, 6)]
    with pytest.warns(UserWarning, match=r"2 values were not restored.*: names, note"):
        restored = manager.restore_or_initialize()
    assert restored == f"{directory}/ckpt-6"
    before = {path.name for path in directory.iterdir()}
    assert manager.save() == f"{directory}/ckpt-7"
    assert manager.checkpoints == [f"{directory}/ckpt-{i}" for i in (5, 6, 7)]
    assert {path.name for path in directory.iterdir()} == before | {"ckpt-7"}, (
        "TensorFlow's files are not ours"
    )
    assert nn.train.latest_checkpoint(directory) == f"{directory}/ckpt-7"
    again = checkpoint()
    again.restore(nn.train.latest_checkpoint(directory)).expect_partial()
    assert int(again.step) == 30


def test_section5_tensorflows_latest_checkpoint_is_found_without_the_file(directory: Path) -> None:
    (directory / "checkpoint").unlink()
    assert nn.train.latest_checkpoint(directory) == f"{directory}/ckpt-6"
    (directory / "ckpt-6.data-00000-of-00001").unlink()
    assert nn.train.latest_checkpoint(directory) == f"{directory}/ckpt-5"
    assert nn.train.CheckpointManager(checkpoint(), directory, 3).latest_checkpoint == f"{directory}/ckpt-5"
    (directory / "other").write_text('model_checkpoint_path: "/gone/ckpt-4"')
    assert nn.train.latest_checkpoint(directory, "other") == f"{directory}/ckpt-4"


def test_row_23_files_of_a_tf1_saver_are_restored_by_name(reference_data: Path) -> None:
    folder = reference_data / "golden" / "tf1_saver"
    h, v = nn.Variable(0.0, name="hor_estimate"), nn.Variable(0.0, name="ver_estimate")
    trajectory = np.load(folder / "trajectory.npy")
    for name, row in [("model_final", 100), ("model_iter-96", 97)]:
        nn.train.Saver([h, v]).restore(folder / name)
        assert np.array([h.numpy(), v.numpy()]).tobytes() == trajectory[row].astype(np.float32).tobytes()
    other = nn.Variable(0.0)
    nn.train.Saver({"ver_estimate": other}).restore(nn.train.latest_checkpoint(folder))
    assert float(other) == float(v)
    by_attribute = nn.train.Checkpoint(hor_estimate=nn.Variable(0.0), ver_estimate=nn.Variable(0.0))
    by_attribute.restore(folder / "model_final").assert_consumed()
    assert float(by_attribute.hor_estimate) == float(trajectory[-1][0])
    with pytest.raises(IncompatibleCheckpoint, match="holds no depth"):
        nn.train.Saver({"depth": other, "ver_estimate": v}).restore(folder / "model_final")


def test_what_does_not_fit_changes_nothing(case: Path) -> None:
    ours = checkpoint()
    ours.scale = nn.Variable(np.ones((2, 3), np.float32))
    with pytest.raises(IncompatibleCheckpoint, match=r"scale has shape \(2, 3\), and \(2, 2\) was found"):
        ours.restore(case / "tf_ckpts" / "ckpt-6")
    assert int(ours.step) == 0
    assert ours.scale.numpy().all()


def test_what_is_missing_or_damaged_is_one_line(directory: Path) -> None:
    for load in (nn.train.load_checkpoint, checkpoint().restore):
        with pytest.raises(ConfigurationError, match=r"there is no checkpoint at .*ckpt-9"):
            load(directory / "ckpt-9")
    index = directory / "ckpt-6.index"
    index.write_bytes(index.read_bytes()[:100])
    for load in (nn.train.load_checkpoint, checkpoint().restore, Net().load_weights):
        with pytest.raises(
            CorruptCheckpoint, match=r"ckpt-6\.index: it does not end as a sorted string table"
        ):
            load(directory / "ckpt-6")
    with pytest.raises(CheckpointError, match="does not end"):
        nn.train.Saver({"step": nn.Variable(0)}).restore(directory / "ckpt-6")


def test_objects_that_lead_to_each_other_in_a_circle_end(tmp_path: Path) -> None:
    """As each model does in a file of Keras 2, by its child "root"."""
    from storage.formats.object_graph import VALUE, Node, ObjectGraph
    from storage.formats.tensor_bundle import OBJECT_GRAPH, write_bundle

    nodes = (
        Node({"a": 1, "self": 0}, {}, {}),
        Node({"up": 0, "b": 2}, {}, {}),
        Node({"b": 1, "v": 3, "b2": 2}, {}, {}),
        Node({}, {VALUE: "the/value"}, {}, "v"),
    )
    path = str(tmp_path / "ckpt")
    write_bundle(path, {OBJECT_GRAPH: ObjectGraph(nodes).written(), "the/value": np.float32(3)})
    ours = nn.train.Checkpoint(a=nn.train.Checkpoint(b=nn.train.Checkpoint(v=nn.Variable(0.0))))
    ours.a.up = ours
    ours.a.b.b = ours.a
    ours.restore(path).assert_consumed()
    assert float(ours.a.b.v) == 3


def test_row_21_what_is_written_for_tensorflow_is_restored_here(tmp_path: Path) -> None:
    ours = checkpoint()
    x = np.ones((4, 6), np.float32)
    ours.net(x)
    ours.optimizer.build(ours.net.trainable_weights)
    ours.step.assign(np.int64(7))
    ours.optimizer.apply([np.ones(v.spec.dims, np.float32) for v in ours.net.trainable_weights])
    save_checkpoint(ours, str(tmp_path / "ckpt-1.index"))
    other = checkpoint()
    other.restore(nn.train.latest_checkpoint(tmp_path)).assert_existing_objects_matched()
    assert np.array_equal(other.net(x).numpy(), ours.net(x).numpy())
    other.optimizer.build(other.net.trainable_weights)
    assert (int(other.step), other.optimizer.steps, int(other.save_counter)) == (7, 1, 0)
    for before, after in zip(ours.optimizer.variables, other.optimizer.variables, strict=True):
        assert np.array_equal(np.float32(before.numpy()), np.float32(after.numpy()))
    names = nn.train.load_checkpoint(tmp_path).get_variable_to_shape_map()
    assert names[f"net/l1/kernel{ENDING}"] == [6, 8]
    assert f"optimizer/_variables/8{ENDING}" in names


def test_row_21_nothing_is_written_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is nothing to save"):
        save_checkpoint(nn.train.Checkpoint(), str(tmp_path / "ckpt"))
    with pytest.raises(ConfigurationError, match=r"names no checkpoint: give a name before \.index"):
        save_checkpoint(nn.train.Checkpoint(x=nn.Variable(1.0)), f"{tmp_path}/.index")
    stopping = nn.callbacks.EarlyStopping()
    with pytest.warns(UserWarning, match="no place for the states of stopping"):
        save_checkpoint(nn.train.Checkpoint(x=nn.Variable(1.0), stopping=stopping), f"{tmp_path}/ckpt")
    assert nn.train.load_checkpoint(tmp_path / "ckpt").get_tensor("x") == 1
