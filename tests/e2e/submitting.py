"""`holdfast submit` as a user gives it, for the tiny job."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from tests.integration.harness import Progress, kill_at_once, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.e2e.cluster import Cluster
    from tests.integration.harness import Outcome, Place, Started

STEPS = 240
SETTINGS = {"delay_s": 0.02, "every": 20}
LIMIT_S = 200.0


def tiny_wheel(folder: Path, code: str) -> Path:
    """A package `extra` of one module, as pip takes it."""
    path, info = folder / "extra-1.0-py3-none-any.whl", "extra-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("extra.py", code)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"extra.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


class Submitting:
    """A cluster, and who uses it from one place."""

    place: Place

    def __init__(self, cluster: Cluster, aws: Mapping[str, str], new_url: Callable[[], str]) -> None:
        self.cluster, self.new_url = cluster, new_url
        self.names, self.auth = tuple(aws), tuple(cluster.auth)
        self.secret = aws["AWS_SECRET_ACCESS_KEY"]

    def words(self, url: str, workers: int = 2, *more: str, steps: int = STEPS) -> list[str]:
        """The arguments of `holdfast submit`."""
        words = ["submit", "tiny.py", "--address", self.cluster.address, "--run-dir", url]
        words += ["--workers", str(workers), "--cpus-per-worker", "0.5", "--steps", str(steps)]
        for name in self.names:
            words += ["--env", name]
        for name, value in (SETTINGS | {"progress": self.progress}).items():
            words += ["--set", f"{name}={value}"]
        return [*words, *more, "--json"]

    @property
    def progress(self) -> Progress:
        """How far the job of this place has come."""
        return Progress(self.place.root / "progress")

    def begin(self, url: str, workers: int = 2, *more: str, **kwargs: Any) -> Started:
        """Submit, and wait until it trains."""
        started = self.place.start(self.words(url, workers, *more, **kwargs))
        return self.trains(started)

    def trains(self, started: Started, steps: float = 30) -> Started:
        """Wait until so many steps more are made."""
        self.progress.clear()
        started.until(lambda: self.progress.steps > steps, "training", LIMIT_S)
        return started

    def edit(self, old: str, new: str) -> None:
        """Put something else into the file of the tiny job."""
        path = self.place.root / "tiny.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def status(self, url: str) -> dict[str, Any]:
        """What `holdfast status` tells of a run."""
        return self.place.cli("status", url, "--json").expect(0).result

    def cli(self, *words: str) -> Outcome:
        """Another command."""
        return self.place.cli(*words, timeout_s=LIMIT_S)

    def supervisors(self) -> list[psutil.Process]:
        """The supervisor jobs, each without the shell that Ray starts it in."""
        found = self.cluster.commands("orchestrator.supervision")
        return [each for each in found if "run" in each.cmdline()]

    def coordinators(self) -> list[psutil.Process]:
        """`holdfast run` and its child, of each job."""
        found = []
        for each in self.cluster.commands("orchestrator"):
            with suppress(psutil.Error):
                if each.cmdline()[1:4] == ["-m", "orchestrator", "run"]:
                    found.append(each)
        return found

    def kill_job(self) -> int:
        """SIGKILL for the supervisor and its children; the actors are not among them."""
        return kill_at_once([*self.supervisors(), *self.coordinators()])

    def tidy(self) -> None:
        """Wait until nothing of a run is at work, and end what is."""
        with suppress(AssertionError):
            wait_for(lambda: not self.supervisors() and not self.coordinators(), "the end", 5, 0.2)
        self.kill_job()
        wait_for(lambda: not self.cluster.workers(), "the workers to end", 60, 0.2)  # after their lease
