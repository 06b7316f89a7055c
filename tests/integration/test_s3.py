"""The storage contract, a whole checkpoint, and the errors, against a real S3 server (moto)."""

import urllib.request
import uuid

import numpy as np
import pytest

from storage.checkpoint import restore
from storage.errors import ConfigurationError, CorruptCheckpoint, StorageError
from storage.store import open_store
from storage.testing import StoreContract
from tests.unit.storage.states import ARRAYS, buffers, empty, new_run, save

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def server():
    """The endpoint of a server of our own on a free port of this machine."""
    moto = pytest.importorskip(
        "moto.server", reason="moto[server] is not installed: pip install 'holdfast[test]'"
    )
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'holdfast[s3]'")
    running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)
    yield f"http://{host}:{port}"
    patch.undo()
    running.stop()


@pytest.fixture
def url(server):
    """A new, empty bucket."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    request = urllib.request.Request(f"{server}/{bucket}", method="PUT")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200
    return f"s3://{bucket}/runs/one"


class TestS3(StoreContract):
    @pytest.fixture
    def store(self, url):
        return open_store(url)


def test_a_checkpoint_is_saved_found_restored_and_its_damage_named(url):
    store = open_store(url)
    run = new_run(store)
    attempt = run.claim_attempt()
    run.record_base(attempt, None)
    save(run, attempt, 1)
    save(run, attempt, 2, num_writers=2)
    latest = new_run(open_store(url)).latest()
    assert latest is not None
    assert (latest.step, latest.status) == (2, "latest")
    into = empty(ARRAYS)
    restore(store, latest.directory, latest.manifest, ARRAYS, into)
    for name, values in buffers(ARRAYS, 2).items():
        assert np.array_equal(into[name], values)

    store.write(f"{latest.directory}/params/c/0", [store.read(f"{latest.directory}/params/c/0")[:-1]])
    with pytest.raises(CorruptCheckpoint, match="params/c/0"):
        restore(store, latest.directory, latest.manifest, ARRAYS, into)
    fallen_back = run.latest()
    assert fallen_back is not None
    assert fallen_back.step == 1
    save(run, attempt, 3)
    assert run.retain(1) == [fallen_back.directory]


def test_zarr_opens_a_checkpoint_on_s3(url):
    zarr = pytest.importorskip("zarr")
    run = new_run(open_store(url))
    attempt = run.claim_attempt()
    directory, _ = save(run, attempt, 1)
    group = zarr.open_group(f"{url}/{directory}", mode="r")
    values = buffers(ARRAYS, 1)["params"][: ARRAYS[0].length]
    assert group["params"][:].tobytes() == values.tobytes()


def test_a_bucket_that_does_not_exist_is_a_configuration_error(server):
    store = open_store("s3://there-is-no-such-bucket/run")
    assert store.list() == {}
    with pytest.raises(ConfigurationError, match="s3://there-is-no-such-bucket/run"):
        store.write("k", [b"x"])
    with pytest.raises(ConfigurationError, match="s3://there-is-no-such-bucket/run"):
        store.create("k", b"x")


def test_a_server_that_does_not_answer_is_a_storage_error(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match="s3://bucket/run"):
        open_store("s3://bucket/run").list()
