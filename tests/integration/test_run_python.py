"""`orchestrator.run` from scripts and from programs without a file; and two who ask for opposite things."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped,unused-ignore]

from tests.integration.harness import Progress, Started, latest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Reference
    from tests.integration.harness import Outcome, Place

NOTEBOOK = """
import json, sys
import numpy as np
import orchestrator as orc
from workers import nn
from workers.data import ArrayDataset

SCALE = 0.5

class Paired(ArrayDataset):
    "A class that only this program knows."

    def take(self, indices):
        x, y = super().take(indices)
        return scaled(x), y

def scaled(x):
    return x * np.float32(SCALE)

def model():
    m = nn.Sequential([nn.Input((6,)), nn.Dense(5, activation="relu"), nn.Dense(3)])
    loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
    m.compile(nn.optimizers.SGD(0.1), loss, ["accuracy"])
    return m

def data():
    rng = np.random.default_rng(1)
    return Paired(rng.standard_normal((40, 6)).astype("float32"), rng.integers(0, 3, 40))

def make(steps):
    return orc.Job(model=model, data=lambda: data(), batch_size=8, microbatches=2, steps=steps,
                   validation=data, checkpoints=orc.Checkpoints(every_steps=None))

def train(run_dir, steps=12, workers=2):
    return orc.run(make(steps), run_dir, workers=workers, runtime="process")
"""

MAIN = """
if __name__ == "__main__":
    result = train(sys.argv[1] if len(sys.argv) > 1 else "run")
    print(json.dumps({"status": result.status, "step": result.step, "digest": result.state_digest,
                      "metrics": result.metrics, "attempt": result.attempt}))
"""


def result_of(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outcome.expect(0).stdout)
    return found


def program(place: Place, *words: str, stdin: str | None = None) -> Outcome:
    """Run Python with these arguments."""
    run = Started(place, [sys.executable, *words], place.env, stdin)
    place.started.append(run)
    return run.wait(60)


def test_a_script_a_c_option_and_standard_input_give_the_same_bits(place: Place) -> None:
    script: Path = place.file("script.py", NOTEBOOK + MAIN)
    first = result_of(program(place, str(script), "a"))
    assert (first["status"], first["step"], first["attempt"]) == ("done", 12, 1)
    assert set(first["metrics"]) == {"accuracy", "val_loss", "val_accuracy"}
    second = result_of(program(place, "-c", NOTEBOOK + MAIN, "b"))
    third = result_of(program(place, "-", "c", stdin=NOTEBOOK + MAIN))
    assert first["digest"] == second["digest"] == third["digest"]
    assert first["metrics"] == second["metrics"] == third["metrics"]
    place.assert_nothing_left()


def test_two_runs_in_one_program_and_more_steps_of_the_first(place: Place) -> None:
    """A notebook's way: train, look, train on; signal handlers and everything else are left as they were."""
    text = (
        NOTEBOOK
        + """
import signal
before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
one = train("run", 6)
two = train("run", 12, workers=1)
again = train("run", 12)
whole = train("whole", 12)
assert before == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
print(json.dumps([[r.step, r.attempt, r.state_digest, r.metrics.get("val_loss")]
                  for r in (one, two, again, whole)]))
"""
    )
    one, two, again, whole = json.loads(program(place, "-c", text).expect(0).stdout)
    assert one[:2] == [6, 1]
    assert two[:2] == [12, 2]
    assert again == two
    assert two[2:] == whole[2:]
    assert one[2] != two[2]
    place.assert_nothing_left()


def test_run_in_another_thread_trains_too(place: Place) -> None:
    text = (
        NOTEBOOK
        + """
import threading
found = []
thread = threading.Thread(target=lambda: found.append(train("run", 5)))
thread.start(); thread.join()
print(json.dumps([found[0].status, found[0].step]))
"""
    )
    assert json.loads(program(place, "-c", text).expect(0).stdout) == ["done", 5]
    place.assert_nothing_left()


def test_what_run_raises_is_caught_by_type_and_tells_the_users_error(place: Place) -> None:
    text = (
        NOTEBOOK
        + """
from storage import errors
import threading
def broken():
    raise KeyError("the data is missing")
job = make(5)
from dataclasses import replace
for change, kind in [
    ({"data": broken}, errors.UserCodeError),
    ({"model": lambda: 3}, errors.ConfigurationError),
    ({"model": (lambda lock: lambda: lock)(threading.Lock())}, errors.ConfigurationError),
]:
    try:
        orc.run(replace(job, **change), "run", workers=1, runtime="process")
    except kind as error:
        print(type(error).__name__, str(error).splitlines()[-1])
        assert kind is not errors.UserCodeError or "the data is missing" in str(error)
    else:
        raise SystemExit("accepted")
"""
    )
    outcome = program(place, "-c", text).expect(0)
    assert len(outcome.stdout.splitlines()) == 3
    place.assert_no_process()


# -- two who want opposite things ------------------------------------------------------------------------


def test_a_run_that_is_taken_over_ends_and_the_newcomer_finishes(place: Place, reference: Reference) -> None:
    """Else the two kill each other's processes by turns until the restarts of one are used up."""
    progress = Progress(place.root / "progress")
    settings = {"delay_s": 0.01, "progress": progress, "every": 1000}
    first = place.begin(workers=1, steps=120, settings=settings)
    first.until(lambda: progress.steps > 5, "training")
    second = place.begin(workers=1, steps=120, settings=settings, more=["--take-over"])
    outcome = first.wait(30)
    assert outcome.code == 4, str(outcome)
    assert outcome.result["restarts"] == 0, str(outcome)
    done = second.wait(60).done()
    assert done["attempt"] == 2
    assert done["state_digest"] == reference(steps=120)["state_digest"]
    place.assert_nothing_left()


def test_a_run_that_was_asked_to_stop_stops_although_its_agent_dies(
    place: Place, reference: Reference
) -> None:
    """Invariant F. The writer is held, so that the stop lasts until the agent is killed."""
    progress = Progress(place.root / "progress")
    run = place.begin(steps=400, settings={"delay_s": 0.01, "progress": progress, "every": 1000})
    run.until(lambda: progress.steps > 10, "training")
    (writer,) = run.processes("writer")
    (agent,) = run.processes("agent")
    writer.suspend()
    os.kill(run.popen.pid, signal.SIGTERM)
    time.sleep(1.0)
    agent.kill()
    outcome = run.wait(20).expect(75)
    assert outcome.result["step"] < 400
    assert "going on from" not in outcome.stderr, "it was started again"
    place.assert_no_process()
    assert place.run(steps=400, settings={"every": 1000}).done()["step"] == 400
    assert reference(steps=400)["state_digest"] == latest_digest(place)
    place.assert_nothing_left(sockets=False)


def latest_digest(place: Place) -> str:
    manifest = json.loads((latest(place.root / "run").path / "manifest.json").read_bytes())
    return str(manifest["state_digest"])


def test_a_run_whose_agent_hangs_can_still_be_stopped(place: Place) -> None:
    progress = Progress(place.root / "progress")
    run = place.begin(steps=4000, settings={"delay_s": 0.01, "progress": progress})
    run.until(lambda: progress.steps > 5, "training")
    (agent,) = run.processes("agent")
    agent.suspend()
    time.sleep(0.5)
    for _ in range(2):
        os.kill(run.popen.pid, signal.SIGINT)
        time.sleep(0.5)
    gone, alive = psutil.wait_procs([psutil.Process(run.popen.pid)], timeout=15)
    run.kill_everything()
    assert gone, f"Ctrl-C twice does not end it{run.outcome()}"
    assert not alive


def test_a_killed_agent_shows_no_traceback_of_its_workers(place: Place) -> None:
    progress = Progress(place.root / "progress")
    run = place.begin(steps=150, settings={"delay_s": 0.005, "progress": progress})
    for i in range(4):
        run.until(lambda i=i: progress.steps > 10 + 25 * i, "training")  # type: ignore[misc]
        for agent in run.processes("agent"):
            agent.kill()
    outcome = run.wait(60)
    outcome.done()
    assert "Traceback" not in outcome.stderr, str(outcome)
    place.assert_nothing_left()


RULES = (
    NOTEBOOK
    + """
def model():
    m = nn.Sequential([
        nn.Input((6,)),
        nn.Dense(120, activation="relu", kernel_constraint="unit_norm", kernel_regularizer="l2"),
        nn.Dense(400, activation="relu", kernel_constraint=nn.constraints.MaxNorm(0.5)),
        nn.Dense(5, trainable=False),
        nn.Dense(3, bias_constraint="non_neg"),
    ])
    rate = nn.optimizers.schedules.CosineDecay(0.01, 12)
    optimizer = nn.optimizers.AdamW(rate, clipnorm=0.05, use_ema=True, gradient_accumulation_steps=2)
    m.compile(optimizer, nn.losses.SparseCategoricalCrossentropy(from_logits=True))
    return m

results = [train("alone", workers=1), train("shared"), train("resumed", 5), train("resumed")]
print(json.dumps([[r.step, r.state_digest] for r in results]))
"""
)


def test_norms_constraints_and_averages_are_the_same_for_every_number_of_workers(place: Place) -> None:
    alone, shared, half, resumed = json.loads(program(place, "-c", RULES).expect(0).stdout)
    assert half[0] == 5
    assert half[1] != alone[1]
    assert alone == shared == resumed
    place.assert_nothing_left()


SEQUENCES = (
    NOTEBOOK
    + """
def model():
    tokens = nn.Input((6,), dtype="int32")
    x = nn.Embedding(9, 8, mask_zero=True)(tokens)
    x = nn.Dropout(0.3)(nn.LSTM(8, return_sequences=True, dropout=0.2, recurrent_dropout=0.2)(x))
    x = nn.layers.add([x, nn.MultiHeadAttention(2, 4, dropout=0.1)(x, x)])
    m = nn.Model(tokens, nn.Dense(3)(nn.Bidirectional(nn.GRU(4))(x)))
    m.compile("adam", nn.losses.SparseCategoricalCrossentropy(from_logits=True))
    return m

def data():
    rng = np.random.default_rng(1)
    return ArrayDataset(rng.integers(0, 9, (40, 6)), rng.integers(0, 3, 40))

results = [train("alone", workers=1), train("shared")]
print(json.dumps([[r.step, r.state_digest] for r in results]))
"""
)


def test_sequences_with_masks_and_dropout_are_the_same_for_every_number_of_workers(place: Place) -> None:
    alone, shared = json.loads(program(place, "-c", SEQUENCES).expect(0).stdout)
    assert alone == shared
    place.assert_nothing_left()
