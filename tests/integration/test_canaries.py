"""Canaries: secrets that a job prints, raises, and has in its URLs and settings are found nowhere."""

from __future__ import annotations

import base64
import json
import re
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil  # type: ignore[import-untyped,unused-ignore]
import pyarrow.parquet as pq
import pytest

from tests.integration.test_page import get, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.harness import Place

CANARIES = {
    "CANARY_API_KEY": "canary-one-4711",
    "CANARY_TOKEN": 'canary/two+4712"\\x=',
    "DB_PASSWORD": "canary three 4713",
    "SIGNING_KEY": "-----BEGIN\ncanary-line-4717\ncanary-line-4718\n-----END",
    "PLAIN": "canary-plain-4719",  # secret because the run is given it by name
}
SECRETS = (
    *(value for name, value in CANARIES.items() if name != "SIGNING_KEY"),
    *("canary-line-4717", "canary-line-4718"),
    *("canary-four-4714", "canary-five-4715", "canary-six-4716"),  # in URLs alone
)
FORMS = sorted(
    {
        form.encode()
        for value in SECRETS
        for form in (
            value,
            quote(value, safe=""),
            json.dumps(value)[1:-1],
            repr(value)[1:-1],
            base64.b64encode(value.encode()).decode()[:-4],
        )
    }
)

JOB = """
import logging
import os
import subprocess
import sys

import numpy as np

from orchestrator import Checkpoints, Job
from workers import nn
from workers.data import ArrayDataset

KEY, TOKEN, PASSWORD = (os.environ[name] for name in ("CANARY_API_KEY", "CANARY_TOKEN", "DB_PASSWORD"))
URLS = (
    f"https://me:canary-four-4714@host/x?sig=canary-five-4715&a={TOKEN}",
    "s3://AKIAABCDEFGH:canary-six-4716@bucket/key",
)


def speak(who, plain):
    for stream in (sys.stdout, sys.stderr):
        print(f"the key of {who} is", KEY, plain, *URLS, file=stream, flush=True)
        print(os.environ["SIGNING_KEY"], repr(TOKEN), file=stream)
        for piece in (KEY[:7], KEY[7:], " in pieces\\n"):
            stream.write(piece)
            stream.flush()
        stream.buffer.write(f"as bytes {TOKEN}\\n".encode())
        stream.buffer.flush()
    logging.getLogger("canary").warning("logged %s and %s", PASSWORD, URLS[1])


class Secretive(ArrayDataset):
    def __init__(self, x, y, mode):
        super().__init__(x, y)
        self.mode = mode

    def identity(self):
        return {**super().identity(), "from": list(URLS), f"of {KEY}": PASSWORD}

    def take(self, indices):
        if 7 in indices and self.mode == "raise":
            try:
                raise OSError(13, f"no {TOKEN}", f"/tmp/{PASSWORD}")
            except OSError as error:
                raise RuntimeError(f"no access with {PASSWORD} to {URLS[0]}") from error
        if 7 in indices and self.mode == "unreadable":
            raise OSError(f"cannot read {URLS[0]} with {KEY}")
        return super().take(indices)


class Remembers(nn.callbacks.Callback):
    remembers = ("what",)
    what = None

    def on_epoch_end(self, epoch, logs=None):
        self.what = f"the token {TOKEN}"


def job(mode: str = "", password: str = "", metric: str = "", layer: str = "") -> Job:
    if mode != "api":
        speak("the job", password)

    def data():
        if mode != "api":
            speak("the data", password)
            os.write(1, f"raw {KEY} {password}\\n".encode())
            child = "import os; print('a child has', os.environ['CANARY_TOKEN'])"
            subprocess.run([sys.executable, "-c", child])
        x = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
        if mode == "diverge":
            x[:] = np.inf
        return Secretive(x, np.zeros(40, np.int64), "raise" if mode == "api" else mode)

    def model():
        m = nn.Sequential([nn.Input((4,)), nn.Dense(2, name=layer and f"dense-{KEY}" or "dense")])
        metrics = [nn.metrics.SparseCategoricalAccuracy(name=f"of-{KEY}" if metric else "accuracy")]
        m.compile(
            nn.optimizers.SGD(0.1, name=f"sgd {TOKEN}"),
            nn.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics,
        )
        return m

    return Job(
        model=model, data=data,
        validation=lambda: Secretive(np.ones((8, 4), "float32"), np.zeros(8, np.int64), ""),
        batch_size=8, microbatches=2, steps=10, checkpoints=Checkpoints(every_steps=3),
        on_data_error="skip" if mode == "unreadable" else "fail",
        callbacks=[Remembers()] if mode == "callback" else None,
    )
"""

API = """
import canary_job
import orchestrator

try:
    orchestrator.run(canary_job.job("api"), "api", workers=1, runtime="process")
except Exception as error:
    raised = error
model = canary_job.job("api").model()
try:
    orchestrator.fit(model, canary_job.job("api").data(), workers=1, run_dir="fitted", runtime="process")
except Exception as error:
    error.__context__ = raised
    raise
"""


@pytest.fixture
def secretive(place: Place) -> Place:
    """A place with secrets in its environment, and a job that gives them away wherever it can."""
    place.env |= CANARIES
    place.file("canary_job.py", JOB)
    return place


def assert_clean(place: Place) -> list[Path]:
    """No canary is in any file of a place: the run directories and what all commands have printed."""
    sources = {"canary_job.py", "api.py", "tiny.py"}
    files = [p for p in place.root.rglob("*") if p.is_file() and p.name not in sources and p.suffix != ".pyc"]
    for path in files:
        found = [path.name.encode(), path.read_bytes()]
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            found.append(repr((table.schema, table.to_pylist())).encode())
        for secret in FORMS:
            assert not any(secret in each for each in found), f"{secret!r} is in {path}"
    return files


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """The command lines of all processes of this machine, as they are seen by others meanwhile."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    seen.add(" ".join(process.cmdline()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


PLAIN = {"password": "env:PLAIN"}


def test_no_canary_is_in_a_run_and_what_commands_show_of_it(secretive: Place) -> None:
    with command_lines() as seen:
        outcome = secretive.run("canary_job.py", "runs/one", settings=PLAIN)
    outcome.done()
    for who in ("job", "data"):  # it was printed, and hidden
        line = rf"the key of the {who} is \*\*\* \*\*\* https://me:\*\*\*@host/x\?sig=\*\*\*&a=\*\*\* "
        assert re.search(line + r"s3://AKIAABCDEFGH:\*\*\*@bucket/key\n", outcome.stderr), outcome
    for text in ("*** in pieces", "as bytes ***", "logged *** and s3://AKIAABCDEFGH:***@", "raw *** ***"):
        assert text in outcome.stderr, outcome
    assert "a child has ***" in outcome.stderr

    secretive.cli("resume", "runs/one", "--steps", "14", "--json").expect()
    secretive.cli("clone", "runs/one", "runs/two", "--steps", "16").expect()
    logs = secretive.cli("logs", "runs/one").expect().stdout
    assert all(text in logs for text in ("the key of the data is *** ***", "raw *** ***", "a child has ***"))
    for words in (
        ("status", "runs/one"),
        ("status", "runs/one", "--json"),
        ("list", "runs", "--json"),
        ("logs", "runs/one", "--json"),
        ("metrics", "runs/one", "--json"),
        ("metrics", "runs/one", "--csv"),
        ("ckpt", "ls", "runs/one", "--json"),
        ("ckpt", "show", "runs/one", "--json"),
        ("ckpt", "verify", "runs/one", "--json"),
        ("report", "runs/one", "--out", "report.html"),
        ("config", "canary_job.py", "--set", "api_key=canary-one-4711", "--set", "password=env:PLAIN"),
    ):
        assert secretive.cli(*words).expect().stdout
    with served(secretive, "runs") as url:
        base, _, token = url.partition("/enter/")
        for path in ("/", "/api/runs", "/api/run?name=one", "/api/run?name=two"):
            status, _, body = get(base + path, Authorization=f"Bearer {token}")
            assert status == 200
            secretive.file(f"page-{path.strip('/').replace('/', '-')}.txt", body.decode())

    files = assert_clean(secretive)
    run = secretive.root / "runs/one"
    kinds = {path.relative_to(run).parts[0] for path in files if path.is_relative_to(run)}
    assert kinds >= {"run.json", "journal", "metrics", "logs", "attempts", "checkpoints"}
    identity = json.loads((run / "run.json").read_text())
    assert identity["data"]["of ***"] == "***"
    assert identity["data"]["from"][1] == "s3://AKIAABCDEFGH:***@bucket/key"
    began = next(entry for entry in journal_of(run) if entry["kind"] == "began")
    assert "password=env:PLAIN" in began["command"]
    assert len([line for line in seen if "workers.main" in line]) >= 4
    assert not [line for line in seen if any(secret.decode(errors="replace") in line for secret in FORMS)]


def journal_of(run: Path) -> list[dict[str, Any]]:
    """The entries of all journals of a run."""
    files = sorted((run / "journal").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("mode", ["raise", "unreadable", "diverge"])
def test_no_canary_is_in_what_a_failure_leaves(secretive: Place, mode: str) -> None:
    outcome = secretive.run("canary_job.py", settings={**PLAIN, "mode": mode})
    outcome.expect(0 if mode == "unreadable" else 1)
    assert mode == "diverge" or "***" in "".join(
        entry["text"] + str(entry.get("error")) for entry in journal_of(secretive.root / "run")
    )
    status = secretive.cli("status", "run", "--json").expect().result
    if mode == "raise":
        for text in (status["error"], outcome.result["error"], outcome.stderr):
            assert "RuntimeError: no access with *** to https://me:***@host/x?sig=***&a=***" in text
            assert "[Errno 13] no ***: '/tmp/***'" in text
    secretive.cli("status", "run").expect()
    secretive.cli("logs", "run").expect()
    secretive.cli("report", "run", "--out", "report.html").expect()
    files = assert_clean(secretive)
    assert any("divergence" in path.parts for path in files) == (mode == "diverge")


def test_no_canary_is_in_what_the_python_api_raises(secretive: Place) -> None:
    secretive.file("api.py", API)
    outcome = secretive.python("api.py").expect(1)
    assert (
        outcome.stderr.count("RuntimeError: no access with *** to https://me:***@host/x?sig=***&a=***") >= 2
    )
    assert "storage.errors.UserCodeError" in outcome.stderr
    assert_clean(secretive)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "yes"}, r"the name of the metric 'of-\*\*\*' holds something secret"),
        ({"layer": "yes"}, r"the name of the variable '.*dense-\*\*\*.*' holds something secret"),
        ({"mode": "callback"}, r"the callbacks remember, or log, something secret"),
    ],
)
def test_secrets_that_cannot_be_hidden_are_refused(
    secretive: Place, settings: dict[str, str], message: str
) -> None:
    outcome = secretive.run("canary_job.py", settings=settings).expect(2)
    assert re.search(f"holdfast: error: .*{message}", outcome.stderr), outcome
    assert_clean(secretive)


@pytest.mark.parametrize("setting", ["api_key=canary-not-known-8", "mode=https://h/canary-one-4711"])
def test_a_secret_on_the_command_line_is_refused_and_not_passed_on(secretive: Place, setting: str) -> None:
    words = secretive.command("canary_job.py", as_json=False)
    outcome = secretive.cli(*words, "--set", setting)
    outcome.one_clear_line(2, r"--set \w+=\.\.\.: this looks secret.*env:VARIABLE")
    assert "canary-not-known-8" not in outcome.stderr
    assert_clean(secretive)
    assert not (secretive.root / "run").exists()


def test_a_command_with_something_secret_is_not_resumed_with_something_else(secretive: Place) -> None:
    folder = secretive.root / "canary-one-4711"
    folder.mkdir()
    (folder / "tiny.py").write_bytes((secretive.root / "tiny.py").read_bytes())
    secretive.run("canary-one-4711/tiny.py", steps=4).done()
    outcome = secretive.cli("resume", "run", "--steps", "8")
    outcome.one_clear_line(2, "held something secret, which is not on record: give `holdfast run`")
