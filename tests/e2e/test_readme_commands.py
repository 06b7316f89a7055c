"""The commands of README.md that need a cluster, as a reader gives them, one after the other."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.e2e.submitting import LIMIT_S
from tests.readme import assert_shown, indented, steps

if TYPE_CHECKING:
    from tests.e2e.submitting import Submitting

pytestmark = [pytest.mark.timeout(600)]

ADDRESS, BUCKET = "http://127.0.0.1:8265", "s3://bucket/"


def test_a_reader_submits_stops_resumes_and_clones(user: Submitting) -> None:
    """The cluster's address and the bucket are those of this test."""
    job = next(step for step in steps() if step.code.startswith("# train.py\n"))
    user.place.file("train.py", job.code)
    bucket = user.new_url().rpartition("/")[0] + "/"
    commands = [step for step in indented() if any(ADDRESS in word for word in step.command)]
    assert [step.command[1] for step in commands] == ["submit", "stop", "resume", "clone"]
    for step in commands:
        words = [
            word.replace(ADDRESS, user.cluster.address).replace(BUCKET, bucket) for word in step.command[1:]
        ]
        if step.command[1] == "submit":
            words += [word for name in user.names for word in ("--env", name) if name not in words]
        if "--step" in words:  # one of which the storage was slow is skipped: a reader looks what there is
            rows = user.cli("ckpt", "ls", f"{bucket}runs/digits", "--json").expect(0).json
            there = [str(row["step"]) for row in rows if row["status"] == "complete"]
            step_at = words.index("--step") + 1
            words[step_at] = words[step_at] if words[step_at] in there else there[-1]
        outcome = user.place.start(words).wait(LIMIT_S).expect(0)
        shown = replace(
            outcome,
            stdout=outcome.stdout.replace(user.cluster.address, ADDRESS),
            stderr=outcome.stderr.replace(user.cluster.address, ADDRESS),
        )
        assert_shown(step, shown)
    first, second = user.status(f"{bucket}runs/digits"), user.status(f"{bucket}runs/longer")
    assert (first["step"], second["step"]) == (2000, 4000)
    assert re.fullmatch(r"[0-9a-f]{32,}", first["state_digest"])
