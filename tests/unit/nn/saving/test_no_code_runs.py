"""No code of a file is run when it is loaded, in any format: seen by an audit hook of the interpreter."""

from __future__ import annotations

import base64
import io
import json
import marshal
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from workers import nn

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[4]

WATCHED = """
import json, os, sys
from pathlib import Path

from storage.errors import HoldfastError
from workers import nn
from workers.nn.saving import conversion

EVENTS = {
    "exec", "compile", "import", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen",
    "pickle.find_class", "marshal.loads", "marshal.load", "ctypes.dlopen", "socket.connect", "os.remove",
    "os.rename", "os.mkdir", "shutil.rmtree",
}
seen, watching = [], False

def hook(event, arguments):
    if event == "compile" and arguments[1] == "<unknown>":
        return  # ast.literal_eval, by which NumPy reads the header of an array
    if watching and (event in EVENTS or event == "open" and writes(arguments)):
        seen.append(f"{event} {arguments!r:.200}")

def writes(arguments):
    _, mode, flags = arguments
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

def load(path):
    for action in (nn.load_model, fresh().load_weights, conversion.described, conversion.verify):
        try:
            action(str(path))
        except (HoldfastError, AssertionError) as error:
            errors.append(str(error))

def fresh():
    return nn.Sequential([nn.Input((4,)), nn.Dense(2)])

def by_pickle(path):
    import pickle
    with open(path, "rb") as file:
        pickle.load(file)

errors = []
good, bad = Path(sys.argv[1]), Path(sys.argv[2])
for path in sorted(good.iterdir()):  # what is imported late is imported now
    load(path)
errors.clear()
sys.addaudithook(hook)
found = {}
for path in sorted(bad.iterdir()):
    watching = True
    (by_pickle if path.suffix == ".pickle" else load)(path)
    watching = False
    found[path.name] = [*seen]
    seen.clear()
print(json.dumps({"seen": found, "errors": errors}))
"""

MARKER = "HOLDFAST_WAS_HERE"


class Bomb:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {MARKER}",)


def code() -> str:
    """A function that runs a command, as Keras stores that of a Lambda layer."""
    function = lambda x: __import__("os").system("touch " + MARKER)  # noqa: E731
    return base64.b64encode(marshal.dumps(function.__code__)).decode()


def lambda_layer() -> dict[str, Any]:
    function = {"class_name": "__lambda__", "config": {"code": code(), "defaults": None, "closure": None}}
    config = {"name": "evil", "function": function, "output_shape": None, "arguments": {}}
    return {"module": "keras.layers", "class_name": "Lambda", "config": config, "registered_name": None}


def classes() -> dict[str, dict[str, Any]]:
    """Configs of layers that name what is no layer."""
    named = {
        "system": ("os", "system"),
        "popen": ("subprocess", "Popen"),
        "eval": ("builtins", "eval"),
        "import": ("importlib", "import_module"),
        "private": ("workers.nn.saving.api", "load_model"),
        "dunder": ("__main__", "__import__"),
    }
    made = {
        name: {
            "module": module,
            "class_name": class_name,
            "config": {"name": "evil", "args": f"touch {MARKER}"},
            "registered_name": f"{module}>{class_name}",
        }
        for name, (module, class_name) in named.items()
    }
    activation = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"}
    dense = {"name": "evil", "units": 2, "activation": activation}
    made["activation"] = {"module": "keras.layers", "class_name": "Dense", "config": dense}
    made["lambda"] = lambda_layer()
    return made


def model() -> Any:
    made = nn.Sequential([nn.Input((4,)), nn.Dense(2)])
    made.compile("adam", "mse")
    made.fit(np.ones((4, 4), np.float32), np.ones((4, 2), np.float32), verbose=0)
    return made


def with_layer(config: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(config))
    changed["config"]["layers"][-1] = layer
    return changed


def keras_file(good: Path, config: dict[str, Any], to: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, json.dumps(config) if name == "config.json" else source.read(name))
    to.write_bytes(buffer.getvalue())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of good files in every format, and one of hostile ones."""
    good, bad = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("bad")
    made = model()
    for name in ("native", "m.keras", "m.h5"):
        made.save(good / name)
    for name in ("w.weights.h5", "w.npz", "w.safetensors", "w.h5", "w-native"):
        made.save_weights(good / name)
    nn.train.Checkpoint(net=made).save(good / "ckpt")
    with zipfile.ZipFile(good / "m.keras") as archive:
        config = json.loads(archive.read("config.json"))
    for name, layer in classes().items():
        keras_file(good / "m.keras", with_layer(config, layer), bad / f"{name}.keras")
        made.save(bad / f"{name}.h5")
        with h5py.File(bad / f"{name}.h5", "a") as file:
            written = json.loads(file.attrs["model_config"])
            file.attrs["model_config"] = json.dumps(with_layer(written, layer))
        made.save(bad / f"{name}-native")
        (document,) = (bad / f"{name}-native").rglob("model.json")
        native = json.loads(document.read_text())
        native["model"] = with_layer(native["model"], layer)
        document.write_text(json.dumps(native))
    with zipfile.ZipFile(bad / "objects.npz", "w") as archive, archive.open("dense/kernel.npy", "w") as entry:
        np.lib.format.write_array(entry, np.array([Bomb()], object), allow_pickle=True)
    (bad / "pickled.safetensors").write_bytes(pickle.dumps(Bomb()))
    (bad / "pickled.keras").write_bytes(pickle.dumps(Bomb()))
    (bad / "served").mkdir()
    (bad / "served" / "saved_model.pb").write_bytes(pickle.dumps(Bomb()))
    return good, bad


def watched(good: Path, bad: Path, folder: Path) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(good), str(bad)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_code_of_a_file_is_run(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = watched(*folders, tmp_path)
    assert len(found["seen"]) == len([*folders[1].iterdir()]) >= 20
    assert not {name: events for name, events in found["seen"].items() if events}
    assert len(found["errors"]) >= 40
    assert not (tmp_path / MARKER).exists()


def test_the_hook_sees_code_that_runs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bomb.pickle").write_bytes(pickle.dumps(Bomb()))
    events = watched(folders[0], tmp_path / "bad", tmp_path)["seen"]["bomb.pickle"]
    assert any(event.startswith("pickle.find_class") for event in events)
    assert any(event.startswith("os.system") for event in events)
    assert (tmp_path / MARKER).exists()
