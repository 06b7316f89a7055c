"""Jobs and surroundings that do not behave: output where it does not belong, children, closed pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.integration.harness import LIMIT_S, saved

if TYPE_CHECKING:
    from tests.integration.harness import Place

NOISY = """
import os
import sys

import tiny

os.write(1, b"written to the descriptor\\n")
os.system("echo from a child")
print("printed")


def job():
    print("printed by job()")
    return tiny.job()
"""

CHILDREN = """
import dataclasses
import multiprocessing
import time

import tiny


def forever():
    time.sleep(600)


def job():
    base = tiny.job(steps=20)

    def data():
        child = multiprocessing.get_context("fork").Process(target=forever)
        child.start()
        child.terminate()
        child.join(20)
        assert child.exitcode is not None, "the child ignored SIGTERM"
        return base.data()

    return dataclasses.replace(base, data=data)
"""

SLOW_IMPORT = """
import time

open({flag!r}, "w").close()
time.sleep(60)
"""


def test_standard_output_holds_the_result_alone_whatever_the_job_writes(place: Place) -> None:
    place.file("noisy.py", NOISY)
    outcome = place.run("noisy.py")
    assert outcome.done()["step"] == 60
    assert "from a child" in outcome.stderr


def test_a_run_goes_on_when_nobody_reads_what_it_says(place: Place) -> None:
    """As after Ctrl-C in `holdfast run ... 2>&1 | tee log`."""
    reading, writing = os.pipe()
    words = [sys.executable, "-m", "orchestrator", *place.command()]
    process = subprocess.Popen(words, cwd=place.root, env=place.env, stdout=writing, stderr=writing)
    os.close(writing)
    os.close(reading)
    assert process.wait(LIMIT_S) == 0
    assert saved(place.root / "run")[-1].step == 60
    assert place.cli("status", "run", "--json").result["status"] == "done"


def test_children_of_the_job_can_be_ended_as_usual(place: Place) -> None:
    place.file("children.py", CHILDREN)
    place.run("children.py").done()
    place.assert_nothing_left()


def test_sigterm_while_the_job_file_is_read_is_a_preemption(place: Place) -> None:
    flag = place.root / "loading"
    place.file("slow_import.py", SLOW_IMPORT.format(flag=str(flag)))
    run = place.begin("slow_import.py")
    run.until(flag.exists, "the job file to be read")
    run.popen.send_signal(signal.SIGTERM)
    outcome = run.wait()
    assert json.loads(outcome.expect(75).stdout)["status"] == "preempted"


def test_a_run_that_is_done_refuses_another_model(place: Place) -> None:
    place.run(steps=20).done()
    outcome = place.run(steps=20, settings={"hidden": 32}, as_json=False)
    outcome.one_clear_line(2, r"dense/kernel", "16", "32")
    result = place.cli("status", "run", "--json").result
    assert (result["status"], result["step"]) == ("done", 20)


def test_a_refused_job_does_not_change_how_far_the_run_is(place: Place) -> None:
    place.run(steps=20).done()
    refused = place.run(steps=40, settings={"hidden": 32})
    assert refused.expect(2).result["step"] == 20
    assert place.cli("status", "run", "--json").result["step"] == 20
    result = place.run(steps=40).done()
    assert (result["step"], result["restarts"]) == (40, 0)


def test_the_last_line_says_what_the_job_raised(place: Place) -> None:
    place.file("broken.py", "def job(:\n    pass\n")
    outcome = place.run("broken.py", as_json=False).expect(1)
    assert "SyntaxError" in outcome.stderr.splitlines()[-1], str(outcome)
    assert "importlib" not in outcome.stderr
    place.file("raising.py", "import tiny\n\njob = tiny.job()\nraise ValueError('no such data')\n")
    outcome = place.run("raising.py", as_json=False).expect(1)
    assert "ValueError: no such data" in outcome.stderr.splitlines()[-1], str(outcome)
    assert "orchestrator" not in outcome.stderr
