"""Directories whose bytes are whole, and whose content was made up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from storage.bundle import open_files, save_files
from storage.errors import CheckpointError, ConfigurationError
from workers import nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Doubled(nn.Layer):
    """A layer that the reader does not know."""

    def call(self, inputs: Any) -> Any:
        """Twice the input."""
        return inputs * 2.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> dict[str, bytes]:
    path = str(tmp_path_factory.mktemp("m"))
    model = nn.Sequential([nn.Input((4,)), Doubled(), nn.Dense(3)])
    model.compile("adam", "mse")
    model.save(path)
    bundle = open_files(path)
    return {key: bundle.read(key) for key in bundle}


def changed(key: str, change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], None]:
    """A change of the JSON document of a key; what `change` gives takes its place, unless it is None."""

    def apply(files: dict[str, bytes]) -> None:
        document = json.loads(files[key])
        found = change(document)
        files[key] = json.dumps(document if found is None else found).encode()

    return apply


def model(change: Callable[[Any], Any]) -> Any:
    return changed("model.json", change)


def graph(change: Callable[[Any], Any]) -> Any:
    return changed("graph.json", change)


KERNEL = "variables/dense/kernel/zarr.json"
ATTACKS: dict[str, Any] = {
    "no model.json": lambda f: f.pop("model.json"),
    "no JSON": lambda f: f.update({"model.json": b"{"}),
    "a list": model(lambda d: [1]),
    "deep": lambda f: f.update({"model.json": b"[" * 5000 + b"]" * 5000}),
    "no variables": model(lambda d: d.pop("variables")),
    "another format": model(lambda d: d.update(format="holdfast-model-9")),
    "seed": model(lambda d: d.update(seed="x")),
    "a variable is no object": model(lambda d: d.update(variables=[3])),
    "a shape of text": model(lambda d: d["variables"][0].update(shape=["x"])),
    "a huge shape": model(lambda d: d["variables"][0].update(shape=[1 << 40, 1 << 40])),
    "a negative shape": model(lambda d: d["variables"][0].update(shape=[-1])),
    "a dtype": model(lambda d: d["variables"][0].update(dtype="object")),
    "a path twice": model(lambda d: d["variables"].append(d["variables"][0])),
    "no variable": model(lambda d: d.update(variables=[])),
    "a model of text": model(lambda d: d.update(model="x")),
    "a class of no name": model(lambda d: d["model"].update(class_name=3)),
    "a config of text": model(lambda d: d["model"].update(config="x")),
    "layers of text": model(lambda d: d["model"]["config"].update(layers="ab")),
    "an optimizer for a model": model(
        lambda d: d.update(model={"module": "keras.optimizers", "class_name": "SGD", "config": {}})
    ),
    "an unknown optimizer": model(lambda d: d["compile_config"]["optimizer"].update(class_name="os.system")),
    "an optimizer of text": model(lambda d: d["compile_config"]["optimizer"].update(config={"beta_1": "x"})),
    "a loss of a list": model(lambda d: d["compile_config"].update(loss=[[1]])),
    "no graph": lambda f: f.pop("graph.json"),
    "a graph of a list": graph(lambda d: [1]),
    "graphs of nothing": graph(lambda d: d.update(model={})),
    "a graph without masks": graph(lambda d: d["model"]["train"]["structure"]["dict"].pop("masks")),
    "masks of another kind": graph(lambda d: d["model"]["train"]["structure"]["dict"].update(masks=None)),
    "an unknown operation": graph(lambda d: d["model"]["train"]["nodes"][0].update(op="eval")),
    "a place out of range": graph(lambda d: d["model"]["evaluate"].update(outputs=[99])),
    "inputs twice": graph(lambda d: d["model"].update(inputs={"list": [0, 0]})),
    "another variable": graph(lambda d: d["model"]["evaluate"]["variables"][0].update(path="x")),
    "signatures of text": graph(lambda d: d.update(signatures="x")),
    "a signature without a graph": graph(lambda d: d["signatures"][0].pop("graph")),
    "a signature of more inputs": graph(lambda d: d["signatures"][0].update(inputs=["a", "b"])),
    "an array of another shape": changed(KERNEL, lambda d: d.update(shape=[3, 4])),
    "an array of a huge shape": changed(KERNEL, lambda d: d.update(shape=[1 << 40, 1 << 40])),
    "an array of objects": changed(KERNEL, lambda d: d.update(data_type="object")),
    "an array with a codec": changed(KERNEL, lambda d: d["codecs"].append({"name": "pickle"})),
    "an array of text": lambda f: f.update({KERNEL: b"x"}),
    "a short chunk": lambda f: f.update({"variables/dense/kernel/c/0/0": b"x"}),
    "no chunk": lambda f: f.pop("variables/dense/kernel/c/0/0"),
    "no array": lambda f: f.pop(KERNEL),
    "one array more": lambda f: f.update({"variables/other/zarr.json": f["variables/dense/bias/zarr.json"]}),
    "no iteration": lambda f: f.pop("optimizer/iteration/zarr.json"),
}


@pytest.mark.parametrize("attack", [*ATTACKS])
def test_what_was_made_up_is_refused_in_one_line(
    attack: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    made_up = dict(files)
    ATTACKS[attack](made_up)
    save_files(str(tmp_path / "m"), "model", made_up)
    with pytest.raises((CheckpointError, ConfigurationError)) as caught:
        nn.load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_what_was_not_changed_loads(files: dict[str, bytes], tmp_path: Path) -> None:
    save_files(str(tmp_path / "m"), "model", files)
    assert nn.load_model(tmp_path / "m").count_params() == 15
