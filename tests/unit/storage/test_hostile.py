"""A checkpoint may come from anyone: what is loaded is right, or refused in one line, at no great cost.

Who writes data, CRCs, digests, documents and manifest anew, all in agreement, has made a good checkpoint of
other data: that is no damage, and nothing here expects it to be noticed.
"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

import storage
from storage.errors import ConfigurationError, CorruptCheckpoint, HoldfastError
from storage.layout import Layout, StateArray
from storage.manifest import ObjectInfo
from storage.reader import open_checkpoint
from storage.strict_json import canonical
from storage.testing import MemoryStore
from storage.verification import verify_checkpoint
from storage.zarr_format import StoredArray, array_document, documents
from tests.unit.storage.states import new_run, save

ARRAYS = (
    StateArray("params", Layout.of({"w": (40, 30), "b": (7,)})),
    StateArray("slots/m", Layout.of({"w": (40, 30), "b": (7,)})),
)
KEYS = ["manifest.json", "zarr.json", "params/zarr.json", "params/digests", "slots/zarr.json"]
KEYS += ["params/c/0", "slots/m/c/0"]


def honest(compression):
    run = new_run(MemoryStore())
    directory, _ = save(run, run.claim_attempt(), 1, ARRAYS, compression=compression)
    objects = {key[len(directory) + 1 :]: run.store.read(key) for key in run.store.list(directory)}
    return directory, objects, open_checkpoint(run.store, directory).load()


HONEST = {compression: honest(compression) for compression in (None, "zstd")}


def consequences(directory, objects, expected):
    """Load: the right data, or an error of ours in one line; returns whether it was refused."""
    store = MemoryStore()
    for key, data in objects.items():
        store.write(f"{directory}/{key}", [data])
    faults = verify_checkpoint(store, directory, read_data=True).faults  # tells, and never raises
    found = loaded(store, directory)
    if found is None:
        assert faults
        return True
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.tobytes() == expected[name].tobytes()
    return False


def loaded(store, directory):
    """What is loaded; None if it is refused, which takes one line."""
    refusal = None
    try:
        return open_checkpoint(store, directory).load()
    except HoldfastError as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal
    return None


def forged(objects, **changes):
    """The objects with some replaced, and a manifest that knows of it, signed as any writer can."""
    objects = {**objects, **changes}
    doc = json.loads(objects["manifest.json"])
    doc["objects"] = {
        key: ObjectInfo.of(objects[key]).to_json() if key in objects else info
        for key, info in doc["objects"].items()
    }
    return {**objects, "manifest.json": signed(doc)}


def signed(doc):
    doc = {key: value for key, value in doc.items() if key != "self"}
    return canonical({**doc, "self": blake3(canonical(doc)).hexdigest()})


compressions = st.sampled_from([None, "zstd"])


@settings(max_examples=400, deadline=None)
@given(compressions, st.sampled_from(KEYS), st.data())
def test_changed_bytes_of_any_object_are_noticed(compression, key, data):
    directory, objects, expected = HONEST[compression]
    good = objects[key]
    at = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "splice", "gone"]))
    if kind == "flip":
        bad = good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))]) + good[at + 1 :]
    elif kind == "cut":
        bad = good[:at]
    elif kind == "insert":
        bad = good[:at] + data.draw(st.binary(min_size=1, max_size=20)) + good[at:]
    else:
        other = objects[data.draw(st.sampled_from(KEYS))]
        bad = good[:at] + other[at:]
    changed = {**objects, key: bad}
    if kind == "gone":
        del changed[key]
    elif bad == good:
        return
    consequences(directory, changed, expected)
    store = MemoryStore()
    for name, each in changed.items():
        store.write(f"{directory}/{name}", [each])
    assert key in {fault.object for fault in verify_checkpoint(store, directory, read_data=True).faults}


names = st.sampled_from(
    ["..", "../x", "/etc/passwd", "a\\b", "s3://b/x", "a\0b", "", ".x", "params/../../x", "a//b", "x" * 600]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, -1, 1, 2**31, 2**60, 2**63, 0.5, "float32", "NaN", "complex64", "object", "|O"])
    | names
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | names, inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(doc, path, value):
    if not path:
        return value
    copy = dict(doc) if isinstance(doc, dict) else list(doc)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


@settings(max_examples=400, deadline=None)
@given(compressions, st.sampled_from(["manifest.json", "params/zarr.json", "zarr.json"]), st.data())
def test_documents_changed_by_one_who_can_sign_are_refused_or_mean_the_same(compression, key, data):
    directory, objects, expected = HONEST[compression]
    doc = json.loads(objects[key])
    path = data.draw(st.sampled_from([*places(doc)]))
    value = data.draw(values)
    kind = data.draw(st.sampled_from(["replace", "rename", "remove"]))
    if kind == "replace" or not path or not isinstance(path[-1], str):
        bad = replaced(doc, path, value)
    else:
        parent = doc
        for step in path[:-1]:
            parent = parent[step]
        rest = {k: v for k, v in parent.items() if k != path[-1]}
        if kind == "rename":
            rest[data.draw(names | st.text(max_size=5))] = parent[path[-1]]
        bad = replaced(doc, path[:-1], rest)
    if key == "manifest.json":
        changed = {**objects, key: signed(bad) if isinstance(bad, dict) else canonical(bad)}
    else:
        changed = forged(objects, **{key: json.dumps(bad).encode()})
    # names and flags are the writer's to choose: what is loaded under them must still be honest
    if kind == "replace" and key == "manifest.json":
        consequences(directory, changed, expected)
    else:
        refuse_or_same_values(directory, changed, expected)


def refuse_or_same_values(directory, objects, expected):
    store = MemoryStore()
    for key, data in objects.items():
        store.write(f"{directory}/{key}", [data])
    verify_checkpoint(store, directory, read_data=True)
    found = loaded(store, directory)
    if found is None:
        return
    whole = b"".join(values.tobytes() for values in expected.values())
    for name, values in found.items():
        assert values.tobytes() in whole or not values.any(), name


def frame(raw, **options):
    return zstandard.ZstdCompressor(**options).compress(raw)


def shard_of(stored, chunks=1):
    """A shard object with these bytes as its one chunk: CRC and index in order."""
    index = np.array([[0, len(stored) + 4]] * chunks, dtype="<u8").tobytes()
    return stored + crc32c(stored).to_bytes(4, "little") + index + crc32c(index).to_bytes(4, "little")


SIZE = 4 * ARRAYS[0].padded_length
BOMBS = {
    "declares nothing": frame(bytes(SIZE), write_content_size=False),
    "declares less": frame(bytes(SIZE // 2)),
    "holds 200 MiB": frame(bytes(200 << 20)),
    "two frames": frame(bytes(SIZE // 2)) + frame(bytes(SIZE // 2)),
    "a frame and more": frame(bytes(SIZE)) + b"more",
    "a skippable frame first": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + frame(bytes(SIZE)),
    "no frame": bytes(100),
    "cut": frame(np.random.default_rng(0).bytes(SIZE))[:1000],
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_frame_that_is_not_just_one_chunk_is_refused(bomb):
    directory, objects, expected = HONEST["zstd"]
    changed = forged(objects, **{"params/c/0": shard_of(BOMBS[bomb])})
    assert consequences(directory, changed, expected)


def lying(bomb_nbytes):
    """A frame whose header says the chunk's size, but which goes on for longer."""
    data = bytearray(frame(bytes(bomb_nbytes)))
    header = zstandard.get_frame_parameters(bytes(data))
    assert header.content_size == bomb_nbytes
    at = bytes(data).index(bomb_nbytes.to_bytes(4, "little"))
    data[at : at + 4] = SIZE.to_bytes(4, "little")
    return bytes(data)


def test_a_frame_that_lies_about_its_size_is_refused():
    directory, objects, expected = HONEST["zstd"]
    changed = forged(objects, **{"params/c/0": shard_of(lying(200 << 20))})
    assert consequences(directory, changed, expected)


@pytest.mark.parametrize(
    "entry",
    [[0, 2**63], [2**63, 10], [2**64 - 1, 2**64 - 1], [4, 20], [0, 0], [0, 2**40], [2**40, 2**40]],
)
def test_a_forged_index_is_refused(entry):
    for compression in (None, "zstd"):
        directory, objects, expected = HONEST[compression]
        data = objects["params/c/0"]
        index = np.array([entry], dtype="<u8").tobytes()
        bad = data[:-20] + index + crc32c(index).to_bytes(4, "little")
        changed = forged(objects, **{"params/c/0": bad})
        store = MemoryStore()
        for key, each in changed.items():
            store.write(f"{directory}/{key}", [each])
        assert verify_checkpoint(store, directory).faults
        if compression:
            assert consequences(directory, changed, expected)


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("key", ["manifest.json", "params/zarr.json"])
@pytest.mark.parametrize("data", [DEEP, b"", b"null", b'{"a":1,"a":2}', b"\xff", b"1e999", b" " * (5 << 20)])
def test_what_is_no_document_is_refused(key, data):
    directory, objects, expected = HONEST[None]
    changed = {**objects, key: data} if key == "manifest.json" else forged(objects, **{key: data})
    assert consequences(directory, changed, expected)


def test_a_huge_table_of_objects_is_refused_before_it_is_read():
    directory, objects, expected = HONEST[None]
    doc = json.loads(objects["manifest.json"])
    doc["objects"], doc["table"] = {}, {"bytes": 2**40, "blake3": "0" * 64}
    assert consequences(directory, {**objects, "manifest.json": signed(doc)}, expected)


LIMITED = """
    import sys
    import storage
    from storage.errors import HoldfastError

    def peak():  # ru_maxrss would be that of the process that started this one, if that was larger
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

    storage.load(sys.argv[1])  # what an honest load costs
    before = peak()
    for url in sys.argv[2:]:
        assert storage.verify(url).faults, url
        try:
            storage.load(url)
        except HoldfastError:
            pass
        else:
            raise SystemExit(f"{url} was loaded")
    print((peak() - before) / 1024)
"""


DENSE = [
    b"[],",
    b'{"":0},',
    b"[0],",
    b'"ab",',
    '"\u6f22a",'.encode(),
    b"0.5,",
    b"1000,",
    '"\U0001f600",'.encode(),
]


def with_table(objects, table):
    """The objects with the table of them in an object of its own, which is this."""
    doc = json.loads(objects["manifest.json"])
    doc["objects"], doc["table"] = {}, ObjectInfo.of(table).to_json()
    return {**objects, "objects.json": table, "manifest.json": signed(doc)}


def lay_out(folder, name, directory, objects):
    place = folder / name / directory
    for key, data in objects.items():
        (place / key).parent.mkdir(parents=True, exist_ok=True)
        (place / key).write_bytes(data)
    return str(place)


def test_hostile_checkpoints_cost_no_memory_beyond_the_honest_size(tmp_path):
    directory, objects, _ = HONEST["zstd"]
    doc = json.loads(objects["params/zarr.json"])
    doc["shape"] = [2**40]
    huge = json.loads(objects["manifest.json"])
    huge["arrays"][0]["length"] = 2**40
    cases = {f"bomb{i}": forged(objects, **{"params/c/0": shard_of(b)}) for i, b in enumerate(BOMBS.values())}
    cases["lying"] = forged(objects, **{"params/c/0": shard_of(lying(200 << 20))})
    cases["shape"] = forged(objects, **{"params/zarr.json": json.dumps(doc).encode()})
    cases["length"] = {**objects, "manifest.json": signed(huge)}
    cases["deep"] = {**objects, "manifest.json": DEEP}
    cases["long manifest"] = {**objects, "manifest.json": bytes(300 << 20)}
    cases["long digests"] = forged(objects, **{"params/digests": bytes(300 << 20)})
    cases["many values"] = forged(objects, **{"params/zarr.json": b"[" + b"{}," * (10 << 20) + b"0]"})
    for i, filling in enumerate(DENSE):
        text = canonical({**json.loads(objects["manifest.json"]), "metadata": {"x": "FILLING"}})
        times = ((4 << 20) - len(text)) // len(filling)
        dense = text.replace(b'"FILLING"', b"[" + (filling * times)[:-1] + b"]")
        assert 0.99 * (4 << 20) < len(dense) <= 4 << 20
        cases[f"dense{i}"] = {**objects, "manifest.json": dense}
    wide = {**json.loads(objects["manifest.json"]), "metadata": {"x": "a" * 4_000_000 + "\U0001f600"}}
    cases["wide"] = {**objects, "manifest.json": canonical(wide)}
    cases["dense table"] = with_table(
        objects, b"{" + b",".join(b'"%x":{}' % i for i in range(3 << 20)) + b"}"
    )
    cases["long chunk"] = forged(objects, **{"params/c/0": shard_of(frame(bytes(SIZE)) + bytes(300 << 20))})
    cases["absent"] = declaring(objects, 2**36)
    urls = [lay_out(tmp_path, name, directory, case) for name, case in cases.items()]
    good = lay_out(tmp_path, "good", directory, objects)
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), good, *urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64, f"{done.stdout} MiB more than an honest load"


def described(objects, change):
    """The objects with a description of params that `change` has changed, and a manifest that agrees."""
    doc = json.loads(objects["params/zarr.json"])
    change(doc)
    changed = forged(objects, **{"params/zarr.json": json.dumps(doc, indent=1).encode()})
    manifest = json.loads(changed["manifest.json"])
    variables = [{"name": name, **v} for name, v in doc["attributes"]["variables"].items()]
    layout = canonical({"length": doc["shape"][0], "variables": variables})
    manifest["arrays"][0]["layout"] = blake3(layout).hexdigest()
    return {**changed, "manifest.json": signed(manifest)}


def declaring(objects, length):
    """The objects with a manifest and a description, in agreement, of a huge array whose shards are not
    there.
    """
    array = StateArray("params", Layout.of({"w": (length,)}))
    shard_length = 64 << 20
    stored = StoredArray(array, shard_length)
    digests = bytes(32 * array.num_blocks)
    document = array_document(array, shard_length)
    changed = {**objects, "params/zarr.json": document, "params/digests": digests}
    manifest = json.loads(forged(changed)["manifest.json"])
    manifest["arrays"][0].update(length=length, layout=array.layout.fingerprint)
    nbytes = 64 * (stored.chunk_nbytes + 4) + stored.index_nbytes
    for i in range(stored.num_shards):
        manifest["objects"][stored.shard_key(i)] = {"bytes": nbytes, "blake3": "0" * 64}
    manifest["state_digest"] = blake3(digests + objects["slots/m/digests"]).hexdigest()
    return {**changed, "manifest.json": signed(manifest)}


@pytest.mark.parametrize(
    "shape", [[40.0, 30], [True, 1200], [0, 2**70], [0, 2**40, 2**40], [0] * 33, ["1200"], [[1200]]]
)
def test_a_shape_that_is_not_one_of_numpy_is_refused(shape):
    directory, objects, expected = HONEST[None]
    changed = described(objects, lambda doc: doc["attributes"]["variables"]["w"].update(shape=shape))
    assert consequences(directory, changed, expected)


def test_a_length_that_only_equals_a_whole_number_is_refused():
    directory, objects, expected = HONEST[None]
    changed = described(objects, lambda doc: doc.update(shape=[float(doc["shape"][0])]))
    assert consequences(directory, changed, expected)


@pytest.mark.parametrize("name", ["a\nb\x1b[31m", "a" * 100_000])
def test_no_name_in_a_document_gets_into_a_message_as_it_is(name):
    directory, objects, _ = HONEST[None]
    for changed in (
        described(objects, lambda doc: doc["attributes"]["variables"].update({name: {}})),
        {**objects, "manifest.json": signed({**json.loads(objects["manifest.json"]), name: 1})},
        {**objects, "manifest.json": signed({**json.loads(objects["manifest.json"]), "metrics": {name: []}})},
    ):
        store = MemoryStore()
        for key, data in changed.items():
            store.write(f"{directory}/{key}", [data])
        with pytest.raises(CorruptCheckpoint) as info:
            open_checkpoint(store, directory)
        assert str(info.value).isprintable()
        assert len(str(info.value)) < 1000


def test_a_table_of_variables_that_could_not_be_read_is_not_written():
    layout = Layout.of({f"{i:06d}{'x' * 110}": () for i in range(320_000)})
    with pytest.raises(ConfigurationError, match="320000 variables takes"):
        documents([StateArray("params", layout)], {})


AUDITED = """
    import os, sys
    import storage
    from storage.errors import HoldfastError

    CODE = {
        "exec", "compile", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork",
        "pickle.find_class", "marshal.loads", "socket.connect", "ctypes.dlopen", "import",
    }
    CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree"}

    good, *urls = sys.argv[1:]
    for url in (good, urls.pop()):  # one of each kind: imports what it needs
        storage.load(url)
        storage.verify(url)
    inside = os.path.commonpath([good, *urls])
    seen = []

    def hook(event, arguments):
        if event in CODE:
            seen.append((event, str(arguments)[:200]))
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes or not os.path.realpath(path).startswith(inside):
                seen.append((event, str(arguments)))
        if event in CHANGES:
            seen.append((event, str(arguments)))

    sys.addaudithook(hook)
    for url in (good, *urls):
        for act in (storage.load, storage.verify, lambda url: storage.open(url)["params/w"][1:2]):
            try:
                act(url)
            except (HoldfastError, KeyError):
                pass
    sys.stderr.write("\\n".join(map(str, seen)))
    raise SystemExit(bool(seen))
"""


def test_loading_runs_no_code_and_touches_nothing_but_the_checkpoint(tmp_path):
    cases = {}
    for compression, (directory, objects, _) in HONEST.items():
        cases[f"plain-{compression}"] = (directory, objects)
        evil = objects["params/zarr.json"].replace(b'"bytes"', b'"pickle"')
        cases[f"codec-{compression}"] = (directory, forged(objects, **{"params/zarr.json": evil}))
        doc = json.loads(objects["manifest.json"])
        for i, key in enumerate(["../../../secret", "/etc/passwd", "s3://bucket/x"]):
            bad = {**doc, "objects": {**doc["objects"], key: doc["objects"]["zarr.json"]}}
            cases[f"key{i}-{compression}"] = (directory, {**objects, "manifest.json": signed(bad)})
            bad = {**doc, "arrays": [{**doc["arrays"][0], "name": key}, *doc["arrays"][1:]]}
            cases[f"array{i}-{compression}"] = (directory, {**objects, "manifest.json": signed(bad)})
    cases["another"] = (HONEST["zstd"][0], HONEST["zstd"][1])
    urls = [lay_out(tmp_path, name, directory, objects) for name, (directory, objects) in cases.items()]
    command = [sys.executable, "-c", textwrap.dedent(AUDITED), *urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_bools_and_bfloat16_hold_only_what_such_values_can_be():
    url = f"memory://hostile-{id(HONEST)}"
    storage.save(url, {"m": np.array([True, False, True])})
    checkpoint = storage.open(url)
    assert checkpoint.load()["m"].view(np.uint8).max() == 1
