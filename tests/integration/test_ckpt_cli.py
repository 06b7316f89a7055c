"""`holdfast ckpt`: what it prints, what it finds, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

import storage
from tests.integration.harness import latest, saved, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.harness import Place

PACE = {"delay_s": 0.01}
"""Slow enough that no checkpoint falls due while another is written: that one would be skipped."""


@pytest.fixture
def run(place: Place) -> Path:
    """A finished run with checkpoints at 20, 40 and 60."""
    place.run(workers=2, settings=PACE).expect(0)
    return place.root / "run"


def as_json(place: Place, *words: str, code: int = 0) -> Any:
    """What a command prints with --json, which must be one value and nothing else."""
    outcome = place.cli("ckpt", *words, "--json").expect(code)
    return json.loads(outcome.stdout)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_show_tells_variables_lineage_metrics_and_who_wrote_it(place: Place, run: Path) -> None:
    shown = as_json(place, "show", "run")
    assert (shown["step"], shown["attempt"], shown["parent"]) == (60, 1, {"step": 40, "attempt": 1})
    assert shown["metrics"]["loss"] > 0
    assert shown["created_by"].keys() == {"host", "pid"}
    assert shown["lineage"] == {"newest_attempt": 1, "chain": []}
    kernel = next(v for v in shown["variables"] if v["name"] == "params/dense/kernel")
    assert (kernel["shape"], kernel["dtype"], kernel["nbytes"]) == ([16, 16], "float32", 1024)
    text = place.cli("ckpt", "show", "run#40").expect(0).stdout
    assert "params/dense/kernel" in text
    assert "step          40, attempt 1" in text


def test_verify_names_every_fault_and_exits_with_3(place: Place, run: Path) -> None:
    assert as_json(place, "verify", "run", "--all", "--read-data")["ok"] is True
    listed = as_json(place, "ls", "run")
    assert [row["verified"] for row in listed] == [True] * 3
    newest, before = latest(run).path, saved(run)[-2].path
    flip(newest / "params" / "c" / "0", 7)
    (before / "slots" / "adam_m" / "c" / "0").unlink()
    found = as_json(place, "verify", "run", "--all", "--read-data", code=3)
    faults = {row["step"]: row["faults"] for row in found["checkpoints"]}
    assert [fault["object"] for fault in faults[60]] == ["params/c/0"]
    assert faults[60][0]["start"] == 0
    assert faults[60][0]["stop"] > 7
    assert [fault["object"] for fault in faults[40]] == ["slots/adam_m/c/0"]
    assert faults[20] == []
    text = place.cli("ckpt", "verify", str(newest), "--read-data").expect(3).stdout
    assert "params/c/0, bytes 0 to " in text
    place.cli("ckpt", "verify", str(newest)).expect(0)  # data was not asked for
    share = as_json(place, "verify", str(newest), "--read-data-subset", "100%", "--seed", "5", code=3)
    assert share["seed"] == 5


def test_a_damaged_checkpoint_goes_into_quarantine_when_a_run_resumes(place: Place, run: Path) -> None:
    newest = latest(run).path
    flip(newest / "params" / "c" / "0", 7)
    place.forget_memory()
    place.run(steps=70, settings=PACE).expect(0)
    rows = {row["directory"]: row for row in as_json(place, "ls", "run")}
    assert rows[f"checkpoints/{newest.name}"]["status"] == "quarantined"
    record = json.loads((run / "quarantine" / f"{newest.name}.json").read_text())
    assert "params/c/0" in record["reason"]
    assert as_json(place, "show", "run")["step"] == 70


def test_a_pinned_checkpoint_outlives_retention(place: Place, run: Path) -> None:
    place.cli("ckpt", "pin", "run#20").expect(0)
    place.run(steps=140, settings=PACE).expect(0)
    assert [row["step"] for row in as_json(place, "ls", "run")] == [20, 60, 100, 120, 140]
    place.cli("ckpt", "unpin", "run#20").expect(0)
    place.run(steps=160, settings=PACE).expect(0)
    steps = [row["step"] for row in as_json(place, "ls", "run")]
    assert steps == [120, 140, 160]


def test_diff_tells_what_differs(place: Place, run: Path) -> None:
    found = as_json(place, "diff", "run#40", "run")
    assert not found["is_equal"]
    assert {d["name"] for d in found["different"]} >= {"params/dense/kernel", "slots/adam_m/dense/kernel"}
    assert all(d["max_abs"] >= d["mean_abs"] > 0 for d in found["different"])
    assert as_json(place, "diff", "run", "run")["is_equal"] is True
    assert "params/dense/kernel" in place.cli("ckpt", "diff", "run#40", "run").expect(0).stdout


def test_gc_deletes_what_an_earlier_attempt_left_and_tells_so(place: Place, run: Path) -> None:
    left = run / "checkpoints" / "step-000000000050-a00000001-0123456789abcdef" / "params" / "c"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"half")
    (left / ".tmp-1").write_bytes(b"scratch")
    assert as_json(place, "gc", "run", "--grace", "0")["deleted"] == []  # of the newest attempt
    place.run(steps=80, settings=PACE).expect(0)
    assert left.exists()  # for an hour
    told = as_json(place, "gc", "run", "--grace", "0", "--dry-run")
    assert [row["directory"] for row in told["deleted"]] == [f"checkpoints/{left.parents[1].name}"]
    assert left.exists()
    assert as_json(place, "gc", "run", "--grace", "0")["deleted"] == told["deleted"]
    assert not left.parents[1].exists()


def test_a_run_goes_on_from_a_copy_with_the_same_bits(place: Place, run: Path) -> None:
    copied = as_json(place, "cp", "run#40", "copy")
    assert (copied["step"], copied["was_there"]) == (40, False)
    assert as_json(place, "cp", "run#40", "copy")["was_there"] is True
    place.cli("ckpt", "cp", "run#20", "copy").one_clear_line(2, "step 40", "step 20")
    again = place.run(run_dir="copy", workers=3, settings=PACE).done()
    original = place.cli("status", "run", "--json").done()
    assert again["state_digest"] == original["state_digest"]
    assert [row["step"] for row in as_json(place, "ls", "copy")] == [40, 60]


def test_exports_are_read_by_other_libraries(place: Place, run: Path) -> None:
    params = zarr.open_group(str(latest(run).path), mode="r")["params"]
    entry = params.attrs["variables"]["dense/kernel"]
    kernel = params[entry["offset"] : entry["offset"] + 256].reshape(entry["shape"])
    as_json(place, "export", "run", "--to", "x.npz", "--names", "params/*")
    with np.load(place.root / "x.npz") as found:
        assert found["params/dense/kernel"].tobytes() == kernel.tobytes()
        assert not any(name.startswith("slots") for name in found.files)
    place.cli("ckpt", "export", "run", "--to", "named").expect(0)
    group = zarr.open_group(str(place.root / "named"), mode="r")
    assert np.array_equal(group["params/dense/kernel"][...], kernel)
    place.cli("ckpt", "export", "run", "--to", "x.npz").one_clear_line(2, "x.npz", "there already")


def test_a_checkpoint_is_named_from_inside_its_run(place: Place, run: Path) -> None:
    name = f"checkpoints/{latest(run).path.name}"
    inside = [sys.executable, "-m", "orchestrator", "ckpt", "show", name, "--json"]
    done = subprocess.run(inside, cwd=run, env=place.env, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["step"] == 60


def test_what_anyone_may_have_written_is_no_command_to_the_terminal(place: Place) -> None:
    metadata = {"a\nline": "\x1b[2J\x1b]0;title\x07 two\nlines\r"}
    storage.save(str(place.root / "w"), {"x": np.ones(3)}, metadata=metadata)
    shown = place.cli("ckpt", "show", "w").expect(0).stdout
    assert all(line.isprintable() for line in shown.splitlines())
    assert r"a\nline \x1b[2J" in shown
    assert as_json(place, "show", "w")["metadata"] == metadata


def test_output_that_cannot_be_written_is_an_error_and_a_closed_one_is_not(place: Place, run: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "ckpt", "ls", str(run)]
    for words in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*command, *words], env=place.env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
            )
        assert done.returncode == 75
        assert done.stderr.splitlines() == [
            "holdfast: error: cannot write to standard output: No space left on device"
        ]
    closed = ["sh", "-c", '"$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, env=place.env, timeout=60).returncode == 0


@pytest.mark.parametrize("target", ["x.npz", "x.safetensors", "named"])
def test_an_interrupted_export_leaves_nothing_and_says_so(place: Place, target: str) -> None:
    storage.save(str(place.root / "w"), {"x": np.ones(96 << 20, np.float32)})
    out = place.root / "out"
    out.mkdir()
    words = [sys.executable, "-m", "orchestrator", "ckpt", "export", "w", "--to", str(out / target), "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, cwd=place.root, env=place.env, stdout=pipe, stderr=pipe, text=True
    ) as process:
        wait_for(lambda: any(out.rglob("*")), "a file to be written")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(said)["status"] == "interrupted"
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        (["show", "nothing"], ["no run", "nothing"]),
        (["verify", "run#41"], ["step 41", "20, 40, 60"]),
        (["verify", "run#x"], ["'x' is not a step"]),
        (["verify", "run", "--read-data-subset", "200%"], ["200%", "5%"]),
        (["diff", "run", "s4://bucket/x"], ["s4://"]),
        (["export", "run", "--to", "x.npz", "--names", "none"], ["none", "it holds params/"]),
        (["cp", "run", "/proc/x"], ["/proc/x"]),
        (["pin", "run#1"], ["step 1"]),
        (["ls", "nothing"], ["nothing"]),
        (["show", "run#" + "1" * 5000], [r"1\.\.\.' is not a step"]),
        (["verify", "run#20", "--all"], ["--all takes the directory of a run"]),
        (["verify", "run", "--read-data", "--read-data-subset", "5%"], ["reads every byte"]),
        (["gc", "run", "--grace", "nan"], ["--grace nan"]),
        (["gc", "run", "--grace", "-1"], ["--grace -1"]),
        (["export", "run", "--to", "run/run.json/x.npz"], ["x.npz", "not a directory"]),
    ],
)
def test_a_mistake_is_one_clear_line(shared_place: Place, words: list[str], needles: list[str]) -> None:
    if not (shared_place.root / "run").exists():
        shared_place.run(workers=2, settings=PACE).expect(0)
    outcome = shared_place.cli("ckpt", *words)
    assert outcome.code in (1, 2), outcome
    outcome.one_clear_line(outcome.code, *needles)
