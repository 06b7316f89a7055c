import dataclasses
import json
import math

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigurationError, CorruptCheckpoint
from storage.manifest import MAX_NBYTES, ArrayInfo, Base, Manifest, ObjectInfo, json_values, numbers
from storage.strict_json import canonical

names = st.from_regex(r"[a-z0-9_][a-z0-9_.]{0,6}(/[a-z0-9_]{1,6}){0,2}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.integers(0, 10**9)
bases = st.builds(Base, counts, counts)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
)
arrays = st.lists(
    st.builds(ArrayInfo, names, st.sampled_from(["float32", "int64"]), counts, digests),
    max_size=3,
    unique_by=lambda a: a.name,
).map(tuple)
manifests = st.builds(
    Manifest,
    run_id=st.uuids().map(str),
    attempt=counts,
    nonce=st.binary(min_size=8, max_size=8).map(bytes.hex),
    step=counts,
    parent=st.none() | bases,
    arrays=arrays,
    objects=st.dictionaries(names, st.builds(ObjectInfo, counts, digests), max_size=4),
    state_digest=digests,
    counters=st.dictionaries(st.text(max_size=8), plain | st.text(max_size=8) | st.lists(plain), max_size=3),
    metrics=st.dictionaries(st.text(max_size=8), st.floats(), max_size=3),
    fingerprint=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    versions=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)


def example():
    return Manifest(
        run_id="r",
        attempt=3,
        nonce="0123456789abcdef",
        step=100,
        parent=Base(50, 2),
        arrays=(ArrayInfo("params", "float32", 10, "ab" * 32),),
        objects={"params/c/0": ObjectInfo(5, "cd" * 32)},
        state_digest="ef" * 32,
        counters={"epoch": 1},
        metrics={"loss": 0.5},
        fingerprint={"numpy": "2"},
        versions={"holdfast": "0"},
    )


def forged(**changes):
    """A manifest with fields replaced, whose own digest is right nevertheless."""
    doc = json.loads(example().to_bytes()[0])
    del doc["self"]
    doc |= changes
    doc = {key: value for key, value in doc.items() if value is not Ellipsis}
    doc["self"] = blake3(canonical(doc)).hexdigest()
    return canonical(doc)


@given(manifests)
def test_a_manifest_survives_its_bytes(manifest):
    data = manifest.to_bytes()[0]
    again = Manifest.parse(data)
    assert again.to_bytes()[0] == data
    assert (again.arrays, again.objects, again.parent) == (manifest.arrays, manifest.objects, manifest.parent)
    for name, x in manifest.metrics.items():
        assert again.metrics[name] == x or (math.isnan(x) and math.isnan(again.metrics[name]))


@given(manifests, st.data())
def test_any_changed_byte_is_found(manifest, data):
    good = manifest.to_bytes()[0]
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptCheckpoint):
        Manifest.parse(bytes(bad))
    with pytest.raises(CorruptCheckpoint):
        Manifest.parse(good[:at])


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_else_is_a_corrupt_checkpoint(data):
    with pytest.raises(CorruptCheckpoint):
        Manifest.parse(data)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 2}, "format 2 is not known"),
        ({"step": -1}, "step -1"),
        ({"step": True}, "step is bool, not int"),
        ({"step": 1.5}, "step is float, not int"),
        ({"step": ...}, r"missing \['step'\]"),
        ({"extra": 1}, r"unknown \['extra'\]"),
        ({"nonce": "../../x"}, "not a nonce"),
        ({"state_digest": "x"}, "state_digest"),
        ({"parent": {"step": 1}}, r"parent: missing \['attempt'\]"),
        ({"objects": {"../../etc/passwd": {"bytes": 1, "blake3": "ab" * 32}}}, "bad name"),
        ({"objects": {"/abs": {"bytes": 1, "blake3": "ab" * 32}}}, "bad name"),
        ({"objects": {"s3://x/y": {"bytes": 1, "blake3": "ab" * 32}}}, "bad name"),
        ({"objects": {"a": {"bytes": -1, "blake3": "ab" * 32}}}, "size -1"),
        ({"objects": {"a": {"bytes": 1, "blake3": "zz"}}}, "not a BLAKE3"),
        ({"objects": {"a": 1}}, "object a is not an object"),
        ({"arrays": [{"name": "p", "dtype": "object", "length": 1, "layout": "ab" * 32}]}, "dtype 'object'"),
        ({"arrays": [{"name": "p", "dtype": "int8", "length": 1 << 60, "layout": "ab" * 32}]}, "length"),
        ({"arrays": [{"name": "p", "dtype": "int8", "length": 1, "layout": "ab" * 32}] * 2}, "same name"),
        ({"metrics": {"loss": "high"}}, "metric loss"),
        ({"metrics": {"loss": 10**400}}, "metric loss"),
        ({"versions": {"numpy": 2}}, "version of numpy"),
    ],
)
def test_a_forged_field_is_named(changes, fault):
    with pytest.raises(CorruptCheckpoint, match=fault):
        Manifest.parse(forged(**changes))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, "nested deeper"),
        (b'{"a":1,"a":1}', "repeated"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":' + b"9" * 10_000 + b"}", "limit"),
        (b" " * (MAX_NBYTES + 1), "more than"),
        (b"\xff", "utf-8"),
        (b"1", "not an object"),
    ],
)
def test_hostile_json_is_refused_with_its_reason(data, fault):
    with pytest.raises(CorruptCheckpoint, match=fault):
        Manifest.parse(data)


def test_the_same_values_in_other_words_are_no_manifest():
    data, _ = dataclasses.replace(example(), counters={"x": 3e16}).to_bytes()
    assert Manifest.parse(data).counters == {"x": 3e16}
    for other in (data.replace(b"3e+16", b"3e016"), data + b"\n", json.dumps(json.loads(data)).encode()):
        with pytest.raises(CorruptCheckpoint, match="not as this version writes it"):
            Manifest.parse(other)


def nested(depth):
    value = {}
    for _ in range(depth - 1):
        value = {"k": value}
    return value


@given(
    st.dictionaries(
        st.integers(0, 200) | st.text(max_size=3),
        st.recursive(
            plain | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=2).map(tuple) | st.dictionaries(st.integers(0, 20), inner),
        ),
        max_size=4,
    )
    | st.integers(1, 20).map(nested)
)
def test_what_is_taken_as_metadata_can_be_read_again(metadata):
    try:
        data, _ = dataclasses.replace(example(), metadata=metadata).to_bytes()
    except ConfigurationError:
        return
    assert Manifest.parse(data).metadata == json_values("metadata", metadata)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (nested(16), "metadata: nested deeper"),
        (nested(10**5), "metadata: "),
        ({"x": float("nan")}, "metadata: "),
        ({"x": object()}, "metadata: .*not JSON serializable"),
        ({"x": "\ud800"}, "metadata: "),
        ({"x": 10**5000}, "metadata: "),
        ({1: "a", "1": "b"}, "metadata: "),
        ({"x": "y" * (1 << 20)}, "metadata: .*more than the 1048576 allowed"),
        ({"x": [0] * 300_000}, "metadata: .*more than the 262144 allowed"),
        ([1, 2], "metadata: "),
    ],
)
def test_values_that_no_reader_would_take_are_refused_before_they_are_written(values, fault):
    with pytest.raises(ConfigurationError, match=fault):
        json_values("metadata", values)


def test_values_that_only_together_are_too_many_are_refused_too():
    many = dataclasses.replace(example(), metadata={"x": [0] * 200_000}, counters={"y": [0] * 100_000})
    with pytest.raises(ConfigurationError, match="counters, metrics and metadata of more than 262144 values"):
        many.to_bytes()


def test_objects_that_leave_no_room_for_other_values_go_into_their_table():
    objects = {f"params/c/{i}": ObjectInfo(1, "0" * 64) for i in range(30_000)}
    many = dataclasses.replace(example(), objects=objects, metadata={"x": [0] * 100_000})
    data, table = many.to_bytes()
    assert len(data) + len(table) < 4 << 20
    assert Manifest.parse(data, lambda nbytes: table[:nbytes]) == many


def test_keys_become_strings_in_the_order_of_strings():
    data, _ = dataclasses.replace(example(), metadata={2: "a", 10: "b"}).to_bytes()
    assert Manifest.parse(data).metadata == {"2": "a", "10": "b"}


@pytest.mark.parametrize("values", [{"x": None}, {"x": 10**400}, {1: 2.0}, [1], {"x": "?"}])
def test_metrics_are_numbers_by_name(values):
    with pytest.raises(ConfigurationError, match=r"metrics: .*give numbers by name"):
        numbers("metrics", values)
