"""The storage contract, whole checkpoints and the errors, against real servers of every kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import storage
from orchestrator import doctor
from storage.errors import ConfigurationError, CorruptCheckpoint, StorageError
from storage.object_store import PART_NBYTES
from storage.reader import restore
from storage.retention import Retention
from storage.run_directory import RunDirectory
from storage.store import open_store
from storage.testing import StoreContract
from storage.transfer import copy
from storage.verification import verify_checkpoint
from tests.integration.servers import SERVERS, free_port, settings
from tests.unit.storage.states import ARRAYS, buffers, empty, new_run, save

pytestmark = [
    pytest.mark.servers,
    # aiohttp, below gcsfs and adlfs, says so of parts above 1 MiB
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
]


@pytest.fixture(scope="module", params=["s3", "ministack", "gs", "az", "sftp"])
def server(request, tmp_path_factory):
    """A server of each kind in turn: what makes a new bucket's URL."""
    folder = tmp_path_factory.mktemp(request.param)
    with SERVERS[request.param](folder) as (environment, new_bucket), settings(environment):
        yield new_bucket


@pytest.fixture
def url(server):
    """A place in a new, empty bucket."""
    return server()


class TestContract(StoreContract):
    @pytest.fixture
    def store(self, url):
        return open_store(url)


def test_a_checkpoint_is_saved_found_restored_and_its_damage_named(url):
    store = open_store(url)
    run = new_run(store)
    assert run.probe_exclusive() is True
    attempt = run.claim_attempt()
    run.record_base(attempt, None)
    save(run, attempt, 1, num_writers=2)
    save(run, attempt, 2, compression="zstd")
    directory, manifest = save(run, attempt, 3)
    found = RunDirectory(open_store(url)).latest()
    assert found.directory == directory
    into = empty(ARRAYS)
    restore(store, directory, manifest, ARRAYS, into)
    assert into["params"].tobytes() == buffers(ARRAYS, 3)["params"].tobytes()
    assert verify_checkpoint(store, directory, read_data=True).faults == ()

    key = f"{directory}/slots/adam_m/c/0"
    data = bytearray(store.read(key))
    data[1000] ^= 1
    store.write(key, [bytes(data)])
    with pytest.raises(CorruptCheckpoint, match="slots/adam_m/c/0, bytes 0 to"):
        restore(store, directory, manifest, ARRAYS, into)
    store.delete([key])
    with pytest.raises(CorruptCheckpoint, match="slots/adam_m/c/0 is missing"):
        restore(store, directory, manifest, ARRAYS, into)
    again = RunDirectory(open_store(url))
    assert [entry.directory for entry in again.damaged()] == [directory]
    again.quarantine(directory, "slots/adam_m/c/0 is missing")
    assert again.latest().step == 2
    assert [entry.step for entry in again.entries() if entry.status == "quarantined"] == [3]
    assert len(again.retain(Retention(keep=1))) == 1


def test_what_an_earlier_attempt_left_is_collected(url):
    run = new_run(open_store(url))
    first = run.claim_attempt()
    run.record_base(first, None)
    left = "checkpoints/step-000000000005-a00000001-0123456789abcdef"
    run.store.write(f"{left}/params/c/0", [b"half"])
    save(run, first, 1)
    assert run.collect(0) == []
    run.record_base(run.claim_attempt(), None)
    assert run.collect(3600) == []
    assert [garbage.directory for garbage in run.collect(0)] == [left]
    assert run.store.list(left) == {}


def test_a_large_object_goes_up_in_parts(url):
    store = open_store(url)
    block = np.arange(1 << 18, dtype=np.uint32)
    size = 5 * PART_NBYTES // block.nbytes
    assert store.write("big", [memoryview(block).cast("B")] * size) == 5 * PART_NBYTES
    assert store.list() == {"big": 5 * PART_NBYTES}
    middle = store.read("big", 3 * PART_NBYTES, 3 * PART_NBYTES + block.nbytes)
    assert middle == block.tobytes()


def test_a_write_that_fails_half_way_publishes_nothing(url):
    store = open_store(url)
    store.write("old", [b"stays"])

    def half():
        yield bytes(3 * PART_NBYTES)
        raise RuntimeError("the disk of the reader is gone")

    for key in ("new", "old"):
        store.deadline_s = 0
        with pytest.raises(StorageError, match="is gone"):
            store.write(key, half())
    assert store.list() == {"old": 5}


def test_a_writer_that_is_killed_publishes_nothing(url):
    code = (
        "import sys, time\n"
        "from storage.store import open_store\n"
        "def endless():\n"
        "    for i in range(40):\n"
        "        yield bytes(1 << 20)\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        "open_store(sys.argv[1]).write('big', endless())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert open_store(url).list() == {}


def test_arrays_are_saved_loaded_and_copied(url, tmp_path):
    arrays = {"a": np.arange(1000.0), "b": np.ones((3, 4), np.float32), "none": np.zeros((0, 5), np.int8)}
    storage.save(url, arrays, keep=2)
    storage.save(url, {name: values + 1 for name, values in arrays.items()})
    assert np.array_equal(storage.load(url)["a"], arrays["a"] + 1)
    assert np.array_equal(storage.open(f"{url}#0")["b"][1, :2], [1, 1])
    here = str(tmp_path / "copy")
    copy(url, here)
    assert np.array_equal(storage.load(here)["a"], arrays["a"] + 1)
    back = url + "-back"
    copy(here, back)
    assert storage.verify(back).faults == ()


def test_zarr_opens_a_checkpoint(url):
    zarr = pytest.importorskip("zarr")
    run = new_run(open_store(url))
    directory, _ = save(run, run.claim_attempt(), 1)
    place, options = url, None
    if url.startswith("s3:"):  # else zarr gets what fsspec has made for another server
        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    elif url.startswith("sftp:"):  # nothing that fsspec has for SSH is fit for zarr
        place = f"/{url.split('/', 3)[3]}"
    group = zarr.open_group(f"{place}/{directory}", mode="r", storage_options=options)
    assert group["params"][:].tobytes() == buffers(ARRAYS, 1)["params"][: ARRAYS[0].length].tobytes()


def test_the_doctor_finds_a_service_to_be_well_and_leaves_nothing(url):
    found = [*doctor.place(url)]
    assert [finding.level for finding in found] == ["ok", "ok", "ok"], found
    assert open_store(url).list() == {}


def test_a_bucket_that_does_not_exist_is_a_configuration_error(url):
    scheme = url.partition("://")[0]
    store = open_store(f"{scheme}://no-such-bucket/run")
    begin = time.monotonic()
    for act in (lambda: store.write("k", [b"x"]), lambda: store.create("k", b"x")):
        with pytest.raises((ConfigurationError, StorageError), match="no-such-bucket"):
            act()
    assert time.monotonic() - begin < 60


def test_a_server_that_does_not_answer_is_a_storage_error(tmp_path_factory, tmp_path):
    with SERVERS["s3"](tmp_path) as (environment, _):
        pass
    with settings({**environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}):
        store = open_store("s3://bucket/run")
        store.deadline_s = 0
        with pytest.raises(StorageError, match="s3://bucket/run"):
            store.list()


@pytest.fixture
def not_exclusive(tmp_path):
    """A place on a server whose conditional writes overwrite."""
    with SERVERS["rclone"](tmp_path) as (environment, new_bucket), settings(environment):
        yield new_bucket()


def test_the_probe_notices_a_server_without_conditional_writes(not_exclusive):
    run = RunDirectory(open_store(not_exclusive))
    assert run.probe_exclusive() is False
    assert run.store.list() == {}
    assert run.store.create("k", b"one") is True
    assert run.store.create("k", b"two") is False  # looked for first, now that it is known
    assert run.store.read("k") == b"one"


def test_the_doctor_tells_of_a_server_without_conditional_writes(not_exclusive):
    found = [*doctor.place(f"{not_exclusive}/asked")]
    assert [finding.level for finding in found] == ["ok", "ok", "warn"], found
    assert "both win" in found[-1].text


def test_claims_are_unique_even_there(not_exclusive):
    def claim(_):
        run = RunDirectory(open_store(not_exclusive))
        run.probe_exclusive()
        return run.claim_attempt().number

    with ThreadPoolExecutor(4) as pool:
        numbers = [*pool.map(claim, range(8))]
    assert len(set(numbers)) == 8, numbers
