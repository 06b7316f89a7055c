"""Weights as `.npz` and `.safetensors`: by name, with any reader, and what is wrong with files."""

from __future__ import annotations

import io
import json
import random
import zipfile
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.formats import npz, safetensors_file
from workers import nn

if TYPE_CHECKING:
    from pathlib import Path

ENDINGS = (".npz", ".safetensors")
NAMES = ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]


def model(units: int = 5) -> Any:
    return nn.Sequential([nn.Input((4,)), nn.Dense(units, activation="relu"), nn.Dense(3)])


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ending", ENDINGS)
def test_row_29_weights_go_and_come_back_by_name(tmp_path: Path, ending: str) -> None:
    one, other = model(), model()
    one.save_weights(tmp_path / f"w{ending}")
    other.load_weights(tmp_path / f"w{ending}").assert_consumed()
    assert_same(one, other)
    (tmp_path / "named-otherwise").write_bytes((tmp_path / f"w{ending}").read_bytes())
    third = model()
    third.load_weights(tmp_path / "named-otherwise").assert_consumed()
    assert_same(one, third)


def test_row_29_other_libraries_read_ours_and_we_theirs(tmp_path: Path) -> None:
    one = model()
    weights = dict(zip(NAMES, one.get_weights(), strict=True))
    one.save_weights(tmp_path / "ours.npz")
    one.save_weights(tmp_path / "ours.safetensors")
    with np.load(tmp_path / "ours.npz") as found:
        assert {*found} == {*NAMES}
        np.testing.assert_array_equal(found["dense/kernel"], weights["dense/kernel"])
    np.testing.assert_array_equal(
        load_file(tmp_path / "ours.safetensors")["dense_1/bias"], weights["dense_1/bias"]
    )
    np.savez_compressed(tmp_path / "theirs.npz", **weights)
    save_file(weights, tmp_path / "theirs.safetensors")
    for ending in ENDINGS:
        other = model()
        other.load_weights(tmp_path / f"theirs{ending}").assert_consumed()
        assert_same(one, other)


@pytest.mark.parametrize("ending", ENDINGS)
def test_some_of_them_under_other_names(tmp_path: Path, ending: str) -> None:
    one, other = model(), model()
    one.save_weights(tmp_path / f"w{ending}")
    before = other.get_weights()
    other.load_weights(tmp_path / f"w{ending}", names=["dense/*"]).assert_nontrivial_match()
    np.testing.assert_array_equal(other.get_weights()[0], one.get_weights()[0])
    np.testing.assert_array_equal(other.get_weights()[2], before[2])
    part = nn.Sequential([nn.Input((4,)), nn.Dense(5, name="first")])
    part.load_weights(
        tmp_path / f"w{ending}", names=["dense/*"], rename={"dense/*": "first/*"}
    ).assert_consumed()
    np.testing.assert_array_equal(part.get_weights()[0], one.get_weights()[0])


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path, ending: str) -> None:
    model(6).save_weights(tmp_path / f"w{ending}")
    other = model()
    before = other.get_weights()
    with pytest.raises(
        IncompatibleCheckpoint, match=r"dense/kernel has shape \(4, 5\), and \(4, 6\) was found"
    ):
        other.load_weights(tmp_path / f"w{ending}")
    for a, b in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ConfigurationError, match="holds weights alone"):
        nn.load_model(tmp_path / f"w{ending}")
    with pytest.raises(ConfigurationError, match="holds weights alone"):
        other.save(tmp_path / f"whole{ending}")
    with pytest.raises(ConfigurationError, match="call it on data first"):
        nn.Sequential([nn.Dense(2)]).load_weights(tmp_path / f"w{ending}")


@pytest.mark.parametrize("module", [npz, safetensors_file])
def test_arrays_of_all_types_and_shapes(module: Any) -> None:
    arrays = {
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), np.float64),
        "half": np.arange(4, dtype=np.float16),
        "brain": np.arange(4).astype(ml_dtypes.bfloat16),
        "bits": np.array([True, False]),
        "long": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "big/endian": np.arange(3, dtype=">i4"),
    }
    found = module.read(module.written(arrays), "file")
    assert {*found} == {*arrays}
    for name, array in arrays.items():
        assert found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array)
    assert found["brain"].dtype == ml_dtypes.bfloat16


def header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 16,
        header("{}")[:-1],
        header("{not json}"),
        header(json.dumps({"a": entry("F32", [2], 0, 8)}), b"1234"),
        header(json.dumps({"a": entry("F32", [2], 0, 4)}), b"1234"),
        header(json.dumps({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}), b"123456"),
        header(json.dumps({"a": entry("F32", [1 << 62], 0, 4)}), b"1234"),
        header(json.dumps({"a": entry("F8_E4M3", [4], 0, 4)}), b"1234"),
    ],
)
def test_hostile_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpoint, match="file"):
        safetensors_file.read(data, "file")


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no .npz file"),
        (zipped({"a.npy": npy(np.array([print], object), allow_pickle=True)}), "Python objects"),
        (zipped({"a.txt": b"x"}), "a.txt, which is no array"),
        (zipped({"a.npy": b"x"}), "damaged"),
        (zipped({"a.npy": npy(np.zeros(4))[:-1]}), "31 bytes for float64"),
        (
            zipped({"a.npy": npy(np.zeros(1)).replace(b"(1,), ", b"(1<<3,)")}, zipfile.ZIP_DEFLATED),
            "damaged",
        ),
    ],
)
def test_hostile_npz_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=message):
        npz.read(data, "file")


def test_a_bomb_is_refused_before_it_goes_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "HARMLESS_NBYTES", 1000)
    data = zipped({"a.npy": npy(np.zeros(1 << 20))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CorruptCheckpoint, match="promises 8388736 bytes"):
        npz.read(data, "file")


@pytest.mark.parametrize(("ending", "module"), [(".npz", npz), (".safetensors", safetensors_file)])
def test_any_byte_may_be_wrong(tmp_path: Path, ending: str, module: Any) -> None:
    model().save_weights(tmp_path / f"w{ending}")
    whole = (tmp_path / f"w{ending}").read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            module.read(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]), "file")
        except CorruptCheckpoint:
            refused += 1
    assert refused > 100


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, ConfigurationError), match="there is no"):
        model().load_weights(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "name", ["w", "w.npz", "w.safetensors", "w.weights.h5", "w.h5", "w.keras", "cp.index"]
)
def test_what_a_format_is_not_loaded_with_is_one_line(tmp_path: Path, name: str) -> None:
    one, other = model(), model()
    path = tmp_path / name
    one.save(path) if name.endswith(".keras") else one.save_weights(path)
    before = other.get_weights()
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"nmaes": ["dense/*"]}, "is not loaded with nmaes="),
        ({"names": ["dense/*"], "rename": {}, "root": "net"}, "is not loaded with"),
    ]
    if name in ("w", "w.npz", "w.safetensors"):
        mistakes += [
            ({"names": 5}, "names=5: give names or globs"),
            ({"names": ["dense/kernel", 3]}, "give names or globs"),
            ({"rename": ["dense/*"]}, "give stored names and new ones"),
            ({"rename": {"dense/*": 3}}, "give stored names and new ones"),
        ]
    elif name == "cp.index":
        mistakes += [
            ({"names": ["dense/*"]}, "is not loaded with names=: it takes root="),
            ({"root": 5}, "root=5: give an attribute's name"),
        ]
    else:
        mistakes += [({"names": ["dense/*"]}, r"is not loaded with names=$")]
    for options, message in mistakes:
        with pytest.raises(ConfigurationError, match=message) as caught:
            other.load_weights(path, **options)
        assert "\n" not in str(caught.value)
    for a, b in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
