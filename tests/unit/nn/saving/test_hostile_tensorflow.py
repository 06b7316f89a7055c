"""Damaged and hostile checkpoints of TensorFlow: one of our errors or a result, soon, in little memory."""

from __future__ import annotations

import functools
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import HoldfastError
from storage.formats import sstable
from storage.formats.tensor_bundle import OBJECT_GRAPH, open_bundle, write_bundle
from workers import nn
from workers.nn.saving.tensorflow import save_weights

ROUNDS = 40
NOTABLE = [0, 1, 0x7F, 0x80, 0xFF]


@functools.cache
def model() -> Any:
    made = nn.Sequential([nn.Input((3,)), nn.Dense(4), nn.BatchNormalization(), nn.Dense(2)])
    made.compile("adam", "mse")
    made.optimizer.build(made.trainable_weights)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good checkpoint, with strings beside the model's values."""
    path = tmp_path_factory.mktemp("whole") / "ckpt"
    save_weights(model(), str(path))
    bundle = open_bundle(str(path))
    tensors = {name: bundle.get_tensor(name) for name in bundle.get_variable_to_shape_map()}
    strings = np.array([b"one", b"", b"three" * 20], object)
    write_bundle(str(path), tensors | {"strings/.ATTRIBUTES/VARIABLE_VALUE": strings})
    return path


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """With some bytes changed, cut out, doubled, or put in."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(found) or 1))
        how = rng.integers(0, 10)
        if how < 6:
            found[at : at + 1] = bytes([int(rng.choice(NOTABLE) if how < 3 else rng.integers(0, 256))])
        elif how < 7:
            del found[at : at + int(rng.integers(1, 20))]
        elif how < 8:
            found[at:at] = found[at : at + int(rng.integers(1, 20))]
        elif how < 9:
            found[at:at] = bytes([0xFF] * int(rng.integers(1, 10)))
        else:
            del found[at:]
    return bytes(found)


def use(path: str) -> None:
    """Everything that reads a checkpoint."""
    reader = nn.train.load_checkpoint(path)
    for name in reader:
        try:
            reader.get_tensor(name)
        except HoldfastError:
            continue
    structure = nn.train.Checkpoint(root=model())
    for load in (model().load_weights, structure.restore, nn.train.Saver([nn.Variable(0.0)]).restore):
        try:
            status = load(path)
        except HoldfastError:
            continue
        if status is not None:
            status.expect_partial()
    open_bundle(path).verify()


def check(path: str, what: str) -> bool:
    """Whether it could be read; fails for any error that is not one of ours."""
    begun = time.monotonic()
    tracemalloc.start()
    try:
        use(path)
    except HoldfastError as error:
        assert "\n" not in str(error), what  # noqa: PT017 it need not be raised
        return False
    else:
        return True
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20 << 20, f"{what}: {peak} bytes"
        assert time.monotonic() - begun < 20, what


@pytest.mark.parametrize("part", [".index", ".data-00000-of-00001"])
def test_section4_bytes_of_the_files_may_be_anything(whole: Path, tmp_path: Path, part: str) -> None:
    names = [".index", ".data-00000-of-00001"]
    good = {name: Path(f"{whole}{name}").read_bytes() for name in names if Path(f"{whole}{name}").exists()}
    good |= {each.name.removeprefix("ckpt"): each.read_bytes() for each in whole.parent.glob("ckpt.data*")}
    changed = next(name for name in good if name.startswith(part[:5]))
    path = str(tmp_path / "ckpt")
    for name, data in good.items():
        Path(path + name).write_bytes(data)
    assert check(path, "whole")
    for seed in range(ROUNDS):
        rng = np.random.default_rng(seed)
        Path(path + changed).write_bytes(flipped(good[changed], rng))
        check(path, f"{part}, seed {seed}")


def test_section4_entries_with_good_checksums_may_say_anything(whole: Path, tmp_path: Path) -> None:
    items = dict(sstable.entries(Path(f"{whole}.index").read_bytes()))
    path = str(tmp_path / "ckpt")
    for each in whole.parent.glob("ckpt.data*"):
        (tmp_path / each.name).write_bytes(each.read_bytes())
    for seed in range(ROUNDS):
        rng = np.random.default_rng(seed)
        changed = dict(items)
        for _ in range(3):
            key = [*changed][int(rng.integers(0, len(changed)))]
            value = changed.pop(key)
            key = flipped(key, rng) if rng.random() < 0.2 else key
            changed[key] = flipped(value, rng) if value else value
        Path(f"{path}.index").write_bytes(sstable.table(sorted(changed.items())))
        check(path, f"seed {seed}")


def test_section4_graphs_with_good_checksums_may_say_anything(whole: Path, tmp_path: Path) -> None:
    bundle = open_bundle(str(whole))
    tensors = {name: bundle.get_tensor(name) for name in bundle.get_variable_to_shape_map()}
    for seed in range(ROUNDS):
        rng = np.random.default_rng(seed)
        path = str(tmp_path / "ckpt")
        write_bundle(path, tensors | {OBJECT_GRAPH: flipped(tensors[OBJECT_GRAPH], rng)})
        check(path, f"seed {seed}")


def test_section4_the_file_that_names_checkpoints_may_say_anything(whole: Path, tmp_path: Path) -> None:
    for each in whole.parent.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    good = (tmp_path / "checkpoint").read_bytes()
    for seed in range(ROUNDS):
        (tmp_path / "checkpoint").write_bytes(flipped(good, np.random.default_rng(seed)))
        assert nn.train.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt"), seed
