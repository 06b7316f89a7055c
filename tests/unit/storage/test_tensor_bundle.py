"""TensorFlow's checkpoints: every tensor of the files that TensorFlow wrote, and nothing of damaged ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint
from storage.formats import protobuf, sstable
from storage.formats.tensor_bundle import DTYPES, TensorBundle, open_bundle, write_bundle
from storage.formats.tensor_slices import Slice

Slices: TypeAlias = tuple[bytes, dict[bytes, bytes], list[list[tuple[int, int]]]]

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


def pieces(tmp_path: Path, whole: np.ndarray, cuts: list[tuple[slice, ...]]) -> tuple[str, Slices]:
    """A checkpoint of one tensor in pieces, and what its index says of each piece."""
    extents = [[(s.start, s.stop - s.start) for s in cut] for cut in cuts]
    keys = [Slice(tuple(each)).key("whole") for each in extents]
    named = dict(zip(keys, cuts, strict=True))
    path = str(tmp_path / "cut")
    write_bundle(path, {f"piece{i}": whole[named[key]] for i, key in enumerate(sorted(keys))})
    entries = dict(sstable.entries((tmp_path / "cut.index").read_bytes()))
    of_pieces = {key: entries.pop(f"piece{i}".encode()) for i, key in enumerate(sorted(keys))}
    return path, (entries[b""], of_pieces, extents)


def write_cut(path: str, shape: tuple[int, ...], found: Slices) -> None:
    header, of_pieces, extents = found
    dims = protobuf.written(*((2, protobuf.written((1, n))) for n in shape))
    places = [
        (7, protobuf.written(*((1, protobuf.written((1, a), (2, n))) for a, n in each))) for each in extents
    ]
    entry = protobuf.written((1, 1), (2, dims), *places)
    table = sstable.table([(b"", header), *sorted(of_pieces.items()), (b"whole", entry)])
    Path(f"{path}.index").write_bytes(table)


@pytest.mark.parametrize(
    "cuts",
    [
        [(slice(0, 3), slice(0, 6)), (slice(3, 5), slice(0, 6))],
        [(slice(0, 5), slice(4, 6)), (slice(0, 5), slice(0, 1)), (slice(0, 5), slice(1, 4))],
        [(slice(0, 2), slice(0, 6)), (slice(2, 5), slice(0, 3)), (slice(2, 5), slice(3, 6))],
    ],
)
def test_row_19_a_partitioned_variable_is_put_together(tmp_path: Path, cuts: list[tuple[slice, ...]]) -> None:
    whole = np.arange(30, dtype=np.float32).reshape(5, 6)
    path, found = pieces(tmp_path, whole, cuts)
    write_cut(path, whole.shape, found)
    bundle = open_bundle(path)
    assert bundle.get_variable_to_shape_map() == {"whole": [5, 6]}
    assert np.array_equal(bundle.get_tensor("whole"), whole)
    bundle.verify()


def test_pieces_that_are_not_the_whole_are_refused_before_there_is_room_for_it(tmp_path: Path) -> None:
    whole = np.arange(8, dtype=np.float32)
    path, found = pieces(tmp_path, whole, [(slice(0, 4),), (slice(4, 8),)])
    header, of_pieces, extents = found
    for shape, places, message in [
        ((1 << 40,), extents, "its pieces are not the whole"),
        ((8,), [[(0, 4)], [(0, 4)]], "its pieces overlap"),
        ((8,), [[(0, 4)], [(6, 4)]], "a piece has the indices 6 to 10 of 8"),
        ((8,), [[(0, 4)], [(-4, 4)]], "a piece has the indices -4 to 0 of 8"),
        ((8,), [[(0, 3)], [(3, 5)]], "one of its pieces is missing"),
        ((8, 1), extents, "a piece has 1 dimensions of 2"),
    ]:
        write_cut(path, shape, (header, of_pieces, places))
        with pytest.raises(CorruptCheckpoint, match=message):
            open_bundle(path).get_tensor("whole")


@pytest.mark.parametrize(
    ("number", "code"),
    [(0, "80"), (63, "bf"), (64, "c040"), (-1, "7f"), (-64, "40"), (-65, "3fbf"), (8191, "dfff")],
)
def test_pieces_have_the_keys_that_tensorflow_gives_them(number: int, code: str) -> None:
    key = Slice(((number, None),)).key("a\0b")
    assert key.hex() == "00" + "6100ff62" + "0001" + "0101" + code + "7f"


def test_row_6_tensors_lie_in_several_files(tmp_path: Path) -> None:
    write_bundle(str(tmp_path / "a"), {"x": np.arange(4.0), "y": np.arange(3)})
    write_bundle(str(tmp_path / "b"), {"z": np.arange(5, dtype=np.int16)})
    items = dict(sstable.entries((tmp_path / "a.index").read_bytes()))
    other = dict(sstable.entries((tmp_path / "b.index").read_bytes()))
    items |= {b"": protobuf.written((1, 3)), b"z": other[b"z"] + protobuf.written((3, 2))}
    (tmp_path / "c.index").write_bytes(sstable.table(sorted(items.items())))
    (tmp_path / "a.data-00000-of-00001").rename(tmp_path / "c.data-00000-of-00003")
    (tmp_path / "b.data-00000-of-00001").rename(tmp_path / "c.data-00002-of-00003")
    bundle = open_bundle(str(tmp_path / "c"))
    bundle.verify()
    assert bundle.get_tensor("z").tolist() == [0, 1, 2, 3, 4]
    assert bundle.get_tensor("x").tolist() == [0, 1, 2, 3]
    (tmp_path / "c.data-00002-of-00003").unlink()
    assert open_bundle(str(tmp_path / "c")).get_tensor("y").tolist() == [0, 1, 2]
    with pytest.raises(CorruptCheckpoint, match=r"c\.data-00002-of-00003: z: the file is missing"):
        open_bundle(str(tmp_path / "c")).get_tensor("z")


def everything() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {
        f"kind/{dtype.name}": (rng.integers(0, 2, (3, 5)).astype(dtype)) for dtype in DTYPES.values()
    }
    strings = np.array([[b"", b"\0\xff", "\u00e9".encode()], [b"a" * 300, b"b", b"c"]], object)
    empty = np.zeros((0, 7), np.float64)
    return found | {"strings": strings, "string": b"one", "empty": empty, "scalar": np.float16(1.5)}


def test_row_29_what_is_written_is_read_with_all_types(tmp_path: Path) -> None:
    path, tensors = str(tmp_path / "ckpt"), everything()
    write_bundle(path, tensors)
    bundle = open_bundle(path)
    bundle.verify()
    assert {*bundle.get_variable_to_shape_map()} == {*tensors}
    for name, value in tensors.items():
        found = bundle.get_tensor(name)
        if isinstance(value, bytes):
            assert found == value
        else:
            assert (found.shape, found.dtype) == (value.shape, value.dtype), name
            assert np.array_equal(found, value), name


def test_row_29_many_tensors_lie_in_many_blocks_of_the_index(tmp_path: Path) -> None:
    path = str(tmp_path / "ckpt")
    names = [
        f"layer_with_weights-{i}/a_rather_long_name_of_an_attribute/{'x' * (i % 7)}" for i in range(6000)
    ]
    write_bundle(path, {name: np.int32(i) for i, name in enumerate(names)})
    bundle = open_bundle(path)
    assert (tmp_path / "ckpt.index").stat().st_size > 256 << 10
    assert [bundle.get_tensor(name) for name in names[::97]] == [*range(0, 6000, 97)]


def test_row_5_writing_again_replaces_the_checkpoint_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "ckpt")
    for i in range(4):
        write_bundle(path, {"x": np.full(1000, i, np.float32)})
        assert open_bundle(path).get_tensor("x")[0] == i
        assert len([*tmp_path.glob("ckpt.data-00000-of-*")]) == 1
    old = open_bundle(path)
    index = (tmp_path / "ckpt.index").read_bytes()
    write_bundle(path, {"x": np.full(1000, 9, np.float32)})
    with pytest.raises(CorruptCheckpoint, match="the file is missing"):  # and never half of each
        old.get_tensor("x")
    assert index != (tmp_path / "ckpt.index").read_bytes()


def test_what_tensorflow_has_no_type_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="x is of datetime64"):
        write_bundle(str(tmp_path / "ckpt"), {"x": np.zeros(3, "datetime64[s]")})


def test_a_type_that_only_tensorflow_can_read_spoils_nothing_else(tmp_path: Path) -> None:
    write_bundle(str(tmp_path / "ckpt"), {"x": np.float32(2)})
    items = dict(sstable.entries((tmp_path / "ckpt.index").read_bytes()))
    items[b"iterator"] = protobuf.written((1, 21), (2, b""))
    (tmp_path / "ckpt.index").write_bytes(sstable.table(sorted(items.items())))
    bundle = open_bundle(str(tmp_path / "ckpt"))
    assert bundle.get_variable_to_dtype_map() == {"x": "float32", "iterator": "variant"}
    assert bundle.get_tensor("x") == 2
    with pytest.raises(ConfigurationError, match="iterator holds values of TensorFlow's type variant"):
        bundle.get_tensor("iterator")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (protobuf.written((1, 1), (3, 1)), "a tensor lies in file 1 of 1"),
        (protobuf.written((1, 1), (4, -1)), "a tensor lies at"),
        (protobuf.written((1, 1), (5, -8)), "a tensor lies at"),
        (protobuf.written((1, 99)), "the type number 99"),
        (protobuf.written((1, 1), (2, protobuf.written((2, protobuf.written((1, -3)))))), "the shape"),
        (b"\x08", "cut off"),
    ],
)
def test_an_index_that_says_the_impossible_is_refused(tmp_path: Path, entry: bytes, message: str) -> None:
    header = protobuf.written((1, 1))
    (tmp_path / "ckpt.index").write_bytes(sstable.table([(b"", header), (b"x", entry)]))
    with pytest.raises(CorruptCheckpoint, match=message):
        open_bundle(str(tmp_path / "ckpt"))


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1])
def test_a_shape_that_overflows_is_refused(tmp_path: Path, size: int) -> None:
    dims = protobuf.written(*((2, protobuf.written((1, n))) for n in (size, size, 16)))
    nothing = protobuf.written(*((2, protobuf.written((1, n))) for n in (size, 0)))
    entries = [(b"", protobuf.written((1, 1))), (b"e", protobuf.written((1, 1), (2, nothing)))]
    entries += [(b"s", protobuf.written((1, 7), (2, dims))), (b"x", protobuf.written((1, 1), (2, dims)))]
    (tmp_path / "ckpt.index").write_bytes(sstable.table(entries))
    (tmp_path / "ckpt.data-00000-of-00001").write_bytes(b"")
    bundle = open_bundle(str(tmp_path / "ckpt"))
    for name in ("e", "s", "x"):
        with pytest.raises(CorruptCheckpoint, match=r"ckpt\.data-00000-of-00001"):
            bundle.get_tensor(name)


def test_an_index_whose_parts_are_used_again_and_again_is_refused() -> None:
    """Few bytes that say much: the same block many times, and keys that share a long beginning."""
    good = sstable.table([(b"a", b"")])
    assert [*sstable.entries(good)] == [(b"a", b"")]
    body = bytearray()
    block = sstable._append_block(body, [(b"a", b"")])
    statistics = sstable._append_block(body, [])
    index = sstable._append_block(body, [(b"k%d" % i, block) for i in range(3)], restart_every=1)
    footer = (statistics + index).ljust(40, b"\0") + sstable.MAGIC.to_bytes(8, "little")
    with pytest.raises(ValueError, match="lies before others"):
        list(sstable.entries(bytes(body) + footer))
    long = [(b"k" * 5000 + i.to_bytes(2, "big"), b"") for i in range(1000)]
    repeated = sstable._append_block  # which shares whatever it can
    body = bytearray()
    block = repeated(body, long, restart_every=1 << 30)
    statistics, index = repeated(body, []), repeated(body, [(b"z", block)])
    footer = (statistics + index).ljust(40, b"\0") + sstable.MAGIC.to_bytes(8, "little")
    with pytest.raises(ValueError, match="longer together"):
        list(sstable.entries(bytes(body) + footer))


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
