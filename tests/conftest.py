"""What tests share: places for runs, reference results, one Ray instance, and the search for leftovers."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

from tests.integration.harness import ROOT, Place, alive, describe, is_role, signal_all

settings.register_profile("without deadlines", deadline=None)  # no test fails for a machine that is busy
settings.load_profile("without deadlines")

Reference = Callable[..., dict[str, Any]]

RAY_HOST = """
import sys
import ray

context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print("ADDRESS", context.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Fail the session if it leaves a process or a file in its own shared memory behind."""
    base = Path("/dev/shm")
    shm = Path(tempfile.mkdtemp(prefix="pytest-hf-", dir=base if base.is_dir() else None))
    os.environ["HOLDFAST_SHM_DIR"] = str(shm)  # sessions that run at once do not see each other's
    me = psutil.Process()
    old = {process.pid for process in me.children(recursive=True)}
    yield
    deadline = time.monotonic() + 10

    def children() -> list[psutil.Process]:
        return alive(process for process in me.children(recursive=True) if process.pid not in old)

    while children() and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [line for line in describe(children()).splitlines() if "resource_tracker" not in line]
    assert not left, "processes outlive the test session:\n" + "\n".join(left)
    files = sorted(shm.iterdir())
    shutil.rmtree(shm)
    assert not files, f"shared memory outlives the test session: {files}"


def _opened(place: Place) -> Iterator[Place]:
    yield place
    strays = place.close()
    assert not strays, "processes outlived their test and were killed:\n" + "\n".join(strays)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place of the test's own."""
    yield from _opened(Place(tmp_path))


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place for the runs that several tests of a module look at."""
    yield from _opened(Place(tmp_path_factory.mktemp("shared")))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    """`reference(steps=60, hidden=16, ...)`: the result of the undisturbed tiny job with one worker."""
    place = Place(tmp_path_factory.mktemp("reference"))
    known: dict[str, dict[str, Any]] = {}

    def result(steps: int = 60, **settings: object) -> dict[str, Any]:
        name = "-".join([f"steps={steps}", *(f"{key}={value}" for key, value in sorted(settings.items()))])
        if name not in known:
            known[name] = place.run(run_dir=name, workers=1, steps=steps, settings=settings).done()
            place.assert_nothing_left()
        return known[name]

    yield result
    place.close()


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of reference data, or a skip that says what is missing."""
    path = Path(os.environ.get("REFERENCE_DATA") or ROOT.parent / "shared").resolve()
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}: set REFERENCE_DATA to the folder that holds it")
    return path


class RayHost:
    """A process that holds a local Ray of 2 CPUs for the session."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.log = place.root / "ray.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", RAY_HOST],
                env=place.env,
                cwd=place.root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.popen.stdout is not None
        words = next((line.split() for line in self.popen.stdout if line.startswith("ADDRESS ")), None)
        self.address = words[1] if words else None

    def actors(self, role: str = "") -> list[psutil.Process]:
        """The living processes of Holdfast's actors of one role, or of all."""
        try:
            tree = psutil.Process(self.popen.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        roles = (role,) if role else ("worker", "agent", "writer")
        return alive(each for each in tree if any(is_role(each, name) for name in roles))

    def close(self) -> None:
        """Stop Ray, by force after 20 s."""
        try:
            tree = psutil.Process(self.popen.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            tree = []
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        try:
            self.popen.stdin.close()
            self.popen.wait(20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.popen.kill()
            self.popen.wait(10)
        self.popen.stdout.close()
        signal_all(tree, 9)


@pytest.fixture(scope="session")
def ray_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHost]:
    """The one Ray instance of the session; a start that fails (cold disk) is tried once more."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    place = Place(tmp_path_factory.mktemp("ray"), token)
    host = RayHost(place)
    if host.address is None:
        host.close()
        host = RayHost(place)
    if host.address is None:
        host.close()
        place.close()
        pytest.fail(f"Ray did not start:\n{host.log.read_text()[-5000:]}")
    yield host
    host.close()
    place.close()


@pytest.fixture
def ray_place(tmp_path: Path, ray_host: RayHost) -> Iterator[Place]:
    """A place whose runs use the session's Ray; its memory directory is the one that Ray's actors see."""
    env = {key: ray_host.place.env[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    assert ray_host.address is not None
    place = Place(tmp_path, env | {"RAY_ADDRESS": ray_host.address}, shm=ray_host.place.shm)
    try:
        yield from _opened(place)
    finally:
        signal_all(ray_host.actors(), 9)  # so that one failed test does not starve the next of CPUs
        place.forget_memory()
