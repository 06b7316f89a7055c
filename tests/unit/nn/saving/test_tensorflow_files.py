"""TensorFlow's checkpoints in our models: the same predictions, and training goes on as there."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError, IncompatibleCheckpoint
from workers import nn
from workers.nn.saving.tensorflow import load_weights

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
