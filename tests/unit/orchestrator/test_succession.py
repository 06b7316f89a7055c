"""One coordinator after another, played by small programs that are real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workers.processes import ProcessId, is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="subreapers and death signals")

ROOT = Path(__file__).parents[3]

SUPERVISOR = "import sys\nfrom orchestrator.succession import supervise\nsys.exit(supervise())\n"

COORDINATOR = """
import os, signal, subprocess, sys, time
said = open("said", "a", buffering=1)
deaths = int(os.environ["HOLDFAST_COORDINATOR_DEATHS"])
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
names = [os.environ["HOLDFAST_" + name] for name in ("INVOCATION", "INVOCATION_SECRET", "SUPERVISOR")]
said.write(f"{deaths} {os.getpid()} {' '.join(names)} {' '.join(sys.argv[1:])}\\n")
"""

INHERITED = """
import sys; sys.path.insert(0, ROOT); del sys.modules["orchestrator"]
from orchestrator import succession
print(succession.inherit(), succession.predecessors(), succession.supervisor().pid == os.getppid(),
      succession.invocation() == names[0], succession.secret() == names[1],
      [name for name in os.environ if name.startswith("HOLDFAST_")], file=said)
"""


class Supervised:
    """A supervisor whose coordinators run a program of the test's."""

    def __init__(self, folder: Path, program: str) -> None:
        package = folder / "orchestrator"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "__main__.py").write_text(f"ROOT = {str(ROOT)!r}\n" + COORDINATOR + program)
        (folder / "scripts").mkdir()
        script = folder / "scripts" / "supervisor.py"
        script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + SUPERVISOR)
        self.said = folder / "said"
        self.said.write_text("")
        self.popen = subprocess.Popen(
            [sys.executable, str(script), "run", "x"], cwd=folder, stderr=subprocess.PIPE, text=True
        )

    def lines(self, count: int) -> list[list[str]]:
        """What the coordinators have said, once there are so many lines."""
        deadline = time.monotonic() + 20
        while len(found := self.said.read_text().splitlines()) < count:
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return [line.split() for line in found]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for line in (tmp_path / "said").read_text().splitlines():
        if line.endswith(" run x"):
            with suppress(ProcessLookupError):
                os.kill(int(line.split()[1]), signal.SIGKILL)


def test_a_coordinator_that_is_killed_is_followed_by_another_and_its_exit_code_counts(folder: Path) -> None:
    program = "if deaths < 2: os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(3)\n"
    supervised = Supervised(folder, program)
    _, told = supervised.popen.communicate(timeout=30)
    assert supervised.popen.returncode == 3
    lines = supervised.lines(3)
    assert [line[0] for line in lines] == ["0", "1", "2"]
    assert len({line[1] for line in lines}) == 3
    assert len({tuple(line[2:]) for line in lines}) == 1, "they share what names their agents"
    assert lines[0][4:] == [str(supervised.popen.pid), "run", "x"]
    assert told.count("the coordinator was killed by SIGKILL") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_is_passed_on(folder: Path, number: signal.Signals) -> None:
    program = f"signal.signal({number}, lambda *_: sys.exit(75))\nsaid.write('set\\n')\ntime.sleep(60)\n"
    supervised = Supervised(folder, program)
    supervised.lines(2)
    supervised.popen.send_signal(number)
    supervised.popen.communicate(timeout=30)
    assert supervised.popen.returncode == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_coordinator_that_is_killed_while_it_stops_has_no_successor(
    folder: Path, number: signal.Signals, code: int
) -> None:
    program = (
        f"signal.signal({number}, lambda *_: os.kill(os.getpid(), 9))\nsaid.write('set\\n')\ntime.sleep(60)\n"
    )
    supervised = Supervised(folder, program)
    supervised.lines(2)
    supervised.popen.send_signal(number)
    supervised.popen.communicate(timeout=30)
    assert supervised.popen.returncode == code
    assert len(supervised.lines(2)) == 2


def test_what_a_dead_coordinator_leaves_is_reaped(folder: Path) -> None:
    program = """
if deaths == 0:
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    said.write(f"orphan {orphan.pid}\\n")
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1.5)
said.write("end\\n")
time.sleep(60)
"""
    supervised = Supervised(folder, program)
    lines = supervised.lines(4)
    assert not Path(f"/proc/{lines[1][1]}").exists()
    supervised.popen.kill()
    os.kill(int(lines[2][1]), signal.SIGKILL)
    supervised.popen.communicate()


def test_a_coordinator_learns_what_its_supervisor_says_and_ends_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOLDFAST_REQUIRE_SERVERS", "HOLDFAST_SHM_DIR"):  # as the tests set them
        monkeypatch.delenv(name, raising=False)
    supervised = Supervised(folder, INHERITED + "said.write('set\\n')\ntime.sleep(60)\n")
    lines = supervised.lines(3)
    assert lines[1] == ["True", "0", "True", "True", "True", "[]"]
    coordinator = ProcessId.of(int(lines[0][1]))
    assert is_alive(coordinator)
    supervised.popen.kill()
    supervised.popen.communicate()
    deadline = time.monotonic() + 10
    while is_alive(coordinator):
        assert time.monotonic() < deadline
        time.sleep(0.01)
