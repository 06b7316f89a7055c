"""What a run's processes print is in its directory, every line once, whoever is killed; `holdfast logs`."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.harness import Place

JOB = """
import os, sys, time
from dataclasses import replace
from pathlib import Path

from orchestrator import Checkpoints
from orchestrator.examples.quadratic import Quadratic, job as base

TRUTH = Path(__file__).parent / "truth"
TRUTH.mkdir(exist_ok=True)


class Chatty(Quadratic):
    count = 0

    def loss_and_grad(self, *arguments, **named):
        self.count += 1
        text = f"{os.getpid()} microbatch {self.count}"
        if self.count % 2:
            print(text)
        else:
            print(text, file=sys.stderr)
        with open(TRUTH / str(os.getpid()), "a") as file:
            file.write(text + "\\n")
        if self.count % 10 == 0:
            os.write(2, f"{os.getpid()} raw {self.count}\\n".encode())
        time.sleep(0.004)
        return super().loss_and_grad(*arguments, **named)


def job(fail_at: int = 0):
    return replace(base(), model=lambda: Chatty(0.01), checkpoints=Checkpoints(every_steps=50))
"""


def logs(place: Place, run_dir: str, *words: str) -> list[dict[str, Any]]:
    said = place.cli("logs", run_dir, "--json", *words).expect(0).stdout
    return [json.loads(line) for line in said.splitlines()]


def assert_all_that_was_printed(root: Path, lines: list[dict[str, Any]]) -> None:
    """Each line that a worker printed is there once, in the order of printing."""
    printed = {path.name: path.read_text().splitlines() for path in (root / "truth").iterdir()}
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if " microbatch " in line["text"]:
            assert line["text"].startswith(f"{line['pid']} ")
            found[str(line["pid"])].append(line["text"])
    for pid, truth in printed.items():
        assert found[pid][: len(truth)] == truth
        assert len(found[pid]) <= len(truth) + 1  # killed between the two ways of writing it
    raw = [line["text"] for line in lines if line.get("stream") == "raw" and " raw " in line["text"]]
    assert len(raw) == len(set(raw)) > 0


def test_nothing_printed_is_lost_or_doubled_by_kills(place: Place) -> None:
    place.file("chatty.py", JOB)
    faults = [
        {"kill": "worker", "rank": 1, "step": 60, "phase": "forward"},
        {"kill": "coordinator", "phase": "after", "step": 100},
        {"kill": "agent", "step": 300, "phase": "gradient", "once": str(place.root / "struck")},
    ]
    run = place.run("chatty.py", "run", steps=400, faults=faults).done()
    assert run["worker_deaths"] >= 1
    lines = logs(place, "run")
    assert_all_that_was_printed(place.root, lines)
    attempts = {line["attempt"] for line in lines if line["role"] == "worker"}
    assert len(attempts) == 3, "of the coordinators before and after its death, and after the agent's"
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    told = [line["text"] for line in lines if line["role"] == "coordinator"]
    assert any("killed" in text for text in told)
    last = logs(place, "run", "--attempt", str(max(attempts)))
    assert last == [line for line in lines if line["attempt"] == max(attempts)]
    ranked = logs(place, "run", "--rank", "1")
    assert ranked == [line for line in lines if (line["role"], line["rank"]) == ("worker", 1)]
    assert logs(place, "run", "--coordinator") == [line for line in lines if line["role"] == "coordinator"]
    assert 0 < len(ranked) < len(lines)


def test_followed_through_a_kill_of_everything(place: Place) -> None:
    place.file("chatty.py", JOB)
    started = place.begin("chatty.py", "run", steps=500)
    started.until(lambda: list((place.root / "run/logs").glob("*.jsonl")), "lines in the run directory")
    started.kill_everything()
    again = place.begin("chatty.py", "run", steps=500)
    again.until(lambda: "running" in place.cli("status", "run").stdout, "the run to go on")
    followed = place.start(["logs", "run", "-f", "--json"])
    again.wait().done()
    lines = [json.loads(line) for line in followed.wait(20).expect(0).stdout.splitlines()]
    assert_all_that_was_printed(place.root, lines)
    assert {line["attempt"] for line in lines if line["role"] == "worker"} == {1, 2}
    shown = place.cli("logs", "run", "--rank", "0").expect(0).stdout.splitlines()
    assert len(shown) == len([line for line in lines if (line["role"], line["rank"]) == ("worker", 0)])
    date, clock, attempt, *_ = shown[0].split()
    assert (len(date), len(clock), attempt) == (10, 12, "1")


def test_a_traceback_is_shown_line_by_line(place: Place) -> None:
    place.file(
        "raises.py",
        "from orchestrator import Job\n\n\ndef model():\n    raise ValueError('no model')\n\n\n"
        "job = Job(model=model, data=list, batch_size=4, microbatches=2, steps=5)\n",
    )
    place.run("raises.py", "run").expect(1)
    lines = place.cli("logs", "run", "--coordinator").expect(0).stdout.splitlines()
    assert any(line.endswith("Traceback (most recent call last):") for line in lines)
    assert "        raise ValueError('no model')" in lines


def test_bad_input(place: Place) -> None:
    place.cli("logs", "nowhere").one_clear_line(2, "nowhere")
    place.run("tiny.py", "run").done()
    place.cli("logs", "run", "--rank", "0", "--coordinator").one_clear_line(2, "give one of them")
    none = place.cli("logs", "run", "--attempt", "9").expect(0)
    assert (none.stdout, none.stderr) == ("", "run has no such lines\n")
    (place.root / "run/logs").mkdir(exist_ok=True)
    (place.root / f"run/logs/a00000001-{'0' * 16}-000000.jsonl").write_bytes(b"[" * 10_000 + b"\n\x1b[2J\n")
    damaged = place.cli("logs", "run").expect(0)
    assert "\x1b" not in damaged.stdout
    assert "damaged" in damaged.stdout
