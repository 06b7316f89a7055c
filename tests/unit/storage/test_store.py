import errno
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import storage
from storage import file_store, object_store, ssh_store
from storage.errors import ConfigurationError, MissingExtra, ObjectMissing, StorageError
from storage.file_store import FileStore
from storage.object_store import ObjectStore
from storage.store import open_store
from storage.testing import FaultyStore, MemoryStore, StoreContract
from tests.sim.storage_model import RecordingOs, after_power_loss


class TestFileStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return open_store(str(tmp_path / "a run"))


class TestFileUrl(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return open_store(f"file://{tmp_path}/run")


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()


def test_a_directory_that_does_not_exist_is_told_from_an_empty_one(tmp_path):
    for url in (str(tmp_path), f"file://{tmp_path}"):
        assert open_store(url).is_there()
        assert not open_store(f"{url}/none").is_there()
    (tmp_path / "file").touch()
    assert not open_store(str(tmp_path / "file" / "below")).is_there()
    assert MemoryStore().is_there(), "where nothing is, an object store tells nothing"


def test_opening_touches_nothing(tmp_path):
    open_store(str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_kept_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("runs/one")
    assert store.url == f"{tmp_path}/runs/one"


def test_scratch_files_are_never_objects(tmp_path):
    store = open_store(str(tmp_path))
    store.write("d/k", [b"x"])
    (tmp_path / "d" / ".tmp-0123").write_bytes(b"torn")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x").write_bytes(b"")
    assert store.list() == {"d/k": 1}


def test_a_failed_write_leaves_the_old_object_and_no_scratch(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    store.write("d/k", [b"old"])

    def full(fd, buffers):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_store.os, "writev", full)
    with pytest.raises(StorageError, match="d/k: No space left on device"):
        store.write("d/k", [b"new"])
    assert store.read("d/k") == b"old"
    assert os.listdir(tmp_path / "d") == ["k"]


def test_short_writes_are_carried_on(tmp_path, monkeypatch):
    real = os.writev
    monkeypatch.setattr(file_store.os, "writev", lambda fd, buffers: real(fd, [buffers[0][:3]]))
    store = open_store(str(tmp_path))
    assert store.write("k", [b"0123456789", b"", b"abcde"]) == 15
    assert store.read("k") == b"0123456789abcde"


def test_a_large_file_is_replaced_whole_and_its_memory_freed(tmp_path, monkeypatch):
    monkeypatch.setattr(file_store, "_LARGE_NBYTES", 1000)
    store = FileStore(str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    for value in (b"a" * 4000, b"b" * 5000, b"c"):
        store.write("x", [value])
        assert store.read("x") == value
    for thread in threading.enumerate():
        if thread.name == "close":
            thread.join(10)
    assert set(os.listdir("/proc/self/fd")) == before
    (tmp_path / "directory").mkdir()
    with pytest.raises(ConfigurationError, match="directory"):
        store.write("directory", [b"x"])
    assert sorted(os.listdir(tmp_path)) == ["directory", "x"]
    assert set(os.listdir("/proc/self/fd")) == before


def test_large_buffers_are_written_in_pieces_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(file_store, "BATCH_NBYTES", 1000)
    data = [bytes([i % 251]) * n for i, n in enumerate((0, 1, 999, 1000, 1001, 5432, 3, 0))]
    sizes = [sum(map(len, batch)) for batch in file_store.batches(data)]
    assert sum(sizes) == sum(map(len, data))
    assert all(1000 <= size < 2000 for size in sizes[:-1])
    assert FileStore(str(tmp_path)).write("x", data) == sum(map(len, data))
    assert (tmp_path / "x").read_bytes() == b"".join(data)


def test_files_and_new_directories_are_flushed_before_the_name_appears(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd):
        events.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        real_fsync(fd)

    def replace(a, b):
        events.append(("replace", str(b)))
        real_replace(a, b)

    monkeypatch.setattr(file_store.os, "fsync", fsync)
    monkeypatch.setattr(file_store.os, "replace", replace)
    root = str(tmp_path / "run")
    open_store(root).write("d/k", [b"x"])
    names = [(what, path.replace(str(tmp_path), "")) for what, path in events]
    assert names[:2] == [("fsync", ""), ("fsync", "/run")]  # run and d were made
    assert names[2][1].startswith("/run/d/.tmp-")
    assert names[3:] == [("replace", "/run/d/k"), ("fsync", "/run/d")]


def test_deleting_the_last_object_removes_its_directories_but_not_the_root(tmp_path):
    store = open_store(str(tmp_path / "run"))
    store.write("a/b/c", [b"x"])
    store.write("k", [b"x"])
    store.delete(["a/b/c", "k"])
    assert os.listdir(tmp_path / "run") == []


def test_a_place_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file" / "run"))
    with pytest.raises(ConfigurationError, match=r"file/run.*Not a directory"):
        store.write("k", [b"x"])
    with pytest.raises(ConfigurationError, match="/proc/run"):
        open_store("/proc/run").write("k", [b"x"])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nosuch://x/y",
        "simplecache::s3://b/x",
        "a\0b",
        "sftp:///run",
        "ssh://host:port/run",
        "sftp://h#1/x",
    ],
)
def test_a_url_that_cannot_work_is_refused(url):
    with pytest.raises(ConfigurationError):
        open_store(url)


def test_a_missing_backend_names_the_extra_to_install(monkeypatch):
    import fsspec

    def missing(scheme):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'holdfast\[s3\]'"):
        open_store("s3://bucket/run")


def test_a_missing_ssh_package_is_named_too(monkeypatch):
    monkeypatch.setattr(ssh_store.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'holdfast\[ssh\]'"):
        open_store("sftp://host/run")


def test_a_password_in_a_url_is_refused_and_not_shown():
    with pytest.raises(ConfigurationError, match="password") as info:
        open_store("sftp://me:s3cret@host/run")
    assert "s3cret" not in str(info.value)


@pytest.mark.parametrize("scheme", ["sftp", "ssh"])
def test_a_store_on_ssh_is_pickled_as_its_url(scheme):
    store = pickle.loads(pickle.dumps(open_store(f"{scheme}://me@host:2222/runs/one/")))
    assert (type(store), store.url) == (ssh_store.SshStore, f"{scheme}://me@host:2222/runs/one")


def test_errors_of_a_backend_are_translated_with_url_and_cause(monkeypatch):
    store = ObjectStore("memory://somewhere")
    store.deadline_s = 0
    fs, _ = store._open()

    def raising(error):
        def pipe_file(*args, **kwargs):
            raise error

        monkeypatch.setattr(fs, "pipe_file", pipe_file)

    class NoCredentialsError(Exception):
        pass

    raising(PermissionError("Access Denied"))
    with pytest.raises(ConfigurationError, match=r"memory://somewhere/k: Access Denied"):
        store.write("k", [b"x"])
    raising(NoCredentialsError("Unable to locate credentials"))
    with pytest.raises(ConfigurationError, match="Unable to locate credentials"):
        store.create("k", b"x")
    raising(RuntimeError("connection\nreset"))
    with pytest.raises(StorageError, match=r"memory://somewhere/k: connection reset") as info:
        store.create("k", b"x")
    assert "\n" not in str(info.value)
    assert isinstance(info.value.__cause__, RuntimeError)


def test_a_create_whose_answer_was_lost_is_recognised_by_its_content(monkeypatch):
    store = MemoryStore()
    fs, _ = store._open()
    real = fs.pipe_file

    def lost(path, value, mode="overwrite", **kwargs):
        real(path, value, mode=mode)
        raise TimeoutError("no answer")

    monkeypatch.setattr(fs, "pipe_file", lost)
    assert store.create("k", b"nonce 1") is True
    assert store.create("k", b"nonce 2") is False


def test_a_fork_gets_an_instance_of_its_own(monkeypatch):
    store = MemoryStore()
    first = store._open()[0]
    assert store._open()[0] is first
    monkeypatch.setattr(object_store.os, "getpid", lambda: -1)
    assert store._open()[0] is not first


def test_pickling_carries_the_url_alone(tmp_path):
    for store in (MemoryStore(), FileStore(str(tmp_path))):
        store.write("k", [b"x"])
        assert len(pickle.dumps(store)) < 300


@pytest.mark.parametrize("fault", ["before", "after", "torn"])
def test_a_faulty_store_fails_once_as_told(fault):
    store = FaultyStore(MemoryStore(), fail_at=1, fault=fault)
    store.write("a", [b"0123"])
    with pytest.raises(StorageError):
        store.write("b", [b"0123"])
    assert store.list("") == {"before": {"a": 4}, "after": {"a": 4, "b": 4}, "torn": {"a": 4, "b": 2}}[fault]
    assert store.operations == [("write", "a"), ("write", "b"), ("list", "")]
    with pytest.raises(ObjectMissing):
        store.read("c")


def test_importing_storage_is_cheap():
    code = (
        "import sys, storage, storage.store, storage.run_directory, storage.checkpoint\n"
        "assert not {'asyncssh', 'fsspec', 'zarr', 'ray', 'pytest'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_directory_is_deleted_with_what_has_a_name_that_no_key_has():
    store = MemoryStore()
    fs, root = store._open()
    for name in ("d/x y", "d/.hidden", "d/sub/-x", "d/ok", "de"):
        fs.pipe_file(f"{root}/{name}", b"1")
    assert store.list("d") == {"d/x y": 1, "d/sub/-x": 1, "d/ok": 1}
    store.delete_directory("d")
    assert store.children() == []
    assert store.list() == {"de": 1}


@pytest.mark.parametrize("url", ["s3://", "memory://", "file://", "", Path("/tmp/x"), None])
def test_what_names_no_place_is_said_in_one_line(url):
    for act in (open_store, storage.open, storage.latest):
        with pytest.raises(ConfigurationError, match="is not the URL of a place: give a path or a URL"):
            act(url)


def test_directories_that_another_made_and_did_not_flush_are_flushed(tmp_path, monkeypatch):
    recording = RecordingOs()
    monkeypatch.setattr(file_store, "os", recording)
    root = str(tmp_path)
    recording.mkdir(f"{root}/d")  # by a process that was killed right then
    recording.mkdir(f"{root}/d/e")
    open_store(root).write("d/e/k", [b"x"])
    assert [*after_power_loss(recording.events, root)] == [{f"{root}/d/e/k": b"x"}] * 2


def test_a_directory_that_was_deleted_and_made_again_is_flushed_again(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    store.write("d/k", [b"x"])
    store.delete(["d/k"])
    recording = RecordingOs()
    monkeypatch.setattr(file_store, "os", recording)
    store.write("d/k", [b"y"])
    assert [*after_power_loss(recording.events, str(tmp_path))] == [{f"{tmp_path}/d/k": b"y"}] * 2


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_or_device_in_the_place_of_an_object_is_refused_at_once(tmp_path, make):
    make(tmp_path / "k")
    store = open_store(str(tmp_path))
    for act in (lambda: store.read("k"), lambda: store.read_into("k", 0, [memoryview(bytearray(3))])):
        with pytest.raises(ConfigurationError, match="k: it is not a regular file"):
            act()


def test_a_link_whose_answer_was_lost_is_recognised(tmp_path, monkeypatch):
    real = os.link

    def link(a, b):
        real(a, b)
        real(a, b)  # as a client of NFS does that asks again

    monkeypatch.setattr(file_store.os, "link", link)
    store = open_store(str(tmp_path))
    assert store.create("k", b"mine") is True
    assert store.create("k", b"mine") is False
    assert os.listdir(tmp_path) == ["k"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch, number):
    def link(a, b):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(file_store.os, "link", link)
    with pytest.raises(ConfigurationError, match="k: this file system has no hard links"):
        open_store(str(tmp_path)).create("k", b"x")
    assert os.listdir(tmp_path) == []


def test_no_descriptor_stays_of_a_large_file_that_is_replaced_where_no_thread_can_be_had(
    tmp_path, monkeypatch
):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    store = open_store(str(tmp_path))
    store.write("k", (bytes(file_store._LARGE_NBYTES),))
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(threading.Thread, "start", none_left)
    store.write("k", (b"new",))
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert store.read("k") == b"new"
