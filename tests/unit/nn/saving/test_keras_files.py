"""Keras's files: those that Keras wrote predict and train here as there, and ours come back as they were."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.files import file_at, is_file
from storage.formats import hdf5
from workers import nn
from workers.nn.saving import keras_file, weights_h5

if TYPE_CHECKING:
    from pathlib import Path

LOSS = nn.losses.SparseCategoricalCrossentropy(from_logits=True)


class Tower(nn.Layer):
    """A layer of layers, as in `weights_h5_subclassed`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_in = nn.Dense(12, activation="relu")
        self.norm = nn.LayerNormalization()
        self.fc_out = nn.Dense(12)

    def call(self, x: Any) -> Any:
        return self.fc_out(self.norm(self.fc_in(x)))


class Net(nn.Model):
    """The model of `weights_h5_subclassed`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Tower()
        self.blocks = [nn.Dense(12, activation="tanh"), nn.Dense(8, activation="relu")]
        self.head = nn.Dense(4)

    def call(self, x: Any) -> Any:
        return self.head(self.blocks[1](self.blocks[0](self.encoder(x))))


def check_goes_on(model: Any, folder: Path, predictions: float = 1e-5) -> None:
    """It predicts as the peer did, and after the same steps of training again."""
    inputs = np.load(folder / "inputs.npy")
    np.testing.assert_allclose(
        model.predict(inputs, verbose=0), np.load(folder / "expected.npy"), atol=predictions
    )
    about = json.loads((folder / "case.json").read_text())["continue_training"]
    for layer in model.layers_within():
        if isinstance(layer, nn.Dropout):
            layer.rate = 0.0
    x, y = np.load(folder / "train_x.npy"), np.load(folder / "train_y.npy")
    history = model.fit(x, y, batch_size=len(x), epochs=about["steps"], shuffle=False, verbose=0)
    losses = np.load(folder / "expected_after_loss.npy")
    np.testing.assert_allclose(history.history["loss"], losses, atol=2e-5)
    after = np.load(folder / "expected_after.npy")
    np.testing.assert_allclose(model.predict(inputs, verbose=0), after, atol=2e-5)


@pytest.mark.parametrize(
    "case", ["keras3_sequential", "keras3_functional", "keras3_conv", "keras3_embedding"]
)
def test_row_08_a_model_that_keras_saved_goes_on_training_here(reference_data: Path, case: str) -> None:
    folder = reference_data / "golden" / case
    model = nn.load_model(folder / "model.keras")
    tensors = np.load(folder / "expected_tensors.npz")
    arrays, _ = weights_h5.contents(model)
    for name in tensors.files:
        if "seed_generator" not in name:
            assert np.array_equal(arrays[name], tensors[name]), name  # JAX has an iteration of int32
    check_goes_on(model, folder)


@pytest.mark.parametrize("case", ["weights_h5_sequential", "weights_h5_subclassed"])
def test_row_07_weights_that_keras_saved_go_on_training_here(reference_data: Path, case: str) -> None:
    folder = reference_data / "golden" / case
    about = json.loads((folder / "case.json").read_text())
    if case == "weights_h5_subclassed":
        model: Any = Net()
        model.compile(nn.optimizers.SGD(0.05, momentum=0.9), LOSS)
    else:
        layers = [nn.Dense(16, activation="relu"), nn.Dense(12, activation="tanh"), nn.Dense(4)]
        model = nn.Sequential([nn.Input((20,)), *layers])
        model.compile(nn.optimizers.Adam(0.01), LOSS)
    optimizer = nn.optimizers.get({"class_name": type(model.optimizer).__name__, "config": {}})
    assert type(optimizer) is type(model.optimizer)
    settings = {k: v for k, v in about["optimizer_config"].items() if k in model.optimizer.get_config()}
    model.compile(type(model.optimizer)(**settings), LOSS)
    model(np.load(folder / "inputs.npy"))
    model.load_weights(folder / "model.weights.h5").assert_consumed()
    check_goes_on(model, folder)


def compiled() -> Any:
    nn.utils.set_random_seed(1)
    x = nn.Input((6,))
    h = nn.Dropout(0.3)(nn.BatchNormalization()(nn.Dense(5, activation="gelu")(x)))
    inner = nn.Sequential([nn.Input((5,)), nn.Dense(4), nn.Dense(3)])
    model = nn.Model(x, inner(h))
    model.compile(nn.optimizers.AdamW(0.01), "mse", metrics=["mae"])
    return model


def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((40, 6), np.float32), rng.standard_normal((40, 3), np.float32)


def state(model: Any) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in [*model.weights, *model.optimizer.variables[2:]]]


@pytest.mark.parametrize("name", ["model.keras", "memory://keras-files/model.keras"])
def test_section5_five_epochs_and_five_more_from_keras_file_are_ten_to_the_bit(
    tmp_path: Path, name: str
) -> None:
    path = name if "://" in name else str(tmp_path / name)
    whole, first = compiled(), compiled()
    x, y = data()
    whole.fit(x, y, epochs=10, verbose=0, seed=3)
    first.fit(x, y, epochs=5, verbose=0, seed=3)
    first.save(path)
    again = nn.load_model(path)
    assert state(again) == state(first)
    assert float(again.optimizer.learning_rate) == 0.01  # not the float32 next to it
    again.fit(x, y, epochs=10, initial_epoch=5, verbose=0)
    assert state(again) == state(whole)


class Boxes(nn.Layer):
    """Layers in lists, and in lists of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = [[nn.Dense(6), nn.Dense(6)], nn.Dense(6), [nn.Dense(6)]]
        self.named = {"last": nn.Dense(6)}

    def call(self, x: Any) -> Any:
        for layer in (*self.rows[0], self.rows[1], *self.rows[2], self.named["last"]):
            x = layer(x)
        return x


class Wide(nn.Sequential):
    """A model of layers in a row that has one more as an attribute."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.side = nn.Dense(2)

    def call(self, inputs: Any) -> Any:
        return super().call(inputs) + self.side(inputs)


def test_row_07_containers_and_attributes_lie_where_keras_looks_for_them(tmp_path: Path) -> None:
    def make() -> Any:
        model = Wide([nn.Input((6,)), Boxes(), nn.Dense(2)])
        model(np.zeros((1, 6), np.float32))
        return model

    model, other = make(), make()
    model.save_weights(tmp_path / "w.weights.h5")
    with h5py.File(tmp_path / "w.weights.h5") as file:
        found = {name.removesuffix("/vars/0") for name in _datasets(file) if name.endswith("vars/0")}
    boxes = "layers/boxes"
    assert found == {
        f"{boxes}/rows/container/dense",
        f"{boxes}/rows/container/dense_1",
        f"{boxes}/rows/dense",
        f"{boxes}/rows/container_1/dense",
        f"{boxes}/named/dense",
        "layers/dense",
        "side",
    }
    other.load_weights(tmp_path / "w.weights.h5").assert_consumed()
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


def _datasets(file: Any) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def test_row_07_bfloat16_is_read_and_written_as_keras_does(tmp_path: Path) -> None:
    values = np.arange(12).reshape(4, 3).astype(ml_dtypes.bfloat16)
    arrays = {"layers/dense/vars/0": values, "layers/dense/vars/1": np.zeros(3, ml_dtypes.bfloat16)}
    hdf5.write(str(tmp_path / "w.weights.h5"), arrays, {})
    with h5py.File(tmp_path / "w.weights.h5") as file:
        assert file["layers/dense/vars/0"].attrs["dtype"] == "bfloat16"
        assert np.array_equal(np.array(file["layers/dense/vars/0"], ml_dtypes.bfloat16), values)
    model = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
    model.load_weights(tmp_path / "w.weights.h5").assert_consumed()
    assert np.array_equal(model.get_weights()[0], values.astype(np.float32))


@pytest.mark.parametrize("ending", [".keras", ".h5", ""])
def test_row_08_names_may_have_spaces(tmp_path: Path, ending: str) -> None:
    model = compiled()
    model.save(tmp_path / f"my model é{ending}")
    again = nn.load_model(tmp_path / f"my model é{ending}")
    assert state(again) == state(model)


def test_row_08_a_destroyed_file_is_called_damaged(tmp_path: Path) -> None:
    for content in (b"", b"rubbish", b"PK\3\4 rubbish"):
        (tmp_path / "m.keras").write_bytes(content)
        for load in (nn.load_model, compiled().load_weights):
            with pytest.raises(CorruptCheckpoint, match=r"m.keras is a file in no format that is known"):
                load(tmp_path / "m.keras")


@pytest.mark.parametrize("name", ["m.keras", "m", "m.h5"])
def test_row_31_losses_and_metrics_added_to_the_model_itself(tmp_path: Path, name: str) -> None:
    x = nn.Input((6,))
    h = nn.Dense(4)(x)
    model = nn.Model(x, nn.Dense(3)(h))
    model.add_loss(0.1 * nn.ops.mean(nn.ops.square(nn.Dense(2, name="judge")(h))))
    model.add_metric(h, name="hidden")
    model.compile("adam", "mse")
    model.fit(*data(), verbose=0)
    expected = model.evaluate(*data(), verbose=0, return_dict=True)
    assert set(expected) == {"loss", "hidden"}
    if name != "m.h5":
        model.save(tmp_path / name)
        again = nn.load_model(tmp_path / name)
        assert again.evaluate(*data(), verbose=0, return_dict=True) == expected
        assert state(again) == state(model)
        return
    with pytest.warns(UserWarning, match=r"m.h5: a .h5 file holds no losses and metrics that were added"):
        model.save(tmp_path / name)
    again = nn.load_model(tmp_path / name)
    found = again.evaluate(*data(), verbose=0, return_dict=True)
    assert set(found) == {"loss"}
    assert found["loss"] < expected["loss"]
    assert np.array_equal(again.predict(data()[0], verbose=0), model.predict(data()[0], verbose=0))
    assert again.optimizer.steps == model.optimizer.steps


def test_row_31_what_is_no_scalar_of_the_model_is_no_loss() -> None:
    x = nn.Input((6,))
    model = nn.Model(x, nn.Dense(3)(x))
    with pytest.raises(ConfigurationError, match="add_loss takes scalar tensors of the model"):
        model.add_loss(model.output)
    with pytest.raises(ConfigurationError, match="need the input"):
        model.add_loss(nn.ops.mean(nn.Input((6,))))
    with pytest.raises(ConfigurationError, match="add_metric needs a name of its own"):
        model.add_metric(model.output)


def test_row_07_weights_come_back_and_others_are_refused(tmp_path: Path) -> None:
    model, other = compiled(), compiled()
    model.fit(*data(), verbose=0)
    path = tmp_path / "w.weights.h5"
    model.save_weights(path)
    other.load_weights(path).assert_consumed()
    assert state(other) == state(model)
    narrow = nn.Sequential([nn.Input((6,)), nn.Dense(4)])
    before = narrow.get_weights()
    with pytest.raises(
        IncompatibleCheckpoint, match=r"dense/kernel has shape \(6, 4\), and \(6, 5\) was found"
    ):
        narrow.load_weights(path)
    assert all(np.array_equal(a, b) for a, b in zip(narrow.get_weights(), before, strict=True))
    with pytest.raises(ConfigurationError, match="holds weights alone"):
        nn.load_model(path)
    with pytest.raises(ConfigurationError, match="Keras's weights file is not loaded with names="):
        narrow.load_weights(path, names=["dense/*"])


def test_a_model_gets_no_name_of_a_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model.weights.h5: .* holds weights alone"):
        compiled().save(tmp_path / "model.weights.h5")
    assert not list(tmp_path.iterdir())


def test_a_lambda_in_a_file_is_never_run(tmp_path: Path) -> None:
    model = compiled()
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    config["config"]["layers"][1] |= {
        "class_name": "Lambda",
        "config": {"function": {"class_name": "__lambda__"}},
    }
    entries["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ConfigurationError, match="Lambda"):
        nn.load_model(tmp_path / "m.keras")


def _zip(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def test_bombs_and_what_is_no_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.keras"
    monkeypatch.setattr(keras_file, "MAX_CONFIG_NBYTES", 1 << 20)
    cases = {
        "no zip file": b"PK\x03\x04 and nothing",
        "has no entry config.json": _zip(metadata__json=b"{}"),
        "'config.json' promises 2097152 bytes": _zip(config__json=b" " * (2 << 20), model__weights__h5=b""),
        "config.json: ": _zip(config__json=b"{", model__weights__h5=b""),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(CorruptCheckpoint, match=message):
            keras_file.load_model(str(path))
    with pytest.raises(CheckpointError, match="there is no file"):
        keras_file.load_model(str(tmp_path / "other.keras"))


def _linked(file: Any) -> None:
    file["x"] = h5py.SoftLink("/y")


def _external_link(file: Any) -> None:
    file["x"] = h5py.ExternalLink("/etc/passwd", "/")


def _external(file: Any) -> None:
    file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("x", layout)


def _bomb(file: Any) -> None:
    file.create_dataset("x", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")


def _no_text(file: Any) -> None:
    h5py.h5g.create(file.id, b"\xff\xfe")


def _many_attributes(file: Any) -> None:
    for i in range(4097):
        file.attrs[str(i)] = 0


def _circle(file: Any) -> None:
    file.create_group("a")["b"] = file


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_linked, "x is a link to something else"),
        (_external_link, "x is a link to something else"),
        (_external, "x is stored in other files"),
        (_virtual, "x is stored in other files"),
        (_bomb, "x promises 4398046511104 bytes, of which 0 are stored"),
        (_circle, "lies within itself"),
        (lambda file: file.create_dataset("x", data=[b"text"]), "x holds no numbers"),
        (_no_text, "holds something named"),
        (_many_attributes, "has more than 4096 attributes"),
    ],
)
def test_files_that_point_elsewhere_or_promise_too_much_are_refused(
    tmp_path: Path, make: Any, message: str
) -> None:
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(CorruptCheckpoint, match=message), hdf5.reading(str(path)):
        pass


def _long_texts(file: Any) -> None:
    file.attrs["layer_names"] = ["x" * 1000] * 100


def _one_text(file: Any) -> None:
    file.attrs["layer_names"] = "dense"


def _compound(file: Any) -> None:
    file.attrs["layer_names"] = np.zeros(1, [("a", "f4"), ("b", "i4")])


def _no_utf8(file: Any) -> None:
    file.attrs["layer_names"] = [b"dense", b"\xff"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_long_texts, "the attribute layer_names: texts of more than 65536 bytes"),
        (_one_text, "the attribute layer_names is no list of names"),
        (_compound, "the attribute layer_names is no list of names"),
        (_no_utf8, "the attribute layer_names: 'utf-8' codec can't decode"),
    ],
)
def test_section4_attributes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, message: str
) -> None:
    monkeypatch.setattr(hdf5, "MAX_TEXT", 1 << 16)
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with hdf5.reading(str(path)) as found, pytest.raises(CorruptCheckpoint, match=message):
        found.groups[""].texts("layer_names")


def test_section4_attributes_that_lie_in_a_heap_of_their_own_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w", libver="latest") as file:
        for i in range(20):
            file.attrs[f"a{i}"] = "x" * 1000
    with (
        pytest.raises(CorruptCheckpoint, match="attributes of the object at 48 lie elsewhere"),
        hdf5.reading(str(tmp_path / "w.h5")),
    ):
        pass


def test_section4_attributes_are_those_that_h5py_finds(tmp_path: Path) -> None:
    for libver in ("earliest", "latest"):
        with h5py.File(tmp_path / "w.h5", "w", libver=libver, track_order=libver == "latest") as file:
            for group in (file, file.create_group("g")):
                for i in range(6):
                    group.attrs[f"text{i}"] = "é" * 1000 * i
                    group.attrs[f"list{i}"] = [f"{i}{j}" for j in range(i)]
                    group.attrs[f"fixed{i}"] = np.asarray([b"a", b"abc"])
                    if libver == "latest":
                        break
        with hdf5.reading(str(tmp_path / "w.h5")) as found, h5py.File(tmp_path / "w.h5") as file:
            for name, group in (("", file), ("g", file["g"])):
                assert {*found.groups[name]} == {*group.attrs}
                for key, value in group.attrs.items():
                    if isinstance(value, str):
                        assert found.groups[name].text(key) == value
                    else:
                        expected = [each.decode() if isinstance(each, bytes) else each for each in value]
                        assert found.groups[name].texts(key) == expected


@pytest.mark.parametrize("root", ["", "memory://keras-directory/"])
def test_row_08_a_directory_of_the_parts_of_a_keras_file(tmp_path: Path, root: str) -> None:
    place = root or f"{tmp_path}/"
    model = compiled()
    model.fit(*data(), verbose=0)
    model.save(f"{place}parts", zipped=False)
    again = nn.load_model(f"{place}parts")
    assert state(again) == state(model)
    other = compiled()
    other.load_weights(f"{place}parts").assert_consumed()
    assert state(other) == state(model)
    again.fit(*data(), verbose=0)
    again.save(f"{place}parts", zipped=False)
    assert state(nn.load_model(f"{place}parts")) == state(again)
    with pytest.raises(ConfigurationError, match=r"whose name does not end in .keras"):
        model.save(f"{place}parts.keras", zipped=False)


def test_row_08_a_directory_of_two_saves_or_without_a_part_is_refused(tmp_path: Path) -> None:
    compiled().save(tmp_path / "one", zipped=False)
    other = compiled()
    other.fit(*data(), verbose=0)
    other.save(tmp_path / "two", zipped=False)
    (tmp_path / "one" / "model.weights.h5").write_bytes((tmp_path / "two" / "model.weights.h5").read_bytes())
    with pytest.raises(CorruptCheckpoint, match="one is damaged: its files are not of one save"):
        nn.load_model(tmp_path / "one")
    (tmp_path / "two" / "model.weights.h5").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"two has no file model.weights.h5"):
        nn.load_model(tmp_path / "two")


GIB = 1024**3


@pytest.mark.parametrize("root", ["", "memory://keras-shards/"])
def test_row_29_weights_in_several_files(tmp_path: Path, root: str) -> None:
    place = root or f"{tmp_path}/"
    model, other = compiled(), compiled()
    model.fit(*data(), verbose=0)
    model.save_weights(f"{place}m.weights.h5", max_shard_size=200 / GIB)
    index = json.loads(file_at(f"{place}m.weights.json").read())
    names = {
        name for each in index["weight_map"].values() for name in ([each] if isinstance(each, str) else each)
    }
    assert {"m_00000.weights.h5", "m_00001.weights.h5"} < names
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in _stored(model))
    other.load_weights(f"{place}m.weights.json").assert_consumed()
    assert state(other) == state(model)
    model.save_weights(f"{place}whole.weights.json")
    assert is_file(f"{place}whole_00000.weights.h5")
    assert not is_file(f"{place}whole_00001.weights.h5")


def _stored(model: Any) -> list[Any]:
    return [*weights_h5.contents(model)[0].values()]


def test_row_29_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    model = compiled()
    index = tmp_path / "m.weights.json"
    model.save_weights(index, max_shard_size=200 / GIB)
    old = (tmp_path / "m_00000.weights.h5").read_bytes()
    model.save_weights(index, max_shard_size=200 / GIB)
    first = next(tmp_path.glob("m_00000-*.weights.h5"))
    first.write_bytes(old)
    with pytest.raises(CorruptCheckpoint, match=f"{first.name} is of another save than"):
        model.load_weights(index)
    first.unlink()
    with pytest.raises(CorruptCheckpoint, match=f"names a file that is not there.*{first.name}"):
        model.load_weights(index)
    for name, message in {
        "../x.h5": "which is no file beside it",
        "/etc/passwd": "which is no file beside it",
        "x.npz": "which is no file beside it",
    }.items():
        index.write_text(json.dumps({"weight_map": {"/layers/dense/vars": name}}))
        with pytest.raises(CorruptCheckpoint, match=message):
            model.load_weights(index)
    for content in ('{"weight_map"', '["weight_map"]', '{"weight_map": {}}'):
        index.write_text(content)
        with pytest.raises(CorruptCheckpoint, match=r"m.weights.json"):
            model.load_weights(index)
    with pytest.raises(ConfigurationError, match="more than max_shard_size="):
        model.save_weights(index, max_shard_size=10 / GIB)
    with pytest.raises(ConfigurationError, match="must be a positive number of GiB"):
        model.save_weights(index, max_shard_size=0)
    with pytest.raises(ConfigurationError, match=r"are named X.weights.json"):
        model.save_weights(tmp_path / "m.h5", max_shard_size=1)


@pytest.mark.parametrize("root", ["", "memory://keras-shards-again/"])
def test_row_29_a_save_of_several_files_that_does_not_end_leaves_the_older_one(
    tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = root or f"{tmp_path}/"
    path, model = f"{place}m.weights.json", compiled()
    model.save_weights(path, max_shard_size=200 / GIB)
    saved = state(model)
    model.fit(*data(), verbose=0)
    write, calls = hdf5.write, iter(range(99))

    def dies(*args: Any) -> None:
        if next(calls) == 2:
            raise OSError("no space left on device")
        write(*args)

    monkeypatch.setattr(hdf5, "write", dies)
    with pytest.raises(OSError, match="no space"):
        model.save_weights(path, max_shard_size=200 / GIB)
    monkeypatch.undo()
    other = compiled()
    other.load_weights(path).assert_consumed()
    assert state(other) == saved
    model.save_weights(path, max_shard_size=200 / GIB)
    other.load_weights(path).assert_consumed()
    assert state(other) == state(model)
    assert not is_file(f"{place}m_00001.weights.h5")


def test_row_05_weights_in_several_files_that_are_replaced_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model, other = f"{tmp_path}/m.weights.json", compiled(), compiled()
    model.save_weights(path, max_shard_size=200 / GIB)
    reading, calls = hdf5.reading, iter(range(99))

    def replaced(url: str) -> Any:
        if next(calls) in (0, 3):
            model.fit(*data(), verbose=0)
            model.save_weights(path, max_shard_size=200 / GIB)
        return reading(url)

    monkeypatch.setattr(hdf5, "reading", replaced)
    other.load_weights(path).assert_consumed()
    assert next(calls) > 4
    assert state(other) == state(model)


@pytest.mark.parametrize("name", ["w.weights.h5", "w.weights.json", "w.keras"])
def test_row_07_a_model_that_is_not_built_would_lose_its_weights(tmp_path: Path, name: str) -> None:
    built = nn.Sequential([nn.Input((4,)), nn.Dense(3), nn.Dense(2)])
    path = tmp_path / name
    if name.endswith(".keras"):
        built.save(path)
    else:
        built.save_weights(path, max_shard_size=1 if name.endswith(".json") else None)
    other = nn.Sequential([nn.Dense(3), nn.Dense(2)])
    with pytest.raises(ConfigurationError, match="the model is not built: call it on data, or build it"):
        other.load_weights(path)
    other.build((None, 4))
    other.load_weights(path).assert_consumed()
    np.testing.assert_array_equal(np.asarray(other(np.ones((1, 4)))), np.asarray(built(np.ones((1, 4)))))
    if not name.endswith(".keras"):  # which holds an architecture, at least
        with pytest.raises(ConfigurationError, match="the model is not built"):
            nn.Sequential([nn.Dense(3)]).save_weights(tmp_path / f"not-{name}")
        assert not (tmp_path / f"not-{name}").exists()


@pytest.mark.parametrize("name", ["m.h5", "w.weights.h5"])
def test_row_05_a_file_that_is_replaced_while_it_is_read_is_the_old_one(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(value: float) -> Any:
        model = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
        model.set_weights([np.full(weight.shape, value) for weight in model.get_weights()])
        return model

    def save(model: Any) -> None:
        model.save(tmp_path / name) if name == "m.h5" else model.save_weights(tmp_path / name)

    save(made(1))
    real, values = hdf5._h5py(), iter(range(2, 99))

    class Replacing:
        """h5py, before and behind each of whose files another process saves."""

        def __getattr__(self, key: str) -> Any:
            return getattr(real, key)

        def File(self, path: str, mode: str) -> Any:
            replace()
            found = real.File(path, mode)
            replace()
            return found

    def replace() -> None:
        monkeypatch.undo()
        save(made(next(values)))
        monkeypatch.setattr(hdf5, "_h5py", Replacing)

    other = made(0)
    monkeypatch.setattr(hdf5, "_h5py", Replacing)
    other.load_weights(tmp_path / name)
    assert len({float(value) for weight in other.get_weights() for value in weight.ravel()}) == 1
    assert next(values) > 4, "it was replaced meanwhile"


@pytest.mark.parametrize("trained", [False, True], ids=["own memory", "the trainer's memory"])
def test_a_file_whose_last_array_is_damaged_changes_nothing(tmp_path: Path, trained: bool) -> None:
    path = str(tmp_path / "m.weights.h5")
    model, other = (
        nn.Sequential([nn.Input((6,)), nn.Dense(300), nn.Dense(300), nn.Dense(3)]) for _ in range(2)
    )
    other.compile(nn.optimizers.SGD(0.1), "mse")
    model.save_weights(path)
    if trained:
        other.fit(np.ones((8, 6), np.float32), np.ones((8, 3), np.float32), verbose=0)
    before = other.get_weights()
    with h5py.File(path, "r+") as file:
        last = file["layers/dense_2/vars/0"]
        values = last[()]
        last[...] = values + 1
    with pytest.raises(CorruptCheckpoint, match=r"layers/dense_2/vars/0 is damaged"):
        other.load_weights(path)
    assert all(map(np.array_equal, before, other.get_weights()))
    with h5py.File(path, "r+") as file:
        file["layers/dense_2/vars/0"][...] = values
    other.load_weights(path).expect_partial()
    assert all(map(np.array_equal, model.get_weights(), other.get_weights()))
    if trained:  # goes on from what was loaded
        for each in (model, other):
            each.compile(nn.optimizers.SGD(0.1), "mse")
            each.fit(np.ones((8, 6), np.float32), np.ones((8, 3), np.float32), shuffle=False, verbose=0)
        assert all(map(np.array_equal, model.get_weights(), other.get_weights()))
