"""`holdfast submit`: what it says without a cluster, and a run on a real one that nobody disturbs."""

from __future__ import annotations

import json
import shlex
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Reference
    from tests.integration.harness import Place

HERE = "http://127.0.0.1:1"


def words(place: Place, *more: str, address: str = HERE, job: str = "tiny.py") -> list[str]:
    """The arguments of a submission."""
    run_dir = str(place.root / "runs" / "one")
    return ["submit", job, "--address", address, "--run-dir", run_dir, "--workers", "2", *more]


def test_a_dry_run_shows_all_that_would_be_submitted_but_no_value(place: Place) -> None:
    place.env["MY_TOKEN"] = "canary-41"
    more = ["--env", "MY_TOKEN", "--set", "hidden=8", "--steps", "40", "--spot", "a=b", "--on-demand", "c=d"]
    outcome = place.cli(*words(place, *more, "--dry-run", "--json")).expect(0)
    assert "canary-41" not in outcome.stdout + outcome.stderr
    plan = outcome.json
    assert plan["env"] == ["MY_TOKEN"]
    assert plan["label_selector"] == {"c": "d"}
    assert plan["runtime_env"]["working_dir"] == str(place.root)
    assert "/runs/one" in plan["runtime_env"]["excludes"]
    entry = shlex.split(plan["entrypoint"])
    run = entry[entry.index("--") + 1 :]
    assert run[:4] == ["run", "tiny.py", "--run-dir", str(place.root / "runs" / "one")]
    assert run[4:] == [
        *("--workers", "2", "--address", "auto", "--cpus-per-worker", "1"),
        *("--steps", "40", "--set", "hidden=8"),
    ]
    assert "--label=a=b" in entry
    text = place.cli(*words(place, *more, "--dry-run")).expect(0).stdout
    assert f"entrypoint: {plan['entrypoint']}" in text
    assert not (place.root / "runs").exists()


def test_a_job_that_the_nodes_have_is_not_sent(place: Place) -> None:
    plan = (
        place.cli(*words(place, "--no-package", "--dry-run", "--json", job="/job/train.py:job"))
        .expect(0)
        .json
    )
    assert plan["runtime_env"] == {}
    assert " run /job/train.py:job --run-dir " in plan["entrypoint"]


def test_settings_of_the_file_count(place: Place) -> None:
    place.file("holdfast.toml", '[submit]\nretries = 3\nname = "of-the-file"\n')
    plan = place.cli(*words(place, "--dry-run", "--json")).expect(0).json
    assert plan["name"] == "of-the-file"
    assert "--retries 3" in plan["entrypoint"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--address", "http://10.1.2.3:8265"), "another machine.*--insecure"),
        (("--address", "127.0.0.1:6379"), "job server"),
        (("--env", "NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE.*not set"),
        (("--env", "A=canary"), "name alone"),
        (("--working-dir", "nowhere"), "no such directory"),
        (("--pip", "nothing.txt"), "no such file"),
        (("--retries", "-1"), "0 or more"),
        (("--spot", "x"), "LABEL=VALUE"),
        (("--workers", "x"), "whole number"),
        (("--workers", "0"), "1 or more"),
        (("--workers", "4:2"), "lower number first"),
        (("--nodes", "0"), "--nodes 0"),
        (("--standby", "-2"), "--standby -2"),
        (("--steps", "-5"), "--steps -5"),
        (("--cpus-per-worker", "-1"), "at least 0"),
        (("--grace-period", "nan"), "--grace-period nan"),
        (("--run-dir", "memory://x"), "memory of one process"),
    ],
)
def test_a_mistake_is_one_line(place: Place, more: tuple[str, ...], says: str) -> None:
    line = place.cli(*words(place, *more)).one_clear_line(2, says)
    assert "canary" not in line


def test_a_file_that_is_no_python_is_not_sent(place: Place) -> None:
    place.file("broken.py", "x = 1\ndef job(:\n")
    place.cli(*words(place, job="broken.py")).one_clear_line(1, "broken.py, line 2: invalid syntax")


def test_a_submitted_run_is_resumed_where_it_was_submitted_from(place: Place) -> None:
    """By its directory too; it is submitted anew, to the cluster that it was submitted to."""
    submitted = {"command": words(place), "folder": str(place.root)}
    run = [
        "run",
        "tiny.py",
        "--run-dir",
        "runs/one",
        "--workers",
        "1",
        "--runtime",
        "process",
        "--steps",
        "5",
    ]
    place.start(run, {"HOLDFAST_SUBMITTED": json.dumps(submitted)}).wait().expect(0)
    outcome = place.cli("resume", "runs/one", "--workers", "3").expect(75)
    again = [*words(place)[:-1], "3"]  # with 3 workers where 2 were
    assert f"holdfast {shlex.join(again)}\n" in outcome.stderr
    assert f"{HERE} does not answer" in outcome.stderr
    outcome = place.cli("clone", "runs/one", "runs/two", "--steps", "9").expect(75)
    assert outcome.stderr.splitlines()[1].endswith("--steps 9 --name two")
    gone = {"HOLDFAST_SUBMITTED": json.dumps(submitted | {"folder": "/not/here"})}
    place.start([*run[:-1], "9"], gone).wait().expect(0)
    line = place.cli("resume", "runs/one").one_clear_line(2, "submitted from /not/here", "holdfast submit")
    assert "Traceback" not in line


def test_a_job_outside_of_what_is_sent_along_is_refused(place: Place) -> None:
    (place.root / "other").mkdir()
    place.cli(*words(place, "--working-dir", "other")).one_clear_line(2, "tiny.py is not in")


def test_a_job_server_that_does_not_answer_is_named(place: Place) -> None:
    place.cli(*words(place)).one_clear_line(75, HERE, "does not answer")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with job server and token, where Ray has one: `make e2e` has."""
    if find_spec("aiohttp_cors") is None:
        pytest.skip("Ray has no job server here: pip install 'holdfast[submit]'")
    made = Cluster(tmp_path, {})
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_a_cluster_ends_in_the_same_digest_and_answers_by_its_address(
    place: Place, cluster: Cluster, reference: Reference
) -> None:
    place.env |= cluster.auth
    more = ("--cpus-per-worker", "0.5", "--name", "tiny", "--json")
    submitted = words(place, *more, address=cluster.address)
    outcome = place.cli(*submitted)
    assert outcome.done()["state_digest"] == reference()["state_digest"]
    assert "checkpoint of step 60 committed" in outcome.stderr, str(outcome)
    _assert_an_id_is_given_once(place, cluster.address)
    by_address = place.cli("status", f"{cluster.address}#tiny", "--json").expect(0).json
    assert by_address == json.loads(outcome.stdout)
    del place.env["RAY_AUTH_TOKEN_PATH"]
    place.env |= {"RAY_AUTH_TOKEN": "0" * 64}
    place.cli("status", cluster.address).one_clear_line(2, "does not let us in")


def _assert_an_id_is_given_once(place: Place, address: str) -> None:
    """Of two that submit a run at once, and so choose the same id, one is refused."""
    script = (
        "from orchestrator import ray_jobs\nfrom orchestrator.submission import Submission\n"
        "from storage.errors import RunAlive\n"
        f"server = ray_jobs.JobServer({address!r})\n"
        "taken = server.jobs()[-1].id\n"
        "ray_jobs.next_id = lambda *_: taken\n"
        "late = Submission(address=server.address, run_dir='r', command=('examples',), name='late')\n"
        "try:\n    server.submit(late, {})\nexcept RunAlive as error:\n    print(error)\n"
    )
    place.file("late.py", script)
    assert "by another as holdfast-" in place.python("late.py").stdout
