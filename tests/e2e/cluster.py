"""A Ray cluster as users start it: `ray start --head`, `ray start --address`, with job server and token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.integration.harness import alive, is_role, wait_for
from tests.integration.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
START_S = 180.0
OBJECT_STORE_NBYTES = 100_000_000
MARK = "HOLDFAST_E2E_CLUSTER"


class Cluster:
    """A head with two CPUs, and as many nodes more as are added; each can be killed by itself.

    `env` is what a user sets to use it.
    """

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.token_file = root / "token"
        self.token = secrets.token_hex(32)
        self.token_file.write_text(self.token)
        self.token_file.chmod(0o600)
        self.tmp = Path(tempfile.mkdtemp(prefix="hfe-"))  # short: Ray's sockets lie in it
        self.shm = Path(tempfile.mkdtemp(prefix="hf-e2e-", dir="/dev/shm"))
        self.mark = uuid.uuid4().hex
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.log = root / "ray.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HOLDFAST_"))}
        self.auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        self.env = clean | self.auth | dict(env) | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        self._nodes_env = (
            clean
            | self.auth
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_enable_open_telemetry": "0",
                "RAY_DISABLE_IMPORT_WARNING": "1",
                "HOLDFAST_SHM_DIR": str(self.shm),
                MARK: self.mark,
            }
        )

    def start(self) -> None:
        """Start the head, at the same ports each time."""
        self._ray(
            "head", "start", "--head", f"--port={self.port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", f"--temp-dir={self.tmp}", "--node-ip-address=127.0.0.1",
            "--num-cpus=2", "--labels=ray.io/market-type=on-demand",
            f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}",
        )  # fmt: skip
        wait_for(self._answers, "the job server", START_S, 0.5)

    def add_node(self, name: str) -> None:
        """Start another node with two CPUs."""
        self._ray(
            name, "start", f"--address=127.0.0.1:{self.port}", "--num-cpus=2", "--node-ip-address=127.0.0.1",
            "--labels=ray.io/market-type=spot", f"--dashboard-agent-listen-port={free_port()}",
            f"--metrics-export-port={free_port()}",
        )  # fmt: skip

    def _ray(self, node: str, *words: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", *words]
        command += [f"--object-store-memory={OBJECT_STORE_NBYTES}", "--disable-usage-stats"]
        with self.log.open("ab") as log:
            done = subprocess.run(
                command, env=self._nodes_env | {f"{MARK}_NODE": node}, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, timeout=START_S, check=False, cwd=self.tmp,
            )  # fmt: skip
        assert done.returncode == 0, self.log.read_text()[-5000:]

    def _answers(self) -> bool:
        request = urllib.request.Request(f"{self.address}/api/version")
        request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def processes(self, node: str | None = None) -> list[psutil.Process]:
        """The living processes of one node, or of all; found by what they have inherited."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environ = process.environ()
                if environ.get(MARK) == self.mark and node in (None, environ.get(f"{MARK}_NODE")):
                    found.append(process)
        return alive(found)

    def workers(self, node: str | None = None) -> list[psutil.Process]:
        """The actors of Holdfast's workers."""
        return [each for each in self.processes(node) if is_role(each, "worker")]

    def commands(self, word: str) -> list[psutil.Process]:
        """The processes whose command line has this word, without the shell that Ray starts for a job."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if word in process.cmdline():
                    found.append(process)
        return found

    def kill(self, node: str | None = None) -> None:
        """SIGKILL for all processes of a node, or of the cluster; the memory goes with the whole cluster."""
        deadline = time.monotonic() + 20
        while (left := self.processes(node)) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.1)
        assert not left, left
        if node is None:
            for path in self.shm.glob("*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        """End and remove everything."""
        self.kill()
        shutil.rmtree(self.tmp, ignore_errors=True)
        shutil.rmtree(self.shm, ignore_errors=True)
