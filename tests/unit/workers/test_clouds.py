"""Notices of the clouds, asked of a server that answers as their metadata services do."""

from __future__ import annotations

import secrets
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from storage.errors import ConfigurationError
from workers.channel import accept, address_for, listen, wait_readable
from workers.clouds import CloudNotice, look_at, watch_clouds

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 11, 25, 8, 20, tzinfo=UTC).timestamp()
AWS = {"/latest/meta-data/spot/instance-action": '{"action": "terminate", "time": "2026-11-25T08:22:00Z"}'}
AZURE_EVENT = (
    '{"DocumentIncarnation": 2, "Events": [{"EventId": "1", "EventStatus": "Scheduled", "EventType": "%s",'
    ' "ResourceType": "VirtualMachine", "Resources": ["%s"], "NotBefore": "Wed, 25 Nov 2026 08:20:40 GMT"}]}'
)


class Metadata(ThreadingHTTPServer):
    """A metadata service: `says` maps paths to answers, all else is 404."""

    def __init__(self) -> None:
        self.says: dict[str, str] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        text = self.server.says.get(self.path.partition("?")[0])
        needs = {"/computeMetadata": ("Metadata-Flavor", "Google"), "/metadata": ("Metadata", "true")}
        needs["/latest/meta-data"] = ("X-aws-ec2-metadata-token", "a token")
        for prefix, (header, value) in needs.items():
            if self.path.startswith(prefix) and self.headers.get(header) != value:
                text = None
                self.send_response(401)
                self.end_headers()
                return
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        server.says["/latest/api/token"] = "a token"
        server.says["/metadata/instance/compute/name"] = "vm-1"
        server.says["/computeMetadata/v1/instance/preempted"] = "FALSE"
        server.says["/metadata/scheduledevents"] = '{"DocumentIncarnation": 1, "Events": []}'
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_machine_that_stays_gives_no_notice(metadata: Metadata, cloud: str) -> None:
    assert look_at(cloud, metadata.url)(NOW) is None
    assert metadata.asked


def test_a_spot_instance_tells_when_it_ends(metadata: Metadata) -> None:
    metadata.says |= AWS
    notice = look_at("aws", metadata.url)(NOW)
    assert notice == CloudNotice("EC2 will terminate this spot instance at 2026-11-25T08:22:00Z", 120.0)
    method, path, headers = metadata.asked[0]
    assert (method, path) == ("PUT", "/latest/api/token")
    assert "x-aws-ec2-metadata-token-ttl-seconds" in {name.lower() for name in headers}


def test_a_preempted_instance_of_google_has_30_seconds(metadata: Metadata) -> None:
    metadata.says["/computeMetadata/v1/instance/preempted"] = "TRUE"
    assert look_at("gcp", metadata.url)(NOW) == CloudNotice("Compute Engine preempts this instance", 30.0)


def test_azure_names_the_machines_that_an_event_is_about(metadata: Metadata) -> None:
    look = look_at("azure", metadata.url)
    metadata.says["/metadata/scheduledevents"] = AZURE_EVENT % ("Preempt", "vm-2")
    assert look(NOW) is None
    metadata.says["/metadata/scheduledevents"] = AZURE_EVENT % ("Freeze", "vm-1")
    assert look(NOW) is None
    metadata.says["/metadata/scheduledevents"] = AZURE_EVENT % ("Preempt", "vm-1")
    assert look(NOW) == CloudNotice("Azure says that this machine is to preempt", 40.0)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@pytest.mark.parametrize("text", ["", "not JSON", "[]", "{}", '{"Events": 3}', '{"Events": [{}]}'])
def test_what_makes_no_sense_is_no_notice(metadata: Metadata, cloud: str, text: str) -> None:
    for path in ("/latest/meta-data/spot/instance-action", "/metadata/scheduledevents"):
        metadata.says[path] = text
    metadata.says["/computeMetadata/v1/instance/preempted"] = text
    assert look_at(cloud, metadata.url)(NOW) is None


def test_nobody_there_is_no_notice() -> None:
    assert look_at("aws", "http://127.0.0.1:9")(NOW) is None


def test_an_unknown_cloud_is_named() -> None:
    with pytest.raises(ConfigurationError, match="HOLDFAST_NOTICES=moon: give one of aws, gcp, azure"):
        look_at("moon")


def test_the_agent_is_told(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata.says["/computeMetadata/v1/instance/preempted"] = "TRUE"
    monkeypatch.setenv("HOLDFAST_NOTICES", "gcp")
    monkeypatch.setenv("HOLDFAST_NOTICES_URL", metadata.url)
    address = address_for(secrets.token_hex(8))
    with listen(address) as listener:
        watch_clouds(address)
        assert wait_readable(listener.fileno(), 20)
        channel = accept(listener)
        assert channel is not None
        assert channel.receive() == ("notice", "Compute Engine preempts this instance", 30.0)
        channel.close()


def test_nothing_is_asked_unless_wanted(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_NOTICES", raising=False)
    monkeypatch.setenv("HOLDFAST_NOTICES_URL", metadata.url)
    before = threading.active_count()
    watch_clouds("nowhere")
    assert threading.active_count() == before
    assert not metadata.asked
