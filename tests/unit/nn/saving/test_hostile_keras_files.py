"""Keras's files from strangers: whatever was done to one, it is refused in words, or loads as it was."""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from storage.errors import CorruptCheckpoint, HoldfastError
from storage.formats.hdf5 import CHECKS
from tests.unit.nn.saving.test_keras_files import data
from workers import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FORMATS = ["m.keras", "m.weights.h5", "m.h5"]
SEEDS = range(120)


def make() -> Any:
    model = nn.Sequential(
        [nn.Input((6,)), nn.Dense(4, activation="relu"), nn.BatchNormalization(), nn.Dense(3)]
    )
    model.compile("adam", "mse", ["mae"])
    return model


def save(model: Any, path: Path) -> bytes:
    (model.save_weights if ".weights." in path.name else model.save)(path)
    return path.read_bytes()


def load(path: Path) -> Any:
    if ".weights." not in path.name:
        return nn.load_model(path)
    model = make()
    model.load_weights(path).expect_partial()
    return model


def state(model: Any) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in [*model.weights, *model.optimizer.variables]]


def damaged(content: bytes, seed: int) -> bytes:
    """Bits flipped, bytes replaced, or the end cut off."""
    rng = random.Random(seed)
    if rng.random() < 0.1:
        return content[: rng.randrange(len(content))]
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        place = rng.randrange(len(found))
        found[place] = rng.choice([found[place] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255])
    return bytes(found)


@pytest.fixture(scope="module")
def trained() -> Any:
    model = make()
    model.fit(*data(), verbose=0)
    return model


@pytest.mark.parametrize("name", FORMATS)
def test_section4_damage_is_an_error_or_does_no_harm(tmp_path: Path, trained: Any, name: str) -> None:
    path = tmp_path / name
    content, expected = save(trained, path), state(trained)
    refused = 0
    for seed in SEEDS:
        path.write_bytes(damaged(content, seed))
        try:
            assert state(load(path)) == expected, seed
        except HoldfastError:
            refused += 1
    assert refused > len(SEEDS) / 4


@pytest.mark.filterwarnings("ignore:.*values were not restored")
@pytest.mark.parametrize("name", FORMATS[1:])
def test_section4_damage_without_checksums_is_an_error_or_loads(
    tmp_path: Path, trained: Any, name: str
) -> None:
    path = tmp_path / name
    save(trained, path)
    with h5py.File(path, "a") as file:
        del file.attrs[CHECKS]
    content = path.read_bytes()
    refused = 0
    for seed in SEEDS:
        path.write_bytes(damaged(content, seed))
        try:
            load(path)
        except HoldfastError:
            refused += 1
    assert 0 < refused < len(SEEDS)


def mutated(value: Any, rng: random.Random) -> Any:
    """A JSON value with something in it replaced, removed or doubled."""
    places = [*_places(value)]
    holder, key = rng.choice(places)
    change = rng.randrange(3)
    if change == 0:
        del holder[key]
    elif change == 1:
        holder[key] = rng.choice([None, -1, 3, 1e300, "", "x", True, [], {}, [1, 2], {"class_name": "Dense"}])
    else:
        other, other_key = rng.choice(places)
        if other_key in (other if isinstance(other, dict) else range(len(other))):
            holder[key] = json.loads(json.dumps(other[other_key]))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list) and item:
            yield from _places(item)


def rewritten(content: bytes, change: Callable[[str], str]) -> bytes:
    """A `.keras` file with another config."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            held = old.read(name)
            new.writestr(name, change(held.decode()) if name == "config.json" else held)
    return buffer.getvalue()


@pytest.mark.parametrize("functional", [False, True])
def test_section4_any_config_is_refused_or_makes_a_model(
    tmp_path: Path, trained: Any, functional: bool
) -> None:
    model = trained
    if functional:
        x = nn.Input((6,))
        h = nn.Dense(4)(x)
        model = nn.Model(x, nn.Concatenate()([h, nn.Dense(3)(h)]))
        model.compile(nn.optimizers.SGD(nn.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)), "mse")
    path = tmp_path / "m.keras"
    content = save(model, path)
    refused = 0
    for seed in range(250):
        rng = random.Random(seed)
        path.write_bytes(rewritten(content, lambda text, rng=rng: json.dumps(mutated(json.loads(text), rng))))  # type: ignore[misc]
        try:
            nn.load_model(path)
        except HoldfastError:
            refused += 1
    assert 50 < refused < 250


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = mode << 16
    return made


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (entry("../outside"), "'../outside' is the name of an entry that leaves its directory"),
        (entry("assets/../../outside"), "leaves its directory"),
        (entry("/etc/passwd"), "'/etc/passwd' is the name of an entry that leaves its directory"),
        (entry("C:\\x"), "leaves its directory"),
        (entry("assets\\..\\..\\x"), "leaves its directory"),
        (entry("assets/link", 0o120777), "'assets/link' is a link"),
        (entry("config.json"), "'config.json' is there 2 times"),
        (entry("model.weights.h5"), "'model.weights.h5' is there 2 times"),
        (entry("assets/x\x1b[2J"), "leaves|Lambda|.*"),
    ],
)
def test_section4_entries_that_keras_would_not_write_are_refused(
    tmp_path: Path, trained: Any, info: zipfile.ZipInfo, message: str
) -> None:
    path = tmp_path / "m.keras"
    save(trained, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zipfile, about names that are there twice
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, b"{}")
    if message.endswith(".*"):
        assert state(nn.load_model(path)) == state(trained)
        return
    for use in (nn.load_model, make().load_weights):
        with pytest.raises(CorruptCheckpoint, match=message.replace("\\", ".")):
            use(path)
    assert not (tmp_path.parent / "outside").exists()


def test_section4_a_bomb_in_a_zip_is_refused_before_it_is_unpacked(
    tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.keras"
    save(trained, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/bomb", bytes(4 << 20))
    monkeypatch.setattr("storage.formats.hdf5.HARMLESS_NBYTES", 1 << 20)
    with pytest.raises(CorruptCheckpoint, match=r"'assets/bomb' promises 4194304 bytes, and \d+ are stored"):
        nn.load_model(path)


def _soft(file: Any) -> None:
    _replace(file, h5py.SoftLink("/elsewhere"))


def _external(file: Any) -> None:
    _replace(file, h5py.ExternalLink("/etc/passwd", "/"))


def _outside(file: Any) -> None:
    del file[_first(file)]
    file.create_dataset(_NAMES[0], (4,), "f4", external=[("/etc/passwd", 0, 16)])


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    del file[_first(file)]
    file.create_virtual_dataset(_NAMES[0], layout)


def _bomb(file: Any) -> None:
    del file[_first(file)]
    file.create_dataset(_NAMES[0], (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")


_NAMES: list[str] = []


def _first(file: Any) -> str:
    """The name of the first array in a file, which is kept in `_NAMES`."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    _NAMES[:] = found[:1]
    return found[0]


def _replace(file: Any, link: Any) -> None:
    name = _first(file)
    del file[name]
    file[name] = link


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_soft, r"is a link to something else \(SoftLink\)"),
        (_external, r"is a link to something else \(ExternalLink\)"),
        (_outside, "is stored in other files, which are not read"),
        (_virtual, "is stored in other files, which are not read"),
        (_bomb, "promises 4398046511104 bytes, of which 0 are stored"),
    ],
)
def test_section4_each_format_refuses_what_points_elsewhere_or_promises_too_much(
    tmp_path: Path, trained: Any, name: str, change: Any, message: str
) -> None:
    path = tmp_path / name
    content = save(trained, path)
    if name.endswith(".keras"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {each: archive.read(each) for each in archive.namelist()}
        held = io.BytesIO(entries["model.weights.h5"])
        with h5py.File(held, "a") as file:
            change(file)
        with zipfile.ZipFile(path, "w") as archive:
            for each, old in entries.items():
                archive.writestr(each, held.getvalue() if each == "model.weights.h5" else old)
    else:
        with h5py.File(path, "a") as file:
            change(file)
    with pytest.raises(CorruptCheckpoint, match=message):
        load(path)
    live = make()
    before = [np.array(each) for each in live.get_weights()]
    with pytest.raises(CorruptCheckpoint, match=message):
        live.load_weights(path)
    assert all(np.array_equal(a, b) for a, b in zip(before, live.get_weights(), strict=True))
