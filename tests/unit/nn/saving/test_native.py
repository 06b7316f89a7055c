"""Whole models and weights in the native directory."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import storage
from storage.bundle import open_files
from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.object_store import ObjectStore
from storage.testing import MemoryStore
from workers import nn
from workers.nn.saving.graphs import Revived
from workers.nn.tensor import Untraceable

RNG = np.random.default_rng(0)
X = RNG.standard_normal((70, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 70)


class Residual(nn.Layer):
    """A layer of the user's, with a loss and a metric of its own."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.inner = nn.Dense(units, activation="tanh")

    def call(self, inputs: Any) -> Any:
        """The input and what the inner layer makes of it."""
        found = self.inner(inputs)
        self.add_loss(0.01 * nn.ops.mean(nn.ops.square(found)))
        self.add_metric(nn.ops.mean(found), name="inner_mean")
        return inputs + found

    def get_config(self) -> dict[str, Any]:
        """The settings."""
        return super().get_config() | {"units": self.units}


class Net(nn.Model):
    """A subclassed model with get_config."""

    def __init__(self, units: int = 6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.residual = Residual(units)
        self.norm = nn.BatchNormalization()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Dense(3)

    def call(self, inputs: Any) -> Any:
        """Scores."""
        return self.head(self.drop(self.norm(self.residual(inputs))))

    def get_config(self) -> dict[str, Any]:
        """The settings."""
        return super().get_config() | {"units": self.units}


CUSTOM = {"Residual": Residual, "Net": Net}


def sequential() -> Any:
    layers = [nn.Input((6,)), nn.Dense(8, activation="relu"), nn.Dropout(0.2), nn.Dense(3)]
    return nn.Sequential(layers)


def functional() -> Any:
    inputs = nn.Input((6,))
    hidden = nn.BatchNormalization()(Residual(6)(inputs))
    return nn.Model(inputs, nn.Dense(3)(nn.Dropout(0.3)(hidden)))


def subclassed() -> Any:
    model = Net()
    model.build((None, 6))
    return model


MODELS = {"sequential": sequential, "functional": functional, "subclassed": subclassed}
OPTIMIZERS = {
    "adam": lambda: nn.optimizers.Adam(0.01, amsgrad=True),
    "scheduled": lambda: nn.optimizers.SGD(
        nn.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9), momentum=0.9, use_ema=True
    ),
}


def compiled(model: Any, optimizer: Any = "adam") -> Any:
    loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, ["accuracy"])
    return model


def fit(model: Any, epochs: int, first: int = 0, **kwargs: Any) -> Any:
    return model.fit(X, Y, batch_size=16, epochs=epochs, initial_epoch=first, verbose=0, **kwargs)


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


@pytest.fixture(autouse=True)
def seeded() -> None:
    nn.utils.set_random_seed(1)


# -- row 8 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS])
@pytest.mark.parametrize("kind", [*MODELS])
@pytest.mark.parametrize("with_classes", [True, False])
def test_row_08_five_epochs_and_five_are_ten_to_the_bit(
    kind: str, optimizer: str, with_classes: bool, tmp_path: Path
) -> None:
    model = compiled(MODELS[kind](), OPTIMIZERS[optimizer]())
    fit(model, 5)
    model.save(tmp_path / "m")
    whole = fit(model, 10, 5)
    again = nn.load_model(tmp_path / "m", custom_objects=CUSTOM if with_classes else None)
    assert isinstance(again, Revived) is (not with_classes and kind != "sequential")
    history = fit(again, 10, 5)
    assert same(again, model)
    assert history.history["loss"] == whole.history["loss"]
    assert int(again.optimizer.iterations.numpy()) == 50
    assert again.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)


def test_row_04_restored_weights_evaluate_as_before_to_the_bit(tmp_path: Path) -> None:
    model = compiled(sequential())
    fit(model, 2)
    model.save_weights(tmp_path / "w")
    again = compiled(sequential())
    before = again.evaluate(X, Y, verbose=0)
    again.load_weights(tmp_path / "w").assert_consumed()
    assert before != again.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)
    assert np.array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_row_07_weights_and_the_optimizers_state_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    model = compiled(sequential())
    fit(model, 2)
    model.save_weights(str(tmp_path / "w"))
    again = compiled(sequential())
    again.load_weights(str(tmp_path / "w"))
    fit(model, 4, 2)
    fit(again, 4, 2)
    assert same(model, again)


def test_row_08_saving_changes_nothing(tmp_path: Path) -> None:
    model, undisturbed = compiled(sequential()), compiled(sequential())
    undisturbed.set_weights(model.get_weights())
    for each in (model, undisturbed):
        fit(each, 1, seed=4)
    model.save(tmp_path / "m")
    model.save_weights(tmp_path / "w")
    for each in (model, undisturbed):
        fit(each, 2, 1)
    assert same(model, undisturbed)


def test_row_08_overwriting_keeps_one_generation_and_false_refuses(tmp_path: Path) -> None:
    model = sequential()
    model.save(tmp_path / "m")
    first = storage.latest(str(tmp_path / "m"))
    model.save(tmp_path / "m")
    assert [p.name for p in (tmp_path / "m/checkpoints").iterdir()] == [
        str(storage.latest(str(tmp_path / "m"))).rpartition("/")[2]
    ]
    assert first != storage.latest(str(tmp_path / "m"))
    for save in (model.save, model.save_weights):
        with pytest.raises(
            ConfigurationError, match="is there already: give another place, or overwrite=True"
        ):
            save(tmp_path / "m", overwrite=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        model.save(tmp_path / "file", overwrite=False)
    model.save(tmp_path / "new", overwrite=False)


def test_row_08_include_optimizer_false_and_save_format(tmp_path: Path) -> None:
    model = compiled(sequential())
    fit(model, 1)
    model.save(tmp_path / "m", include_optimizer=False, save_format="tf")
    again = nn.load_model(tmp_path / "m")
    assert again.optimizer is None
    assert same(again, model)
    assert nn.load_model(tmp_path / "m", compile=False).optimizer is None
    with pytest.raises(ConfigurationError, match="save_format='zip' is not known: give one of \"tf\""):
        model.save(tmp_path / "m", save_format="zip")


def test_row_08_any_url(tmp_path: Path) -> None:
    model = compiled(sequential())
    fit(model, 1)
    model.save("memory://models/small")
    assert same(nn.load_model("memory://models/small"), model)
    model.save_weights(tmp_path.as_uri() + "/w")
    other = sequential()
    other.load_weights(tmp_path / "w")
    assert same(other, model)


def test_row_08_zarr_reads_the_variables_by_name(tmp_path: Path) -> None:
    model = compiled(sequential())
    fit(model, 1)
    model.save(tmp_path / "m")
    group: Any = zarr.open_group(storage.latest(str(tmp_path / "m")), mode="r")
    for path, variable in model.named_variables().items():
        assert np.array_equal(group[f"variables/{path}"][...], variable.numpy())
    assert group["optimizer/iteration"][...] == 5
    assert json.loads(open_files(str(tmp_path / "m")).read("model.json"))["seed"] == model.seed


# -- rows 9, 13, 14 -----------------------------------------------------------------------------------------


def test_row_09_signatures_are_called_by_name_without_the_classes(tmp_path: Path) -> None:
    model = subclassed()
    model.save(tmp_path / "m")
    loaded = nn.saved_model.load(tmp_path / "m")
    expected = model.predict(X, verbose=0)
    assert np.array_equal(loaded(X).numpy(), expected)
    assert np.array_equal(loaded.signatures["serving_default"](X)["output_0"], expected)
    assert np.array_equal(loaded.signatures["serving_default"](inputs=X)["output_0"], expected)
    assert {*loaded.variables} == {*model.named_variables()}
    assert not hasattr(loaded, "fit")
    assert not hasattr(loaded, "predict")
    with pytest.raises(ConfigurationError, match="takes inputs, and got 2 inputs"):
        loaded.signatures["serving_default"](X, X)
    with pytest.raises(ConfigurationError, match=r"inputs has shape \(None, 6\), and \(70, 5\) was given"):
        loaded.signatures["serving_default"](X[:, 1:])


def test_row_13_without_its_class_a_model_calls_trains_and_is_saved_again(tmp_path: Path) -> None:
    model = compiled(subclassed())
    fit(model, 2)
    model.save(tmp_path / "m")
    revived = nn.load_model(tmp_path / "m")
    assert isinstance(revived, Revived)
    assert [*revived.named_variables()] == [*model.named_variables()]
    assert np.array_equal(revived.predict(X, verbose=0), model.predict(X, verbose=0))
    revived.summary(print_fn=lambda text: None)
    fit(revived, 3, 2)
    revived.save(tmp_path / "again")
    fit(model, 3, 2)
    for custom in (None, CUSTOM):
        last = nn.load_model(tmp_path / "again", custom_objects=custom)
        assert type(last) is (Revived if custom is None else Net)
        assert same(last, model)


def test_row_13_with_its_class_a_subclassed_model_is_of_that_class(tmp_path: Path) -> None:
    model = subclassed()
    model.save(tmp_path / "m")
    again = nn.load_model(tmp_path / "m", custom_objects=CUSTOM)
    assert type(again) is Net
    assert same(again, model)


def test_row_13_a_revived_model_is_a_part_of_another(tmp_path: Path) -> None:
    body = subclassed()
    body.save(tmp_path / "m")
    revived = nn.load_model(tmp_path / "m")
    revived.trainable = False
    model = compiled(nn.Sequential([nn.Input((6,)), revived, nn.Dense(3)]))
    before = [value.copy() for value in revived.get_weights()]
    fit(model, 1)
    assert all(map(np.array_equal, before, revived.get_weights()))
    assert len(model.trainable_weights) == 2


def test_row_13_gradients_flow_through_a_revived_model(tmp_path: Path) -> None:
    model = subclassed()
    model.save(tmp_path / "m")
    revived = nn.load_model(tmp_path / "m")
    gradients = []
    for each in (model, revived):
        with nn.GradientTape() as tape:
            total = nn.ops.sum(each(X, training=False))
        found = tape.gradient(total, each.trainable_variables)
        gradients.append([None if g is None else g.numpy() for g in found])
    for a, b in zip(*gradients, strict=True):
        assert np.array_equal(a, b)


def test_row_14_without_traces_it_is_smaller_and_needs_the_class(tmp_path: Path) -> None:
    model = subclassed()
    model.save(tmp_path / "with")
    model.save(tmp_path / "without", save_traces=False)
    with_, without = (open_files(str(tmp_path / name)) for name in ("with", "without"))
    assert sum(map(without.nbytes, without)) < sum(map(with_.nbytes, with_))
    with pytest.raises(ConfigurationError, match=r"unknown class 'Net'.*saved with save_traces=False"):
        nn.load_model(tmp_path / "without")
    assert same(nn.load_model(tmp_path / "without", custom_objects=CUSTOM), model)
    with pytest.raises(
        ConfigurationError, match="holds no graph: the model was saved with save_traces=False"
    ):
        nn.saved_model.load(tmp_path / "without")


class Branches(nn.Model):
    """A model that decides by its data."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = nn.Dense(2)

    def build(self, input_shape: Any) -> None:
        """Without a call, which could not be traced."""
        self.dense.build(input_shape)

    def call(self, inputs: Any) -> Any:
        """One of two things."""
        found = self.dense(inputs)
        if nn.ops.max(found) > 0:
            return found
        return -found


def test_code_that_branches_on_data_is_refused_with_its_line(tmp_path: Path) -> None:
    model = Branches()
    model(X)
    with pytest.raises(Untraceable, match=r"test_native.py, line \d+: this needs the value"):
        model.save(tmp_path / "m")
    assert storage.latest(str(tmp_path / "m")) is None
    model.save(tmp_path / "m", save_traces=False)
    assert same(nn.load_model(tmp_path / "m", custom_objects={"Branches": Branches}), model)


def test_a_lambda_is_revived_as_what_it_computes_and_never_as_code(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Input((6,)), nn.Lambda(lambda x: x * 2.0), nn.Dense(3)])
    model.save(tmp_path / "m")
    again = nn.load_model(tmp_path / "m")
    assert isinstance(again, Revived)
    assert np.array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))
    with pytest.raises(ConfigurationError, match="a Lambda layer cannot be saved"):
        model.save(tmp_path / "n", save_traces=False)


def test_a_model_of_several_inputs_and_outputs_is_revived_with_their_structure(tmp_path: Path) -> None:
    a, b = nn.Input((3,), name="a"), nn.Input((2,), name="b")
    joined = Residual(5)(nn.layers.Concatenate()([a, b]))
    model = nn.Model({"a": a, "b": b}, {"s": nn.Dense(1)(joined), "t": nn.Dense(2)(joined)})
    model.save(tmp_path / "m")
    data = {"a": X[:, :3], "b": X[:, 4:]}
    again = nn.load_model(tmp_path / "m")
    for name, value in model.predict(data, verbose=0).items():
        assert np.array_equal(again.predict(data, verbose=0)[name], value)
    found = nn.saved_model.load(tmp_path / "m").signatures["serving_default"](**data)
    assert {*found} == {"s", "t"}


def test_masks_reach_a_revived_models_loss(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Input((4,)), nn.Embedding(9, 5, mask_zero=True), Sums()])
    model.compile("sgd", "mse")
    x, y = RNG.integers(0, 3, (12, 4)).astype(np.float32), RNG.standard_normal((12, 4, 1)).astype(np.float32)
    model.save(tmp_path / "m")
    revived = nn.load_model(tmp_path / "m")
    assert isinstance(revived, Revived)
    assert revived.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


class Sums(nn.Layer):
    """The sums of the last axis; passes masks on."""

    supports_masking = True

    def call(self, inputs: Any) -> Any:
        """The sums."""
        return nn.ops.sum(inputs, axis=-1, keepdims=True)


# -- rows 20, 27, 31 ----------------------------------------------------------------------------------------


def pretrained() -> Any:
    inputs = nn.Input((784,), name="digits")
    x = nn.Dense(64, activation="relu", name="dense_1")(inputs)
    x = nn.Dense(64, activation="relu", name="dense_2")(x)
    whole = nn.Model(inputs, nn.Dense(10, name="predictions")(x), name="3_layer_mlp")
    return nn.Model(whole.inputs, whole.layers[-1].input, name="pretrained")


def with_head() -> Any:
    inputs = nn.Input((784,), name="digits")
    x = nn.Dense(64, activation="relu", name="dense_1")(inputs)
    x = nn.Dense(64, activation="relu", name="dense_2")(x)
    return nn.Model(inputs, nn.Dense(5, name="predictions")(x), name="new_model")


def test_row_20_a_pretrained_part_goes_into_a_model_with_another_head(tmp_path: Path) -> None:
    part, model = pretrained(), with_head()
    assert part.count_params() == 54_400
    assert model.count_params() == 54_725
    part.save_weights(tmp_path / "p")
    head = model.get_layer("predictions").get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status = model.load_weights(tmp_path / "p")
    assert all(map(np.array_equal, part.get_weights(), model.get_weights()))
    assert all(map(np.array_equal, head, model.get_layer("predictions").get_weights()))
    with pytest.raises(AssertionError, match="predictions/kernel"):
        status.assert_existing_objects_matched()


def test_row_20_by_layer_and_by_prefix_and_the_wrong_nesting_changes_nothing(tmp_path: Path) -> None:
    part = pretrained()
    part.save_weights(tmp_path / "p")
    inner = pretrained()
    model = nn.Sequential([inner, nn.Dense(5, name="predictions")])
    model.build((None, 784))
    before = model.get_weights()
    with pytest.raises(
        IncompatibleCheckpoint, match="holds dense_1/bias, and the model has pretrained/dense_1"
    ):
        model.load_weights(tmp_path / "p")
    assert all(map(np.array_equal, before, model.get_weights()))
    rename = {f"{name}/*": f"pretrained/{name}/*" for name in ("dense_1", "dense_2")}
    model.load_weights(tmp_path / "p", rename=rename)
    assert all(map(np.array_equal, part.get_weights(), inner.get_weights()))
    inner.set_weights(before[:4])
    model.get_layer("pretrained").load_weights(tmp_path / "p").assert_consumed()
    assert all(map(np.array_equal, part.get_weights(), inner.get_weights()))


def test_row_20_by_name(tmp_path: Path) -> None:
    part, model = pretrained(), with_head()
    part.save_weights(tmp_path / "p")
    before = model.get_weights()
    model.load_weights(tmp_path / "p", names=["dense_1/*"])
    after = model.get_weights()
    assert all(map(np.array_equal, after[:2], part.get_weights()[:2]))
    assert all(map(np.array_equal, after[2:], before[2:]))


def test_row_10_weights_without_a_place_warn_with_their_names(tmp_path: Path) -> None:
    with_head().save_weights(tmp_path / "w")
    model = pretrained()
    with pytest.warns(
        UserWarning, match="2 values were not restored.*predictions/bias, variables/predictions"
    ):
        model.load_weights(tmp_path / "w")


def test_row_18_weights_of_a_whole_model_and_into_one_that_is_not_built(tmp_path: Path) -> None:
    model = subclassed()
    model.save(tmp_path / "m")
    model.save_weights(tmp_path / "w")
    for name in ("m", "w"):
        again = Net()
        again.load_weights(tmp_path / name).assert_consumed()
        assert same(again, model)


def test_weights_of_another_optimizer_leave_the_optimizer_alone_and_warn(tmp_path: Path) -> None:
    model = compiled(sequential())
    fit(model, 1)
    model.save_weights(tmp_path / "w")
    other = compiled(sequential(), nn.optimizers.SGD(0.1, momentum=0.9))
    with pytest.warns(UserWarning, match="optimizer/"):
        other.load_weights(tmp_path / "w")
    assert same(other, model)
    assert int(other.optimizer.iterations.numpy()) == 0


class OldOptimizer(nn.optimizers.SGD):
    """One that cannot tell its settings."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)


class OlderOptimizer(nn.optimizers.SGD):
    """One that says so."""

    def get_config(self) -> dict[str, Any]:
        """Never."""
        raise NotImplementedError


@pytest.mark.parametrize("optimizer", [OldOptimizer, OlderOptimizer])
def test_row_27_an_optimizer_without_get_config_is_left_out_with_a_warning(
    optimizer: Any, tmp_path: Path
) -> None:
    model = compiled(sequential(), optimizer(0.1))
    fit(model, 1)
    with pytest.warns(
        UserWarning, match=f"{optimizer.__name__} has no get_config: the model is saved without"
    ):
        model.save(tmp_path / "m")
    again = nn.load_model(tmp_path / "m")
    assert again.optimizer is None
    assert same(again, model)


@pytest.mark.parametrize("custom", [None, CUSTOM])
def test_row_31_added_losses_and_metrics_survive(custom: Any, tmp_path: Path) -> None:
    model = compiled(functional())
    model.save(tmp_path / "m")
    again = nn.load_model(tmp_path / "m", custom_objects=custom)
    found = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert "inner_mean" in found
    assert again.evaluate(X, Y, verbose=0, return_dict=True) == found


# -- row 12 in files, and damage ----------------------------------------------------------------------------


def distance(y_true: Any, y_pred: Any) -> Any:
    """A loss of the user's."""
    return nn.ops.mean(nn.ops.absolute(y_true - y_pred), axis=-1)


def test_row_12_a_custom_loss_is_asked_for_by_name(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Input((6,)), nn.Dense(1)])
    model.compile("sgd", distance)
    model.save(tmp_path / "m")
    with pytest.raises(
        ConfigurationError, match="unknown loss or metric 'distance': give it with custom_objects"
    ):
        nn.load_model(tmp_path / "m")
    assert nn.load_model(tmp_path / "m", custom_objects={"distance": distance}).optimizer is not None
    assert nn.load_model(tmp_path / "m", compile=False).optimizer is None


def test_a_model_whose_class_has_changed_is_refused(tmp_path: Path) -> None:
    subclassed().save(tmp_path / "m")

    class Changed(Net):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.head = nn.Dense(4)

    with pytest.raises(
        IncompatibleCheckpoint, match=r"head/kernel has shape \(6, 4\), and \(6, 3\) was found"
    ):
        nn.load_model(tmp_path / "m", custom_objects={**CUSTOM, "Net": Changed})


@pytest.mark.parametrize("key", ["model.json", "graph.json", "variables/head/kernel/c/0/0"])
def test_a_changed_byte_is_found(key: str, tmp_path: Path) -> None:
    subclassed().save(tmp_path / "m")
    path = Path(str(storage.latest(str(tmp_path / "m"))), key)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=key):
        nn.load_model(tmp_path / "m")


def test_nothing_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no model, and no weights"):
        nn.load_model(tmp_path / "m")
    with pytest.raises(ConfigurationError, match="the model is not built"):
        Net().save(tmp_path / "m")
    storage.save(str(tmp_path / "a"), {"x": X})
    with pytest.raises(ConfigurationError, match="is the directory of saved arrays"):
        sequential().save(tmp_path / "a")


class Configless(nn.Model):
    """A model that has settings, and does not tell them."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.dense = nn.Dense(units)

    def call(self, inputs: Any) -> Any:
        """Scores."""
        return self.dense(inputs)


def test_row_13_a_class_that_cannot_be_made_of_its_config_is_revived_with_a_warning(tmp_path: Path) -> None:
    model = Configless(3)
    model(X)
    model.save(tmp_path / "m")
    with pytest.warns(UserWarning, match="is loaded as what it computes: Configless cannot be made"):
        again = nn.load_model(tmp_path / "m", custom_objects={"Configless": Configless})
    assert np.array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_damaged_file_changes_neither_weights_nor_optimizer_nor_seed(tmp_path: Path) -> None:
    model = compiled(sequential())
    fit(model, 1)
    model.save_weights(tmp_path / "w")
    path = Path(str(storage.latest(str(tmp_path / "w"))), "optimizer/adam_m/dense/kernel/c/0/0")
    path.write_bytes(bytes(len(path.read_bytes())))
    other = compiled(sequential())
    before = other.get_weights()
    with pytest.raises(CorruptCheckpoint, match="optimizer/adam_m/dense/kernel/c/0/0"):
        other.load_weights(tmp_path / "w")
    assert all(map(np.array_equal, before, other.get_weights()))
    assert int(other.optimizer.iterations.numpy()) == 0
    assert other.seed is None


def test_row_05_what_is_replaced_while_it_is_read_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()

    def made(value: float) -> Any:
        model = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
        model.set_weights([np.full(weight.shape, value) for weight in model.get_weights()])
        return model

    def restored(url: str) -> Any:
        model = made(0)
        nn.train.Checkpoint(model=model).restore(url).expect_partial()
        return model

    def loaded(url: str) -> Any:
        model = made(0)
        model.load_weights(url)
        return model

    def by_saver(url: str) -> Any:
        model = made(0)
        nn.train.Saver(model).restore(url)
        return model

    def latest(url: str) -> Any:
        path = nn.train.latest_checkpoint(url.rpartition("/")[0])
        assert path == url
        return restored(path)

    saves: dict[str, Any] = {
        "model": lambda model, url: model.save(url),
        "weights": lambda model, url: model.save_weights(url),
        "checkpoint": lambda model, url: nn.train.Checkpoint(model=model).write(url),
        "saver": lambda model, url: nn.train.Saver(model).save(url),
    }
    cases: list[tuple[str, Any]] = [
        ("model", nn.load_model),
        ("model", loaded),
        ("weights", loaded),
        ("checkpoint", restored),
        ("checkpoint", latest),
        ("saver", by_saver),
    ]
    for number, (kind, load) in enumerate(cases):
        url = f"{store.url}/{number}/ckpt"
        saves[kind](made(1), url)
        plain = ObjectStore.read

        def replaced(
            self: Any,
            key: str,
            *bounds: Any,
            kind: str = kind,
            url: str = url,
            plain: Any = plain,
        ) -> bytes:
            if "/c/" in key:  # an array is about to be read
                monkeypatch.setattr(ObjectStore, "read", plain)
                saves[kind](made(2), url)
            return plain(self, key, *bounds)  # type: ignore[no-any-return]

        monkeypatch.setattr(ObjectStore, "read", replaced)
        found = load(url)
        assert ObjectStore.read is plain
        values = {float(value) for weight in found.get_weights() for value in weight.ravel()}
        assert values == {2}, (kind, load)
