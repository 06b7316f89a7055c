"""A run as it is seen on a terminal and in a notebook."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import nbclient
import nbformat

if TYPE_CHECKING:
    import pytest

    from tests.integration.harness import Place

PRINTING = """
import sys
from dataclasses import replace
from tiny import job as tiny

def job(delay_s: float = 0.0, steps: int = 100):
    made = tiny(delay_s=delay_s, steps=steps)
    def model():
        print("a worker has begun")
        print("and complains", file=sys.stderr)
        return made.model()
    return replace(made, model=model)
"""

NOTEBOOK = """
import orchestrator as orc
from printing import job

result = orc.run(job(delay_s=0.02, steps=60), "run", workers=2, runtime="process")
print(result.status, result.step)
"""


def test_on_a_terminal_there_is_a_bar_with_facts_and_the_result_below(place: Place) -> None:
    place.file("printing.py", PRINTING)
    reader, writer = pty.openpty()
    words = place.command("printing.py", steps=60, settings={"delay_s": 0.02}, as_json=False)
    command = [sys.executable, "-m", "orchestrator", *words]
    environment = {**place.env, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, cwd=place.root, env=environment
    ) as run:
        os.close(writer)
        shown = b""
        with suppress(OSError):  # the end of a terminal
            while data := os.read(reader, 65536):
                shown += data
        os.close(reader)
        assert run.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"training ━+.* \d+/60 0:0\d", text), text
    assert re.search(r"loss \S+ .*\d+ steps/s  2 workers  checkpoint \d+", text), text
    for words in ("a worker has begun", "and complains"):  # above the bar, and once
        assert [text.count(f"worker {rank}: {words}\r\n") for rank in (0, 1)] == [1, 1], text
        assert text.count(words) == 2, text
    assert re.search(r"\ndone at step 60, .*\nattempt 1, ", text.replace("\r", "")), text
    place.assert_nothing_left()


def test_in_a_notebook_one_place_is_drawn_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.file("printing.py", PRINTING)
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    kernel = {"name": "python3", "display_name": "Python", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(NOTEBOOK)], metadata={"kernelspec": kernel}
    )
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(place.root)}}, kernel_name="python3"
    )
    client.execute()
    (cell,) = notebook.cells
    kinds = [output.output_type for output in cell.outputs]
    assert kinds.count("display_data") == 1, kinds
    (html,) = (each.data["text/html"] for each in cell.outputs if each.output_type == "display_data")
    assert 'max="60"' in html
    assert re.search(r"loss \S+, .*\d+ steps/s, \d workers?, checkpoint 60", html), html
    said = "".join(
        each.text for each in cell.outputs if each.output_type == "stream" and each.name == "stdout"
    )
    *lines, last = said.splitlines()
    assert sorted(lines) == [
        f"worker {r}: {t}" for r in (0, 1) for t in ("a worker has begun", "and complains")
    ]
    assert last == "done 60"
    place.assert_nothing_left()
