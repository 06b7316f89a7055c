"""TensorFlow's checkpoints: every tensor of the files that TensorFlow wrote, and nothing of damaged ones."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint
from storage.formats import protobuf, sstable
from storage.formats.tensor_bundle import TensorBundle, open_bundle

if TYPE_CHECKING:
    from pathlib import Path

FILES = [
    ("tf_checkpoint_weights", "cp.ckpt", "expected_tensors.npz"),
    ("saved_model", "saved_model/variables/variables", "expected_tensors.npz"),
    *(("tf_checkpoint_manager", f"tf_ckpts/ckpt-{i}", f"expected_tensors_{i}.npz") for i in (4, 5, 6)),
]


@pytest.fixture
def golden(reference_data: Path) -> Path:
    return reference_data / "golden"


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be damaged."""
    for path in (golden / "tf_checkpoint_manager" / "tf_ckpts").glob("ckpt-6*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "ckpt-6"


def damage(path: Path, place: int, value: int = 0xFF) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= value
    path.write_bytes(data)


@pytest.mark.parametrize(("case", "prefix", "expected"), FILES)
def test_row_19_every_tensor_is_that_which_tensorflow_wrote(
    golden: Path, case: str, prefix: str, expected: str
) -> None:
    bundle = open_bundle(str(golden / case / prefix))
    tensors = np.load(golden / case / expected)
    shapes, dtypes = bundle.get_variable_to_shape_map(), bundle.get_variable_to_dtype_map()
    assert {name for name, dtype in dtypes.items() if dtype != "string"} == {*tensors.files}
    for name in tensors.files:
        found = bundle.get_tensor(name)
        assert (list(found.shape), found.dtype.name) == (shapes[name], dtypes[name])
        assert found.tobytes() == tensors[name].tobytes(), name


def test_strings_are_read_with_all_their_bytes(golden: Path) -> None:
    bundle = open_bundle(str(golden / "tf_checkpoint_manager" / "tf_ckpts" / "ckpt-6"))
    names = bundle.get_tensor("names/.ATTRIBUTES/VARIABLE_VALUE")
    assert names.tolist() == [b"loss", b"", b"a longer entry in the list"]
    note = bundle.get_tensor("note/.ATTRIBUTES/VARIABLE_VALUE")
    assert note.decode() == "golden set A: first words, \u00e9\u4e16"


def test_the_object_graph_says_which_attribute_is_stored_where(golden: Path) -> None:
    graph = open_bundle(str(golden / "tf_checkpoint_manager" / "tf_ckpts" / "ckpt-6")).object_graph()
    assert graph is not None
    assert graph.variable("scale") == "scale/.ATTRIBUTES/VARIABLE_VALUE"
    assert graph.variable("optimizer/_iterations") == "optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE"
    assert graph.variable("scale/nothing") is None
    assert graph.find("net") is not None


def test_row_23_files_of_a_tf1_saver_have_names_and_no_graph(golden: Path) -> None:
    last = open_bundle(str(golden / "tf1_saver" / "model_final"))
    assert last.object_graph() is None
    h, v = last.get_tensor("hor_estimate"), last.get_tensor("ver_estimate")
    trajectory = np.load(golden / "tf1_saver" / "trajectory.npy")
    assert (h.shape, h.dtype) == ((), np.float32)
    assert np.array([h, v]).tobytes() == trajectory[-1].astype(np.float32).tobytes()


def test_what_is_missing_or_unknown_is_named(copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no TensorFlow checkpoint at .*other: other.index is missing"):
        open_bundle(str(copy.parent / "other"))
    bundle = open_bundle(str(copy))
    with pytest.raises(ConfigurationError, match="has no tensor 'net'"):
        bundle.get_tensor("net")
    (copy.parent / "ckpt-6.data-00000-of-00001").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"ckpt-6.data-00000-of-00001: .*the file is missing"):
        bundle.get_tensor("scale/.ATTRIBUTES/VARIABLE_VALUE")


def test_a_flipped_bit_anywhere_in_the_data_is_found(copy: Path) -> None:
    data = copy.parent / "ckpt-6.data-00000-of-00001"
    whole = data.read_bytes()
    bundle = open_bundle(str(copy))
    good = {name: bundle.get_tensor(name) for name in bundle.get_variable_to_shape_map()}
    for place in range(0, len(whole), 37):
        damage(data, place, 0x10)
        wrong = 0
        for name, value in good.items():
            try:
                found = bundle.get_tensor(name)
            except CorruptCheckpoint:
                wrong += 1
            else:
                assert np.array_equal(found, value)
        assert wrong == 1, f"byte {place}"
        data.write_bytes(whole)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(1, 255), cut=st.none() | st.integers(0, 10**6))
def test_a_damaged_index_is_a_named_error(copy: Path, place: int, value: int, cut: int | None) -> None:
    index = copy.parent / "ckpt-6.index"
    whole = index.read_bytes()
    try:
        damage(index, place % len(whole), value)
        if cut is not None:
            index.write_bytes(index.read_bytes()[: cut % len(whole)])
        try:
            open_bundle(str(copy)).object_graph()
        except CorruptCheckpoint as error:
            assert "ckpt-6.index" in str(error)  # noqa: PT017 it may also be read
        else:  # only what nobody reads has no checksum: the padding of the footer
            assert cut is None
            assert place % len(whole) >= len(whole) - sstable.FOOTER_NBYTES
    finally:
        index.write_bytes(whole)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_readers_fail_in_another_way(data: bytes) -> None:
    for read in (protobuf.parse, lambda raw: list(sstable.entries(raw))):
        try:
            read(data)
        except ValueError:
            continue


def test_sizes_are_checked_before_anything_is_allocated(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that promises a petabyte, with good checksums."""
    entry = b"\x08\x01\x12\x0a\x12\x08\x08\x80\x80\x80\x80\x80\x80\x40\x28\x80\x80\x80\x80\x80\x80\x80\x02"
    monkeypatch.setattr(
        "storage.formats.tensor_bundle.entries", lambda data: iter([(b"", b"\x08\x01"), (b"x", entry)])
    )
    bundle = open_bundle(str(copy))
    assert bundle.get_variable_to_shape_map() == {"x": [1 << 48]}
    with pytest.raises(CorruptCheckpoint, match="bytes 0 to 1125899906842624 of"):
        bundle.get_tensor("x")


def test_partitioned_variables_are_refused_by_name(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = b"\x08\x01\x12\x04\x12\x02\x08\x04\x3a\x00"
    monkeypatch.setattr(
        "storage.formats.tensor_bundle.entries", lambda data: iter([(b"", b"\x08\x01"), (b"x", entry)])
    )
    with pytest.raises(ConfigurationError, match="x is stored in slices of a partitioned variable"):
        open_bundle(str(copy)).get_tensor("x")


def test_a_bundle_is_read_from_any_store(golden: Path) -> None:
    import fsspec

    from storage.store import open_store

    memory = fsspec.filesystem("memory")
    folder = golden / "tf_checkpoint_weights"
    for path in folder.glob("cp.ckpt*"):
        memory.pipe(f"/bundle/{path.name}", path.read_bytes())
    bundle = TensorBundle(open_store("memory://bundle"), "cp.ckpt")
    expected = np.load(folder / "expected_tensors.npz")
    name = "layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert bundle.get_tensor(name).tobytes() == expected[name].tobytes()
