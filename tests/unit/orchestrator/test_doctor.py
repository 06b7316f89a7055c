"""What the doctor makes of what it finds."""

from __future__ import annotations

import json
import socket
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import doctor
from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

VERSION = json.dumps({"ray_version": version("ray")}).encode()


@pytest.mark.parametrize(
    ("at", "level", "text"),
    [
        (101.0, "ok", "agree"),
        (96.0, "ok", "agree"),
        (40.0, "warn", "differ by 60 s"),
        (3702.0, "warn", "differ by 3600 s"),
        (None, "warn", "does not say"),
    ],
)
def test_a_clock_that_is_far_away_is_told(at: float | None, level: str, text: str) -> None:
    found = doctor.skew("storage", at, 100.0, 102.0)
    assert found.level == level
    assert text in found.text


def levels(address: str, status: int = 200, answer: bytes = VERSION, *, open_to_all: bool) -> list[str]:
    return [each.level for each in doctor.server("Ray", address, status, answer, open_to_all=open_to_all)]


def test_a_cluster_that_is_open_to_the_network_is_told() -> None:
    assert levels("http://127.0.0.1:8265", open_to_all=True) == ["ok", "ok"]
    assert levels("https://ray.example.com", open_to_all=False) == ["ok", "ok"]
    assert levels("https://ray.example.com", open_to_all=True) == ["ok", "warn"]
    assert levels("http://10.0.0.7:8265", open_to_all=False) == ["ok", "ok", "warn"]


@pytest.mark.parametrize(
    ("status", "answer", "text"),
    [
        (401, b"", "token"),
        (404, b"", "no job server of Ray"),
        (200, b"<html>", "no job server of Ray"),
        (200, b'{"ray_version": "2.9.0"}', "version 2.9.0, and"),
    ],
)
def test_a_cluster_that_will_not_do_is_told(status: int, answer: bytes, text: str) -> None:
    found = next(iter(doctor.server("Ray", "https://x", status, answer, open_to_all=False)))
    assert (found.level, text in found.text) == ("fail", True), found
    assert found.advice


def test_little_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = None
    for nbytes, level in ((64 << 20, "warn"), (8 << 30, "ok")):
        monkeypatch.setattr(doctor, "SHARED_MEMORY_NBYTES", 1 << 30)
        monkeypatch.setattr("workers.processes.available_memory", lambda _, nbytes=nbytes: nbytes)
        found = next(each for each in doctor.machine() if each.what.startswith("shared memory"))
        assert found.level == level, found


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = doctor.place(str(tmp_path / "file" / "runs"))
    assert found.level == "fail"
    assert "\n" not in str(found)


def test_what_is_no_job_server_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-server\r\n")

        threading.Thread(target=answer, daemon=True).start()
        (found,) = doctor.cluster(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert (found.level, "speaks no HTTP" in found.text) == ("fail", True)
    with pytest.raises(ConfigurationError, match="nonnumeric port"):
        next(doctor.cluster("http://127.0.0.1:abc"))


def test_the_command_says_all_and_fails_if_anything_does(tmp_path: Path, capsys: Any) -> None:
    assert doctor.doctor(str(tmp_path), None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["level"] for each in found} <= {"ok", "warn"}
    assert [*tmp_path.iterdir()] == []
    assert doctor.doctor(str(tmp_path / "new" / "runs"), None, as_json=True) == 0
    assert not (tmp_path / "new").exists()
    capsys.readouterr()
    assert doctor.doctor(None, "http://127.0.0.1:9", as_json=False) == 3
    assert "fail  Ray at http://127.0.0.1:9: nothing answers there" in capsys.readouterr().out
