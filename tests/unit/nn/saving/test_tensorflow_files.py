"""TensorFlow's checkpoints in our models: the same predictions, and training goes on as there."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.formats.tensor_bundle import TensorBundle, open_bundle
from workers import nn
from workers.nn.saving.tensorflow import load_weights, save_weights

if TYPE_CHECKING:
    from pathlib import Path

LOSS = nn.losses.SparseCategoricalCrossentropy(from_logits=True)


def sequential() -> Any:
    return nn.Sequential(
        [
            nn.Input((20,)),
            nn.Dense(16, activation="relu", name="dense_a"),
            nn.Dropout(0.0, name="drop"),
            nn.Dense(4, name="dense_b"),
        ]
    )


def functional() -> Any:
    x = nn.Input((11,))
    a = nn.BatchNormalization(name="enc_bn")(nn.Dense(9, activation="relu", name="enc")(x))
    return nn.Model(x, nn.Dense(4, name="dec")(a))


class Net(nn.Model):
    """The subclassed model of `tf_checkpoint_manager`."""

    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Dense(8, activation="relu")
        self.l2 = nn.Dense(3)

    def call(self, x: Any) -> Any:
        return self.l2(self.l1(x))


CASES: dict[str, tuple[Any, Any, float, str, str]] = {
    "tf_checkpoint_weights": (sequential, LOSS, 0.01, "cp.ckpt", ""),
    "saved_model": (functional, LOSS, 0.01, "saved_model/variables/variables", ""),
    "tf_checkpoint_manager": (Net, "mae", 0.05, "tf_ckpts/ckpt-6", "net"),
}


@pytest.mark.parametrize("case", CASES)
def test_row_29_weights_predict_and_go_on_training_as_in_tensorflow(reference_data: Path, case: str) -> None:
    make, loss, rate, prefix, root = CASES[case]
    folder = reference_data / "golden" / case
    inputs, expected = np.load(folder / "inputs.npy"), np.load(folder / "expected.npy")
    x, y = np.load(folder / "train_x.npy"), np.load(folder / "train_y.npy")
    model = make()
    model.compile(nn.optimizers.Adam(rate), loss)
    model(inputs)
    status = model.load_weights(str(folder / prefix), root=root).expect_partial()
    status.assert_existing_objects_matched().assert_nontrivial_match()
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, atol=1e-5)
    about = json.loads((folder / "case.json").read_text())
    assert int(model.optimizer.iterations.numpy()) == about["iterations_stored"]
    steps = about["continue_training"]["steps"]
    history = model.fit(x, y, batch_size=len(x), epochs=steps, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        history.history["loss"], np.load(folder / "expected_after_loss.npy"), atol=2e-5
    )
    after = np.load(folder / "expected_after.npy")
    np.testing.assert_allclose(model.predict(inputs, verbose=0), after, atol=2e-5)


def test_a_model_that_is_not_compiled_gets_its_weights_and_is_told_of_the_rest(reference_data: Path) -> None:
    model = sequential()
    status = load_weights(model, str(reference_data / "golden" / "tf_checkpoint_weights" / "cp.ckpt"))
    assert {name.partition("/")[0] for name in status.unused} == {"optimizer"}
    with pytest.warns(UserWarning, match="10 values were not restored"):
        del status


def test_what_does_not_fit_is_named_and_changes_nothing(reference_data: Path, tmp_path: Path) -> None:
    path = str(reference_data / "golden" / "tf_checkpoint_weights" / "cp.ckpt")
    other = nn.Sequential([nn.Input((20,)), nn.Dense(17), nn.Dense(4)])
    before = other.get_weights()
    with pytest.raises(IncompatibleCheckpoint, match=r"has shape \(20, 17\), and \(20, 16\) was found"):
        load_weights(other, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))
    saver = reference_data / "golden" / "tf1_saver"
    for file in saver.glob("model_final*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ConfigurationError, match="written by a Saver of TensorFlow 1"):
        load_weights(other, str(tmp_path / "model_final"))


def test_row_29_what_is_there_decides_how_it_is_loaded(reference_data: Path) -> None:
    golden = reference_data / "golden"
    cases = {
        "tf_checkpoint_weights": [".", "cp.ckpt", "cp.ckpt.index"],
        "saved_model": ["saved_model", "saved_model/variables", "saved_model/variables/variables"],
    }
    for case, places in cases.items():
        expected = np.load(golden / case / "expected.npy")
        for place in places:
            model = CASES[case][0]()
            model.load_weights(str(golden / case / place)).expect_partial()
            found = model.predict(np.load(golden / case / "inputs.npy"), verbose=0)
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_row_9_a_saved_model_is_no_model_and_its_variables_are_offered(reference_data: Path) -> None:
    path = str(reference_data / "golden" / "saved_model" / "saved_model")
    with pytest.raises(ConfigurationError, match=r"graphs are not executed here: .*model\.load_weights\("):
        nn.load_model(path)
    weights = str(reference_data / "golden" / "tf_checkpoint_weights" / "cp.ckpt")
    with pytest.raises(ConfigurationError, match="holds weights alone"):
        nn.load_model(weights)


def test_section5_a_saved_model_gives_the_optimizer_its_state_too(reference_data: Path) -> None:
    """tf_keras's own `load_model` begins a new Adam."""
    folder = reference_data / "golden" / "saved_model"
    model = functional()
    model.compile(nn.optimizers.Adam(0.01), LOSS)
    status = model.load_weights(str(folder / "saved_model")).expect_partial()
    status.assert_existing_objects_matched()
    assert int(model.optimizer.iterations) == 20
    x, y = np.load(folder / "train_x.npy"), np.load(folder / "train_y.npy")
    steps = json.loads((folder / "case.json").read_text())["continue_training"]["steps"]
    model.fit(x, y, batch_size=len(x), epochs=steps, shuffle=False, verbose=0)
    found = model.predict(np.load(folder / "inputs.npy"), verbose=0)
    np.testing.assert_allclose(found, np.load(folder / "expected_after.npy"), atol=2e-5)
    fresh = np.load(folder / "expected_after_fresh_optimizer.npy")
    assert np.abs(found - fresh).max() > 1e-3


@pytest.mark.parametrize(
    "other", ["sgd", "rmsprop", "nadam", "adamax", "adagrad", "adadelta", "ftrl", "lion"]
)
def test_row_29_the_state_of_another_kind_of_optimizer_is_left_out_and_told(
    reference_data: Path, other: str
) -> None:
    model = sequential()
    model.compile(other, LOSS)
    status = load_weights(model, str(reference_data / "golden" / "tf_checkpoint_weights" / "cp.ckpt"))
    assert {name.partition("/")[0] for name in status.restored} == {"variables"}
    assert {name for name in status.unused if "_variables/" in name} == {
        f"optimizer/_variables/{i}" for i in range(1, 9)
    }
    assert int(model.optimizer.iterations) == 0
    assert all(
        not slot.numpy().any()
        for slot in model.optimizer.variables[2:]
        if other not in ("adagrad", "ftrl", "nadam")
    )
    with pytest.raises(AssertionError, match="variables without a value: optimizer/iteration"):
        status.expect_partial().assert_existing_objects_matched()


def test_row_29_moments_belong_to_the_variables_of_their_names(reference_data: Path) -> None:
    """Also where they were made in another order than ours: names decide, not places."""
    path = str(reference_data / "golden" / "tf_checkpoint_weights" / "cp.ckpt")
    model = sequential()
    model.compile("adam", LOSS)
    model.optimizer.build(model.trainable_weights[::-1])
    load_weights(model, path).assert_existing_objects_matched()
    tensors = nn.train.load_checkpoint(path)
    for i, target in enumerate(model.trainable_weights):
        place = [id(variable) for variable in model.optimizer.targets].index(id(target))
        for slot, number in (("adam_m", 2 * i + 1), ("adam_v", 2 * i + 2)):
            found = model.optimizer.slot_variables[slot][place].numpy()
            assert np.array_equal(found, tensors.get_tensor(f"optimizer/_variables/{number}"))


def test_row_29_an_unknown_root_is_told_what_there_is(reference_data: Path) -> None:
    path = str(reference_data / "golden" / "tf_checkpoint_manager" / "tf_ckpts")
    model = Net()
    model(np.zeros((1, 6), "f"))
    with pytest.raises(ConfigurationError, match="holds no 'nets': it holds counts, names, net, note"):
        model.load_weights(path, root="nets")
    with pytest.raises(IncompatibleCheckpoint, match=r"holds one like it as 'net': load it with root='net'"):
        model.load_weights(path)


def edges(path: str) -> set[tuple[str, str]]:
    """Each object of a checkpoint's graph by all paths of at most four parts, and its tensor."""
    graph = open_bundle(path).object_graph()
    assert graph is not None
    found: set[tuple[str, str]] = set()
    level = [("", 0)]
    for _ in range(4):
        level = [
            (f"{path}/{key}", child)
            for path, number in level
            for key, child in graph.nodes[number].children.items()
            if key != "root" and not key.endswith("_function")
        ]
        found |= {(path, next(iter(graph.nodes[number].tensors.values()), "")) for path, number in level}
    return found


def test_row_29_what_we_write_is_what_keras_2_wrote(reference_data: Path, tmp_path: Path) -> None:
    """The same names, values, and graph of objects, for the same model."""
    case = reference_data / "golden" / "tf_checkpoint_weights"
    model = sequential()
    model.compile(nn.optimizers.Adam(0.01), LOSS)
    model.load_weights(str(case / "cp.ckpt")).assert_consumed()
    model.save_weights(str(tmp_path / "cp.ckpt.index"))
    tensors = np.load(case / "expected_tensors.npz")
    found = open_bundle(str(tmp_path / "cp.ckpt"))
    assert {*found.get_variable_to_shape_map()} == {*tensors.files, "_CHECKPOINTABLE_OBJECT_GRAPH"}
    for name in tensors.files:
        assert found.get_tensor(name).tobytes() == tensors[name].tobytes(), name
        assert found.get_tensor(name).dtype == tensors[name].dtype, name
    assert edges(str(tmp_path / "cp.ckpt")) == edges(str(case / "cp.ckpt"))
    assert (tmp_path / "checkpoint").read_text() == (case / "checkpoint").read_text()


OPTIMIZERS = ["sgd", "adam", "adamw", "adamax", "nadam", "adagrad", "adadelta", "rmsprop", "ftrl", "lion"]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "everything"])
def test_row_29_what_we_write_is_read_again_with_the_optimizer(tmp_path: Path, name: str) -> None:
    def make() -> Any:
        model = nested()
        optimizer = nn.optimizers.get(name) if name != "everything" else everything()
        model.compile(optimizer, "mse")
        return model

    rng = np.random.default_rng(0)
    x, y = rng.random((8, 6), np.float32), rng.random((8, 3), np.float32)
    model = make()
    model.fit(x, y, epochs=3, verbose=0)
    save_weights(model, str(tmp_path / "ckpt"))
    again = make()
    again.load_weights(str(tmp_path / "ckpt")).assert_consumed()
    for before, after in zip(model.weights, again.weights, strict=True):
        assert np.array_equal(before.numpy(), after.numpy())
    for before, after in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        assert np.array_equal(np.float32(before.numpy()), np.float32(after.numpy())), before.path


def nested() -> Any:
    inner = nn.Sequential([nn.Input((5,)), nn.Dense(4, activation="relu"), nn.BatchNormalization()])
    x = nn.Input((6,))
    h = nn.Dropout(0.1)(inner(nn.Dense(5)(x)))
    return nn.Model(x, nn.Dense(3)(nn.Concatenate()([h, nn.Dense(2)(h)])))


def everything() -> Any:
    schedule = nn.optimizers.schedules.ExponentialDecay(0.01, 5, 0.5)
    return nn.optimizers.RMSprop(schedule, momentum=0.5, centered=True, use_ema=True)


def test_row_27_state_that_keras_2_has_no_place_for_is_left_out_with_a_warning(tmp_path: Path) -> None:
    model = nested()
    model.compile(nn.optimizers.Lamb(), "mse")
    model.fit(np.ones((4, 6), "f"), np.ones((4, 3), "f"), verbose=0)
    with pytest.warns(UserWarning, match="Keras 2 has no Lamb: the weights are saved without its state"):
        save_weights(model, str(tmp_path / "ckpt"))
    names = nn.train.load_checkpoint(tmp_path / "ckpt").get_variable_to_shape_map()
    assert not any(name.startswith("optimizer") for name in names)
    model.compile(nn.optimizers.Adam(gradient_accumulation_steps=2), "mse")
    model.fit(np.ones((4, 6), "f"), np.ones((4, 3), "f"), verbose=0)
    with pytest.warns(UserWarning, match="no accumulated gradients"):
        save_weights(model, str(tmp_path / "ckpt"))


def test_row_29_checkpoints_lie_at_any_url() -> None:
    import fsspec

    model = nested()
    model.save_weights("memory://tensorflow/run/cp-1.ckpt.index")
    model.save_weights("memory://tensorflow/run/cp-2.ckpt.index")
    found = nn.train.latest_checkpoint("memory://tensorflow/run")
    assert found == "memory://tensorflow/run/cp-2.ckpt"
    again = nested()
    again.load_weights(found).assert_consumed()
    assert all(map(np.array_equal, model.get_weights(), again.get_weights()))
    with pytest.raises(ConfigurationError, match="is there already"):
        model.save_weights("memory://tensorflow/run/cp-2.ckpt.index", overwrite=False)
    fsspec.filesystem("memory").rm("/tensorflow", recursive=True)


def test_a_model_without_weights_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no weights yet: build it"):
        nn.Sequential([nn.Dense(3)]).save_weights(str(tmp_path / "ckpt.index"))
    assert not [*tmp_path.iterdir()]


def test_models_are_not_saved_as_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds weights alone"):
        sequential().save(str(tmp_path / "ckpt.index"))


def test_a_layer_that_is_named_as_the_optimizer_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Input((4,)), nn.Dense(3, name="optimizer")])
    model.compile("adam", "mse")
    with pytest.raises(ConfigurationError, match="a layer has the name 'optimizer'"):
        model.save_weights(tmp_path / "cp.index")
    assert not [*tmp_path.iterdir()]


def test_row_05_a_checkpoint_that_is_replaced_while_it_is_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(value: float) -> Any:
        model = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
        model.set_weights([np.full(weight.shape, value) for weight in model.get_weights()])
        return model

    made(1).save_weights(tmp_path / "cp.index")
    plain = TensorBundle.get_tensor

    def replaced(self: Any, name: str) -> Any:
        monkeypatch.undo()
        for value in (2, 3):  # the second has files of the first one's names
            made(value).save_weights(tmp_path / "cp.index")
        return plain(self, name)

    monkeypatch.setattr(TensorBundle, "get_tensor", replaced)
    other = made(0)
    other.load_weights(tmp_path / "cp")
    values = {float(value) for weight in other.get_weights() for value in weight.ravel()}
    assert len(values) == 1
    (tmp_path / "cp.data-00000-of-00001").unlink(missing_ok=True)
    (tmp_path / "cp.data-00000-of-00002").unlink(missing_ok=True)
    with pytest.raises(CorruptCheckpoint):
        other.load_weights(tmp_path / "cp")
