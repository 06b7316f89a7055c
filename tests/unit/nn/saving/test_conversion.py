"""Looking at what is saved, checking it, and saving it in another format."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import storage
from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.object_store import ObjectStore
from storage.store import open_store
from storage.testing import MemoryStore
from workers import nn
from workers.nn.saving import conversion, native

if TYPE_CHECKING:
    from pathlib import Path

X = np.random.default_rng(0).random((32, 4), dtype=np.float32)
Y = np.arange(32) % 3
WHOLE = ("native", "m.keras", "m.h5")
WEIGHTS = ("w.weights.h5", "w.npz", "w.safetensors")


def trained() -> Any:
    model = nn.Sequential([nn.Input((4,)), nn.Dense(8, activation="relu"), nn.Dense(3)])
    model.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, Y, epochs=2, verbose=0, seed=1)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    """A trained model, and a folder in which it is saved in every format."""
    model = trained()
    for name in WHOLE:
        model.save(tmp_path / name)
    for name in WEIGHTS:
        model.save_weights(tmp_path / name)
    return model, tmp_path


@pytest.mark.parametrize(("source", "target"), [*itertools.product(WHOLE, WHOLE)])
def test_a_model_goes_on_training_in_each_format_it_is_converted_to(
    saved: Any, source: str, target: str
) -> None:
    model, folder = saved
    done = conversion.convert(str(folder / source), str(folder / f"to-{target}"))
    other = nn.load_model(folder / f"to-{target}")
    assert done.parameters == 67
    assert {*done.lost} <= {"graph"}
    for each in (model, other):
        each.fit(X, Y, epochs=3, initial_epoch=2, verbose=0)
    np.testing.assert_array_equal(model.predict(X, verbose=0), other.predict(X, verbose=0))


@pytest.mark.parametrize(("source", "target"), [*itertools.product((*WHOLE, *WEIGHTS), WEIGHTS)])
def test_weights_go_into_each_format(saved: Any, source: str, target: str) -> None:
    model, folder = saved
    architecture = lambda: nn.load_model(folder / "native")  # noqa: E731
    done = conversion.convert(str(folder / source), str(folder / f"to-{target}"), architecture=architecture)
    other = nn.Sequential([nn.Input((4,)), nn.Dense(8, activation="relu"), nn.Dense(3)])
    other.load_weights(folder / f"to-{target}").expect_partial()
    np.testing.assert_array_equal(np.asarray(model(X)), np.asarray(other(X)))
    assert ("architecture" in done.lost) == (source in WHOLE)


def test_what_is_lost_is_told(saved: Any) -> None:
    model, folder = saved

    def lost(source: str, target: str) -> tuple[str, ...]:
        return conversion.convert(str(folder / source), str(folder / target), overwrite=True).lost

    whole = ("architecture", "compile settings", "optimizer state", "seed", "graph")
    assert lost("native", "a.npz") == whole
    assert lost("native", "a.weights.h5") == ("architecture", "compile settings", "graph")
    assert lost("w.npz", "a.safetensors") == ()
    builder = nn.train.SavedModelBuilder(folder / "served")
    (folder / "words.txt").write_text("a")
    builder.add_meta_graph_and_variables(
        model, "serve", {"twice": lambda x: 2 * model(x)}, [folder / "words.txt"]
    )
    builder.save()
    assert lost("served", "a.keras") == ("graph", "signatures", "assets")
    assert lost("served", "copied") == ()
    assert {*nn.saved_model.load(folder / "copied").signatures} == {"twice"}
    inputs = nn.Input((4,))
    added = nn.Model(inputs, nn.Dense(1)(inputs))
    added.add_loss(nn.ops.mean(added.output))
    added.save(folder / "added")
    done = conversion.convert(str(folder / "added"), str(folder / "added.h5"))
    assert done.lost == ("added losses and metrics", "graph")
    assert any("added to the model itself" in note for note in done.notes)


@pytest.mark.parametrize("source", [*WHOLE, *WEIGHTS])
def test_what_a_model_computes_goes_into_onnx_which_is_not_read(saved: Any, source: str) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    model, folder = saved
    target = str(folder / "m.onnx")
    given = None if source in WHOLE else lambda: nn.load_model(folder / "native")
    done = conversion.convert(str(folder / source), target, architecture=given)
    assert ("graph" in done.lost, "weights" in done.lost) == (False, False)
    assert ("architecture" in done.lost) == (source in WHOLE)
    (found,) = runtime.InferenceSession(target, providers=["CPUExecutionProvider"]).run(None, {"inputs": X})
    np.testing.assert_allclose(found, np.asarray(model(X)), rtol=1e-5, atol=1e-5)
    for read in (nn.load_model, conversion.described, conversion.verify):
        with pytest.raises(ConfigurationError, match=r"ONNX files are written, and not read"):
            read(target)
    for write in (model.save, model.save_weights):
        with pytest.raises(ConfigurationError, match=r"ONNX is written by nn\.saving\.onnx\.export"):
            write(folder / "other.onnx")
    assert not (folder / "other.onnx").exists()


def test_weights_alone_need_an_architecture_that_fits(saved: Any) -> None:
    _, folder = saved
    with pytest.raises(ConfigurationError, match=r"w\.npz is arrays of NumPy .*without an architecture"):
        conversion.convert(str(folder / "w.npz"), str(folder / "new.keras"))
    other = lambda: nn.Sequential([nn.Input((4,)), nn.Dense(9), nn.Dense(3)])  # noqa: E731
    with pytest.raises(IncompatibleCheckpoint, match="has shape"):
        conversion.convert(str(folder / "w.npz"), str(folder / "new.keras"), architecture=other)
    longer = lambda: nn.Sequential([nn.Input((4,)), nn.Dense(8), nn.Dense(3), nn.Dense(2)])  # noqa: E731
    with pytest.raises(IncompatibleCheckpoint, match="has no values for dense_2/kernel"):
        conversion.convert(str(folder / "w.npz"), str(folder / "new.keras"), architecture=longer)
    assert not (folder / "new.keras").exists()
    with pytest.raises(ConfigurationError, match=r"m\.keras is there already"):
        conversion.convert(str(folder / "native"), str(folder / "m.keras"))
    with pytest.raises(ConfigurationError, match="there is no model"):
        conversion.convert(str(folder / "none"), str(folder / "new.keras"))


def test_checkpoints_of_other_kinds_are_converted_by_name(tmp_path: Path) -> None:
    model = trained()
    arrays = {f"params/{name}": each.numpy() for name, each in model.named_variables().items()}
    storage.save(str(tmp_path / "run"), {**arrays, "slots/adam_m/dense/kernel": np.zeros(3)})
    done = conversion.convert(str(tmp_path / "run"), str(tmp_path / "a.npz"))
    assert done.lost == ("optimizer state",)
    to_model = conversion.convert(str(tmp_path / "run"), str(tmp_path / "a.keras"), architecture=trained)
    assert to_model.lost == ("optimizer state",)
    np.testing.assert_array_equal(np.asarray(nn.load_model(tmp_path / "a.keras")(X)), np.asarray(model(X)))
    path = nn.train.Checkpoint(net=model).save(tmp_path / "ckpt")
    assert conversion.described(path)["format"] == "a checkpoint of nn.train"


@pytest.mark.parametrize("name", [*WHOLE, *WEIGHTS])
def test_all_that_is_there_is_described_and_good(saved: Any, name: str) -> None:
    model, folder = saved
    found = conversion.described(str(folder / name))
    json.dumps(found)
    assert (found["model"] is not None) == (name in WHOLE)
    assert {(4, 8), (8,), (8, 3), (3,)} <= {tuple(each["shape"]) for each in found["variables"]}
    assert conversion.verify(str(folder / name)) >= 67 * 4
    if name in WHOLE:
        assert found["model"]["parameters"] == {"total": 67, "trainable": 67}
        assert found["model"]["optimizer"]["iterations"] == int(model.optimizer.iterations)


@pytest.mark.parametrize("name", [*WHOLE, *WEIGHTS])
def test_damage_is_told(saved: Any, name: str) -> None:
    _, folder = saved
    path = folder / name
    victim = max(
        (each for each in [path, *path.rglob("*")] if each.is_file()), key=lambda p: p.stat().st_size
    )
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2])
    with pytest.raises((CorruptCheckpoint, CheckpointError)):
        conversion.verify(str(path))


def test_a_model_of_a_class_that_is_not_known_is_described_by_its_arrays(tmp_path: Path) -> None:
    class Own(nn.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs

    model = nn.Sequential([nn.Input((4,)), nn.Dense(2), Own()])
    model.save(tmp_path / "m.keras")
    found = conversion.described(str(tmp_path / "m.keras"))
    assert found["model"] is None
    assert "Own" in found["error"]
    assert len(found["variables"]) == 2
    assert conversion.verify(str(tmp_path / "m.keras")) == 40


@pytest.mark.parametrize("kind", ["model", "without traces", "weights", "checkpoint"])
def test_a_check_reads_arrays_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, model = MemoryStore(), trained()
    url = f"{store.url}/m"
    if kind == "weights":
        model.save_weights(url)
    elif kind == "checkpoint":
        url = nn.train.Checkpoint(net=model).save(url)
    else:
        model.save(url, save_traces=kind == "model")
    if kind == "without traces":
        monkeypatch.setattr(native, "serialize", lambda _: None)
    read: Counter[str] = Counter()
    plain = ObjectStore.read

    def counted(self: Any, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        data = plain(self, key, start, stop)
        read[f"{self.url}/{key}"] += len(data)
        return data

    monkeypatch.setattr(ObjectStore, "read", counted)
    sizes = {f"{url}/{key}": nbytes for key, nbytes in open_store(url).list("checkpoints").items()}
    chunks = {key: nbytes for key, nbytes in sizes.items() if "/c/" in key}
    assert conversion.verify(url) >= 67 * 4
    assert {key: read[key] for key in chunks} == chunks
    assert {*sizes} <= {*read}, "all of it was read"
